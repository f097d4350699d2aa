"""The runs as they are recorded: taken by one process at a time, controlled by people, their keys kept as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from datetime import timezone as utc
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, connections, models
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as some
from pytest_django import DjangoDbBlocker

from safemigrate.engine.batches import Target
from safemigrate.engine.keys import key_from_json, key_to_json
from safemigrate.exceptions import AlreadyRunning, IllegalMove, NothingToRun, RunPaused
from safemigrate.models import BackfillRun, open_key
from safemigrate.runs import store
from safemigrate.runs.heartbeat import machine
from safemigrate.runs.status import Status
from tests.conftest import cleaned
from tests.support.sandbox import MigrationSandbox

ONE_MINUTE = timedelta(minutes=1)


@pytest.fixture
def alias(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    with django_db_blocker.unblock(), cleaned("default"):
        yield "default"


@pytest.fixture
def target(alias: str) -> Target:
    sandbox = MigrationSandbox(alias)
    return Target(sandbox.model(), ["slug"], ["slug"], alias, sandbox.state.apps)


def details(process: int = 1, host: str = "elsewhere", who: str = "ada") -> dict[str, Any]:
    """What a process of another machine says of itself: only its lease shows whether it is alive."""
    return {"host": host, "process": process, "machine": "another", "started_by": who}


def claim(target: Target, **given: Any) -> BackfillRun:
    return store.claim(target, details(**given))


def expire(record: BackfillRun) -> None:
    store.records().filter(pk=record.pk).update(lease_until=timezone.now() - ONE_MINUTE)


def put(record: BackfillRun, status: str, *, held: bool) -> None:
    until = timezone.now() + (ONE_MINUTE if held else -ONE_MINUTE)
    store.records().filter(pk=record.pk).update(status=status, lease_until=until)


def now(record: BackfillRun) -> BackfillRun:
    return store.find(record.pk)


# Taking


def test_a_run_is_made_and_taken(target: Target) -> None:
    record = claim(target)
    assert (record.label, record.alias, str(record)) == (
        "boxes.Question.slug",
        "default",
        "boxes.Question.slug on default",
    )
    assert (record.status, record.attempts, record.token) == (Status.RUNNING, 1, 1)
    assert (record.host, record.process, record.started_by) == ("elsewhere", 1, "ada")
    assert record.started is not None
    assert record.is_held()
    assert [(event.text, event.who) for event in record.events.all()] == [("queued → running", "ada")]


def test_while_it_is_held_nobody_else_takes_it_and_is_told_who_has_it(target: Target) -> None:
    record = claim(target, process=4711, host="web3")
    with pytest.raises(AlreadyRunning) as refused:
        claim(target, process=2, who="bob")
    assert str(refused.value) == (
        f"boxes.Question.slug on default is being filled already: run {record.pk}, by process 4711 on web3, "
        "started by ada; 0 rows so far."
    )
    assert (now(record).process, now(record).attempts, now(record).token) == (4711, 1, 1)


def test_when_the_lease_has_ended_it_is_taken_over_with_a_new_token(target: Target) -> None:
    first = claim(target)
    expire(first)
    second = claim(target, process=2, who="bob")
    assert second.pk == first.pk
    assert (second.process, second.started_by, second.attempts) == (2, "bob", 2)
    assert second.token == first.token + 1
    assert second.started == first.started
    assert [event.text for event in second.events.all()] == ["queued → running", "running → running"]


def test_a_process_of_this_machine_that_is_gone_holds_nothing(target: Target) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = store.claim(target, details(process=gone.pid) | {"machine": machine()})
    if machine():
        assert not record.is_held()
        assert record.is_stalled()
        assert claim(target, process=2).attempts == 2
    else:
        assert record.is_held()


def test_of_this_machine_a_process_that_is_there_keeps_it(target: Target) -> None:
    record = store.claim(target, details(process=os.getppid()) | {"machine": machine()})
    with pytest.raises(AlreadyRunning):
        claim(target, process=2)
    assert record.is_held()


@pytest.mark.parametrize("status", [Status.PAUSED, Status.PAUSING])
def test_what_is_paused_is_not_started_and_the_line_to_type_is_told(target: Target, status: str) -> None:
    record = claim(target)
    put(record, status, held=False)
    with pytest.raises(RunPaused, match=f"To go on: python manage.py backfill resume {record.pk}"):
        claim(target)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.STOPPED, Status.FAILED])
def test_what_waits_for_a_process_is_gone_on_with(target: Target, status: str) -> None:
    first = claim(target)
    put(first, status, held=False)
    store.records().filter(pk=first.pk).update(
        error="Ouch", traceback="Ouch", finished=timezone.now(), cursor=7, rows_done=20, waiting_for="hours"
    )
    again = claim(target)
    assert (again.pk, again.attempts, again.cursor, again.rows_done) == (first.pk, 2, 7, 20)
    assert (again.error, again.traceback, again.waiting_for, again.finished) == ("", "", "", None)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.CANCELLED])
def test_after_one_that_is_over_there_is_a_new_one(target: Target, status: str) -> None:
    first = claim(target)
    assert store.move(first, Status.CANCELLING if status == Status.CANCELLED else status, "")
    if status == Status.CANCELLED:
        expire(first)
    second = claim(target)
    assert second.pk != first.pk
    assert (now(first).status, now(first).open_key) == (status, None)
    assert (second.attempts, second.token, second.rows_done) == (1, 1, 0)


def test_there_is_one_open_run_of_a_field_on_an_alias(target: Target) -> None:
    record = claim(target)
    with pytest.raises(IntegrityError):
        store.records().create(
            app_label="boxes",
            model_name="question",
            field_names="slug",
            alias="default",
            open_key=record.open_key,
        )
    elsewhere = Target(target.model, ["slug"], ["slug"], "archive", target.apps)
    another = Target(target.model, ["title"], ["title"], "default", target.apps)
    assert len({record.pk, claim(elsewhere).pk, claim(another).pk}) == 3


def test_a_key_that_is_too_long_for_its_column_is_unique_all_the_same() -> None:
    long = "+".join(f"field_{number}" for number in range(60))
    keys = {open_key(f"polls.Question.{long}{end}", "default") for end in ("a", "b")}
    assert len(keys) == 2
    assert all(len(key) <= 255 for key in keys)


# Action

WHAT_BECOMES = {
    # action: state: (held, not held); None where it is refused
    "pause": {
        Status.QUEUED: (Status.PAUSED, Status.PAUSED),
        Status.RUNNING: (Status.PAUSING, Status.PAUSED),
        Status.PAUSING: (None, Status.PAUSED),
        Status.STOPPED: (None, Status.PAUSED),
    },
    "resume": {
        Status.PAUSING: (Status.RUNNING, Status.QUEUED),
        Status.PAUSED: (Status.RUNNING, Status.QUEUED),
    },
    "cancel": {
        Status.QUEUED: (None, Status.CANCELLED),
        Status.RUNNING: (Status.CANCELLING, Status.CANCELLED),
        Status.PAUSING: (Status.CANCELLING, Status.CANCELLED),
        Status.PAUSED: (Status.CANCELLING, Status.CANCELLED),
        Status.CANCELLING: (None, Status.CANCELLED),
        Status.STOPPED: (None, Status.CANCELLED),
        Status.FAILED: (None, Status.CANCELLED),
    },
    "retry": {
        Status.RUNNING: (None, Status.QUEUED),
        Status.STOPPED: (None, Status.QUEUED),
        Status.FAILED: (None, Status.QUEUED),
    },
}
#: A process holds a run in these states only.
CAN_BE_HELD = {Status.RUNNING, Status.PAUSING, Status.PAUSED, Status.CANCELLING}
CASES = [
    (action, status, held)
    for action in WHAT_BECOMES
    for status in Status
    for held in ([True, False] if status in CAN_BE_HELD else [False])
]


@pytest.mark.parametrize(("action", "status", "held"), CASES)
def test_steered(target: Target, action: str, status: str, held: bool) -> None:
    record = claim(target)
    put(record, status, held=held)
    expected = WHAT_BECOMES[action].get(status, (None, None))[0 if held else 1]
    if expected is None:
        with pytest.raises(IllegalMove, match=rf"Run {record.pk} \(boxes.Question.slug on default\) is "):
            getattr(store, action)(record.pk, "bob")
        assert now(record).status == status
        assert not now(record).events.filter(who="bob").exists()
    else:
        assert getattr(store, action)(record.pk, "bob").status == expected
        assert now(record).events.last().text == f"{status} → {expected}"
        assert now(record).events.last().who == "bob"


def test_what_is_at_work_is_not_retried_and_what_to_do_instead_is_told(target: Target) -> None:
    record = claim(target, process=4711, host="web3")
    with pytest.raises(IllegalMove, match=r"is at work: process 4711 on web3\. Pause or cancel it instead"):
        store.retry(record.pk, "bob")


@pytest.mark.parametrize("action", ["retry", "cancel"])
def test_a_process_that_wakes_up_after_its_run_was_taken_away_has_no_token_for_it(
    target: Target, action: str
) -> None:
    record = claim(target)
    expire(record)
    controlled = getattr(store, action)(record.pk, "bob")
    assert controlled.token == record.token + 1


def test_a_paused_run_is_still_that_of_the_process_that_waits(target: Target) -> None:
    record = claim(target)
    store.pause(record.pk, "bob")
    assert store.resume(record.pk, "bob").token == record.token


def test_a_run_that_is_not_there(alias: str) -> None:
    with pytest.raises(
        NothingToRun, match=r"There is no run 4711\. To see them: python manage\.py backfill list"
    ):
        store.pause(4711, "bob")


# Settling


@pytest.fixture
def applied(target: Target, settings: Any) -> Iterator[str]:
    """A migration that is applied, of which a run is open."""
    record = claim(target)
    store.records().filter(pk=record.pk).update(migration="polls.0001_initial", error="Ouch")
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM django_migrations WHERE app = 'polls' AND name = '0001_initial'")
        assert cursor.fetchone() == (1,)
    return "polls.0001_initial"


@pytest.mark.parametrize(
    "status", [Status.QUEUED, Status.RUNNING, Status.PAUSING, Status.PAUSED, Status.STOPPED, Status.FAILED]
)
def test_what_is_left_open_by_an_applied_migration_has_succeeded(applied: str, status: str) -> None:
    record = store.records().get()
    put(record, status, held=False)
    store.finalize("default", {applied})
    assert (now(record).status, now(record).open_key, now(record).error) == (Status.SUCCEEDED, None, "")
    assert now(record).finished is not None


def test_what_is_held_elsewhere_or_not_applied_stays_open(applied: str) -> None:
    record = store.records().get()
    store.finalize("default", {applied})  # a process holds it
    put(record, Status.FAILED, held=False)
    store.finalize("archive", {applied})
    store.finalize("default", {"polls.0099_later"})
    store.records().update(migration="polls.0099_later")
    store.finalize("default", {applied, "polls.0099_later"})
    assert now(record).status == Status.FAILED


# What it reports


def test_stalled_is_what_should_be_at_work_and_gives_no_sign(target: Target) -> None:
    record = claim(target)
    for status in Status:
        put(record, status, held=False)
        assert now(record).is_stalled() == (status in {Status.RUNNING, Status.PAUSING, Status.CANCELLING})
        put(record, status, held=True)
        assert not now(record).is_stalled()


def test_the_rate_is_that_of_the_last_minute_of_work() -> None:
    run = BackfillRun(samples=[[0, 0], [100, 100_000], [130, 103_000], [160, 106_000]], rows_total=109_000)
    run.rows_done = 106_000
    assert run.rate == 100
    assert run.time_left == timedelta(seconds=30)
    assert BackfillRun().rate == 0
    assert BackfillRun(samples=[[1, 5]]).rate == 0


# Keys


def a_model(field: Any) -> Any:
    field.name = "id"
    return SimpleNamespace(_meta=SimpleNamespace(pk=field))


KEYS = {
    "integer": (models.BigIntegerField(), some.integers(-(2**63), 2**63 - 1)),
    "uuid": (models.UUIDField(), some.uuids()),
    "text": (models.CharField(max_length=50), some.text()),
    "date": (models.DateField(), some.dates()),
    "datetime": (models.DateTimeField(), some.datetimes(timezones=some.just(utc.utc))),
    "decimal": (
        models.DecimalField(max_digits=30, decimal_places=10),
        some.decimals(
            allow_nan=False, allow_infinity=False, places=10, min_value=-(10**15), max_value=10**15
        ),
    ),
}


def kept(key: Any) -> Any:
    """Return what a JSON column gives back for the key."""
    return json.loads(json.dumps(key_to_json(key), cls=DjangoJSONEncoder))


@given(data=some.data())
@pytest.mark.parametrize("kind", KEYS)
def test_a_key_comes_back_as_it_was(kind: str, data: some.DataObject) -> None:
    field, values = KEYS[kind]
    key = data.draw(values)
    again = key_from_json(a_model(field), kept(key))
    assert (again, type(again)) == (key, type(key))


@given(data=some.data())
def test_a_composite_key_comes_back_as_it_was(data: some.DataObject) -> None:
    kinds = data.draw(some.lists(some.sampled_from(sorted(KEYS)), min_size=2, max_size=4))
    key = tuple(data.draw(KEYS[kind][1]) for kind in kinds)
    model = SimpleNamespace(_meta=SimpleNamespace(pk=None, pk_fields=[KEYS[kind][0] for kind in kinds]))
    assert key_from_json(model, kept(key)) == key


def test_no_key_and_the_key_of_another_table_are_none() -> None:
    number = a_model(models.BigIntegerField())
    assert key_from_json(number, None) is None
    assert key_from_json(number, "6ba7b810-9dad-11d1-80b4-00c04fd430c8") is None
    assert key_from_json(a_model(models.UUIDField()), 12) is not None  # a UUID of that number
    assert key_from_json(a_model(models.UUIDField()), "Question 12") is None
    assert key_from_json(number, [1, 2]) is None
