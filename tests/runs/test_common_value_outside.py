"""A column that was added with the value of most rows, and left so: what says that the others are still to be done."""

from __future__ import annotations

import io
from importlib import import_module
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import F

import safemigrate
from safemigrate.runs import store
from tests.support.common_value_migrations import EARLY, LATE, SOON
from tests.support.deliveries import Queue, kept_messages  # noqa: F401
from tests.support.processes import Polls

pytestmark = pytest.mark.matrix

LABEL = "polls.Question.expires_date"
ROWS, OTHERS = 900, 300


@pytest.fixture(name="polls")
def polls_that_were_begun(place: dict[str, Any], settings: Any) -> Polls:
    polls = Polls(**place, rows=ROWS)
    settings.MIGRATION_MODULES = {"polls": "tests.support.common_value_migrations"}
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 100
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    store.records().delete()
    left = OTHERS if polls.connection.vendor != "sqlite" else ROWS
    with pytest.raises(CommandError, match=f"{left} rows of .* more than `migrate` may fill here"):
        migrate(polls)
    return polls


def migrate(polls: Polls) -> None:
    call_command("migrate", "polls", "0003", database=polls.alias, verbosity=0)


def backfill(*arguments: str) -> str:
    out = io.StringIO()
    call_command("backfill", *arguments, stdout=out)
    return out.getvalue()


def assert_done(polls: Polls) -> None:
    questions = polls.questions()
    assert questions.filter(EARLY, expires_date=SOON).count() == OTHERS
    assert questions.exclude(EARLY).filter(expires_date=LATE).count() == ROWS - OTHERS


def test_backfill_run_does_them_and_migrate_goes_on(polls: Polls) -> None:
    assert not safemigrate.is_finished(LABEL, using=polls.alias)
    with pytest.raises(CommandError, match="Not every row is right"):
        backfill("verify", LABEL, "--database", polls.alias, "--left")
    assert "every row has a value" in backfill("run", LABEL, "--database", polls.alias)
    assert_done(polls)
    assert safemigrate.is_finished(LABEL, using=polls.alias)
    migrate(polls)
    verified = backfill("verify", LABEL, "--database", polls.alias)
    assert f"0 rows without a value; of {ROWS} computed again, 0 differ" in verified


def test_workers_of_a_queue_share_them(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias, "--executor", "celery", "--workers", "2")
    Queue.deliver_all()
    assert_done(polls)
    migrate(polls)
    assert safemigrate.is_finished(LABEL, using=polls.alias)


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_with_another_populate_it_is_refused_as_migrate_refuses_it(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = import_module("tests.support.common_value_migrations.0003_common")
    (operation,) = migration.Migration.operations
    monkeypatch.setattr(operation, "populate", F("pub_date"))
    for command in (["run", LABEL, "--database", polls.alias], ["verify", LABEL, "--database", polls.alias]):
        with pytest.raises(CommandError, match=r"(?s)populate has been changed since.*--abandon"):
            backfill(*command)
    with pytest.raises(CommandError, match=r"(?s)populate has been changed since.*--abandon"):
        migrate(polls)
    assert not safemigrate.is_finished(LABEL, using=polls.alias)
    monkeypatch.undo()
    backfill("run", LABEL, "--database", polls.alias)
    assert_done(polls)
