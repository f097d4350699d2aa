from datetime import timedelta

from django.db import migrations, models
from django.db.models import F

from safemigrate.operations import RequireField


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0003_nullable")]
    operations = [
        RequireField(
            "question",
            "expires_date",
            models.DateTimeField("expires at", db_index=True),
            populate=F("pub_date") + timedelta(days=30),
        )
    ]
