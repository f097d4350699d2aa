"""The engine itself: bounded ranges, each committed; errors that pass tried again; bad rows budgeted."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import F

from safemigrate.engine import batch_size, engine
from safemigrate.exceptions import BadRows, TooManyRetries
from safemigrate.operations import AddNullableField
from safemigrate.populate.sources import resolve
from tests.support.sandbox import MONTH, START, MigrationSandbox, Statements, month_later

SERVERS = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
LATER = F("pub_date") + timedelta(days=30)
NAME = "expires_date"


class Observer(engine.NullObserver):
    """Writes down what it is informed of, and calls a function after each batch."""

    def __init__(self, after_batch: Callable[[engine.Run], Any] = lambda run: None) -> None:
        self.calls: list[str] = []
        self.sizes: list[int] = []
        self.rows: list[int] = []
        self.cursors: list[Any] = []
        self.error: BaseException | None = None
        self.after_batch = after_batch

    def start(self, run: engine.Run) -> None:
        self.calls.append("start")

    def advance(self, run: engine.Run) -> None:
        self.calls.append("advance")
        self.sizes.append(run.batch_size)
        self.rows.append(run.rows)
        self.cursors.append(run.cursor)
        self.after_batch(run)

    def end(self, run: engine.Run, error: BaseException | None) -> None:
        self.calls.append("end")
        self.error = error


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    return prepared(alias, 300)


def prepared(alias: str, rows: int) -> MigrationSandbox:
    """A table with the column added, and nothing filled."""
    sandbox = MigrationSandbox(alias)
    sandbox.fill(rows)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField("expires at")))
    return sandbox


def fill(
    sandbox: MigrationSandbox,
    populate: Any = LATER,
    *,
    observer: engine.Observer | None = None,
    batch_size: int | None = None,
) -> engine.Run:
    target = engine.Target(sandbox.model(), [NAME], [NAME], sandbox.alias, sandbox.state.apps)
    before = engine.new_observer
    engine.use_observer(lambda: observer or engine.NullObserver())
    try:
        return engine.fill(target, resolve(populate, [NAME]), batch_size=batch_size)
    finally:
        engine.use_observer(before)


def row_by_row(question: Any) -> Any:
    return question.pub_date + MONTH


POPULATES = {"in the database": LATER, "in Python": row_by_row}


@pytest.fixture(params=POPULATES)
def populate(request: pytest.FixtureRequest) -> Any:
    return POPULATES[request.param]


@contextmanager
def another(alias: str) -> Iterator[Any]:
    """One more connection to the same database, for any thread."""
    connection = connections[alias].copy()
    connection.inc_thread_sharing()
    try:
        yield connection
    finally:
        with suppress(Exception):
            connection.rollback()
        connection.close()


def run(connection: Any, sql: str, *params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []


class Updates:
    """The UPDATEs of a connection, with their parameters; may call something before one of them."""

    def __init__(self, before: Callable[[int], Any] = lambda number: None) -> None:
        self.before = before
        self.seen: list[tuple[str, Any]] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE"):
            self.seen.append((sql, params))
            self.before(len(self.seen))
        return execute(sql, params, many, context)


# Ranges


def test_every_update_has_both_ends_of_the_key_and_asks_for_null(sandbox: MigrationSandbox) -> None:
    updates = Updates()
    with sandbox.connection.execute_wrapper(updates):
        fill(sandbox, batch_size=100)
    assert len(updates.seen) == 3
    for number, (sql, _) in enumerate(updates.seen):
        where = sql.partition(" WHERE ")[2].replace("`", '"').replace('"boxes_question".', "")
        assert re.search(r'"id" >= ' if number == 0 else r'"id" > ', where), sql
        assert '"id" <= ' in where, sql
        assert '"expires_date" IS NULL' in where, sql


def test_what_python_computed_is_written_between_both_ends_too(sandbox: MigrationSandbox) -> None:
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        fill(sandbox, row_by_row, batch_size=100)
    reads = [s.replace("`", '"') for s in statements.texts if "question_text" in s and s.startswith("SELECT")]
    assert len(reads) == 3
    assert all(re.search(r'"id" >=? .*"id" <= ', read) for read in reads)
    writes = statements.like("UPDATE")
    assert writes
    for write in writes:
        assert "IS NULL" in write
        assert "BETWEEN" in write or sandbox.connection.vendor == "sqlite"


def test_each_batch_commits_by_itself(sandbox: MigrationSandbox, populate: Any) -> None:
    seen = []
    with another(sandbox.alias) as other:
        count = "SELECT COUNT(expires_date) FROM boxes_question"
        observer = Observer(lambda run_: seen.append(run(other, count)[0][0]))
        fill(sandbox, populate, observer=observer, batch_size=100)
    assert seen == observer.rows == [100, 200, 300]
    assert month_later(sandbox.rows())


def test_a_fixed_batch_size_is_obeyed(sandbox: MigrationSandbox, populate: Any) -> None:
    observer = Observer()
    done = fill(sandbox, populate, observer=observer, batch_size=70)
    assert observer.rows == [70, 140, 210, 280, 300]
    assert observer.sizes == [70] * 5
    assert done.rows == 300


def test_fast_batches_grow_fourfold_to_the_largest(
    alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_BATCH_SECONDS = 1_000
    monkeypatch.setattr(batch_size, "LARGEST", 4_500)
    sandbox = prepared(alias, 6_000)
    observer = Observer()
    fill(sandbox, observer=observer)
    assert observer.sizes == [4_000, 4_500, 4_500]
    assert observer.rows == [1_000, 5_000, 6_000]


def test_slow_batches_shrink_to_the_smallest(
    alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_BATCH_SECONDS = 1e-9
    monkeypatch.setattr(batch_size, "SMALLEST", 50)
    sandbox = prepared(alias, 1_250)
    observer = Observer()
    fill(sandbox, observer=observer)
    assert observer.sizes == [100, 50, 50, 50, 50]
    assert observer.rows == [1_000, 1_100, 1_150, 1_200, 1_250]


def test_a_function_begins_with_few_rows_and_may_get_one(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SECONDS = 1e-9
    observer = Observer()
    fill(prepared(alias, 30), lambda question: question.pub_date, observer=observer)
    assert observer.rows == [20, 22, *range(23, 31)]


def test_no_more_rows_a_second_than_are_allowed(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it goes on: what one batch is ahead, the next ones wait for."""
    clock = [0.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: clock[0])
    target = engine.Target(sandbox.model(), [NAME], [NAME], sandbox.alias, sandbox.state.apps)
    filling = engine.Filling(target, resolve(LATER, [NAME]), None)
    filling.state.rows_per_second = 100
    while clock[0] < 100:
        clock[0] += 0.1
        if not filling._too_fast():
            filling.state.rows += filling._size()
    assert 9_800 <= filling.state.rows <= 10_200


