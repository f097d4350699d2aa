"""A chain: one database after another is filled by the workers of a queue, then all are migrated."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError, ProgrammingError, connections
from django.db.migrations.recorder import MigrationRecorder

from safemigrate import signals
from safemigrate.models import BackfillRun
from safemigrate.runs import chain, lookup, store, worker
from safemigrate.runs.status import Status
from tests.conftest import cleaned, missing
from tests.support.deliveries import (
    FIELD,
    ROWS,
    SQLITE,
    Queue,
    begin_chain,
    expire,
    full_polls,  # noqa: F401
    hours_later,
    kept_messages,  # noqa: F401
    replaced_function,  # noqa: F401
    the_run,
    two_databases,  # noqa: F401
)
from tests.support.processes import Polls
from tests.support.replaceable import month_later

pytestmark = pytest.mark.matrix


def filled_on(alias: str) -> int:
    return apps.get_model("polls", "Question").objects.using(alias).exclude(expires_date=None).count()


def required_on(alias: str) -> bool:
    return ("polls", "0005_require") in MigrationRecorder(connections[alias]).applied_migrations()


@SQLITE
@pytest.mark.parametrize("executor", ["celery", "inline"])
@pytest.mark.parametrize("migrate", [True, False])
def test_a_chain_fills_one_database_after_another_and_then_migrates(
    both: list[str], executor: str, migrate: bool
) -> None:
    begin_chain(both, "--executor", executor, *(["--migrate"] if migrate else []))
    if executor == "celery":
        assert [run.alias for run in store.records()] == both[:1]
        Queue.deliver_all()
        last, first = store.records()
        assert [event.text for event in first.events.all()][-1] == f"next: archive, run {last.pk}"
        assert f"verified: every row has a value on {both[0]}, archive" in [e.text for e in last.events.all()]
    assert [filled_on(alias) for alias in both] == [ROWS, 100]
    assert [required_on(alias) for alias in both] == [migrate, migrate]


@SQLITE
def test_a_database_that_is_full_already_is_migrated_with_the_others(both: list[str]) -> None:
    call_command("backfill", "run", FIELD, "--database", both[0], verbosity=0)
    begin_chain(both, "--executor", "celery", "--migrate")
    assert the_run().alias == "archive"
    Queue.deliver_all()
    assert [required_on(alias) for alias in both] == [True, True]


@SQLITE
def test_a_limit_ends_a_chain_in_good_order(both: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    begin_chain(both, "--executor", "inline", "--migrate", "--max-rows", "100")
    assert "its 100 rows are filled" in capsys.readouterr().out
    assert [filled_on(alias) for alias in both] == [100, 0]
    assert [required_on(alias) for alias in both] == [False, False]


@SQLITE
@pytest.mark.parametrize("executor", ["celery", "inline"])
def test_an_error_ends_the_chain(both: list[str], executor: str, replaced: Any) -> None:
    replaced(lambda question: None if question.pk == 3 else month_later(question))
    if executor == "inline":
        with pytest.raises(CommandError, match="1 rows"):
            begin_chain(both, "--executor", executor, "--migrate")
    else:
        begin_chain(both, "--executor", executor, "--migrate")
        Queue.deliver_all()
        assert the_run().status == Status.FAILED
    assert [filled_on(alias) for alias in both] == [ROWS - 1, 0]
    if executor == "celery":  # It goes on where it ended.
        replaced(month_later)
        store.retry(the_run().pk, "ada")
        Queue.deliver_all()
        assert [required_on(alias) for alias in both] == [True, True]


def fill_the_first(both: list[str], *arguments: str) -> BackfillRun:
    """Begin a chain, and deliver until the next step is to be taken."""
    begin_chain(both, "--executor", "celery", *arguments)
    while the_run().status != Status.SUCCEEDED:
        Queue.deliver()
    return the_run()


def first_of(both: list[str]) -> BackfillRun:
    return store.records().get(alias=both[0])


class Migrate:
    """Is called in place of `migrate`, and fails as often as it is to."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        call_command(*arguments, **options)


