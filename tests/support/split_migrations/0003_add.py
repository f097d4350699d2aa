from django.db import migrations, models

from safemigrate.operations import AddNullableField


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [AddNullableField("question", "expires_date", models.DateTimeField("expires at"))]
