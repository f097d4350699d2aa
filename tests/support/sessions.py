"""More connections to a test's database: those that block a migration, and those that should not notice it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections

if TYPE_CHECKING:
    from typing_extensions import Self


@contextmanager
def another(alias: str) -> Iterator[Any]:
    """One more connection to the same database."""
    connection = connections[alias].copy()
    connection.inc_thread_sharing()
    try:
        yield connection
    finally:
        with suppress(Exception):
            connection.rollback()
        connection.close()


def is_mysql(alias: str) -> bool:
    """Is it MySQL that stands in MariaDB's place (SAFEMIGRATE_TEST_MARIADB)?"""
    connection: Any = connections[alias]
    return connection.vendor == "mysql" and not connection.mysql_is_mariadb


def skip_on_mysql(alias: str, why: str) -> None:
    if is_mysql(alias):
        pytest.skip(why)


@contextmanager
def lock_plugin(alias: str, *, there: bool = True) -> Iterator[None]:
    """MariaDB's own view of who holds which metadata lock, or none: one test at a time, for all share the server."""
    skip_on_mysql(alias, "MySQL has no such plugin")
    with another(alias) as admin:
        run(admin, "SELECT GET_LOCK('safemigrate_plugin', 600)")  # Given back with the connection.
        if there:
            try:
                run(admin, "INSTALL SONAME 'metadata_lock_info'")
            except OperationalError as error:
                pytest.skip(f"this MariaDB has no such plugin: {error}")
        try:
            yield
        finally:
            if there:
                run(admin, "UNINSTALL SONAME 'metadata_lock_info'")


def run(connection: Any, sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def blocking(alias: str) -> Iterator[Any]:
    """Another connection with an open transaction, whose lock an ALTER TABLE has to wait for."""
    with another(alias) as other:
        if other.vendor == "sqlite":
            run(other, "BEGIN IMMEDIATE")
        else:
            if other.vendor == "postgresql":
                run(other, "SET application_name = 'nightly report'")
            other.set_autocommit(False)
            run(other, "SELECT COUNT(*) FROM boxes_question")
        yield other


def release(other: Any) -> None:
    run(other, "ROLLBACK")


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


@contextmanager
def later(seconds: float, call: Callable[[], Any]) -> Iterator[None]:
    timer = threading.Timer(seconds, call)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def until_waiting(alias: str) -> None:
    """Return when some session waits for a table lock."""
    with another(alias) as watcher:
        deadline = time.monotonic() + 10
        # The server's other databases are those of other tests.
        waiting = (
            "SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database "
            "WHERE NOT granted AND locktype = 'relation' AND datname = current_database()"
        )
        while not run(watcher, waiting):
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Traffic:
    """Another client, that reads and writes a row again and again; its worst wait is kept."""

    def __init__(self, alias: str) -> None:
        self.alias, self.worst, self.statements = alias, 0.0, 0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with another(self.alias) as connection:
            while not self._stop.wait(0.005):
                for sql in (
                    "SELECT question_text FROM boxes_question WHERE id = 7",
                    "UPDATE boxes_question SET question_text = 'new' WHERE id = 7",
                ):
                    began = time.monotonic()
                    run(connection, sql)
                    self.worst = max(self.worst, time.monotonic() - began)
                    self.statements += 1
