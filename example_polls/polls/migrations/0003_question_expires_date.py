from datetime import timedelta

from django.db import migrations, models
from django.db.models import F
from safemigrate.operations import AddRequiredField


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("polls", "0002_alter_question_pub_date")]

    operations = [
        AddRequiredField(
            model_name="question",
            name="expires_date",
            field=models.DateTimeField("expires at"),
            populate=F("pub_date") + timedelta(days=30),
        ),
    ]
