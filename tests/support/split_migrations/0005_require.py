from django.db import migrations, models

from safemigrate.operations import SetNotNull


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0004_fill")]
    operations = [SetNotNull("question", "expires_date", models.DateTimeField("expires at"))]
