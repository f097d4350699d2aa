"""What may stand in a migration's way: a reader that keeps its transaction open, a locked row, a long autovacuum."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.seeds import TABLE
from benchmarks.sites import Site, connect

READER_SECONDS = 5
ROW_LOCK_SECONDS = 6
PATIENCE = 60


class NotInTheWay(Exception):
    """The obstacle did not hold up the migration, so that the run shows nothing."""


class Obstacle:
    """Nothing. Subclasses prepare what takes time before the traffic begins, and hold it during the migration."""

    def prepare(self, site: Site) -> None:
        pass

    @contextmanager
    def hold(self, site: Site) -> Iterator[None]:
        yield


class Reader(Obstacle):
    """A transaction that has read the table and stays open, as a report or a forgotten shell does."""

    @contextmanager
    def hold(self, site: Site) -> Iterator[None]:
        self.has_read, self.was_first = threading.Event(), False
        thread = threading.Thread(target=self._read, args=[site])
        thread.start()
        self.has_read.wait(PATIENCE)
        yield
        thread.join()
        if not self.was_first:
            raise NotInTheWay("The column was added before the reader had ended.")

    def _read(self, site: Site) -> None:
        connection = connect(site.url)
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {TABLE} WHERE id = 1")
            self.has_read.set()
            time.sleep(READER_SECONDS)
            columns = connection.introspection.get_table_description(cursor, TABLE)
            self.was_first = all(column.name != "expires_date" for column in columns)
        connection.rollback()
        connection.close()


class RowLock(Obstacle):
    """A transaction that has locked one row in the middle of the table, and stays open."""

    @contextmanager
    def hold(self, site: Site) -> Iterator[None]:
        self.is_locked, self.was_released = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._lock, args=[site])
        thread.start()
        self.is_locked.wait(PATIENCE)
        yield
        ended_before = not self.was_released.is_set()
        thread.join()
        if ended_before:
            raise NotInTheWay("The migration had ended before the row was free.")

    def _lock(self, site: Site) -> None:
        connection = connect(site.url)
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT max(id) / 2 FROM {TABLE}")
            middle = int(cursor.fetchone()[0])
            cursor.execute(f"SELECT id FROM {TABLE} WHERE id = %s FOR UPDATE", [middle])
            self.is_locked.set()
            time.sleep(ROW_LOCK_SECONDS)
        self.was_released.set()
        connection.rollback()
        connection.close()


class Autovacuum(Obstacle):
    """An autovacuum so slow that it would last for minutes. PostgreSQL alone has it."""

    def prepare(self, site: Site) -> None:
        self.connection = connect(site.url)
        with self.connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
            cursor.execute("SELECT pg_reload_conf()")
            cursor.execute(
                f"ALTER TABLE {TABLE} SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, "
                "autovacuum_vacuum_scale_factor = 0.01)"
            )
            cursor.execute(f"UPDATE {TABLE} SET question_text = question_text WHERE id % 5 = 0")
        self.pid = self._wait()

    @contextmanager
    def hold(self, site: Site) -> Iterator[None]:
        if self.pid not in self._running():
            raise NotInTheWay("The autovacuum had ended before the migration began.")
        try:
            yield
            if self.pid in self._running():
                raise NotInTheWay("The autovacuum goes on: nothing has made it give way.")
        finally:
            with self.connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM RESET autovacuum_naptime")
                cursor.execute("SELECT pg_reload_conf()")
            self.connection.close()

    def _wait(self) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if running := self._running():
                return running[0]
            time.sleep(0.1)
        raise NotInTheWay(f"No autovacuum of {TABLE} began within {PATIENCE} s.")

    def _running(self) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pid FROM pg_stat_progress_vacuum WHERE relid = %s::regclass", [TABLE])
            return [pid for (pid,) in cursor.fetchall()]
