"""A queue whose messages the test delivers, when and as often as it likes, and full tables to fill by it.

The first of the fixtures is for every test of a module that imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.models import F
from django.utils import timezone

from safemigrate import conf
from safemigrate.exceptions import NotEnqueued
from safemigrate.executors import base
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import leases, lookup, scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.status import Status
from tests.support import replaceable
from tests.support.processes import MONTH, Polls

FIELD = "polls.Question.expires_date"
ROWS = 2_000
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql"], indirect=True)


class Queue:
    """An executor that keeps its messages for the test."""

    is_apart = True
    known = ("safemigrate", "slow")
    is_away = False
    messages: list[tuple[Any, ...]] = []
    seconds: list[float] = []

    def check(self, queue: str) -> None:
        if queue not in Queue.known:
            raise NotEnqueued(f"There is no queue {queue!r}.")

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        if Queue.is_away:
            raise NotEnqueued("The broker is away.")
        Queue.messages.append((path, *arguments))
        Queue.seconds.append(seconds)

    @staticmethod
    def deliver() -> None:
        """Deliver the oldest message to a worker, which is this process."""
        Queue.seconds.pop(0)
        base.call(*Queue.messages.pop(0))

    @staticmethod
    def deliver_all(most: int = 100) -> int:
        """Deliver until there are none; a worker that waits finds the time past."""
        for number in range(most):
            if not Queue.messages:
                return number
            Queue.deliver()
        raise AssertionError(f"after {most} messages there are still {len(Queue.messages)}")


@pytest.fixture(autouse=True)
def kept_messages(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setitem(conf.EXECUTORS, "celery", f"{__name__}.Queue")
    monkeypatch.setattr(Queue, "messages", [])
    monkeypatch.setattr(Queue, "seconds", [])
    monkeypatch.setattr(Queue, "is_away", False)
    monkeypatch.setattr(leases, "PACE", leases.Pace(seconds=10, start=300, smallest=300, largest=300))
    monkeypatch.setattr(leases, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(workers, "BEAT", 0.02)  # How long it looks whether the others live.
    settings.SAFEMIGRATE_BATCH_SIZE = 100
    settings.SAFEMIGRATE_LEASE_SECONDS = 3


@pytest.fixture(name="polls")
def full_polls(place: dict[str, Any], settings: Any) -> Polls:
    """Polls with the column, empty, whose runs are recorded beside them."""
    polls = Polls(**place, rows=ROWS)
    settings.MIGRATION_MODULES = {"polls": "tests.support.split_migrations"}
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    call_command("migrate", "polls", "0003", database=polls.alias, verbosity=0)
    return polls


def begin(alias: str, *arguments: str) -> BackfillRun:
    call_command("backfill", "run", FIELD, "--database", alias, "--executor", "celery", *arguments)
    return the_run()


def the_run() -> BackfillRun:
    return store.records().order_by("-pk").first()


def all_ranges() -> list[BackfillRange]:
    return list(leases.of(the_run()))


def assert_filled(polls: Polls, unsaid: int = 0) -> None:
    """Every row has the value that the function gives, the run says so, and no part of it is left.

    A worker that dies does not say what it filled in its last second.
    """
    assert polls.questions().filter(expires_date=F("pub_date") + MONTH).count() == polls.rows
    run = the_run()
    said = polls.rows - unsaid
    assert (run.status, run.rows_done, run.rows_total) == (Status.SUCCEEDED, said, said)
    assert not run.is_held()
    assert {part.ended is not None for part in all_ranges()} == {True}


@pytest.fixture(name="replaced")
def replaced_function(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    return lambda function: monkeypatch.setattr(replaceable, "value", function)


def worker(key: int) -> None:
    try:
        workers.work(key)
    finally:
        connections.close_all()


def take(run: BackfillRun, worker: str = "another:1") -> Any:
    """Take a range as a worker does that dies then."""
    workers._started(run)
    run = the_run()
    target = lookup.find(FIELD, run.alias).target
    return leases.take(run, target.batches, worker)


def expire(**changes: Any) -> None:
    """Let all leases have ended."""
    past = timezone.now() - timedelta(seconds=1)
    leases.records().filter(ended=None).exclude(lease_until=None).update(lease_until=past)
    store.records().update(lease_until=past, **changes)


def hours_later(times: int = 1) -> list[str]:
    """Let hours pass, in which all leases end; then requeue and deliver, and return what was reported."""
    said = []
    for _ in range(times):
        expire(enqueued_at=timezone.now() - timedelta(hours=5))
        said += scheduler.requeue()
        Queue.deliver_all()
    return said


class Never:
    """A throttle that never lets it go on."""

    def __init__(self, model: Any, alias: str) -> None: ...

    def reason(self, run: Any) -> str | None:
        return "not now"


@pytest.fixture(name="both")
def two_databases(
    polls: Polls, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> Iterator[list[str]]:
    """Two databases with the column."""
    settings.MIGRATION_MODULES = {}
    archive = connections["archive"]
    archive.close()
    monkeypatch.setitem(archive.settings_dict, "NAME", str(tmp_path / "archive.sqlite3"))
    Polls("archive", {}, rows=100)
    settings.MIGRATION_MODULES = {"polls": "tests.support.split_migrations"}
    call_command("migrate", "polls", "0003", database="archive", verbosity=0)
    yield [polls.alias, "archive"]
    archive.close()


def begin_chain(both: list[str], *arguments: str) -> None:
    databases = [part for alias in both for part in ("--database", alias)]
    call_command("backfill", "run", FIELD, *databases, "--chain", *arguments)
