"""A primary and its replica, booted for a test, each with an alias of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.utils import load_backend
from mysite import database_urls

from tools.servers import MariaDB, PostgreSQL, Server

PRIMARY, REPLICA = "primary", "replica"
SLOT = "safemigrate_replica"
SECONDS = 30
# InnoDB gives the same answer again when it is asked more often than each 0.1 s.
PAUSE = 0.15


class PostgreSQLReplica(PostgreSQL):
    """A copy of a server that runs, which follows it."""

    def __init__(self, primary: PostgreSQL) -> None:
        super().__init__(primary.programs)
        self.primary = primary

    def _prepare(self) -> None:
        self._bin = self._reachable_programs()
        server = f"host={self.primary.host} port={self.primary.port} user={self.user}"
        self._run(
            self._bin / "pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf",
            "--create-slot", f"--slot={SLOT}", "-d", server, "-D", self._data,
        )  # fmt: skip


class ReplicatingMariaDB(MariaDB):
    """A server with a number of its own and a binary log."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _command(self) -> list[str]:
        plain = [part for part in super()._command() if part != "--skip-log-bin"]
        return [*plain, f"--server-id={self.number}", "--log-bin=binlog"]


@contextmanager
def postgresql(programs: Path | None = None) -> Iterator[tuple[Any, Any]]:
    """The connections to a PostgreSQL primary and to its replica, which has all that the primary has."""
    with ExitStack() as stack:
        primary = PostgreSQL(programs)
        ours = stack.enter_context(_booted(PRIMARY, primary))
        theirs = stack.enter_context(_booted(REPLICA, PostgreSQLReplica(primary)))
        wait_for(lambda: fetch(ours, "SELECT state FROM pg_stat_replication") == [("streaming",)])
        yield ours, theirs


@contextmanager
def mariadb() -> Iterator[tuple[Any, Any]]:
    """The connections to a MariaDB primary and to its replica, which has all that the primary has."""
    with ExitStack() as stack:
        primary, replica = ReplicatingMariaDB(1), ReplicatingMariaDB(2)
        ours = stack.enter_context(_booted(PRIMARY, primary))
        theirs = stack.enter_context(_booted(REPLICA, replica))
        file, position = fetch(ours, "SHOW MASTER STATUS")[0][:2]
        execute(
            theirs,
            f"CHANGE MASTER TO MASTER_HOST='{primary.host}', MASTER_PORT={primary.port}, "
            f"MASTER_USER='{primary.user}', MASTER_LOG_FILE='{file}', MASTER_LOG_POS={position}",
        )
        execute(theirs, "START SLAVE")
        wait_for(lambda: fetch(ours, "SHOW GLOBAL STATUS LIKE 'Slaves_connected'")[0][1] == "1")
        yield ours, theirs


@contextmanager
def _booted(alias: str, server: Server) -> Iterator[Any]:
    with server:
        own = connections.configure_settings({"default": {}, alias: database_urls.parse(server.url)})[alias]
        connections.settings[alias] = own
        connections[alias] = load_backend(own["ENGINE"]).DatabaseWrapper(own, alias)
        try:
            yield connections[alias]
        finally:
            connections[alias].close()
            del connections[alias], connections.settings[alias]


def fetch(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def execute(connection: Any, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def wait_for(fact: Callable[[], Any]) -> Any:
    """Return what `fact` gives as soon as it is true."""
    end = time.monotonic() + SECONDS
    while not (found := fact()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(PAUSE)
    return found
