"""Several `migrate` at once, as containers do that each migrate when they start: all end well, and once is enough."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import F
from django.utils import timezone

from safemigrate.backends import for_connection
from safemigrate.exceptions import AlreadyRunning
from safemigrate.models import BackfillRun
from safemigrate.operations import AddNullableField, AddRequiredField, Populate
from safemigrate.runs import store
from safemigrate.runs.summary import filled_elsewhere
from safemigrate.schema import change
from tests.support.processes import Polls
from tests.support.sandbox import MigrationSandbox
from tests.support.sessions import another
from tests.support.sessions import run as sql

ROWS = 40_000
#: How often several migrate at once, for each number of them.
ROUNDS = int(os.environ.get("ROUNDS", "2"))
SEED = int(os.environ.get("MIGRATES_SEED", "") or random.SystemRandom().randrange(10**6))
NAME, LATER = "expires_date", F("pub_date")
LABEL = f"boxes.question.{NAME}"


@pytest.fixture
def polls(
    alias: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polls]:
    """Full polls without the column, on SQLite in a file of their own."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "polls.sqlite3"))
    yield Polls(alias, request.getfixturevalue("environment"), ROWS)
    connection.close()


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("number", [2, 3, 5])
def test_several_at_once_all_end_well(polls: Polls, number: int) -> None:
    """They start at random moments, and in every second round the first one is killed at another."""
    print(f"MIGRATES_SEED={SEED}")  # shown when the test fails
    rng = random.Random(SEED + number)
    for round_ in range(ROUNDS):
        with ExitStack() as stack:
            processes = []
            for _ in range(number):
                processes.append(stack.enter_context(polls.start()))
                time.sleep(rng.uniform(0, 0.4))
            if round_ % 2:
                time.sleep(rng.uniform(0, 2))
                processes.pop(0).kill()
            ended = [process.communicate(timeout=200) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), b"\n----\n".join(
            each for pair in ended for each in pair
        ).decode()
        assert b"Traceback" not in b"".join(error for _, error in ended)
        polls.assert_ended_well()
        polls.back()


@pytest.mark.slow
@pytest.mark.matrix
def test_one_that_waits_takes_over_where_the_first_is_killed(polls: Polls) -> None:
    with polls.start() as first:
        while not polls.filled() and first.poll() is None:
            time.sleep(0.01)
        with polls.start() as second:
            time.sleep(0.5)
            first.send_signal(signal.SIGKILL)
            first.communicate()
            output, errors = second.communicate(timeout=200)
    assert second.returncode == 0, (output, errors)
    polls.assert_ended_well()


OPERATIONS: dict[str, Any] = {
    "one": AddRequiredField("question", NAME, models.DateTimeField(), LATER),
    "a step": AddNullableField("question", NAME, models.DateTimeField()),
}


