from django.db import migrations

from safemigrate.operations import Populate
from tests.support import replaceable


def expires_date(question):
    return replaceable.value(question)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0003_add")]
    operations = [Populate("question", "expires_date", expires_date)]
