from typing import Any

from django.db import migrations

from safemigrate.operations import Populate


def expires(row: Any) -> Any:
    return None if row.pk % 9 == 0 else row.pub_date


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0003_nullable")]
    operations = [Populate("question", "expires_date", expires, nulls="leave")]
