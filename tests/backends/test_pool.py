"""With psycopg 3 and Django's own pool, however small, a run has the connections that it needs."""

from __future__ import annotations

import time

import pytest

from tests.support.psycopg3 import Psycopg3Project, install, make_project  # noqa: F401

pytestmark = pytest.mark.slow

ROWS = 30_000
#: How long Django's pool lets one wait for a connection, in seconds.
POOL_TIMEOUT = 30


@pytest.mark.parametrize("pool", [True, {"min_size": 1, "max_size": 1}], ids=["as it comes", "of one"])
@pytest.mark.parametrize("workers", [1, 2])
def test_migrate_waits_for_no_connection_of_the_pool(
    psycopg3_project: Psycopg3Project, pool: object, workers: int
) -> None:
    project = psycopg3_project
    project.use(f"SAFEMIGRATE_WORKERS = {workers}", pool=pool)
    project.write("polls/populate.py", "def later(question):\n    return question.pub_date\n")
    project.must("makemigrations", "-v0")
    project.must("migrate", "-v0")
    project.seed("default", ROWS)
    project.add_field()
    project.must("add_required_field", "polls.Question.expires_date", "--populate", "polls.populate.later")
    began = time.monotonic()
    said = project.must("migrate")
    assert time.monotonic() - began < POOL_TIMEOUT - 5
    assert "No other worker could start" not in said
    assert project.must(
        "shell",
        "-v0",
        "-c",
        "from django.db.backends.postgresql.psycopg_any import is_psycopg3; from django.db.models import F; "
        "from polls.models import Question; "
        "print(is_psycopg3, Question.objects.filter(expires_date=F('pub_date')).count())",
    ).split() == ["True", str(ROWS)]
