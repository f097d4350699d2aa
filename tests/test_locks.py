"""A table lock that somebody else holds: asked for shortly and again, and named when it is not to be had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import F

from safemigrate import backfill
from safemigrate.databases import postgresql
from safemigrate.exceptions import LockNotAcquired
from safemigrate.operations import AddRequiredField
from tests.roads import MONTH, Road, month_later

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
WEAK = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}

LATER = F("pub_date") + MONTH


def add_expires(populate: Any = LATER, **kwargs: Any) -> AddRequiredField:
    return AddRequiredField(
        "question", "expires_date", models.DateTimeField("expires at"), populate, **kwargs
    )


@pytest.fixture(autouse=True)
def _short_tries(settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES = 2
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 0.05
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.01


@pytest.fixture
def road(alias: str) -> Road:
    road = Road(alias)
    road.fill(20)
    if road.connection.vendor == "sqlite":
        run(road.connection, "PRAGMA busy_timeout = 50")
    return road


@contextmanager
def another(alias: str) -> Iterator[Any]:
    """One more connection to the same database."""
    connection = connections[alias].copy()
    try:
        yield connection
    finally:
        with suppress(Exception):
            connection.rollback()
        connection.close()


def run(connection: Any, sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def in_the_way(alias: str) -> Iterator[Any]:
    """Another connection with an open transaction, whose lock an ALTER TABLE has to wait for."""
    with another(alias) as other:
        if other.vendor == "sqlite":
            run(other, "BEGIN IMMEDIATE")
        else:
            if other.vendor == "postgresql":
                run(other, "SET application_name = 'nightly report'")
            other.set_autocommit(False)
            run(other, "SELECT COUNT(*) FROM roads_question")
        yield other


class Between(logging.Handler):
    """Calls a function between two tries: when the log says that the lock was not to be had."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call, self.calls = call, 0

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting for the lock" in record.getMessage():
            self.calls += 1
            self.call()


@contextmanager
def between_tries(call: Callable[[], Any]) -> Iterator[Between]:
    logger, handler = logging.getLogger("safemigrate"), Between(call)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def release(other: Any) -> None:
    run(other, "ROLLBACK")


def test_who_is_in_the_way_is_named_and_the_table_is_as_it_was(road: Road) -> None:
    schema = road.schema()
    with in_the_way(road.alias) as other:
        holder = identity(other)
        with pytest.raises(LockNotAcquired) as caught:
            road.run(add_expires())
    text = " ".join(str(caught.value).split())
    assert text.startswith("To add the column expires_date, nullable, a lock on ")
    assert "was asked for 2 times in" in text
    waited = "1000 ms" if road.alias == "mariadb" else "50 ms"  # MariaDB counts in whole seconds
    assert f"never given within {waited}" in text
    assert "Nothing was changed by this step" in text
    for word in holder:
        assert word in text
    assert road.schema() == schema


def identity(other: Any) -> list[str]:
    """What the message is to say of a connection that is in the way."""
    if other.vendor == "postgresql":
        ((pid, user),) = run(other, "SELECT pg_backend_pid(), current_user")
        run(other, "SELECT COUNT(*) FROM roads_question")
        state = "idle in transaction, in a transaction for"
        query = "SELECT COUNT(*) FROM roads_question"
        return [f"pid {pid}, user {user}, application nightly report, {state}", query]
    if other.vendor == "mysql":
        ((pid, user),) = run(other, "SELECT CONNECTION_ID(), SUBSTRING_INDEX(USER(), '@', 1)")
        return [f"connection {pid}, user {user}@", "sleep, in a transaction since", "no statement running"]
    return ["In the way: another connection that writes to the file"]


