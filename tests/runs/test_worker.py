"""The workers of a queue share a run: each message delivered by the test, when and as often as it likes."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError, models
from django.db.models import F
from django.utils import timezone
from django.utils.module_loading import import_string

from safemigrate import signals
from safemigrate.admin import pages
from safemigrate.engine.batches import Batches, keys_of, null_in
from safemigrate.engine.keys import key_to_json
from safemigrate.exceptions import AlreadyRunning
from safemigrate.models import BackfillRun
from safemigrate.runs import leases, lookup, scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.status import Status
from tests.support.deliveries import (
    FIELD,
    POSTGRESQL,
    ROWS,
    SQLITE,
    Queue,
    all_ranges,
    assert_filled,
    begin,
    expire,
    full_polls,  # noqa: F401
    kept_messages,  # noqa: F401
    replaced_function,  # noqa: F401
    take,
    the_run,
    worker,
)
from tests.support.processes import MONTH, Polls
from tests.support.replaceable import month_later
from tests.support.sandbox import START, MigrationSandbox, question

pytestmark = pytest.mark.matrix

# From the command to the end


def test_the_workers_fill_it_range_by_range(polls: Polls, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(polls.alias)
    assert (run.status, run.executor, run.migration) == (Status.QUEUED, "celery", "polls.0004_fill")
    assert "enqueued in safemigrate of celery" in capsys.readouterr().out
    workers = run.options["workers"]
    assert Queue.messages == [(scheduler.WORK, run.pk, 0)] * workers
    Queue.deliver_all()
    assert_filled(polls)
    *parts, end = all_ranges()
    assert [part.rows_done for part in parts] == [300] * 6 + [200]
    assert end.is_the_end
    assert end.rows_done == 0
    happened = [event.text for event in the_run().events.all()]
    assert happened == ["queued", "queued → running", "running → succeeded"]


def test_a_task_that_has_no_time_left_saves_where_it_is(polls: Polls, settings: Any) -> None:
    """It has itself enqueued again, with the range given back; nothing is done twice."""
    begin(polls.alias, "--task-seconds", "1")
    store.records().update(options=the_run().options | {"seconds": 0.000_001, "workers": 1})
    del Queue.messages[1:], Queue.seconds[1:]
    rows = []
    while Queue.messages:
        Queue.deliver()
        rows.append(the_run().rows_done)
        assert not leases.held(leases.of(the_run())).exists()
        if len(rows) == 1:
            store.records().update(options=the_run().options | {"seconds": 0.05})
    assert rows == sorted(rows)
    assert len(rows) > 2
    assert_filled(polls)


def test_messages_that_come_twice_do_nothing_twice(polls: Polls, replaced: Any) -> None:
    seen: list[int] = []
    replaced(lambda question: seen.append(question.pk) or month_later(question))
    run = begin(polls.alias)
    Queue.messages *= 5
    Queue.seconds *= 5
    Queue.deliver_all()
    assert_filled(polls)
    assert len(seen) == len(set(seen)) == ROWS
    Queue().enqueue(scheduler.WORK, run.pk, queue="")
    Queue.deliver()
    assert Queue.messages == []


@POSTGRESQL
def test_several_workers_at_once_hold_different_ranges(polls: Polls, replaced: Any) -> None:
    together = threading.Barrier(3)
    first: dict[int, bool] = {}

    def slowly(question: Any) -> Any:
        if not first.setdefault(threading.get_ident(), False):
            first[threading.get_ident()] = True
            together.wait(timeout=10)
        return month_later(question)

    replaced(slowly)
    run = begin(polls.alias, "--workers", "3")
    threads = [threading.Thread(target=worker, args=(run.pk,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Queue.deliver_all()
    assert_filled(polls)
    assert len({part.worker for part in all_ranges()}) >= 3


# Workers that die


def test_what_a_dead_worker_held_is_taken_when_its_lease_ends(polls: Polls) -> None:
    run = begin(polls.alias, "--workers", "2")
    dead = take(run)
    del Queue.messages[1:], Queue.seconds[1:]
    if polls.connection.vendor == "sqlite":  # One worker at a time: the message that is left is one too many.
        Queue.deliver()
    else:
        while the_run().rows_done < ROWS - 300:
            Queue.deliver()
    assert Queue.seconds[0] > 0  # It waits for the dead one's lease.
    expire()
    Queue.deliver_all()
    assert_filled(polls)
    again = leases.records().get(pk=dead.pk)
    assert (again.attempts, again.token) == (1, 2)
    assert again.worker == workers.name()


@SQLITE
def test_a_task_is_enqueued_in_place_of_the_one_that_died(polls: Polls) -> None:
    run = begin(polls.alias)
    take(run)
    expire()
    store.records().update(options=the_run().options | {"seconds": 0.002})
    Queue.deliver()
    assert len(Queue.messages) == 2  # Its own, and the dead one's.


@pytest.mark.slow
@SQLITE
def test_a_worker_that_wakes_up_after_its_lease_writes_nothing_more(polls: Polls, replaced: Any) -> None:
    """Its range was taken, and ended, by another one."""
    run = begin(polls.alias, "--batch-size", "10")

    def value(question: Any) -> Any:
        if question.pk == 3 * 15:  # Half-way through the first range, it sleeps; another one ends the run.
            replaced(month_later)
            expire()
            late = threading.Thread(target=worker, args=(run.pk,))
            late.start()
            late.join()
        return month_later(question)

    replaced(value)
    Queue.deliver()
    first = all_ranges()[0]
    assert first.token == 2
    assert Queue.deliver_all() == 1
    assert_filled(polls, unsaid=10)


@SQLITE
def test_a_range_that_kills_every_worker_fails_the_run(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_TASK_RETRIES = 2
    run = begin(polls.alias)
    for _ in range(3):
        assert take(run).number == 1
        expire()
    Queue.deliver_all()
    run = the_run()
    assert run.status == Status.FAILED
    assert "Range 1" in run.error
    assert "was tried 3 times, and their workers died without a word" in run.error
    store.retry(run.pk, "ada")
    Queue.deliver_all()
    assert_filled(polls)


def dies(*arguments: Any, **values: Any) -> Any:
    raise KeyboardInterrupt  # Nothing of what comes after is done.


@pytest.mark.slow
@SQLITE
@pytest.mark.parametrize("function", ["leases.cut_first", "scheduler.enqueue_workers"])
def test_whoever_begins_a_run_may_die_at_any_moment(
    polls: Polls, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"safemigrate.runs.{function}", dies)
        begin(polls.alias)
    assert len(scheduler.requeue()) == 1
    Queue.deliver_all()
    assert_filled(polls)


@pytest.mark.slow
@SQLITE
@pytest.mark.parametrize("function", ["leases.end", "store.move", "store.send_signal", "leases._create"])
def test_a_worker_may_die_at_any_moment(polls: Polls, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of what changes the record, and right after it."""
    for number in (0, 1, 3, 7):
        for after in (False, True):
            polls.questions().update(expires_date=None)
            store.records().all().delete()
            begin(polls.alias)
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(f"safemigrate.runs.{function}", Dying(function, number, after=after))
                Queue.deliver_all()
            Queue.messages.clear()
            Queue.seconds.clear()
            expire(enqueued_at=None)
            scheduler.requeue()
            Queue.deliver_all()
            unsaid = polls.rows - the_run().rows_done
            assert unsaid in (0, 100, 200, 300)
            assert_filled(polls, unsaid)


