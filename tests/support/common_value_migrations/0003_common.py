from django.db import migrations, models
from django.db.models import Case, When

from safemigrate.operations import AddRequiredField
from tests.support.common_value_migrations import EARLY, LATE, SOON


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [
        AddRequiredField(
            "question",
            "expires_date",
            models.DateTimeField("expires at"),
            Case(When(EARLY, then=SOON), default=LATE, output_field=models.DateTimeField()),
        )
    ]
