"""The states of a run: the table has no dead end, and nothing moves otherwise than it says."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connections

from safemigrate.exceptions import IllegalMove
from safemigrate.models import BackfillEvent, BackfillRange, BackfillRun
from safemigrate.runs import store
from safemigrate.runs.status import HELD, MOVES, OVER, Status, end_of, sources

PAIRS = [(source, target) for source in Status for target in Status]
LEGAL = [pair for pair in PAIRS if pair[1] in MOVES[pair[0]]]
ILLEGAL = [pair for pair in PAIRS if pair not in LEGAL]
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)


def reached_from(start: str) -> set[str]:
    """Return all states that some moves lead to."""
    found, left = {start}, [start]
    while left:
        new = MOVES[left.pop()] - found
        found |= new
        left += new
    return found


# The table


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(Status)


def test_every_state_is_reached_from_the_first() -> None:
    assert reached_from(Status.QUEUED) == set(Status)


@pytest.mark.parametrize("status", sorted(set(Status) - OVER))
def test_from_every_state_that_is_not_over_a_run_can_succeed_and_be_cancelled(status: str) -> None:
    assert set(OVER) <= reached_from(status)
    assert Status.RUNNING in reached_from(status) or status == Status.CANCELLING


def test_only_what_is_over_leads_nowhere() -> None:
    assert {status for status, targets in MOVES.items() if not targets} == OVER


def test_sources_is_the_table_read_backwards() -> None:
    assert {(source, target) for target in Status for source in sources(target)} == set(LEGAL)


@pytest.mark.parametrize("status", sorted(HELD))
@pytest.mark.parametrize("outcome", [Status.SUCCEEDED, Status.FAILED, Status.STOPPED])
def test_a_process_can_end_in_any_way_whatever_was_asked_meanwhile(status: str, outcome: str) -> None:
    assert end_of(status, outcome) in MOVES[status]


def test_a_pause_and_a_cancel_outlive_the_process_that_is_stopped_first() -> None:
    assert [end_of(status, Status.STOPPED) for status in (Status.PAUSING, Status.PAUSED)] == [
        Status.PAUSED
    ] * 2
    assert end_of(Status.CANCELLING, Status.STOPPED) == Status.CANCELLED


# The moves


@pytest.fixture
def table(alias: str) -> str:
    """The alias that runs are recorded on, which may be any database."""
    with connections[alias].schema_editor() as editor:
        for model in [] if alias == "default" else [BackfillRun, BackfillEvent, BackfillRange]:
            editor.create_model(model)
    return alias


@pytest.fixture(autouse=True)
def _there(request: pytest.FixtureRequest, settings: Any) -> None:
    if "table" in request.fixturenames:
        settings.SAFEMIGRATE_RUNS_DATABASE = request.getfixturevalue("table")


def recorded(status: str) -> BackfillRun:
    return store.records().create(
        app_label="polls",
        model_name="Question",
        field_names="slug",
        alias="default",
        status=status,
        open_key="key",
    )


def test_each_legal_move_is_made_noted_and_keeps_the_key_while_it_is_not_over(table: str) -> None:
    for source, target in LEGAL:
        record = recorded(source)
        assert store.move(record, target, "ada")
        now = store.find(record.pk)
        assert now.status == target
        assert [(e.text, e.who) for e in now.events.all()] == [(f"{source} → {target}", "ada")]
        assert (now.open_key is None) == (now.finished is not None) == (target in OVER)
        now.delete()


@SQLITE
@pytest.mark.parametrize(("source", "target"), ILLEGAL)
def test_no_other_move_is_made(alias: str, source: str, target: str) -> None:
    record = recorded(source)
    with pytest.raises(IllegalMove, match=rf"is {source.value}, so it cannot become {target.value}"):
        store.move(record, target, "ada")
    assert store.find(record.pk).status == source
    assert not store.find(record.pk).events.exists()


def test_of_two_who_move_it_at_once_one_is_told(table: str) -> None:
    key = recorded(Status.PAUSED).pk
    ada, bob = store.find(key), store.find(key)
    assert store.move(ada, Status.QUEUED, "ada")
    assert not store.move(bob, Status.CANCELLED, "bob")
    assert store.find(key).status == Status.QUEUED
    assert [event.who for event in store.find(key).events.all()] == ["ada"]


def test_of_many_threads_one_wins(table: str) -> None:
    key = recorded(Status.STOPPED).pk
    start, won = threading.Barrier(8), []

    def take() -> None:
        record = store.find(key)
        start.wait()
        won.append(store.move(record, Status.RUNNING, "ada"))
        connections.close_all()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    assert store.find(key).events.count() == 1
