"""add_required_field --abandon: what an attempt left is shown, and undone."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections

from safemigrate.backends import for_connection
from safemigrate.models import BackfillRun
from tests.management.test_add_required_field import COMMAND, LABEL, required
from tests.management.test_require_field import nullable  # noqa: F401  a fixture
from tests.operations.test_guards import triggers
from tests.support.processes import Polls
from tests.support.projects import EXPIRES, MODELS, Project
from tests.support.sandbox import Statements
from tests.support.sessions import run

ABANDON = (COMMAND, LABEL, "--abandon")
BAD = """\
def expires_date(question):
    return None if question.pk == 3 else question.pub_date
"""


@pytest.fixture
def failed(tmp_path: Path) -> Project:
    """A project whose migration has failed for good: one row gets no value."""
    project = Project(tmp_path).made()
    project.add_field(EXPIRES)
    project.seed("default", 5)
    project.must("migrate", "safemigrate", "-v0")
    project.write("polls/populate.py", BAD)
    project.must(COMMAND, LABEL, "--populate", "polls.populate.expires_date")
    assert project.run("migrate", "polls").returncode == 1
    return project


def columns(project: Project, alias: str = "default") -> list[str]:
    return [row[1] for row in project.sql(alias, "PRAGMA table_info(polls_question)")]


@pytest.mark.slow
def test_it_shows_the_statements_undoes_them_and_closes_the_run(failed: Project) -> None:
    assert "expires_date" in columns(failed)
    shown = failed.must(*ABANDON, "--dry-run")
    assert "polls.Question.expires_date on default: to be undone:\n" in shown
    assert "polls.Question.expires_date on archive: nothing is left of an attempt.\n" in shown
    assert "expires_date" in columns(failed)

    refused = failed.run(*ABANDON)
    assert refused.returncode == 1
    assert "To undo it without being asked, add --no-input." in refused.stderr

    out = failed.must(*ABANDON, "--no-input")
    assert "polls.Question.expires_date on default: undone, run 1 cancelled.\n" in out
    assert "still there: polls.0002_question_expires_date." in out
    assert "expires_date" not in columns(failed)
    assert failed.sql("default", "SELECT status FROM safemigrate_backfillrun") == [("cancelled",)]
    assert failed.sql("default", "SELECT count(*) FROM polls_question") == [(5,)]
    assert "nothing is left" in failed.must(*ABANDON, "--no-input")
    assert "No changes detected" in failed.must("makemigrations", "--check", "--dry-run")


def test_after_it_the_field_may_be_given_up_or_tried_again(failed: Project) -> None:
    failed.must(*ABANDON, "--no-input")
    failed.write("polls/populate.py", BAD.replace("None if question.pk == 3 else ", ""))
    failed.must("migrate", "-v0")
    assert required(failed, "default")
    again = failed.run(*ABANDON, "--no-input", "--database", "default")
    assert again.returncode == 1
    assert "is required by a migration that is applied: nothing is to be given up" in again.stderr


def test_the_file_may_be_gone_already(failed: Project) -> None:
    failed.path("polls/migrations/0002_question_expires_date.py").unlink()
    failed.must(*ABANDON, "--no-input")
    assert "expires_date" not in columns(failed)


def test_neither_file_nor_field_is_said_in_words(failed: Project) -> None:
    failed.path("polls/migrations/0002_question_expires_date.py").unlink()
    failed.write("polls/models.py", MODELS)
    error = failed.run(*ABANDON, "--no-input").stderr
    assert "Neither models.py nor the migrations have polls.Question.expires_date" in error
    assert "Traceback" not in error


def test_of_three_files_what_is_applied_stays(tmp_path: Path) -> None:
    project = Project(tmp_path).made()
    project.add_field(EXPIRES)
    project.seed("default", 3)
    project.must(COMMAND, LABEL, "--populate", "Now()", "--phases", "3")
    project.must("migrate", "polls", "0002", "-v0")
    guards = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"
    assert project.sql("default", guards) == [(2,)]
    out = project.must(*ABANDON, "--no-input", "--database", "default")
    assert out == "polls.Question.expires_date on default: nothing is left of an attempt.\n"
    assert project.sql("default", guards) == [(2,)]
    assert "expires_date" in columns(project)


def test_a_nullable_field_stays_nullable_with_its_values(nullable: Project) -> None:  # noqa: F811
    nullable.seed("default", 5)
    nullable.sql("default", "UPDATE polls_question SET expires_date = pub_date WHERE id = 1")
    nullable.write("polls/populate.py", BAD)
    nullable.must(COMMAND, LABEL, "--populate", "polls.populate.expires_date")
    assert nullable.run("migrate", "polls").returncode == 1
    out = nullable.must(*ABANDON, "--no-input", "--database", "default")
    assert out == "polls.Question.expires_date on default: nothing is left of an attempt.\n"
    assert nullable.sql("default", "SELECT count(*) FROM polls_question WHERE expires_date IS NULL") == [(1,)]


def test_a_database_that_does_not_answer_is_named(failed: Project) -> None:
    away = '{"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "1", "NAME": "away"}'
    failed.write("settings.py", f'{failed.read("settings.py")}DATABASES["archive"] = {away}\n')
    done = failed.run(*ABANDON, "--no-input")
    assert done.returncode == 1
    assert "archive could not be looked at: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "expires_date" in columns(failed)
    failed.must(*ABANDON, "--no-input", "--database", "default")
    assert "expires_date" not in columns(failed)


@pytest.mark.parametrize("options", [("--migrate",), ("--plan",), ("--populate", "0")])
def test_it_goes_with_no_other_work(failed: Project, options: tuple[str, ...]) -> None:
    done = failed.run(*ABANDON, *options)
    assert done.returncode == 1
    assert "--abandon undoes an attempt" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_stopped_at_any_statement_it_leaves_nothing_behind(
    alias: str, environment: dict[str, str], settings: Any
) -> None:
    """Whatever statement an attempt was stopped at, nothing of it is there afterwards."""
    settings.SAFEMIGRATE_BATCH_SIZE = 50
    polls = Polls(alias, environment, rows=100)
    connection = connections[alias]
    clean = catalogue(alias)
    statements = Statements()
    with connection.execute_wrapper(statements):
        call_command("migrate", "polls", database=alias, verbosity=0)
    call_command("migrate", "polls", "0002", database=alias, verbosity=0)
    assert catalogue(alias) == clean
    for at in statements.stops[1:]:
        with pytest.raises(Statements.Crash), connection.execute_wrapper(Statements(stop_at=at)):
            call_command("migrate", "polls", database=alias, verbosity=0)
            raise AssertionError(f"not stopped at {at}")
        connection.close()
        # From NOT NULL on there is nothing to give up: it is to be ended, and unapplied.
        if refusal := abandoned(alias):
            assert "required" in refusal
            call_command("migrate", "polls", database=alias, verbosity=0)
            call_command("migrate", "polls", "0002", database=alias, verbosity=0)
        assert catalogue(alias) == clean, statements.texts[at]
        BackfillRun._default_manager.all().delete()
    assert polls.rows == 100


def abandoned(alias: str) -> str:
    """Give the attempt up, and return why that was refused, or nothing."""
    options = {
        "abandon": True,
        "database": [alias],
        "interactive": False,
        "stdout": StringIO(),
        "verbosity": 0,
    }
    try:
        call_command(COMMAND, LABEL, **options)
    except CommandError as error:
        return str(error)
    return ""


def catalogue(alias: str) -> list[Any]:
    """What the database has of columns, constraints, indexes and triggers."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, "polls_question")
        constraints = connection.introspection.get_constraints(cursor, "polls_question")
    functions = (
        run(connection, "SELECT proname FROM pg_proc WHERE proname LIKE '%safemigrate%'")
        if connection.vendor == "postgresql"
        else []
    )
    assert for_connection(connection)
    return [sorted(column.name for column in described), sorted(constraints), triggers(alias), functions]