def test_the_next_run_begins_at_the_first_null(sandbox: MigrationSandbox) -> None:
    class Stop(Exception):
        pass

    def stop(run_: engine.Run) -> None:
        raise Stop

    with pytest.raises(Stop):
        fill(sandbox, observer=Observer(stop), batch_size=100)
    updates = Updates()
    with sandbox.connection.execute_wrapper(updates):
        done = fill(sandbox, batch_size=100)
    assert done.rows == 200
    assert len(updates.seen) == 2
    assert sandbox.values("pk")[100] in updates.seen[0][1]
    assert month_later(sandbox.rows())


def test_on_an_empty_table_nothing_is_told_asked_or_printed(alias: str, capfd: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "safemigrate")
    sandbox = prepared(alias, 0)
    observer, statements = Observer(), Statements()
    caplog.clear()
    with sandbox.connection.execute_wrapper(statements):
        done = fill(sandbox, observer=observer)
    assert done.rows == 0
    assert observer.calls == []
    assert len(statements.texts) == 1
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


# The observer


def test_the_ledger_is_told_in_order(sandbox: MigrationSandbox) -> None:
    observer = Observer()
    fill(sandbox, observer=observer, batch_size=100)
    assert observer.calls == ["start", "advance", "advance", "advance", "end"]
    assert observer.error is None
    assert observer.cursors == [sandbox.values("pk")[n] for n in (99, 199, 299)]


def test_what_the_ledger_raises_ends_the_run_after_the_batch(sandbox: MigrationSandbox) -> None:
    class Enough(BaseException):
        pass

    def enough(run_: engine.Run) -> None:
        if run_.rows >= 200:
            raise Enough

    observer = Observer(enough)
    with pytest.raises(Enough) as caught:
        fill(sandbox, observer=observer, batch_size=100)
    assert observer.calls == ["start", "advance", "advance", "end"]
    assert observer.error is caught.value
    assert sandbox.values(NAME).count(None) == 100


