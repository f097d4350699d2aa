"""A shared run comes to its end, whichever worker dies, goes on late, or is away in the meantime."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import Error, InternalError, OperationalError, connections, transaction
from django.utils import timezone

from safemigrate import conf, tasks
from safemigrate.exceptions import NotEnqueued
from safemigrate.executors import background, base
from safemigrate.models import BackfillRun
from safemigrate.runs import leases, scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.status import Status
from safemigrate.throttles import Vacuum
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
from tests.support.processes import Polls
from tests.support.replaceable import month_later

pytestmark = pytest.mark.matrix

SERVERS = pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)


def of_ranges_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = leases.Pace(seconds=10, start=rows, smallest=rows, largest=rows)
    monkeypatch.setattr(leases, "PACE", pace)


@contextmanager
def failing(polls: Polls, error: Exception, start: str = "", times: int = sys.maxsize) -> Iterator[None]:
    """Let the database fail statements that start so, the first few times."""
    left = iter(range(times))

    def execute(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(start) and next(left, None) is not None:
            raise error
        return execute(sql, params, many, context)

    with polls.connection.execute_wrapper(execute):
        yield


# Runs that end


@SQLITE
def test_what_a_process_left_at_the_last_row_is_taken_up_by_workers(polls: Polls, replaced: Any) -> None:
    replaced(lambda question: None if question.pk == 3 * ROWS else month_later(question))
    with pytest.raises(CommandError):
        call_command("backfill", "run", FIELD, "--database", polls.alias, verbosity=0)
    assert the_run().cursor == 3 * ROWS
    replaced(month_later)
    begin(polls.alias)
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
@pytest.mark.parametrize(("bad", "status"), [(3, Status.FAILED), (0, Status.SUCCEEDED)])
def test_an_end_that_takes_longer_than_a_task_comes_to_its_end(
    polls: Polls, replaced: Any, bad: int, status: str
) -> None:
    """With a row that gets no value at the very start of the table, where each task would begin once more."""
    replaced(lambda question: None if question.pk == bad else month_later(question))
    begin(polls.alias)
    store.records().update(options=the_run().options | {"seconds": 0.001})  # One batch each.
    Queue.deliver_all()
    assert the_run().status == status
    assert polls.filled() == ROWS - (1 if bad else 0)


@SQLITE
@pytest.mark.parametrize(("asked", "becomes"), [("pause", Status.PAUSED), ("cancel", Status.CANCELLED)])
def test_what_is_asked_between_two_ranges_is_done(
    polls: Polls, monkeypatch: pytest.MonkeyPatch, asked: str, becomes: str
) -> None:
    run, real = begin(polls.alias), leases.take

    def asked_before(*arguments: Any) -> Any:
        if len(all_ranges()) == 2 and the_run().status == Status.RUNNING:
            getattr(store, asked)(run.pk, "ada")
        return real(*arguments)

    monkeypatch.setattr(leases, "take", asked_before)
    Queue.deliver_all()
    assert the_run().status == becomes


@SQLITE
def test_a_database_that_is_away_as_a_task_begins_loses_no_task(
    polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the executor stands in the run alone: in SAFEMIGRATE_EXECUTOR it is another one."""
    begin(polls.alias)
    with failing(polls, OperationalError("the database system is starting up"), times=1):
        Queue.deliver()
    assert f"This worker goes on with run {the_run().pk} itself" in caplog.text
    assert_filled(polls)


