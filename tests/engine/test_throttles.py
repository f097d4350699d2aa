"""A fill waits while a throttle says so: for replicas, for others' locks, for a vacuum, for the hour."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from types import ModuleType
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from django.core.cache import cache
from pytest_django import DjangoDbBlocker
from tqdm import tqdm

from safemigrate import conf, throttles
from safemigrate.backends import get_backend
from safemigrate.engine import batch_size, engine, progress
from safemigrate.exceptions import Interrupted, InvalidSetting, NotVisible
from safemigrate.throttles import (
    FillHours,
    Nice,
    ReplicationLag,
    Throttles,
    Vacuum,
    WaitingLocks,
    Watch,
)
from tests.backends.test_monitoring import (
    POSTGRESQL,
    SERVERS,
    SQLITE,
    TABLE,
    elsewhere,
    locked,
    slow_vacuum,
    unlock,
)
from tests.conftest import ROOT
from tests.engine.test_engine import NAME, Observer, fill, prepared, row_by_row
from tests.schema.test_runner import another
from tests.support import replicas
from tests.support.replicas import execute, fetch, wait_for
from tests.support.sandbox import MONTH, MigrationSandbox, Statements, month_later

OWN = "tests.engine.test_throttles.Own"


class Own:
    """A throttle as a user may write one; the test says what it answers."""

    made: list[tuple[Any, str]] = []
    asked: list[tuple[int, int, float]] = []
    answer: Callable[[Any], str | None] = staticmethod(lambda run: None)

    def __init__(self, model: Any, alias: str) -> None:
        self.made.append((model, alias))

    def reason(self, run: engine.Run) -> str | None:
        self.asked.append((run.rows, run.batches, run.took))
        return type(self).answer(run)


class Unreasonable:
    """No throttle: it has no `reason`."""


class Waits(Observer):
    """An observer that writes down why a run waits, and calls a function then."""

    def __init__(self, when_waiting: Callable[[engine.Run], Any] = lambda run: None) -> None:
        super().__init__()
        self.reasons: list[str] = []
        self.when_waiting = when_waiting

    def advance(self, run: engine.Run) -> None:
        if run.waiting:
            self.reasons.append(run.waiting)
            self.when_waiting(run)
        else:
            super().advance(run)


@pytest.fixture(autouse=True)
def _nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "made", [])
    monkeypatch.setattr(Own, "asked", [])
    monkeypatch.setattr(Own, "answer", staticmethod(lambda run: None))


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    return prepared(alias, 300)


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Any], str | None]) -> None:
    monkeypatch.setattr(Own, "answer", staticmethod(answer))


def builtin(*kinds: type) -> list[str]:
    return [f"safemigrate.throttles.{kind.__name__}" for kind in kinds]


def filled(sandbox: MigrationSandbox) -> int:
    return sandbox.rows().filter(expires_date__isnull=False).count()


# The contract


def test_a_throttle_of_one_s_own_is_asked_before_each_batch(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    run = fill(sandbox, batch_size=100)
    assert Own.made == [(sandbox.model(), sandbox.alias)]
    assert [(rows, batches) for rows, batches, _ in Own.asked] == [(0, 0), (100, 1), (200, 2)]
    assert Own.asked[0][2] == 0
    assert all(took > 0 for _, _, took in Own.asked[1:])
    assert run.rows == 300
    assert run.waiting == ""


def test_nothing_is_asked_where_nothing_is_to_be_filled(sandbox: MigrationSandbox, settings: Any) -> None:
    fill(sandbox)
    settings.SAFEMIGRATE_THROTTLES = ["no.such.class"]
    assert fill(sandbox).rows == 0


def test_all_is_committed_while_it_is_asked(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    seen: list[int] = []

    def look(run: Any) -> None:
        assert not sandbox.connection.in_atomic_block
        with another(sandbox.alias) as other:
            seen.append(fetch(other, f"SELECT COUNT(*) FROM {TABLE} WHERE {NAME} IS NOT NULL")[0][0])

    answering(monkeypatch, look)
    fill(sandbox, row_by_row, batch_size=100)
    assert seen == [0, 100, 200]


def test_it_waits_until_the_answer_is_none(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    end = time.monotonic() + 0.5

    def until(run: Any) -> str | None:
        return "the pot is hot" if run.rows == 100 and time.monotonic() < end else None

    answering(monkeypatch, until)
    observer = Waits()
    run = fill(sandbox, observer=observer, batch_size=100)
    assert set(observer.reasons) == {"the pot is hot"}
    assert observer.rows == [100, 200, 300]
    assert run.waiting == ""
    assert run.seconds > run.waited > 0
    assert run.working == pytest.approx(run.seconds - run.waited, abs=0.1)
    assert time.monotonic() > end
    assert month_later(sandbox.rows())


@pytest.mark.slow
@SQLITE
def test_waiting_does_not_change_the_pace(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    monkeypatch.setattr(batch_size, "SMALLEST", 10)
    monkeypatch.setattr(batch_size, "LARGEST", 50)
    settings.SAFEMIGRATE_BATCH_SECONDS = 0.3
    began = {}

    def long(run: Any) -> str | None:
        first = began.setdefault(run.batches, time.monotonic())
        return "longer than a batch may take" if time.monotonic() - first < 0.4 else None

    answering(monkeypatch, long)
    observer = Waits()
    run = fill(sandbox, observer=observer)
    assert set(observer.sizes) == {50}
    assert run.waited > 6 * 0.4
    assert run.took < 0.3


@SQLITE
def test_the_first_that_says_wait_is_heard(
    settings: Any, sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN, *builtin(FillHours)]
    settings.SAFEMIGRATE_FILL_HOURS = "03:00-03:01"
    monkeypatch.setattr(FillHours, "now", lambda self: datetime(2026, 1, 1, 12, tzinfo=timezone.utc))
    answering(monkeypatch, lambda run: "the first")
    each = Throttles(sandbox.model(), sandbox.alias, conf.get("SAFEMIGRATE_THROTTLES"))
    run = engine.Run("boxes.Question.expires_date", sandbox.alias, total=1)
    assert each.reason(run) == "the first"
    answering(monkeypatch, lambda run: None)
    assert each.reason(run) == "it is 12:00, and fills run from 03:00 to 03:01"


def test_the_throttles_that_the_page_shows(sandbox: MigrationSandbox, settings: Any) -> None:
    page = (ROOT / "docs/how-to/throttle.md").read_text(encoding="utf-8")
    module = ModuleType("shown_throttles")
    for shown in re.findall(r"```python\n# polls/throttles.py\n(.*?)```", page, re.DOTALL):
        exec(shown, module.__dict__)
    settings.SAFEMIGRATE_THROTTLES = ["shown_throttles.PausedByHand", "shown_throttles.Gentle"]
    cache.set("pause_fill", True, None)
    observer = Waits(lambda run: cache.delete("pause_fill"))
    with patch.dict(sys.modules, shown_throttles=module):
        run = fill(sandbox, observer=observer, batch_size=100)
    assert list(dict.fromkeys(observer.reasons)) == ["paused by hand", "a pause of 3 times the batch"]
    assert run.rows == 300


def test_the_page_names_all_that_is_built_in() -> None:
    page = (ROOT / "docs/how-to/throttle.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == {kind for kind in throttles.__all__ if hasattr(throttles, kind)} - {"Throttle", "Watch"}


WRONG = {
    "no.such.Throttle": r"SAFEMIGRATE_THROTTLES names 'no.such.Throttle', which cannot be imported: No module",
    "safemigrate.throttles.ReplicationLags": r"imported: .* Did you mean safemigrate.throttles.ReplicationLag\?",
    "ReplicationLag": "cannot be imported: ReplicationLag doesn't look like a module path",
    "tests.engine.test_throttles.Unreasonable": r"which is no class with a method reason\(self, run\)",
    "safemigrate.throttles.ASK_SECONDS": r"which is no class with a method reason\(self, run\)",
}


@SQLITE
@pytest.mark.parametrize("path", WRONG)
def test_what_is_no_throttle_is_refused_before_the_first_batch(
    sandbox: MigrationSandbox, settings: Any, path: str
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN, path]
    with pytest.raises(InvalidSetting, match=WRONG[path]):
        fill(sandbox)
    assert filled(sandbox) == 0


@SERVERS
def test_an_error_that_passes_does_not_end_the_run(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]

    def lose(run: Any) -> None:
        if len(Own.asked) == 2:
            kill(sandbox)
        fetch(sandbox.connection, "SELECT 1")

    answering(monkeypatch, lose)
    assert fill(sandbox, batch_size=100).rows == 300


def kill(sandbox: MigrationSandbox) -> None:
    """End the sandbox's connection, as a server does that is started again."""
    own, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[sandbox.connection.vendor]
    with another(sandbox.alias) as other, other.cursor() as cursor:
        cursor.execute(end.format(fetch(sandbox.connection, own)[0][0]))