class Dying:
    """Ends a worker at the n-th call of a function, before or after it."""

    def __init__(self, function: str, number: int, *, after: bool) -> None:
        self.real = import_string(f"safemigrate.runs.{function}")
        self.left, self.after = number, after

    def __call__(self, *arguments: Any, **values: Any) -> Any:
        self.left -= 1
        if self.left == -1 and not self.after:
            raise KeyboardInterrupt
        answer = self.real(*arguments, **values)
        if self.left == -1:
            raise KeyboardInterrupt
        return answer


# Errors


@SQLITE
def test_a_database_that_fails_puts_the_range_off(
    polls: Polls, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another range is taken; this one is tried again later, the later the more often it failed."""
    settings.SAFEMIGRATE_RETRIES = 0
    monkeypatch.setattr("random.uniform", lambda least, most: 60.0)
    failures: list[int] = []

    def fails(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith('UPDATE "polls_question"') and len(failures) < 2:
            failures.append(1)
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    begin(polls.alias)
    with polls.connection.execute_wrapper(fails):
        Queue.deliver()
    postpone = [part for part in all_ranges() if part.ended is None]
    assert [part.number for part in postpone] == [1, 2]
    assert {"database is locked" in part.error for part in postpone} == {True}
    assert min(part.not_before for part in postpone) > timezone.now()
    leases.of(the_run()).update(not_before=None)
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
def test_while_the_record_is_out_of_reach_the_task_is_put_off_a_bounded_number_of_times(
    polls: Polls, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.SAFEMIGRATE_TASK_RETRIES = 3
    settings.SAFEMIGRATE_EXECUTOR = "celery"
    begin(polls.alias)

    def fails(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise OperationalError("the database system is shutting down")

    with polls.connection.execute_wrapper(fails), pytest.raises(OperationalError):
        Queue.deliver_all()
    assert "the task is put off: the database system is shutting down" in caplog.text
    assert Queue.messages == []
    run = the_run()
    assert run.status == Status.QUEUED
    store.records().update(enqueued_at=timezone.now() - timedelta(hours=2))
    scheduler.requeue()
    Queue.deliver_all()
    assert_filled(polls)


def test_rows_without_a_value_fail_the_run_at_its_end(polls: Polls, replaced: Any) -> None:
    replaced(lambda question: None if question.pk in (3, 3_000) else month_later(question))
    begin(polls.alias)
    Queue.deliver_all()
    run = the_run()
    assert run.status == Status.FAILED
    assert run.bad_rows == [[3, "the function returned None"], [3_000, "the function returned None"]]
    assert "2 rows" in run.error
    assert polls.questions().filter(expires_date=None).count() == 2
    replaced(month_later)
    begin(polls.alias)
    Queue.deliver_all()
    assert the_run().pk == run.pk
    assert_filled(polls)


@SQLITE
def test_too_many_of_them_end_it_before(polls: Polls, replaced: Any, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_BAD_ROWS = 10
    replaced(lambda question: None if question.pk % 150 == 0 else month_later(question))  # 6 in a range
    begin(polls.alias)
    Queue.deliver_all()
    run = the_run()
    assert run.status == Status.FAILED
    assert "more than 10 rows" in run.error
    assert run.rows_done == 2 * 294
    assert len(run.bad_rows) == 10


@SQLITE
def test_an_error_of_the_populate_fails_the_run_and_is_shown(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("by zero")

    heard: list[Any] = []
    signals.run_failed.connect(
        lambda **kwargs: heard.append(kwargs["error"]), weak=False, dispatch_uid="test"
    )
    begin(polls.alias)
    monkeypatch.setattr(workers.Filling, "run_range", broken)
    Queue.deliver_all()
    signals.run_failed.disconnect(dispatch_uid="test")
    assert (the_run().status, the_run().error) == (Status.FAILED, "by zero")
    assert "ZeroDivisionError" in the_run().traceback
    assert isinstance(heard[0], ZeroDivisionError)
    assert not leases.held(leases.of(the_run())).exists()


# The broker


@pytest.mark.slow
def test_while_the_broker_is_away_the_worker_goes_on_itself(
    polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    begin(polls.alias)
    store.records().update(options=the_run().options | {"seconds": 0.000_001})
    Queue.is_away = True
    Queue.deliver()
    assert "This worker goes on" in caplog.text
    assert_filled(polls)


@SQLITE
def test_a_broker_that_is_away_at_the_start_loses_nothing(polls: Polls) -> None:
    Queue.is_away = True
    with pytest.raises(CommandError, match=r"The broker is away. Run \d+ .* backfill requeue"):
        begin(polls.alias)
    assert the_run().status == Status.QUEUED
    assert scheduler.requeue() == ["The broker is away. " + requeue_later(the_run())]
    Queue.is_away = False
    call_command("backfill", "requeue")
    Queue.deliver_all()
    assert_filled(polls)


def requeue_later(run: BackfillRun) -> str:
    kept = f"Run {run.pk} ({run}) is kept, and waits."
    return f"{kept} When the cause is gone: python manage.py backfill requeue"


@pytest.mark.slow
def test_the_sweep_enqueues_what_nobody_works_on_at_growing_intervals(polls: Polls) -> None:
    run = begin(polls.alias)
    Queue.messages.clear()  # As a broker does that forgets.
    assert scheduler.requeue() == []  # It may be on its way.
    waits = []
    for _ in range(4):
        seconds = 1
        while True:
            enqueued_at = timezone.now() - timedelta(seconds=seconds)
            store.records().update(enqueued_at=enqueued_at)
            if scheduler.requeue():
                break
            seconds += 1
        waits.append(seconds)
    assert waits == [3, 6, 12, 24]
    assert len(Queue.messages) == 4 * run.options["workers"]
    Queue.deliver_all()
    assert_filled(polls)
    assert scheduler.requeue() == []


@SQLITE
def test_the_sweep_leaves_a_run_alone_that_somebody_works_on(polls: Polls) -> None:
    run = begin(polls.alias)
    take(run)
    store.records().update(enqueued_at=timezone.now() - timedelta(hours=2))
    assert scheduler.requeue() == []


# Action


def controlled(polls: Polls, replaced: Any, action: str) -> list[int]:
    """Have a person ask for something in mid range; return the keys that were computed until it ended."""
    seen: list[int] = []
    run = begin(polls.alias, "--batch-size", "10")

    def value(question: Any) -> Any:
        seen.append(question.pk)
        if len(seen) == 95:
            getattr(store, action)(run.pk, "ada")
        return month_later(question)

    replaced(value)
    Queue.deliver_all()
    replaced(month_later)
    return seen


@pytest.mark.slow
def test_a_pause_ends_all_work_within_a_batch_and_a_resume_begins_it_again(
    polls: Polls, replaced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safemigrate.runs.recorder.LOOK", 0.0)
    seen = controlled(polls, replaced, "pause")
    assert len(seen) <= 120
    assert the_run().status == Status.PAUSED
    assert not the_run().is_held()
    with pytest.raises(CommandError, match="is paused"):
        begin(polls.alias)
    assert scheduler.requeue() == []
    call_command("backfill", "resume", str(the_run().pk))
    assert len(Queue.messages) == the_run().options["workers"]
    Queue.deliver_all()
    assert_filled(polls)
    texts = [event.text for event in the_run().events.all()]
    assert texts[2:5] == ["running → pausing", "pausing → paused", "paused → queued"]


@SQLITE
def test_a_cancel_ends_it_for_good(polls: Polls, replaced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemigrate.runs.recorder.LOOK", 0.0)
    seen = controlled(polls, replaced, "cancel")
    assert len(seen) <= 120
    cancelled = the_run()
    assert cancelled.status == Status.CANCELLED
    assert cancelled.rows_done == polls.filled() > 0
    again = begin(polls.alias)
    assert again.pk != cancelled.pk
    Queue.deliver_all()
    assert polls.questions().filter(expires_date=F("pub_date") + MONTH).count() == ROWS


@SQLITE
@pytest.mark.parametrize(("asked", "becomes"), [("pause", Status.PAUSED), ("cancel", Status.CANCELLED)])
def test_what_is_asked_of_workers_that_are_dead_is_done_by_the_sweep(
    polls: Polls, asked: str, becomes: str
) -> None:
    run = begin(polls.alias)
    take(run)
    getattr(store, asked)(run.pk, "ada")
    assert scheduler.requeue() == []
    expire()
    assert scheduler.requeue() == [f"Run {run.pk} ({run}) is {becomes}."]
    assert the_run().status == becomes


@SQLITE
def test_a_run_that_waits_for_its_workers_can_be_taken_over_by_one_process(polls: Polls) -> None:
    begin(polls.alias)
    call_command("backfill", "run", FIELD, "--database", polls.alias, verbosity=0)
    run = the_run()
    assert (run.status, run.executor) == (Status.SUCCEEDED, "inline")
    assert Queue.deliver_all() == 1
    assert polls.filled() == ROWS


@SQLITE
def test_while_workers_hold_it_no_process_takes_it(polls: Polls) -> None:
    run = begin(polls.alias)
    take(run)
    job = lookup.find(FIELD, polls.alias)
    with pytest.raises(AlreadyRunning, match="by the workers of celery"):
        job.run()
    with pytest.raises(AlreadyRunning, match="by the workers of celery"):
        scheduler.begin(job, "celery", scheduler.options_of())
    for executor in ("inline", "celery"):  # As cron types it again and again.
        output = io.StringIO()
        call_command(
            "backfill", "run", FIELD, "--database", polls.alias, "--executor", executor, stdout=output
        )
        assert "by the workers of celery" in output.getvalue()
        assert len(output.getvalue().splitlines()) == 1


# Limits


@POSTGRESQL
def test_no_more_workers_at_once_than_are_allowed_on_a_database(polls: Polls) -> None:
    run = begin(polls.alias, "--workers", "2")
    assert [take(run).number, take(run).number] == [1, 2]
    with pytest.raises(leases.NotNeeded):  # One too many of this run: it is not enqueued again.
        take(run)
    other = BackfillRun.objects.using(store.database()).create(
        app_label="a", model_name="b", field_names="c", alias=polls.alias, status=Status.RUNNING,
        executor="celery", options=run.options, rows_total=0,
    )  # fmt: skip
    batches = Batches(polls.questions().model, polls.alias, null_in(["expires_date"]))
    with pytest.raises(leases.Wait) as waits:
        leases.take(other, batches, "x")
    assert waits.value.seconds == leases.LOOK_AGAIN
    leases.release(leases.of(run)[0])
    other.delete()
    assert take(run).number == 1


@SQLITE
def test_it_starts_later(polls: Polls, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(polls.alias, "--countdown", "10m")
    assert Queue.seconds == [scheduler.HOP]  # No message waits for as long as a broker would take for lost.
    assert " from 20" in capsys.readouterr().out
    assert scheduler.requeue() == []
    Queue.deliver()
    assert the_run().status == Status.QUEUED
    assert Queue.seconds == [scheduler.HOP]
    store.records().update(not_before=timezone.now() + timedelta(seconds=60))
    Queue.deliver()
    assert 55 < Queue.seconds[0] <= 60
    store.records().update(not_before=timezone.now())
    Queue.deliver_all()
    assert_filled(polls)
    assert run.not_before is not None


@SQLITE
def test_a_throttle_that_holds_for_long_gives_the_worker_back(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safemigrate.runs.recorder.PATIENCE", 0.2)
    begin(polls.alias, "--throttle", "tests.support.deliveries.Never")
    Queue.deliver()
    assert Queue.seconds == [workers.LATER]
    assert the_run().waiting_for == "not now"
    store.records().update(options=the_run().options | {"throttles": []})
    Queue.deliver_all()
    assert_filled(polls)
    assert the_run().waiting_for == ""


# What is not for workers


def test_nothing_is_enqueued_where_nothing_is_to_be_filled(
    polls: Polls, capsys: pytest.CaptureFixture[str]
) -> None:
    polls.questions().all().delete()
    call_command("backfill", "run", FIELD, "--database", polls.alias, "--executor", "celery")
    assert "every row has a value; nothing was enqueued" in capsys.readouterr().out
    assert Queue.messages == []
    assert the_run() is None


@SQLITE
def test_migrate_enqueues_nothing_by_itself(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_EXECUTOR = "celery"
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    assert Queue.messages == []
    assert polls.filled() == ROWS


@SQLITE
def test_migrate_enqueues_what_is_too_much_for_it_where_the_project_says_so(
    polls: Polls, settings: Any
) -> None:
    settings.SAFEMIGRATE_EXECUTOR = "celery"
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 100
    settings.SAFEMIGRATE_MIGRATE_ENQUEUES = True
    with pytest.raises(CommandError, match=r"run \d+ of celery\. When it has succeeded, run migrate again"):
        call_command("migrate", "polls", database=polls.alias, verbosity=0)
    with pytest.raises(CommandError, match=r"run \d+ of celery"):
        call_command("migrate", "polls", database=polls.alias, verbosity=0)
    Queue.deliver_all()
    assert_filled(polls)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    assert polls.columns()["expires_date"] is False


@SQLITE
@pytest.mark.parametrize("code", ["older", "other"])
def test_a_worker_with_other_code_gives_the_task_back(
    polls: Polls, settings: Any, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    begin(polls.alias)
    if code == "older":
        settings.MIGRATION_MODULES = {}
    else:
        store.records().update(migration="polls.0009_fill_otherwise")
    Queue.deliver()
    assert "The task is put back, nothing is lost" in caplog.text
    assert Queue.seconds == [workers.LATER]
    assert "restart it with the code of this run" in the_run().waiting_for
    settings.MIGRATION_MODULES = {"polls": "tests.support.split_migrations"}
    store.records().update(migration="polls.0004_fill")
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--queue", "nope"], "There is no queue 'nope'"),
        (["--throttle", "safemigrate.throttles.FillHours"], "SAFEMIGRATE_FILL_HOURS"),
        (["--throttle", "polls.nowhere.Nice"], "cannot be imported"),
    ],
)
def test_what_a_worker_would_stumble_over_is_refused_before_there_is_a_run(
    polls: Polls, arguments: list[str], hint: str
) -> None:
    with pytest.raises(CommandError, match=hint):
        begin(polls.alias, *arguments)
    assert the_run() is None


@SQLITE
def test_an_executor_that_works_at_once_is_refused(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "is_apart", False)
    with pytest.raises(CommandError, match="--executor inline"):
        begin(polls.alias)


@SQLITE
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--executor", "celery", "--max-rows", "5"], "--max-rows is for a fill in this process"),
        (["--eta", "02:00"], "add --executor"),
        (["--queue", "slow"], "add --executor"),
        (["--migrate"], "add --chain"),
    ],
)
def test_options_that_do_not_go_together_are_refused(polls: Polls, arguments: list[str], hint: str) -> None:
    with pytest.raises(CommandError, match=hint):
        call_command("backfill", "run", FIELD, "--database", polls.alias, *arguments)
    assert Queue.messages == []


# Shown


@SQLITE
def test_its_ranges_and_workers_are_shown(polls: Polls, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(polls.alias)
    take(run, "web1:77")
    capsys.readouterr()
    call_command("backfill", "show", str(run.pk))
    shown = capsys.readouterr().out
    assert "safemigrate of celery" in shown
    assert "1: 3 to 900; held by web1:77, attempt 1" in shown
    assert "process:" not in shown
    call_command("backfill", "show", str(run.pk), "--json")
    (part,) = json.loads(capsys.readouterr().out)["ranges"]
    assert (part["number"], part["first"], part["last"], part["worker"]) == (1, 3, 900, "web1:77")
    expire()
    call_command("backfill", "show", str(run.pk))
    shown = capsys.readouterr().out
    assert "stalled" in shown
    assert "See whether one listens to the queue safemigrate" in shown
    assert "    python manage.py backfill requeue" in shown


@SQLITE
def test_they_are_shown_in_the_admin(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = "default"
    run = begin(polls.alias)
    take(run, "web1:77")
    html = pages.ranges(the_run())
    assert html == [(1, "web1:77", "3 … 900", "", "0", 1, "")]
    assert pages.advice(the_run()) == ""
    expire()
    assert "listens to the queue safemigrate of celery" in pages.advice(the_run())
    assert the_run().next_command == "python manage.py backfill requeue"


# Keys of every kind


def cut(sandbox: MigrationSandbox) -> tuple[list[Any], int]:
    """Cut the table into ranges of 300 rows; return the keys in them, and how many there are, with the end."""
    batches = Batches(sandbox.model(), sandbox.alias, null_in(["question_text"]))
    run = BackfillRun.objects.create(
        app_label="boxes", model_name="Question", field_names="x", alias=sandbox.alias, status=Status.RUNNING,
        executor="celery", options={"workers": 8}, last_key=key_to_json(batches.last()),
    )  # fmt: skip
    run = store.find(run.pk)
    (first,) = keys_of(batches.rows.order_by("pk")[:1])
    leases._create(run, 1, batches.next(first, batches.last(), 300, inclusive=True))
    seen: list[Any] = []
    while not (taken := leases.take(run, batches, "w")).is_the_end:
        seen += keys_of(batches.rows.filter(workers._range(taken, batches).condition))
        assert leases.end(taken)
        assert taken.number < 10
    return seen, leases.of(run).count()


@pytest.mark.parametrize("alias", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize(
    "key",
    [
        ("id", models.UUIDField(primary_key=True, default=uuid.uuid4)),
        ("id", models.CharField(max_length=40, primary_key=True)),
        ("id", models.DateTimeField(primary_key=True)),
    ],
    ids=["uuid", "text", "moment"],
)
def test_tables_with_any_key_are_cut_without_a_gap(alias: str, key: Any, settings: Any) -> None:
    keys = {
        "UUIDField": lambda n: uuid.uuid5(uuid.NAMESPACE_DNS, str(n)),
        "CharField": lambda n: f"Ключ {n * 7919 % 1000}",
        "DateTimeField": lambda n: START + timedelta(minutes=n * 7919 % 1000, microseconds=n),
    }
    sandbox = MigrationSandbox(alias, question(key=key))
    sandbox.fill(950, id=keys[type(key[1]).__name__])
    seen, parts = cut(sandbox)
    assert sorted(seen, key=str) == sorted(sandbox.values("pk"), key=str)
    assert len(seen) == 950
    assert parts == 5


@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_keys_of_bytes_are_cut_without_a_gap(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(key=("id", models.BinaryField(primary_key=True))))
    sandbox.fill(950, id=lambda n: hashlib.sha256(str(n).encode()).digest())
    seen, parts = cut(sandbox)
    assert sorted(map(bytes, seen)) == sorted(map(bytes, sandbox.values("pk")))
    assert parts == 5


@SQLITE
def test_a_mail_tells_of_its_end(polls: Polls, settings: Any, mailoutbox: list[Any]) -> None:
    settings.SAFEMIGRATE_NOTIFY = ["ops@example.com"]
    begin(polls.alias)
    Queue.deliver_all()
    (mail,) = mailoutbox
    assert mail.subject == f"Backfill succeeded: {the_run()}"
    assert f"by {store.person()} on celery, attempt 1" in mail.body
