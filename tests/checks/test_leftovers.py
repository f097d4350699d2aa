"""W009: what an attempt left that no migration file knows of, and that alone."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from django.db.models import F

from safemigrate.backends import for_connection
from safemigrate.checks.leftovers import leftovers
from safemigrate.operations import AddNullableField, GuardWrites, UnguardWrites
from safemigrate.types import field_of
from tests.management.test_abandon import ABANDON, BAD, failed  # noqa: F401  a fixture
from tests.management.test_add_required_field import COMMAND, LABEL
from tests.support.projects import EXPIRES, Project
from tests.support.sandbox import MigrationSandbox

FIELD = models.DateTimeField("expires at")


@pytest.fixture
def sandbox(alias: str, settings: Any) -> MigrationSandbox:
    """A full table with the column, whose migrations are in no file."""
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    made = MigrationSandbox(alias)
    made.fill(5)
    made.run(AddNullableField("question", "expires_date", FIELD))
    return made


def undo(sandbox: MigrationSandbox, hints: list[str]) -> None:
    for hint in hints:
        statements = hint.partition("To undo it: ")[2].partition("\n")[0]
        with sandbox.connection.cursor() as cursor:
            for statement in statements.split("; "):
                cursor.execute(statement)


def test_a_guard_is_named_with_the_statement_that_drops_it(sandbox: MigrationSandbox) -> None:
    assert list(leftovers(sandbox.alias)) == []
    sandbox.run(GuardWrites("question", "expires_date", F("pub_date")))
    found = list(leftovers(sandbox.alias))
    assert {each.id for each in found} == {"safemigrate.W009"}
    assert all("trigger " in each.msg and "of the table boxes_question" in each.msg for each in found)
    undo(sandbox, [str(each.hint) for each in found])
    assert list(leftovers(sandbox.alias)) == []
    sandbox.run(UnguardWrites("question", "expires_date"))


@pytest.mark.parametrize("alias", ["mariadb", "postgresql_old"], indirect=True)
def test_so_is_a_helper_that_refuses_null(sandbox: MigrationSandbox) -> None:
    database = for_connection(sandbox.connection)
    model = sandbox.model()
    required = database.require(model, model, field_of(model, "expires_date"))
    for step in required.reject_nulls:
        database.execute(*step.statements)
    found = list(leftovers(sandbox.alias))
    assert len(found) == len(required.reject_nulls)
    undo(sandbox, [str(each.hint) for each in found])
    assert list(leftovers(sandbox.alias)) == []


def check(project: Project) -> str:
    done = project.run("check", "--database", "default")
    return f"{done.stdout}{done.stderr}"


def test_a_column_whose_file_is_gone_is_named_until_it_is_given_up(failed: Project) -> None:  # noqa: F811
    """And nothing is said of an attempt whose file is there."""
    assert "W009" not in check(failed)
    failed.path("polls/migrations/0002_question_expires_date.py").unlink()
    assert "W009" not in check(failed)  # models.py has it yet: the next file takes the column on.
    with_field = failed.path("polls/models.py").read_text()
    failed.write("polls/models.py", with_field.replace(EXPIRES, ""))
    said = check(failed)
    assert (
        "(safemigrate.W009) On default there is the column expires_date of the table polls_question" in said
    )
    assert f"add_required_field {LABEL} --abandon --database default" in said
    failed.write("polls/models.py", with_field)
    failed.must(*ABANDON, "--no-input")
    failed.write("polls/models.py", with_field.replace(EXPIRES, ""))
    assert "W009" not in check(failed)


def test_a_guard_that_is_kept_on_purpose_is_none(failed: Project) -> None:  # noqa: F811
    failed.must(*ABANDON, "--no-input")
    failed.path("polls/migrations/0002_question_expires_date.py").unlink()
    failed.must(COMMAND, LABEL, "--populate", "F('pub_date')", "--phases", "3")
    failed.must("migrate", "polls", "0002")
    assert "W009" not in check(failed)
    assert failed.sql("default", "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'") == [(2,)]
    for path in failed.path("polls/migrations").glob("000[34]*.py"):
        path.unlink()
    assert "W009" not in check(failed)