def test_released_between_two_tries_it_is_taken(road: Road) -> None:
    with in_the_way(road.alias) as other, between_tries(lambda: release(other)) as tries:
        road.run(add_expires())
    assert tries.calls == 1
    assert month_later(road.rows())
    assert not road.column("expires_date").nullable


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_others_read_and_write_between_two_tries(road: Road) -> None:
    read: list[Any] = []

    def work() -> None:
        read.extend(run(third, "SELECT COUNT(*) FROM roads_question"))
        run(third, "UPDATE roads_question SET question_text = 'changed'")

    with in_the_way(road.alias), another(road.alias) as third:
        limit = "lock_timeout = 50" if third.vendor == "postgresql" else "lock_wait_timeout = 1"
        run(third, f"SET {limit}")
        with between_tries(work), pytest.raises(LockNotAcquired):
            road.run(add_expires())
    assert read == [(20,)]
    assert set(road.values("question_text")) == {"changed"}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_others_read_while_the_one_writer_is_waited_for(road: Road) -> None:
    read: list[Any] = []
    with in_the_way(road.alias), another(road.alias) as third:
        look = lambda: read.extend(run(third, "SELECT COUNT(*) FROM roads_question"))  # noqa: E731
        with between_tries(look), pytest.raises(LockNotAcquired):
            road.run(add_expires())
    assert read == [(20,)]


SESSIONS = {
    "postgresql": (
        ["SET lock_timeout = '7s'", "SET statement_timeout = '9min'"],
        "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')",
        ("7s", "9min"),
    ),
    "mysql": (
        [
            "SET lock_wait_timeout = 77",
            "SET sql_mode = 'NO_ENGINE_SUBSTITUTION'",
            "SET foreign_key_checks = 1",
        ],
        "SELECT @@lock_wait_timeout, @@sql_mode, @@foreign_key_checks",
        (77, "NO_ENGINE_SUBSTITUTION", 1),
    ),
    "sqlite": (["PRAGMA busy_timeout = 77"], "PRAGMA busy_timeout", (77,)),
}


def test_the_session_s_settings_are_as_they_were(road: Road) -> None:
    orders, question, answer = SESSIONS[road.connection.vendor]
    for order in orders:
        run(road.connection, order)
    mode = getattr(road.connection, "transaction_mode", None)
    with in_the_way(road.alias), pytest.raises(LockNotAcquired):
        road.run(add_expires())
    assert run(road.connection, question) == [answer]
    road.run(add_expires())
    parent = models.ForeignKey("roads.question", models.CASCADE, related_name="+")
    road.run(AddRequiredField("question", "parent", parent, F("pk")))
    assert run(road.connection, question) == [answer]
    assert getattr(road.connection, "transaction_mode", None) == mode
    assert road.connection.get_autocommit()


@POSTGRESQL
def test_what_vacuum_holds_is_named_and_given_way_to(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "YIELD_SECONDS", 0.05)
    with another(road.alias) as other:
        other.set_autocommit(False)
        hold = 'LOCK TABLE "roads_question" IN SHARE UPDATE EXCLUSIVE MODE'
        run(other, hold)
        with pytest.raises(LockNotAcquired, match="LOCK TABLE") as caught:
            road.run(add_expires())
        assert f"pid {other.connection.info.backend_pid}" in str(caught.value)
        with between_tries(lambda: release(other)) as tries:
            road.run(add_expires())
    assert tries.calls == 1
    assert month_later(road.rows())


class Watching(backfill.NoLedger):
    """Notes the locks on the table after each batch, as another connection sees them."""

    def __init__(self, look: Callable[[], set[str]]) -> None:
        self.look, self.seen = look, list[set[str]]()

    def advance(self, run: backfill.Run) -> None:
        self.seen.append(self.look())


@POSTGRESQL
def test_the_fill_holds_nothing_between_batches_and_little_in_them(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[set[str]] = []
    with another(road.alias) as other:

        def look() -> set[str]:
            held = "SELECT mode FROM pg_locks WHERE relation = 'roads_question'::regclass AND pid <> pg_backend_pid()"
            return {mode for (mode,) in run(other, held)}

        class Inside:
            def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
                result = execute(sql, params, many, context)
                if sql.startswith("UPDATE"):
                    inside.append(look())
                return result

        watching = Watching(look)
        monkeypatch.setattr(backfill, "new_ledger", lambda: watching)
        with road.connection.execute_wrapper(Inside()):
            road.run(add_expires(lambda question: question.pub_date + MONTH, batch_size=5))
    assert watching.seen == [set()] * 4
    assert len(inside) == 4
    assert all("RowExclusiveLock" in modes and modes <= WEAK for modes in inside)