# Errors that pass


def cut(sandbox: MigrationSandbox, other: Any) -> None:
    """End the engine's connection from outside."""
    if other.vendor == "postgresql":
        pid = sandbox.connection.connection.info.backend_pid
        run(other, "SELECT pg_terminate_backend(%s)", pid)
        wait_until(lambda: not run(other, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))
    else:
        pid = sandbox.connection.connection.thread_id()
        run(other, f"KILL {pid}")
        wait_until(lambda: not run(other, "SELECT 1 FROM information_schema.processlist WHERE id = %s", pid))


def wait_until(fact: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@SERVERS
def test_a_connection_lost_in_a_batch_is_made_anew(sandbox: MigrationSandbox, populate: Any) -> None:
    with another(sandbox.alias) as other:
        updates = Updates(lambda number: cut(sandbox, other) if number == 2 else None)
        with sandbox.connection.execute_wrapper(updates):
            done = fill(sandbox, populate, batch_size=100)
    assert done.rows == 300
    assert len(updates.seen) == 4
    assert month_later(sandbox.rows())


@SERVERS
def test_a_connection_lost_between_two_batches_is_made_anew(sandbox: MigrationSandbox, populate: Any) -> None:
    with another(sandbox.alias) as other:
        observer = Observer(lambda run_: cut(sandbox, other))
        done = fill(sandbox, populate, observer=observer, batch_size=100)
    assert done.rows == 300
    assert observer.calls.count("advance") == 3
    assert month_later(sandbox.rows())


class Rival(threading.Thread):
    """Holds rows, waits until the engine waits for them, then does one more thing and lets go."""

    def __init__(
        self, sandbox: MigrationSandbox, other: Any, keys: list[Any], then: str = "SELECT 1"
    ) -> None:
        super().__init__(daemon=True)
        self.other, self.then = other, then
        sandbox.connection.ensure_connection()
        self.engine = sandbox.connection.connection.info.backend_pid
        other.set_autocommit(False)
        run(
            other,
            f"UPDATE boxes_question SET question_text = 'rival' WHERE id >= {keys[0]} AND id <= {keys[-1]}",
        )

    def run(self) -> None:
        try:
            wait_until(self._engine_waits)
            run(self.other, self.then)
        finally:
            self.other.commit()

    def _engine_waits(self) -> bool:
        return bool(run(self.other, "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", self.engine))


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_deadlock_is_tried_again(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    """It takes a long wait for a lock to come to one; on InnoDB a batch waits for none."""
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 30
    keys = sandbox.values("pk")
    with another(sandbox.alias) as other:
        run(other, "SET deadlock_timeout = '20s'")  # the engine is to be the one that is rolled back
        rival = Rival(
            sandbox, other, keys[10:], f"UPDATE boxes_question SET question_text = 'x' WHERE id = {keys[0]}"
        )
        rival.start()
        done = fill(sandbox, batch_size=300)
        rival.join(30)
    assert done.rows == 300
    assert "trying the batch again after" in caplog.text
    assert "eadlock" in caplog.text
    assert month_later(sandbox.rows())
    assert sandbox.values("question_text").count("rival") == 290


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_serialization_failure_is_tried_again(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    settings.SAFEMIGRATE_LOCK_TIMEOUT = (
        10  # Else the rival has a tenth of a second to see that it is waited for.
    )
    run(sandbox.connection, "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with another(sandbox.alias) as other:
        rival = Rival(sandbox, other, sandbox.values("pk")[10:])
        rival.start()
        done = fill(sandbox, batch_size=300)
        rival.join(30)
    assert done.rows == 300
    assert "could not serialize access" in caplog.text
    assert month_later(sandbox.rows())


@contextmanager
def locked_rows(sandbox: MigrationSandbox) -> Iterator[Any]:
    """Another connection that has changed a row and does not commit; no other one waits long for it."""
    with another(sandbox.alias) as other:
        if other.vendor == "sqlite":
            run(sandbox.connection, "PRAGMA busy_timeout = 20")
            run(other, "BEGIN IMMEDIATE")
        else:
            limit = "lock_timeout = 20" if other.vendor == "postgresql" else "innodb_lock_wait_timeout = 1"
            run(sandbox.connection, f"SET {limit}")
            other.set_autocommit(False)
        run(other, "UPDATE boxes_question SET question_text = 'changed'")
        yield other


class OnRetry(logging.Handler):
    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        if "trying the batch again" in (text := record.getMessage()) or "locked by other sessions" in text:
            self.call()


def test_a_locked_row_is_tried_again_until_it_is_free(sandbox: MigrationSandbox, populate: Any) -> None:
    logger = logging.getLogger("safemigrate")
    with locked_rows(sandbox) as other:
        handler = OnRetry(lambda: run(other, "COMMIT"))
        logger.addHandler(handler)
        try:
            done = fill(sandbox, populate)
        finally:
            logger.removeHandler(handler)
    assert done.rows == 300
    assert month_later(sandbox.rows())
    assert set(sandbox.values("question_text")) == {"changed"}


def test_what_does_not_pass_ends_in_words(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_RETRIES = 1
    settings.SAFEMIGRATE_LOCK_TRIES, settings.SAFEMIGRATE_LOCK_PAUSE = 2, 0.01
    with locked_rows(sandbox), pytest.raises(TooManyRetries) as caught:
        fill(sandbox)
    text = str(caught.value)
    assert text.startswith(f"boxes.Question.expires_date on {sandbox.alias}: ")
    assert "lock" in text.lower()
    if sandbox.connection.vendor == "sqlite":  # It locks the file, and no row.
        assert "a batch failed 2 times, the last time with: " in text
        assert text.endswith("0 rows were filled and stay so; run the same command again to carry on.")
    else:
        assert "300 rows are locked by other sessions; blocked by: " in text
        assert "They were tried 2 times" in text
        assert text.endswith("and run the same command again: it carries on from here.")
    assert sandbox.values(NAME) == [None] * 300
    fill(sandbox)
    assert month_later(sandbox.rows())


# Rows


def test_rows_that_others_insert_meanwhile_are_filled(sandbox: MigrationSandbox, populate: Any) -> None:
    added: list[int] = []

    def insert(run_: engine.Run) -> None:
        if len(added) < 4:
            # Behind the pass, and beyond the end that it has set itself.
            added.extend([-1 - len(added), 10_000 + len(added)])
            for key in added[-2:]:
                run(
                    other,
                    "INSERT INTO boxes_question (id, question_text, pub_date) VALUES (%s, 'new', %s)",
                    key,
                    other.ops.adapt_datetimefield_value(START),
                )

    with another(sandbox.alias) as other:
        done = fill(sandbox, populate, observer=Observer(insert), batch_size=100)
    assert len(added) == 4
    assert done.rows == 304
    assert month_later(sandbox.rows())


def test_what_others_wrote_meanwhile_stays(sandbox: MigrationSandbox, populate: Any) -> None:
    last = sandbox.values("pk")[-1]
    with another(sandbox.alias) as other:
        write = "UPDATE boxes_question SET expires_date = %s WHERE id = %s"
        value = other.ops.adapt_datetimefield_value(START)
        done = fill(
            sandbox, populate, observer=Observer(lambda run_: run(other, write, value, last)), batch_size=100
        )
    assert done.rows == 299
    assert sandbox.values(NAME)[-1] == START
    assert month_later(sandbox.rows()[:299])


def never(question: Any) -> Any:
    return None


def test_a_run_stops_when_more_rows_are_bad_than_allowed(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_BAD_ROWS = 150
    observer = Observer()
    with pytest.raises(BadRows) as caught:
        fill(sandbox, never, observer=observer, batch_size=100)
    assert observer.calls == ["start", "advance", "end"]
    assert observer.error is caught.value
    text = str(caught.value)
    assert text.startswith(
        f"more than 150 rows of boxes.Question.expires_date on {sandbox.alias} got no value"
    )
    assert "SAFEMIGRATE_MAX_BAD_ROWS" in text
    assert f"{sandbox.values('pk')[0]}: the function returned None" in text
    assert len(caught.value.examples) == 10


def test_within_the_budget_all_other_rows_are_filled(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_BAD_ROWS = 3
    bad = sandbox.values("pk")[97:100]
    with pytest.raises(BadRows) as caught:
        fill(
            sandbox,
            lambda question: None if question.pk in bad else question.pub_date + MONTH,
            batch_size=100,
        )
    assert caught.value.count == 3
    assert [row.key for row in caught.value.examples] == bad
    assert "All other rows are filled." in str(caught.value)
    assert sandbox.values(NAME).count(None) == 3
    fill(sandbox)
    assert month_later(sandbox.rows())
