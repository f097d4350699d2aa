"""A backfill that nothing but its cursor says how far it is: each row once, whatever is killed, and whenever."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import django
import pytest
from django.core.management import call_command
from django.db import OperationalError, connections
from django.db.models import QuerySet

from safemigrate import backfills
from safemigrate.backfills import Backfill
from safemigrate.exceptions import AlreadyRunning, BadRows, LeaseLost, NothingToRun
from safemigrate.models import BackfillRun
from safemigrate.runs import scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.status import OVER, Status
from tests.conftest import IN_CI
from tests.support.deliveries import Queue, expire, kept_messages  # noqa: F401
from tests.support.processes import Polls
from tests.support.sandbox import Statements

#: Once is enough: with the newest Django.
THOROUGH = (IN_CI and django.VERSION >= (6, 0)) or "KILLS" in os.environ
KILLS = int(os.environ.get("KILLS", "50" if THOROUGH else "5"))
ROWS = 200_000 if THOROUGH else 6_000
SEED = int(os.environ.get("KILLS_SEED", "") or random.SystemRandom().randrange(10**6))
#: What the drivers raise where the answer to a COMMIT does not come.
LOST = {
    "mysql": OperationalError(2013, "Lost connection to MySQL server during query"),
    "postgresql": OperationalError("server closed the connection unexpectedly"),
}
SERVERS = ["sqlite", "postgresql", "mariadb"]


class Audited(Backfill):
    """Writes a row into another table for each row that it is given."""

    model = "polls.Question"
    broken: set[int] = set()

    @classmethod
    def label(cls) -> str:
        return "polls.Audited"

    def batch(self, rows: QuerySet[Any]) -> None:
        keys = list(rows.values_list("pk", flat=True))
        with connections[self.using].cursor() as cursor:
            cursor.execute("INSERT INTO audit VALUES " + ", ".join(f"({key})" for key in keys))
        if found := self.broken.intersection(keys):
            raise ValueError(f"{found} cannot be audited")


@pytest.fixture
def rng() -> random.Random:
    print(f"KILLS_SEED={SEED}")  # shown when the test fails
    return random.Random(SEED)


@pytest.fixture(name="make")
def make_polls(
    place: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Polls]:
    def make(rows: int) -> Polls:
        polls = Polls(**place, rows=rows)
        settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
        call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
        call_command("migrate", "polls", database=polls.alias, verbosity=0)
        with polls.connection.cursor() as cursor:
            cursor.execute("CREATE TABLE audit (question_id BIGINT)")
        store.records().delete()
        return polls

    monkeypatch.setattr(backfills, "find", lambda label: Audited)
    monkeypatch.setattr(Audited, "broken", set())
    settings.SAFEMIGRATE_BATCH_SIZE = None if THOROUGH else 100
    return make


def run(polls: Polls) -> None:
    BackfillJob(Audited(using=polls.alias)).run()


def assert_each_once(polls: Polls) -> None:
    with polls.connection.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*), COUNT(DISTINCT question_id), MIN(question_id), MAX(question_id) FROM audit"
        )
        assert cursor.fetchone() == (polls.rows, polls.rows, 3, 3 * polls.rows)
    record = the_run()
    assert (record.status, record.rows_done, record.rows_total) == (Status.SUCCEEDED, polls.rows, polls.rows)
    assert store.records().count() == 1


def the_run() -> BackfillRun:
    return store.records().get()


def forked(do: Callable[[], None]) -> int:
    """Do it in a fork of this process, with connections of its own, and return its number."""
    connections.close_all()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        do()
        code = 0
    except AlreadyRunning:
        code = 2
    finally:
        os._exit(code)


def is_gone(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_killed_at_random_moments(make: Callable[[int], Polls], rng: random.Random) -> None:
    polls = make(ROWS)
    longest, kills = 4.0 * (ROWS / 200_000) ** 0.5 / KILLS, 0
    while kills < KILLS and not (kills and is_over()):
        if is_over():  # It was faster than the first kill: from the start, and earlier.
            start_anew(polls)
            longest /= 2
        pid = forked(lambda: run(polls))
        time.sleep(rng.uniform(0.0, 0.1) + rng.uniform(0.0, longest))
        if not is_gone(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
    while not is_over():
        with suppress(AlreadyRunning):
            run(polls)
    assert_each_once(polls)


def is_over() -> bool:
    return store.records().exists() and the_run().status in OVER


def start_anew(polls: Polls) -> None:
    store.records().delete()
    with polls.connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit")


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_three_workers_killed_at_random_moments(
    make: Callable[[int], Polls], rng: random.Random, settings: Any
) -> None:
    polls = make(ROWS)
    settings.SAFEMIGRATE_LEASE_SECONDS = 3
    job = BackfillJob(Audited(using=polls.alias))
    key = scheduler.begin(job, "celery", scheduler.options_of(workers=3, seconds=1.0)).pk

    def work() -> None:
        while store.find(key).status not in OVER:
            workers.work(key)
            time.sleep(0.01)

    kills, alive, end = 0, [], time.monotonic() + 400
    while store.find(key).status not in OVER:
        assert time.monotonic() < end, vars(store.find(key))
        alive = [pid for pid in alive if not is_gone(pid)]
        alive += [forked(work) for _ in range(3 - len(alive))]
        time.sleep(rng.uniform(0.02, 0.3))
        if kills < KILLS:
            os.kill(rng.choice(alive), signal.SIGKILL)
            kills += 1
            # The leases of those that live end too: what they do then is not to count.
            expire()
    for pid in alive:
        os.waitpid(pid, 0)
    assert_each_once(polls)


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_stopped_after_every_statement(make: Callable[[int], Polls]) -> None:
    polls, stop_at = make(250), 0
    while True:
        statements = Statements(stop_at)
        try:
            with connections[polls.alias].execute_wrapper(statements):
                run(polls)
            break
        except Statements.Crash:
            connections[polls.alias].close()
            stop_at += 1
    assert stop_at > 20
    assert_each_once(polls)


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_an_answer_to_a_commit_that_is_lost_repeats_nothing(
    make: Callable[[int], Polls], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    polls, lost = make(1_000), iter([3, 7, 8])
    connection, numbers, next_lost = connections[polls.alias], iter(range(1_000)), [next(lost)]
    settings.SAFEMIGRATE_BATCH_SIZE = 100
    commit = connection._commit

    def losing() -> None:
        commit()
        if next(numbers) == next_lost[0]:
            next_lost[0] = next(lost, 0)
            raise LOST[connection.vendor]

    monkeypatch.setattr(connection, "_commit", losing)
    run(polls)
    monkeypatch.setattr(connection, "_commit", commit)
    assert not next_lost[0]
    assert_each_once(polls)


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_bad_rows_are_done_once_too_when_they_are_right(make: Callable[[int], Polls]) -> None:
    polls = make(1_000)
    Audited.broken = {3, 333, 3_000}
    with pytest.raises(BadRows, match="3 rows of polls.Audited"):
        run(polls)
    assert [key for key, _ in the_run().bad_rows] == [3, 333, 3_000]
    Audited.broken = {333}
    with pytest.raises(BadRows, match="1 rows of polls.Audited"):
        run(polls)
    Audited.broken = set()
    run(polls)
    assert_each_once(polls)


def test_bad_rows_of_workers_are_done_once_too(make: Callable[[int], Polls], settings: Any) -> None:
    polls = make(1_000)
    settings.SAFEMIGRATE_BATCH_SIZE = 100
    Audited.broken = {3, 333, 3_000}
    job = BackfillJob(Audited(using=polls.alias))
    key = scheduler.begin(job, "celery", scheduler.options_of(workers=3)).pk
    Queue.deliver_all()
    assert store.find(key).status == Status.FAILED
    assert [row for row, _ in store.find(key).bad_rows] == [3, 333, 3_000]
    Audited.broken = set()
    call_command("backfill", "retry", str(key), verbosity=0)
    Queue.deliver_all()
    assert_each_once(polls)


def test_begun_alone_it_may_go_on_by_workers_and_not_back(
    make: Callable[[int], Polls], settings: Any
) -> None:
    polls = make(1_000)
    settings.SAFEMIGRATE_BATCH_SIZE = 100
    Audited.broken = {3, 333}
    with pytest.raises(BadRows):
        run(polls)
    Audited.broken = set()
    job = BackfillJob(Audited(using=polls.alias))
    scheduler.begin(job, "celery", scheduler.options_of(workers=2))
    with pytest.raises(NothingToRun, match="is shared by the workers of a queue"):
        run(polls)
    Queue.deliver_all()
    assert_each_once(polls)


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_one_that_lost_its_lease_while_it_slept_writes_nothing(make: Callable[[int], Polls]) -> None:
    polls = make(1_000)

    class Sleepy(Audited):
        def batch(self, rows: QuerySet[Any]) -> None:
            super().batch(rows)
            store.records().update(token=99)  # as another process takes it

    with pytest.raises(LeaseLost):
        BackfillJob(Sleepy(using=polls.alias)).run()
    with polls.connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM audit")
        assert cursor.fetchone()[0] == 0


def test_rows_that_come_in_later_are_not_the_runs(make: Callable[[int], Polls]) -> None:
    polls = make(500)
    inserted: Iterator[int] = iter([1])

    class Growing(Audited):
        def batch(self, rows: QuerySet[Any]) -> None:
            if next(inserted, None):
                with connections[self.using].cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO polls_question (id, question_text, pub_date, expires_date) "
                        "SELECT 9999, question_text, pub_date, expires_date FROM polls_question WHERE id = 3"
                    )
            super().batch(rows)

    BackfillJob(Growing(using=polls.alias)).run()
    assert_each_once(polls)