@SQLITE
def test_the_sweep_goes_on_after_weeks_without_a_worker(polls: Polls) -> None:
    begin(polls.alias)
    Queue.messages.clear()
    Queue.seconds.clear()
    store.records().update(enqueued_at=timezone.now() - timedelta(hours=2), enqueue_attempts=1024)
    assert len(scheduler.requeue()) == 1
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
def test_a_sleeper_does_not_end_what_a_process_took(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps at the end of the run, where rows come in that it has not seen."""
    real = workers.Filling.run_end

    def sleep(filling: Any, observer: Any) -> Any:
        found = real(filling, observer)
        polls.questions().filter(pk__gt=3_000).update(expires_date=None)
        expire()
        limits = ["--max-rows", "1", "--batch-size", "10"]
        call_command("backfill", "run", FIELD, "--database", polls.alias, *limits, verbosity=0)
        return found

    begin(polls.alias)
    with monkeypatch.context() as patch:
        patch.setattr(workers.Filling, "run_end", sleep)
        Queue.deliver_all()
    assert (the_run().status, the_run().executor) == (Status.STOPPED, "inline")
    assert all_ranges()[-1].ended is None
    begin(polls.alias)
    Queue.deliver_all()
    assert the_run().status == Status.SUCCEEDED
    assert polls.filled() == ROWS


@SQLITE
def test_a_sweep_while_the_first_row_is_searched_for_does_no_harm(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, requeued = leases.cut_first, []

    def cut_first(*arguments: Any) -> Any:
        monkeypatch.setattr(leases, "cut_first", real)
        requeued.extend(scheduler.requeue())
        Queue.deliver()
        return real(*arguments)

    monkeypatch.setattr(leases, "cut_first", cut_first)
    begin(polls.alias)
    Queue.deliver_all()
    assert len(requeued) == 1
    assert_filled(polls)


# Errors


@SQLITE
def test_an_error_that_will_not_pass_fails_the_run_at_once(polls: Polls) -> None:
    """Range after range would be cut otherwise, to be put off."""
    begin(polls.alias)
    error = InternalError("cannot execute UPDATE in a read-only transaction")
    with failing(polls, error, 'UPDATE "polls_question"'):
        Queue.deliver()
    assert the_run().status == Status.FAILED
    assert "read-only transaction" in the_run().error
    assert len(all_ranges()) == 1
    store.retry(the_run().pk, "ada")
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
@pytest.mark.parametrize("retries", [0, 2])
def test_a_range_that_fails_each_time_fails_the_run_after_so_many_tries(
    polls: Polls, settings: Any, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    settings.SAFEMIGRATE_RETRIES = 0
    settings.SAFEMIGRATE_TASK_RETRIES = retries
    of_ranges_of(ROWS, monkeypatch)
    begin(polls.alias)
    with failing(polls, OperationalError("database is locked"), 'UPDATE "polls_question"'):
        while Queue.messages:
            Queue.deliver()
            leases.records().update(not_before=None)
    assert the_run().status == Status.FAILED
    assert f"was tried {retries + 1} times, and the last error was: " in the_run().error
    assert "database is locked" in the_run().error


# Let on by a person


@SQLITE
def test_what_is_resumed_in_a_transaction_is_enqueued_after_its_commit(polls: Polls) -> None:
    """As by ATOMIC_REQUESTS: a worker is quicker than the commit."""
    run = begin(polls.alias)
    store.pause(run.pk, "ada")
    Queue.deliver_all()
    with transaction.atomic(using=polls.alias):
        store.resume(run.pk, "ada")
        assert Queue.messages == []
    Queue.deliver_all()
    assert_filled(polls)


@SQLITE
def test_a_run_that_is_tried_again_says_nothing_of_its_last_error(polls: Polls, replaced: Any) -> None:
    replaced(lambda question: None if question.pk == 3 else month_later(question))
    run = begin(polls.alias)
    Queue.deliver_all()
    assert the_run().traceback
    assert the_run().finished
    replaced(month_later)
    store.retry(run.pk, "ada")
    take(the_run())
    run = the_run()
    assert run.status == Status.RUNNING
    assert (run.error, run.traceback, run.bad_rows, run.finished) == ("", "", [], None)
    expire()
    Queue.deliver_all()
    assert_filled(polls)
    run = the_run()
    assert (run.error, run.traceback, run.bad_rows) == ("", "", [])


@SQLITE
def test_rows_that_were_bad_before_a_retry_do_not_count_after_it(
    polls: Polls, replaced: Any, settings: Any
) -> None:
    settings.SAFEMIGRATE_MAX_BAD_ROWS = 10
    replaced(lambda question: None if question.pk % 150 == 0 else month_later(question))
    run = begin(polls.alias)
    Queue.deliver_all()
    assert "more than 10 rows" in the_run().error
    replaced(lambda question: None if question.pk == 4_500 else month_later(question))
    store.retry(run.pk, "ada")
    Queue.deliver_all()
    assert the_run().status == Status.FAILED
    assert the_run().error.startswith("1 rows of ")
    assert polls.filled() == ROWS - 1


@SQLITE
def test_a_pause_that_is_taken_back_at_once_takes_no_range_from_its_worker(
    polls: Polls, replaced: Any
) -> None:
    run = begin(polls.alias)

    def value(question: Any) -> Any:
        if question.pk == 3 * 50:
            store.pause(run.pk, "ada")
            store.resume(run.pk, "ada")
        return month_later(question)

    replaced(value)
    Queue.deliver_all()
    assert all_ranges()[0].token == 1
    assert_filled(polls)


@SQLITE
def test_who_lets_a_run_go_on_is_told_that_its_workers_are_called(
    polls: Polls, replaced: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what to type where they are not: the broker is away."""
    replaced(lambda question: None if question.pk == 3 else month_later(question))
    run = begin(polls.alias)
    Queue.deliver_all()
    Queue.is_away = True
    for action in ("retry", "pause", "resume"):
        capsys.readouterr()
        call_command("backfill", action, str(run.pk))
        said = capsys.readouterr().out
        called = "Its workers are called. If none takes it: python manage.py backfill requeue\n"
        assert said.endswith(called) == (action != "pause")
    assert the_run().events.last().text.startswith("The broker is away. Run ")
    Queue.is_away = False
    assert len(scheduler.requeue()) == 1
    replaced(month_later)
    Queue.deliver_all()
    assert_filled(polls)


# Throttles


class Briefly:
    """A throttle that makes a short pause after each batch, as Nice does."""

    def __init__(self, model: Any, alias: str) -> None:
        self.batches, self.until = 0, 0.0

    def reason(self, run: Any) -> str | None:
        if run.batches != self.batches:
            self.batches, self.until = run.batches, time.monotonic() + 0.03
        return None if time.monotonic() >= self.until else "a short pause"


@SQLITE
def test_many_short_pauses_are_not_a_long_one(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a long one the worker is given back, for 15 seconds."""
    monkeypatch.setattr("safemigrate.runs.recorder.PATIENCE", 0.3)
    of_ranges_of(ROWS, monkeypatch)
    begin(polls.alias, "--throttle", f"{__name__}.Briefly")
    started = time.monotonic()
    while Queue.messages:
        assert Queue.seconds[0] < workers.LATER
        Queue.deliver()
    assert time.monotonic() - started > 0.3
    assert_filled(polls)


@POSTGRESQL
def test_a_vacuum_comes_after_its_number_of_rows_in_whatever_ranges_they_are(
    polls: Polls, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = ["safemigrate.throttles.Vacuum"]
    monkeypatch.setattr(Vacuum, "every", 500)
    vacuums: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        vacuums.extend([sql] if sql.startswith("VACUUM") else [])
        return execute(sql, params, many, context)

    begin(polls.alias, "--workers", "1")
    with polls.connection.execute_wrapper(note):
        Queue.deliver_all()
    assert {part.rows_done for part in all_ranges()} == {300, 200, 0}
    assert len(vacuums) == 3


@SQLITE
def test_a_run_that_a_throttle_holds_does_not_hang(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its task comes again, which is later than a lease ends."""
    monkeypatch.setattr("safemigrate.runs.recorder.PATIENCE", 0.1)
    begin(polls.alias, "--throttle", "tests.support.deliveries.Never")
    Queue.deliver()
    assert Queue.seconds == [workers.LATER] > [conf.get("SAFEMIGRATE_LEASE_SECONDS")]
    run = the_run()
    assert not run.is_stalled(timezone.now() + timedelta(seconds=workers.LATER))
    store.records().update(enqueued_at=timezone.now() - timedelta(hours=1))
    assert scheduler.requeue() == []


# Workers beside others


@POSTGRESQL
def test_workers_that_are_killed_together_are_replaced_by_their_messages(polls: Polls) -> None:
    """A broker that knows of their death delivers both again at once, long before their leases end."""
    run = begin(polls.alias, "--workers", "2")
    taken = [take(run), take(run)]
    Queue.deliver()
    Queue.deliver()
    assert len(Queue.messages) == 2
    assert min(Queue.seconds) > 2
    assert max(Queue.seconds) <= conf.get("SAFEMIGRATE_LEASE_SECONDS")
    assert [part.token for part in all_ranges()] == [part.token for part in taken]
    expire()
    Queue.deliver_all()
    assert_filled(polls)


@POSTGRESQL
def test_a_worker_that_is_one_too_many_ends_while_the_others_live(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(polls.alias, "--workers", "1")
    part = take(run)
    Queue.messages *= 2
    Queue.seconds *= 2

    def beat(seconds: float) -> None:
        until = timezone.now() + store.lease()
        leases.owned(part).update(lease_until=until)
        store.records().update(lease_until=until)

    monkeypatch.setattr("safemigrate.runs.worker.time.sleep", beat)
    Queue.deliver()
    Queue.deliver()
    assert Queue.messages == []
    assert the_run().is_held()


@POSTGRESQL
def test_a_run_that_waits_for_the_places_of_other_runs_says_so_and_does_not_hang(polls: Polls) -> None:
    run = begin(polls.alias, "--workers", "1")
    other = another_run(polls.alias, "other")
    leases.records().create(run=other, number=1, lease_until=timezone.now() + timedelta(minutes=1))
    Queue.deliver()
    waits = store.find(run.pk)
    assert Queue.seconds == [leases.LOOK_AGAIN]
    assert waits.waiting_for == f"other runs have the 1 workers that may fill on {polls.alias} at once"
    assert not waits.is_stalled(timezone.now() + timedelta(seconds=leases.LOOK_AGAIN))
    store.records().filter(pk=run.pk).update(enqueued_at=timezone.now() - timedelta(hours=1))
    assert not [text for text in scheduler.requeue() if text.startswith(f"Run {run.pk} ")]
    other.delete()
    Queue.deliver_all()
    assert_filled(polls)
    assert the_run().waiting_for == ""


def another_run(alias: str, name: str) -> BackfillRun:
    return store.records().create(
        app_label="polls", model_name="Choice", field_names=name, alias=alias, status=Status.RUNNING,
        executor="celery", options=scheduler.options_of(), last_key=3 * ROWS, started=timezone.now(),
    )  # fmt: skip


@SERVERS
def test_several_runs_on_a_database_do_not_lock_each_other_out(polls: Polls) -> None:
    """All who take a range wait for each other, and all write their progress."""
    several = [another_run(polls.alias, f"field_{number}") for number in range(4)]
    until = time.monotonic() + 1
    errors: list[str] = []

    def take_turns(run: BackfillRun) -> None:
        with transaction.atomic(using=store.database()):
            leases._alone(run, leases._open_on(run.alias))

    def write(run: BackfillRun) -> None:
        samples = [[n, n] for n in range(random.randrange(200))]
        store.records().filter(pk=run.pk).update(rows_done=random.randrange(10**9), samples=samples)

    def go_on(do: Callable[[BackfillRun], None], run: BackfillRun) -> None:
        try:
            while time.monotonic() < until:
                do(run)
        except Error as error:
            errors.append(str(error))
        finally:
            connections.close_all()

    together([(go_on, do, run) for run in several for do in (take_turns, take_turns, write)])
    assert errors == []


def together(calls: list[tuple[Any, ...]]) -> None:
    threads = [threading.Thread(target=function, args=arguments) for function, *arguments in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
@POSTGRESQL
def test_four_workers_share_a_run_that_is_recorded_on_sqlite(
    polls: Polls, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has one writer at a time, and all of them write."""
    settings.SAFEMIGRATE_RUNS_DATABASE = "default"
    settings.SAFEMIGRATE_BATCH_SIZE = 20
    of_ranges_of(100, monkeypatch)
    run = begin(polls.alias, "--workers", "4")
    together([(worker, run.pk)] * 4)
    Queue.deliver_all()
    assert_filled(polls)
    assert caplog.messages == []


# Settings and messages


@SQLITE
def test_the_settings_say_how_a_run_is_worked_on_and_the_options_come_before_them(
    polls: Polls, settings: Any
) -> None:
    settings.SAFEMIGRATE_QUEUE = "slow"
    settings.SAFEMIGRATE_QUEUE_WORKERS = 3
    settings.SAFEMIGRATE_TASK_SECONDS = 7
    settings.SAFEMIGRATE_THROTTLES = ["tests.support.deliveries.Never"]
    settled = begin(polls.alias).options
    assert settled == {
        "queue": "slow", "wanted": 3, "workers": 1, "seconds": 7, "batch_size": None,
        "throttles": ["tests.support.deliveries.Never"], "rows_per_second": None,
    }  # fmt: skip
    given = ["--queue", "safemigrate", "--workers", "2", "--task-seconds", "9", "--batch-size", "50"]
    given += ["--rows-per-second", "900"]
    settled = begin(polls.alias, *given, "--throttle", "safemigrate.throttles.Nice").options
    assert settled == {
        "queue": "safemigrate", "wanted": 2, "workers": 1, "seconds": 9, "batch_size": 50,
        "throttles": ["safemigrate.throttles.Nice"], "rows_per_second": 900,
    }  # fmt: skip


def test_a_message_imports_no_module_that_is_in_no_app() -> None:
    assert "this" not in sys.modules
    with pytest.raises(NotEnqueued, match="this.c is not declared with @background"):
        base.call("this.c")
    assert "this" not in sys.modules


@background
def report(person: int) -> None: ...


def test_the_time_limits_of_a_project_do_not_cut_a_task_of_ours() -> None:
    """It saves where it is after SAFEMIGRATE_TASK_SECONDS by itself; one of the project's is as all of its own."""
    celery = pytest.importorskip("celery")
    app = celery.Celery("tests", set_as_current=False)
    app.conf.update(task_time_limit=60, task_soft_time_limit=50)
    limits = {name: (task.time_limit, task.soft_time_limit) for name, task in app.tasks.items()}
    for task in (tasks.work, tasks.requeue):
        assert min(limits[f"{tasks.__name__}.{task.__name__}"]) > 10**6
    assert limits[f"{__name__}.report"] == (60, 50)


@SQLITE
def test_ranges_grow_with_the_time_that_they_take_however_many_are_under_way(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest one was just cut by another worker, and has no time yet."""
    monkeypatch.setattr(leases, "PACE", leases.Pace(seconds=10, start=10, smallest=10, largest=1_000))
    run = begin(polls.alias)
    store.records().update(options=run.options | {"workers": 3}, rows_total=0)
    sizes = []
    for _ in range(4):
        first, second = take(the_run()), take(the_run())
        sizes.append(second.size)
        leases.owned(first).update(seconds=1.0, rows_done=first.size)
        assert leases.end(first)
        leases.records().filter(pk=second.pk).update(lease_until=timezone.now() + timedelta(hours=1))
        store.records().update(options=the_run().options | {"workers": the_run().options["workers"] + 1})
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
