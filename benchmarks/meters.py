"""What a process reads off while it works: its own memory, its transactions, and the server's counters."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created

from benchmarks.seeds import TABLE

PROC = Path("/proc/self")
# What takes PostgreSQL's ACCESS EXCLUSIVE lock; VALIDATE lets readers and writers pass.
EXCLUSIVE = re.compile(
    r"ALTER\s+TABLE(?!.*VALIDATE\s+CONSTRAINT)|DROP\s+TRIGGER|ACCESS\s+EXCLUSIVE", re.DOTALL
)


def forget_peak() -> None:
    """Let the highest memory of this process so far be forgotten, where the system can."""
    if (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")


def peak() -> int:
    """Return the highest memory of this process, in bytes.

    Linux counts into `ru_maxrss` what the process that started this one had, so it is asked otherwise.
    """
    if (PROC / "status").exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Transactions:
    """The longest transaction of any connection of this process, from BEGIN to COMMIT as the client sees it.

    `exclusive` is the longest that the table was held for itself on PostgreSQL: from the statement that takes
    the lock until it is given back.
    """

    def __init__(self) -> None:
        self.longest = self.exclusive = 0.0
        self.counting = True
        connection_created.connect(self._created)
        for connection in connections.all(initialized_only=True):
            self._watch(connection)

    def close(self) -> None:
        """Watch no connection that is opened from now on."""
        connection_created.disconnect(self._created)

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Run with transactions that do not count."""
        self.counting = False
        yield
        self.counting = True

    def ended(self, seconds: float, alone: float) -> None:
        if self.counting:
            self.longest, self.exclusive = max(self.longest, seconds), max(self.exclusive, alone)

    def _created(self, connection: Any, **kwargs: Any) -> None:
        self._watch(connection)

    def _watch(self, connection: Any) -> None:
        clocks = [wrapper for wrapper in connection.execute_wrappers if isinstance(wrapper, _Clock)]
        if all(clock.found is not self for clock in clocks):
            connection.execute_wrappers.append(_Clock(self, connection))


class _Clock:
    """Times one connection's statements, and what is between its BEGIN and COMMIT."""

    def __init__(self, found: Transactions, connection: Any) -> None:
        self.found, self.connection = found, connection
        self.began: float | None = None
        self.took: float | None = None  # when the lock was taken
        self.begin = connection.set_autocommit
        connection.set_autocommit = self._set_autocommit
        for name in ("_commit", "_rollback"):
            setattr(connection, name, self._ending(getattr(connection, name)))

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        started = time.monotonic()
        exclusive = self.connection.vendor == "postgresql" and EXCLUSIVE.search(str(sql))
        if exclusive and self.took is None:
            self.took = started
        try:
            return execute(sql, params, many, context)
        finally:
            if self.began is None:
                self._end(started)

    def _set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        if not autocommit:
            self.began = time.monotonic()
        self.begin(autocommit, *args, **kwargs)

    def _ending(self, end: Callable[[], Any]) -> Callable[[], Any]:
        def ended() -> Any:
            try:
                return end()
            finally:
                if self.began is not None:
                    self._end(self.began)

        return ended

    def _end(self, began: float) -> None:
        now = time.monotonic()
        self.found.ended(now - began, 0.0 if self.took is None else now - self.took)
        self.began = self.took = None


WRITTEN = {
    "postgresql": "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')",
    "mysql": (
        "SELECT variable_value FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_OS_LOG_WRITTEN'"
    ),
}
SIZES = {
    "postgresql": f"SELECT pg_total_relation_size('{TABLE}')",
    "mysql": (
        "SELECT file_size FROM information_schema.innodb_sys_tablespaces "
        f"WHERE name = concat(database(), '/{TABLE}')"
    ),
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
}


def written(connection: Any) -> int | None:
    """Return how many bytes the server has written into its log since it was made; None where it has none."""
    return _number(connection, WRITTEN[connection.vendor]) if connection.vendor in WRITTEN else None


def size(connection: Any) -> int:
    """Return the bytes of the table with its indexes; on SQLite, of the file."""
    return _number(connection, SIZES[connection.vendor])


def _number(connection: Any, query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])