@SQLITE
@pytest.mark.parametrize(
    "error", [RuntimeError("no migrate today"), ProgrammingError("no such table: polls_choice")]
)
def test_what_fails_after_a_run_is_shown_in_it_and_not_tried_again(
    both: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    begin_chain(both, "--executor", "celery", "--migrate")
    monkeypatch.setattr(chain, "call_command", Migrate(error, times=1))
    Queue.deliver_all()
    last = the_run()
    assert last.status == Status.SUCCEEDED
    assert last.error == f"The chain stopped after this run: {type(error).__name__}: {error}"
    assert last.next_run is None
    assert hours_later() == []
    assert [required_on(alias) for alias in both] == [False, False]


@SQLITE
def test_an_error_that_passes_is_waited_out(both: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    begin_chain(both, "--executor", "celery", "--migrate")
    monkeypatch.setattr(chain, "call_command", Migrate(OperationalError("database is locked"), times=2))
    Queue.deliver_all()
    assert [required_on(alias) for alias in both] == [True, True]
    assert the_run().error == ""


@SQLITE
def test_a_chain_ends_where_somebody_fills_the_next_database_otherwise(both: list[str]) -> None:
    begin_chain(both, "--executor", "celery", "--migrate")
    store.claim(lookup.find(FIELD, "archive").target, {"executor": "inline", "started_by": "bob"})
    Queue.deliver_all()
    first = first_of(both)
    assert first.next_run is None
    assert "on archive is being filled already" in first.error
    assert "started by bob" in first.error
    assert first.error.endswith("Not begun: archive.")
    assert first.events.last().text == first.error


@SQLITE
def test_a_broker_that_is_away_between_two_links_does_not_break_the_chain(both: list[str]) -> None:
    failed: list[Any] = []
    first = fill_the_first(both, "--migrate")
    signals.run_failed.connect(
        lambda **kwargs: failed.append(kwargs["error"]), weak=False, dispatch_uid="test"
    )
    Queue.is_away = True
    Queue.deliver_all()
    Queue.is_away = False
    signals.run_failed.disconnect(dispatch_uid="test")
    assert failed == []
    assert first_of(both).error == ""
    assert first.events.last().text.startswith("next: archive: The broker is away. Run ")
    hours_later()
    assert [required_on(alias) for alias in both] == [True, True]


@SQLITE
def test_a_process_that_takes_over_a_run_of_a_chain_ends_the_chain(both: list[str]) -> None:
    begin_chain(both, "--executor", "celery", "--migrate")
    call_command("backfill", "run", FIELD, "--database", both[0], verbosity=0)
    Queue.deliver_all()
    assert the_run().next_run is None
    assert hours_later() == []
    assert [filled_on(alias) for alias in both] == [ROWS, 0]


@SQLITE
def test_the_sign_of_life_of_a_chain_survives_an_error(
    both: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may be a `migrate` of an hour, and the database away for a second of it."""
    beats = threading.Semaphore(0)
    seen: list[bool] = []

    def beat(run: BackfillRun) -> float:
        beats.release()
        raise OperationalError("server closed the connection unexpectedly")

    def step(run: BackfillRun) -> None:
        seen.extend(beats.acquire(timeout=1) for _ in range(3))

    fill_the_first(both)
    monkeypatch.setattr("safemigrate.runs.heartbeat.BEAT", 0.01)
    monkeypatch.setattr(chain, "_beat", beat)
    monkeypatch.setattr(chain, "_step", step)
    Queue.deliver()
    assert seen == [True, True, True]


@pytest.mark.slow
@SQLITE
def test_one_worker_alone_takes_the_next_step(both: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def step(run: BackfillRun) -> None:
        steps.append(run.pk)
        worker.work(run.pk)

    run = fill_the_first(both)
    monkeypatch.setattr(chain, "_step", step)
    Queue.deliver_all()
    assert steps == [run.pk]


@SQLITE
def test_a_worker_that_wakes_up_in_the_middle_of_a_step_ends_nothing(
    both: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step was taken by another one, whose chain goes on."""
    real = chain._step

    def step(run: BackfillRun) -> None:
        monkeypatch.setattr(chain, "_step", real)
        expire()
        worker.work(run.pk)
        raise RuntimeError("too late")

    run = fill_the_first(both, "--migrate")
    monkeypatch.setattr(chain, "_step", step)
    Queue.deliver_all()
    assert first_of(both).error == ""
    assert "too late" not in str([event.text for event in run.events.all()])
    assert [required_on(alias) for alias in both] == [True, True]


@SQLITE
def test_a_chain_whose_worker_died_is_taken_up_by_the_sweep(both: list[str]) -> None:
    fill_the_first(both)
    Queue.messages.clear()
    Queue.seconds.clear()
    assert [filled_on(alias) for alias in both] == [ROWS, 0]
    assert len(hours_later()) == 1
    assert [filled_on(alias) for alias in both] == [ROWS, 100]


@SQLITE
def test_each_database_of_a_chain_gets_the_workers_that_were_asked_for(polls: Polls, settings: Any) -> None:
    """SQLite has one writer, whatever was asked for; the next database may have more."""
    if "postgresql" not in connections:
        pytest.skip(missing("postgresql"))
    settings.MIGRATION_MODULES = {}
    with cleaned("postgresql"):
        Polls("postgresql", {}, rows=100)
        settings.MIGRATION_MODULES = {"polls": "tests.support.split_migrations"}
        call_command("migrate", "polls", "0003", database="postgresql", verbosity=0)
        begin_chain([polls.alias, "postgresql"], "--executor", "celery", "--workers", "4")
        Queue.deliver_all()
        assert {run.alias: run.options["workers"] for run in store.records()} == {
            polls.alias: 1,
            "postgresql": 4,
        }
        assert filled_on("postgresql") == 100
