from django.db import migrations, models

from safemigrate.operations import AddRequiredField
from tests.support.common_value_migrations import POPULATE


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [AddRequiredField("question", "expires_date", models.DateTimeField("expires at"), POPULATE)]
