"""How a run is worked on is changed while it is: its batches, its pace, its workers."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db.models import F
from polls.models import Question

from safemigrate import backfills
from safemigrate.backfills import Backfill
from safemigrate.exceptions import IllegalMove
from safemigrate.runs import scheduler, store
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.recorder import RunRecorder
from safemigrate.runs.status import Status
from tests.support.deliveries import Queue, kept_messages, the_run  # noqa: F401
from tests.support.processes import Polls

ROWS = 2_000


@pytest.fixture(name="polls")
def full_polls(place: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Polls:
    polls = Polls(**place, rows=ROWS)
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    store.records().delete()
    monkeypatch.setattr(Counted, "sizes", [])
    monkeypatch.setattr(backfills, "find", lambda label: Counted)
    return polls


class Counted(Backfill):
    model = Question
    sizes: list[int] = []

    @classmethod
    def label(cls) -> str:
        return "polls.Counted"

    def batch(self, rows: Any) -> None:
        rows.update(vote_count=F("vote_count") + 1)
        self.sizes.append(len(rows))
        time.sleep(0.06)  # longer than the pause between two looks at what a person wants


def backfill(*arguments: str) -> str:
    out = io.StringIO()
    call_command("backfill", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.matrix
def test_a_batch_size_is_taken_on_within_a_batch_or_two(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch(self: Any, rows: Any) -> None:
        Counted.sizes.append(len(rows))
        time.sleep(0.06)

    def advance(self: Any, state: Any) -> None:
        if len(Counted.sizes) == 3:
            assert f"Run {the_run().pk} " in backfill("set", str(the_run().pk), "--batch-size", "400")
        before(self, state)

    before = RunRecorder.advance
    monkeypatch.setattr(RunRecorder, "advance", advance)
    monkeypatch.setattr(Counted, "batch", batch)
    BackfillJob(Counted(using=polls.alias)).run()
    assert Counted.sizes[:3] == [100, 100, 100]
    assert Counted.sizes[4:7] == [400, 400, 400]
    assert sum(Counted.sizes) == ROWS
    (event,) = [each for each in the_run().events.using(polls.alias) if "batch size" in each.text]
    assert (event.text, bool(event.who)) == ("batch size: 400", True)


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_no_more_rows_a_second_than_were_allowed(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_ROWS_PER_SECOND = 1_000
    began = time.monotonic()
    BackfillJob(Counted(using=polls.alias)).run()
    assert time.monotonic() - began >= 1.8
    run = the_run()
    assert (run.status, run.rows_done) == (Status.SUCCEEDED, ROWS)
    assert run.seconds_waiting > 0


@pytest.mark.slow
def test_workers_take_it_on_with_their_next_range(polls: Polls) -> None:
    scheduler.begin(BackfillJob(Counted(using=polls.alias)), "celery", scheduler.options_of(workers=1))
    assert len(Queue.messages) == 1
    key = str(the_run().pk)
    backfill("set", key, "--workers", "3", "--batch-size", "50", "--rows-per-second", "100000")
    assert len(Queue.messages) == 4
    assert the_run().options["workers"] == 3
    Queue.deliver_all()
    assert set(Counted.sizes) == {50}
    assert (the_run().status, the_run().rows_done) == (Status.SUCCEEDED, ROWS)


@pytest.mark.matrix
def test_what_cannot_be_set_is_refused(polls: Polls) -> None:
    BackfillJob(Counted(using=polls.alias)).run()
    key = the_run().pk
    with pytest.raises(CommandError, match="is succeeded: nothing works on it any more"):
        backfill("set", str(key), "--batch-size", "400")
    with pytest.raises(CommandError, match="Say what to change"):
        backfill("set", str(key))
    store.records().update(status=Status.STOPPED)
    with pytest.raises(IllegalMove, match="is worked on by one process"):
        store.change(key, "ada", workers=3)
    with pytest.raises(CommandError, match="There is no run 99"):
        backfill("set", "99", "--batch-size", "400")