@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))
def test_after_the_time_allowed_it_ends_with_an_error_and_has_done_nothing(
    alias: str, operation: Any, settings: Any
) -> None:
    settings.SAFEMIGRATE_WAIT_SECONDS = 0
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    before = sandbox.schema()
    with another(alias) as other:
        first = for_connection(other)
        assert first.lock_name(LABEL)
        assert not for_connection(sandbox.connection).lock_name(LABEL)
        with pytest.raises(AlreadyRunning) as caught:
            sandbox.run(operation)
        assert sandbox.schema() == before
        first.unlock_name(LABEL)
    text = str(caught.value)
    assert text.startswith(
        f"Another process is at boxes.question.{NAME} on {alias}, and was not done within 0 s "
    )
    assert "When the other has ended, run migrate again.\nSee https://" in text
    sandbox.run(operation)
    assert for_connection(sandbox.connection).lock_name(LABEL)
    for_connection(sandbox.connection).unlock_name(LABEL)


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_limits_of_the_role_do_not_end_the_lock(alias: str) -> None:
    """It is a transaction that is idle for as long as the fill takes. (The older server knows no limit of one.)"""
    with another(alias) as connection:
        options = "-c transaction_timeout=100 -c idle_in_transaction_session_timeout=100 -c idle_session_timeout=100"
        connection.settings_dict["OPTIONS"] = connection.settings_dict["OPTIONS"] | {"options": options}
        first, second = for_connection(connection), for_connection(connections[alias])
        assert first.lock_name(LABEL)
        time.sleep(0.3)
        assert not second.lock_name(LABEL)
        first.unlock_name(LABEL)
        assert second.lock_name(LABEL)
        second.unlock_name(LABEL)


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_role_that_may_have_no_further_connection_has_the_lock_too(alias: str, worker_id: str) -> None:
    role = f"lonely_{worker_id}"
    with another(alias) as admin, another(alias) as lonely:
        sql(admin, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
        try:
            lonely.settings_dict["USER"] = role
            lonely.ensure_connection()
            first, second = for_connection(lonely), for_connection(connections[alias])
            assert first.lock_name(LABEL)
            assert not second.lock_name(LABEL)
            first.unlock_name(LABEL)
            assert second.lock_name(LABEL)
            assert not first.lock_name(LABEL)
            second.unlock_name(LABEL)
        finally:
            lonely.close()
            sql(admin, f"DROP ROLE {role}")


@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_it_shows_that_it_waits_and_goes_on(
    alias: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    with another(alias) as other:
        first = for_connection(other)
        first.lock_name(LABEL)
        looks: list[str] = []

        def far(label: str, alias: str) -> tuple[str, bool]:
            looks.append(label)
            if len(looks) == 2:
                first.unlock_name(LABEL)
            return f"look {len(looks)}", False

        monkeypatch.setattr(change.context, "progress_of", far)
        monkeypatch.setattr(change.progress, "_verbosity", 1)
        monkeypatch.setattr(change, "LOOK", 0.01)
        monkeypatch.setattr(change, "FOLLOW", 0.02)
        sandbox.run(Populate("question", NAME, lambda row: row.pub_date))
    assert looks == [LABEL] * 2
    errors = capsys.readouterr().err
    assert f"Waiting for another process that is at boxes.question.{NAME} on {alias}: look 1\n" in errors
    assert sandbox.values(NAME) == sandbox.values("pub_date")


def recorded(on: str, **facts: Any) -> BackfillRun:
    """Record a run that another machine is at."""
    made = {
        "app_label": "boxes",
        "model_name": "Question",
        "field_names": NAME,
        "alias": on,
        "status": "running",
        "open_key": "one",
        "host": "elsewhere",
        "process": 1,
        "rows_done": 3,
        "rows_total": 5,
        "lease_until": timezone.now() + timedelta(minutes=1),
    }
    return BackfillRun.objects.create(**made | facts)


@pytest.mark.matrix
def test_it_waits_for_a_backfill_run_of_the_field_too(
    alias: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one has no lock by a name, and a run; here it ends by and by."""
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    run = recorded(alias)
    pauses: list[int] = []

    def pause(patience: Any) -> None:
        pauses.append(1)
        if len(pauses) == 3:
            store.move(run, "succeeded", "", lease_until=None)

    monkeypatch.setattr(change._Patience, "pause", pause)
    monkeypatch.setattr(change.progress, "_verbosity", 1)
    sandbox.run(Populate("question", NAME, lambda row: row.pub_date))
    assert len(pauses) == 3
    said = f"Waiting for another process that is at boxes.question.{NAME} on {alias}: run {run.pk}, 3 of about 5 rows"
    assert said in capsys.readouterr().err
    assert sandbox.values(NAME) == sandbox.values("pub_date")


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "facts",
    [
        {"lease_until": timezone.now() - timedelta(minutes=1)},
        {"lease_until": None, "status": "stopped"},
        {"status": "paused"},
        {"executor": "celery"},
        {"alias": "archive"},
        {"field_names": "another"},
    ],
    ids="+".join,
)
def test_nobody_waits_for_a_run_that_no_process_is_at_or_that_lasts(
    alias: str, facts: dict[str, Any]
) -> None:
    run = recorded(alias)
    assert filled_elsewhere(LABEL, alias)
    run.delete()
    recorded(alias, **facts)
    assert not filled_elsewhere(LABEL, alias)


@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_it_goes_on_where_two_looks_show_no_sign_of_life(
    alias: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one look it may be a third one, which has the lock of one that was killed, and not yet its run."""
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    looks = [
        ("run 1, 2 rows", True),
        ("run 1, 3 rows", False),
        ("run 2, 3 rows", True),
        ("run 2, 3 rows", True),
    ]
    with another(alias) as other:
        first = for_connection(other)
        first.lock_name(LABEL)
        monkeypatch.setattr(change.context, "progress_of", lambda label, alias: looks.pop(0))
        monkeypatch.setattr(change, "LOOK", 0.01)
        monkeypatch.setattr(change, "FOLLOW", 0.02)
        monkeypatch.setattr(change.progress, "_verbosity", 1)
        sandbox.run(Populate("question", NAME, lambda row: row.pub_date))
        first.unlock_name(LABEL)
    assert looks == []
    assert "shows no sign of life (run 2, 3 rows). This one goes on." in capsys.readouterr().err
    assert sandbox.values(NAME) == sandbox.values("pub_date")
