"""A fill that leaves rows NULL, outside `migrate`: by one process, by the workers of a queue, and what follows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

import safemigrate
from safemigrate.models import BackfillRun
from safemigrate.runs import store
from safemigrate.runs.status import Status
from tests.support.deliveries import Queue, kept_messages  # noqa: F401
from tests.support.processes import Polls
from tests.support.sandbox import START

pytestmark = pytest.mark.matrix

LABEL = "polls.Question.expires_date"
ROWS = 900


@pytest.fixture(name="polls")
def polls_with_a_nullable_field(place: dict[str, Any], settings: Any) -> Polls:
    polls = Polls(**place, rows=ROWS)
    settings.MIGRATION_MODULES = {"polls": "tests.support.one_pass_migrations"}
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 100
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    store.records().delete()
    with pytest.raises(CommandError, match="more than `migrate` may fill here"):
        migrate(polls)
    return polls


def migrate(polls: Polls, to: str = "0004") -> None:
    call_command("migrate", "polls", to, database=polls.alias, verbosity=0)


def backfill(*arguments: str) -> str:
    out = io.StringIO()
    call_command("backfill", *arguments, stdout=out)
    return out.getvalue()


def runs() -> list[BackfillRun]:
    return list(store.records())


def assert_done(polls: Polls) -> None:
    questions = polls.questions()
    assert questions.filter(expires_date=None, pk__in=range(0, 3 * ROWS + 1, 9)).count() == ROWS // 3
    assert questions.exclude(expires_date=None).count() == ROWS - ROWS // 3


def test_migrate_goes_on_once_it_was_done_by_backfill_run(polls: Polls) -> None:
    assert not safemigrate.is_finished(LABEL, using=polls.alias)
    with pytest.raises(CommandError, match="Not every row is right"):
        backfill("verify", LABEL, "--database", polls.alias, "--left")
    said = backfill("run", LABEL, "--database", polls.alias, "--chain")
    assert f"{LABEL} on {polls.alias}: every row is done, {ROWS} of them now." in said
    assert_done(polls)
    assert safemigrate.is_finished(LABEL, using=polls.alias)
    migrate(polls)
    assert [run.status for run in runs()] == [Status.SUCCEEDED]
    verified = backfill("verify", LABEL, "--database", polls.alias)
    assert f"0 rows without a value; of {ROWS} computed again, 0 differ" in verified
    polls.questions().filter(pk=9).update(expires_date=START)
    with pytest.raises(CommandError, match="Not every row is right"):
        backfill("verify", LABEL, "--database", polls.alias)


def test_workers_of_a_queue_share_it(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias, "--executor", "celery", "--workers", "2")
    Queue.deliver_all()
    assert_done(polls)
    (run,) = runs()
    assert (run.status, run.rows_done, run.bad_rows) == (Status.SUCCEEDED, ROWS, [])
    migrate(polls)
    assert len(runs()) == 1


def test_reversed_and_applied_again_it_is_done_anew(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = None
    migrate(polls)
    assert_done(polls)
    migrate(polls, "0003")
    polls.questions().update(expires_date=None)
    migrate(polls)
    assert_done(polls)
    assert [run.status for run in runs()] == [Status.SUCCEEDED, Status.SUCCEEDED]
