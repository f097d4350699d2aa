"""A gate between a backfill outside `migrate` and what needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import migrations, models

from safemigrate.exceptions import InvalidField, NotFinished
from safemigrate.operations import AddNullableField, Populate, RequireBackfill, SetNotNull
from tests.support.projects import EXPIRES, Project
from tests.support.sandbox import APP, MigrationSandbox

FIELD = models.DateTimeField("expires at")
GATE = RequireBackfill(f"{APP}.Question.expires_date")


def test_it_stops_until_no_row_is_null(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    sandbox.run(AddNullableField("question", "expires_date", FIELD))
    with pytest.raises(NotFinished) as caught:
        sandbox.run(GATE, migrations.RemoveField("question", "pub_date"))
    assert str(caught.value) == (
        f"boxes.Question.expires_date on {alias if alias != 'sqlite' else 'default'}: 5 rows are still NULL, and this "
        "migration of boxes needs them filled. Nothing was changed. Type:\n"
        f"    python manage.py backfill run boxes.Question.expires_date --database {sandbox.alias}\n"
        "Then run migrate again."
    )
    assert sandbox.column("pub_date") is not None
    sandbox.run(Populate("question", "expires_date", models.F("pub_date")))
    before = sandbox.state
    sandbox.run(GATE)
    sandbox.undo(GATE, before=before)
    sandbox.run(SetNotNull("question", "expires_date", FIELD), GATE)


def test_on_an_empty_table_it_goes_on(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.run(AddNullableField("question", "expires_date", FIELD), GATE)


def test_sqlmigrate_asks_nothing(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    sandbox.run(AddNullableField("question", "expires_date", FIELD))
    assert "Wait until every row has a value in boxes.Question.expires_date" in sandbox.sql(GATE)


@pytest.mark.parametrize("label", ["polls.Question-expires", "expires_date", "a.b.c.d", "a.b-c.d"])
def test_what_is_no_label_is_refused_when_it_is_written(label: str) -> None:
    with pytest.raises(InvalidField, match=r"name the field as app\.Model\.field"):
        RequireBackfill(label)


def test_a_field_that_is_not_there_is_refused_in_words(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    with pytest.raises(InvalidField, match="have no such field"):
        sandbox.run(RequireBackfill(f"{APP}.Question.nothing"))


def test_written_and_read_again_it_is_the_same() -> None:
    name, args, kwargs = GATE.deconstruct()
    assert RequireBackfill(*args, **kwargs).deconstruct() == (name, args, kwargs)


@pytest.mark.slow
def test_code_asks_the_rows(tmp_path: Path) -> None:
    project = Project(tmp_path).made()
    project.add_field(EXPIRES)
    project.seed("default", 5)
    project.must("add_required_field", "polls.Question.expires_date", "--populate", "Now()", "--phases", "3")
    asked = (
        "shell",
        "-v0",
        "-c",
        "import safemigrate; print(safemigrate.is_finished('polls.Question.expires_date'))",
    )
    assert project.must(*asked) == "False\n"
    project.must("migrate", "polls", "0002", "-v0")
    assert project.must(*asked) == "False\n"
    project.must("migrate", "polls", "0003", "-v0")
    assert project.must(*asked) == "True\n"
    project.must("migrate", "-v0")
    assert project.must(*asked) == "True\n"
    wrong = project.run(*asked[:-1], "import safemigrate; safemigrate.is_finished('polls.Question.votes')")
    assert "No migration fills polls.question.votes" in wrong.stderr
