"""MySQL and MariaDB: the open transactions; with the plugin metadata_lock_info, the holders themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError

from safemigrate.backends.base.schema import Database

#: The server makes its list of transactions anew only where it was not read for a tenth of a second: while a lock is
#: refused, an empty one may be of before. How often it is read, and the seconds in between.
LOOKS, STALE = 3, 0.11
_UNSEEN = "which this user may not see: with the privilege PROCESS it may"


def named(database: Database, tables: Sequence[str]) -> list[str]:
    """Return who holds a lock on the tables; where the server does not show it, all open transactions."""
    started, holders = _transactions(database), _holders(database, tables)
    if holders is None:
        if started is None:
            return [f"a transaction {_UNSEEN}"]
        holders = list(started)
    sessions, since = _sessions(database), started or {}
    return [_session(number, sessions.get(number), since.get(number)) for number in holders]


def _holders(database: Database, tables: Sequence[str]) -> list[int] | None:
    """Return the connections that hold a metadata lock on the tables, None without MariaDB's plugin for it."""
    plugin = "SELECT 1 FROM information_schema.plugins WHERE plugin_name = %s AND plugin_status = 'ACTIVE'"
    if not (tables and database.fetch(plugin, ["METADATA_LOCK_INFO"])):
        return None
    names = [table.strip("`") for table in tables]
    rows = database.fetch(
        "SELECT DISTINCT thread_id FROM information_schema.metadata_lock_info WHERE table_schema = DATABASE() "
        f"AND table_name IN ({', '.join(['%s'] * len(names))}) AND thread_id <> CONNECTION_ID() ORDER BY 1",
        names,
    )
    return [number for (number,) in rows]


def _transactions(database: Database) -> dict[int, Any] | None:
    """Return since when each connection's transaction is open, the oldest first; None where the user may not know."""
    sql = (
        "SELECT trx_mysql_thread_id, trx_started FROM information_schema.innodb_trx "
        # Of the thread 0 are transactions without a connection, such as the server's own.
        "WHERE trx_mysql_thread_id NOT IN (0, CONNECTION_ID()) ORDER BY trx_started"
    )
    try:
        rows = database.fetch(sql)
        for _ in range(1, LOOKS):
            if rows:
                break
            time.sleep(STALE)
            rows = database.fetch(sql)
    except DatabaseError as error:
        if not database.is_denied(error):
            raise
        return None
    return dict(rows)


def _sessions(database: Database) -> dict[int, tuple[Any, ...]]:
    sql = f"SELECT id, user, host, command, time, info FROM {processlist(database.connection)}"
    rows = database.fetch(sql)
    return {number: tuple(rest) for number, *rest in rows}


def processlist(connection: Any) -> str:
    """Return the table of the sessions. MySQL's older one cannot give back each character of a statement."""
    return f"{'information' if connection.mysql_is_mariadb else 'performance'}_schema.processlist"


def _session(number: int, session: tuple[Any, ...] | None, since: Any) -> str:
    if session is None:
        return f"connection {number}, {_UNSEEN}"
    user, host, command, seconds, query = session
    open_for = f"in a transaction since {since}" if since else f"for {seconds} s"
    text = " ".join((query or "").split())[:80] or "no statement running"
    return f"connection {number}, user {user}@{host}, {command.lower()}, {open_for}: {text}"