# What is shown


@pytest.mark.slow
@SQLITE
def test_the_reason_stands_in_the_line(
    sandbox: MigrationSandbox,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_verbosity", 1)
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    end = time.monotonic() + 1.2
    answering(monkeypatch, lambda run: "tea" if run.rows == 100 and time.monotonic() < end else None)
    run = fill(sandbox, observer=progress.Progress(), batch_size=100)
    lines = capsys.readouterr().err.splitlines()
    label = r"boxes\.Question\.expires_date on default"
    assert any(
        re.match(rf"{label}: 100 of about 300 rows, .* rows/s.*, waiting: tea$", line) for line in lines
    )
    assert re.fullmatch(rf"Filled: 300 rows of {label} in \d+ s, 1 s of it waiting", lines[-1])
    # Of the time that was spent on rows alone.
    rates = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) rows/s", "\n".join(lines))]
    assert min(rates) > run.rows / run.seconds


@pytest.mark.slow
def test_the_bar_s_rate_does_not_count_waiting() -> None:
    observer, run = progress.Progress(), engine.Run("polls.Question.expires_date", "default", total=300)
    observer.bar = tqdm(total=300, mininterval=0, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for rows in (100, 200):
        time.sleep(0.05)
        run.rows = rows
        observer.advance(run)
        run.waiting = "tea"
        time.sleep(0.5)
        run.waited += 0.5
        observer.advance(run)
        assert "waiting: tea" in str(observer.bar)
        run.waiting = ""
    time.sleep(0.05)
    run.rows = 300
    observer.advance(run)
    rate = observer.bar.format_dict["rate"]
    assert "waiting" not in str(observer.bar)
    observer.bar.fp.close()
    assert rate > 600


def test_ctrl_c_while_waiting_ends_it_with_all_committed(
    sandbox: MigrationSandbox,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [OWN]
    monkeypatch.setattr(progress, "_verbosity", 1)

    def press(run: Any) -> str | None:
        if run.rows < 200:
            return None
        signal.raise_signal(signal.SIGINT)
        return "until Ctrl-C"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    answering(monkeypatch, press)
    try:
        with pytest.raises(Interrupted):
            fill(sandbox, observer=progress.Progress(), batch_size=100)
    finally:
        signal.signal(signal.SIGINT, before)
    with another(sandbox.alias) as other:
        assert fetch(other, f"SELECT COUNT(*) FROM {TABLE} WHERE {NAME} IS NOT NULL") == [(200,)]
    assert "200 of about" in capsys.readouterr().err
    settings.SAFEMIGRATE_THROTTLES = []
    assert fill(sandbox).rows == 100


# Replication


@pytest.fixture
def behind(django_db_blocker: DjangoDbBlocker, settings: Any) -> Iterator[tuple[MigrationSandbox, Any]]:
    """A sandbox on a primary, and its replica."""
    settings.SAFEMIGRATE_THROTTLES = builtin(ReplicationLag)
    settings.SAFEMIGRATE_MAX_REPLICATION_LAG = 0.8
    with django_db_blocker.unblock(), replicas.postgresql() as (_, replica):
        yield prepared(replicas.PRIMARY, 300), replica


@pytest.mark.slow
def test_a_fill_waits_for_its_replica(behind: tuple[MigrationSandbox, Any]) -> None:
    sandbox, replica = behind
    wait_for(lambda: get_backend(sandbox.connection).monitoring.replication_lag() == 0)
    fetch(replica, "SELECT pg_wal_replay_pause()")
    execute(sandbox.connection, "CREATE TABLE news (n integer)")

    def go_on(run: engine.Run) -> None:
        if run.waited > 1 and fetch(replica, "SELECT pg_is_wal_replay_paused()")[0][0]:
            fetch(replica, "SELECT pg_wal_replay_resume()")

    wait_for(lambda: (get_backend(sandbox.connection).monitoring.replication_lag() or 0) > 0.8)
    observer = Waits(go_on)
    run = fill(sandbox, observer=observer, batch_size=100)
    assert all(re.fullmatch(r"a replica is \d+ s behind", reason) for reason in observer.reasons)
    assert run.waited > 1
    assert month_later(sandbox.rows())
    copied = f"SELECT count(*) FROM {TABLE} WHERE {NAME} IS NOT NULL"
    assert wait_for(lambda: fetch(replica, copied) == [(300,)])


@pytest.mark.slow
def test_a_fill_that_cannot_see_its_replica_stops_and_can_be_resumed(
    behind: tuple[MigrationSandbox, Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, replica = behind
    monkeypatch.setattr(Watch, "blind_seconds", 0.5)
    settings.SAFEMIGRATE_THROTTLES = [OWN, *builtin(ReplicationLag)]
    settings.SAFEMIGRATE_REPLICAS = [replicas.REPLICA]
    replica.close()
    port, replica.settings_dict["PORT"] = replica.settings_dict["PORT"], "1"
    observer = Waits()
    with pytest.raises(NotVisible) as caught:
        fill(sandbox, observer=observer)
    text = str(caught.value)
    assert text.startswith(
        "ReplicationLag has not been able to see for 0.5 seconds whether primary bears "
        "more load: the replica replica does not answer: connection"
    )
    assert text.endswith(
        "What was filled stays so; run the same command again to carry on, or take the class out of "
        "SAFEMIGRATE_THROTTLES."
    )
    assert observer.reasons[0].startswith("ReplicationLag cannot see: the replica replica does not answer")
    assert observer.error is caught.value
    assert filled(sandbox) == 0
    replica.settings_dict["PORT"] = port
    assert fill(sandbox).rows == 300


@pytest.mark.slow
def test_a_moment_of_blindness_is_waited_out(behind: tuple[MigrationSandbox, Any], settings: Any) -> None:
    sandbox, replica = behind
    settings.SAFEMIGRATE_REPLICAS = [replicas.REPLICA]
    replica.close()
    port, replica.settings_dict["PORT"] = replica.settings_dict["PORT"], "1"

    def come_back(run: engine.Run) -> None:
        replica.settings_dict["PORT"] = port

    observer = Waits(come_back)
    assert fill(sandbox, observer=observer).rows == 300
    assert observer.reasons[0].startswith("ReplicationLag cannot see")


@SERVERS
def test_without_replicas_it_goes_on(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(ReplicationLag)
    observer = Waits()
    assert fill(sandbox, observer=observer).rows == 300
    assert observer.reasons == []


@POSTGRESQL
def test_a_server_is_asked_once_a_second_at_the_most(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(ReplicationLag, WaitingLocks)
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        run = fill(sandbox, batch_size=2)
    asked = sum("pg_locks" in text for text in statements.texts)
    assert run.batches == 150
    assert 1 <= asked <= run.seconds / throttles.ASK_SECONDS + 1


# Locks


@pytest.mark.slow
@SERVERS
def test_a_fill_waits_while_others_wait_for_the_table(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(WaitingLocks)
    with (
        locked(sandbox.alias) as other,
        elsewhere(sandbox.alias, f"UPDATE {TABLE} SET question_text = 'mine'"),
    ):
        look = get_backend(sandbox.connection).monitoring
        wait_for(lambda: look.waiting_for(sandbox.model()))
        throttle = WaitingLocks(sandbox.model(), sandbox.alias)
        run = engine.Run("boxes.Question.expires_date", sandbox.alias, total=1)
        reason = throttle.reason(run)
        assert reason is not None
        assert reason.startswith(f"1 waiting for a lock on {TABLE}, ")
        assert "UPDATE" in reason
        unlock(other)
    time.sleep(throttles.ASK_SECONDS)
    assert throttle.reason(run) is None


@pytest.mark.slow
@POSTGRESQL
def test_a_fill_goes_on_when_nobody_waits_any_more(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(WaitingLocks)
    # An index waits for the writer, and lets the fill read.
    with another(sandbox.alias) as writer:
        writer.set_autocommit(False)
        execute(writer, f"INSERT INTO {TABLE} (question_text, pub_date) VALUES ('new', now())")
        with elsewhere(sandbox.alias, f"CREATE INDEX late ON {TABLE} (pub_date)"):
            wait_for(lambda: get_backend(sandbox.connection).monitoring.waiting_for(sandbox.model()))
            observer = Waits(lambda run: execute(writer, "ROLLBACK"))
            fill(sandbox, observer=observer)
    assert f"CREATE INDEX late ON {TABLE}" in observer.reasons[0]
    assert filled(sandbox) == 300


# Vacuum


def without_autovacuum(alias: str) -> MigrationSandbox:
    sandbox = prepared(alias, 10_000)
    execute(sandbox.connection, f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
    return sandbox


def vacuum_count(sandbox: MigrationSandbox) -> int:
    with another(sandbox.alias) as other:
        sql = f"SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = '{TABLE}'"
        return int(fetch(other, sql)[0][0])


@pytest.mark.slow
@POSTGRESQL
def test_a_vacuum_every_so_many_rows_keeps_the_table_small(
    alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = without_autovacuum(alias)
    settings.SAFEMIGRATE_THROTTLES = builtin(Vacuum)
    monkeypatch.setattr(Vacuum, "every", 1_000)
    observer = Waits()
    run = fill(sandbox, observer=observer, batch_size=500)
    with_vacuum = size(sandbox)
    assert set(observer.reasons) == {f"VACUUM of {TABLE}"}
    assert run.waited > 0
    assert wait_for(lambda: vacuum_count(sandbox)) == 9  # none after the last rows
    assert month_later(sandbox.rows())

    execute(sandbox.connection, f"DROP TABLE {TABLE}")
    settings.SAFEMIGRATE_THROTTLES = []
    sandbox = without_autovacuum(alias)
    before = size(sandbox)
    fill(sandbox, batch_size=500)
    without = size(sandbox)
    assert with_vacuum < before * 1.35
    assert without > before * 1.8


def size(sandbox: MigrationSandbox) -> int:
    table, _ = get_backend(sandbox.connection).monitoring.size(sandbox.model())
    assert table is not None
    return table


@pytest.mark.slow
@POSTGRESQL
def test_a_fill_waits_for_a_vacuum_that_is_at_work(alias: str, settings: Any) -> None:
    sandbox = prepared(alias, 3_000)
    settings.SAFEMIGRATE_THROTTLES = builtin(Vacuum)
    ended = threading.Event()
    with slow_vacuum(sandbox):

        def stop(run: engine.Run) -> None:
            if not ended.is_set():
                ended.set()
                fetch(sandbox.connection, "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum")

        observer = Waits(stop)
        assert fill(sandbox, observer=observer).rows == 3_000
    assert ended.is_set()
    assert set(observer.reasons) == {f"a vacuum is at work on {TABLE}"}


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"], indirect=True)
def test_where_no_dead_rows_are_kept_there_is_no_vacuum(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(Vacuum)
    monkeypatch.setattr(Vacuum, "every", 1)
    observer, statements = Waits(), Statements()
    with sandbox.connection.execute_wrapper(statements):
        fill(sandbox, observer=observer, batch_size=100)
    assert observer.reasons == []
    assert statements.like("VACUUM") == []


# Nice


class Nicer(Nice):
    ratio = 2


@SQLITE
def test_nice_pauses_in_proportion_to_the_batch(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = [f"{__name__}.Nicer"]

    def slow(question: Any) -> Any:
        if question.pk % 100 == 50:
            time.sleep(0.1)
        return question.pub_date + MONTH

    observer = Waits()
    run = fill(sandbox, slow, observer=observer, batch_size=100)
    assert set(observer.reasons) == {"a pause of 2 times the batch"}
    # Two pauses between three batches, each of 0.2 s at the least.
    assert run.waited > 0.4
    assert run.took > 0.1


@SQLITE
def test_a_short_pause_stays_short(sandbox: MigrationSandbox) -> None:
    nice = Nice(sandbox.model(), sandbox.alias)
    nice.ratio = 1.0
    run = engine.Run("boxes.Question.expires_date", sandbox.alias, total=1, batches=1, took=0.01)
    assert nice.reason(run) is not None
    time.sleep(0.02)
    assert nice.reason(run) is None
    assert nice.reason(run) is None
    run.batches = 2
    assert nice.reason(run) is not None


# Hours


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-01-01T{text}").replace(tzinfo=timezone.utc)


@SQLITE
@pytest.mark.parametrize(
    ("hours", "now", "may_run"),
    [
        ("22:00-06:00", "21:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "00:30", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("22:00-06:00", "12:00", False),
        ("01:30-05:00", "01:29", False),
        ("01:30-05:00", "01:30", True),
        ("01:30-05:00", "05:00", False),
        ("00:00-00:00", "13:00", True),
    ],
)
def test_the_hours_in_which_a_fill_may_run(
    sandbox: MigrationSandbox,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    hours: str,
    now: str,
    may_run: bool,
) -> None:
    settings.SAFEMIGRATE_FILL_HOURS = hours
    monkeypatch.setattr(FillHours, "now", lambda self: at(now))
    first, _, last = hours.partition("-")
    reason = None if may_run else f"it is {now}, and fills run from {first} to {last}"
    assert FillHours(sandbox.model(), sandbox.alias).reason(None) == reason


@SQLITE
def test_the_hours_are_those_of_the_project_s_time_zone(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_FILL_HOURS = "00:00-00:00"
    settings.TIME_ZONE = "Asia/Tokyo"
    now = FillHours(sandbox.model(), sandbox.alias).now()
    assert now.utcoffset() == datetime.now(ZoneInfo("Asia/Tokyo")).utcoffset()


@SQLITE
def test_the_hours_have_to_be_set(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(FillHours)
    with pytest.raises(InvalidSetting, match=r'Set it, for example SAFEMIGRATE_FILL_HOURS = "22:00-06:00"'):
        fill(sandbox)


@SQLITE
def test_outside_the_hours_not_one_batch_is_filled(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = builtin(FillHours)
    settings.SAFEMIGRATE_FILL_HOURS = "22:00-06:00"
    clock = ["12:00"]
    monkeypatch.setattr(FillHours, "now", lambda self: at(clock[0]))

    def night(run: engine.Run) -> None:
        assert run.rows == 0
        clock[0] = "23:00"

    observer = Waits(night)
    assert fill(sandbox, observer=observer).rows == 300
    assert observer.reasons == ["it is 12:00, and fills run from 22:00 to 06:00"]
