"""MySQL: a wait for a table lock that ends within a part of a second.

The server counts lock_wait_timeout in whole seconds, and behind a session that waits for the lock of a table all others
wait that come later. So another connection of ours ends the statement, by KILL QUERY, which a user may do to its own.
"""

from __future__ import annotations

import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.db import DatabaseError, Error, OperationalError

from safemigrate.backends.base.schema import error_code
from safemigrate.connections import leave_pool

if TYPE_CHECKING:
    from safemigrate.backends.mysql.schema import MySQL

KILLED = 1317
TIMEOUT = 1205


def execute(database: MySQL, statement: str, seconds: float) -> None:
    """Run the statement, which only waits and takes locks; raise a lock timeout where it is not through in time.

    Where it cannot be ended, it waits for lock_wait_timeout.
    """
    # A proxy may have numbers of its own for the connections, so it is found by what it runs.
    mark = f"/* safemigrate {uuid4().hex} */"
    other = leave_pool(database.connection.copy())
    other.inc_thread_sharing()
    late = threading.Event()
    timer = threading.Timer(seconds, _end, [other, mark, late])
    timer.start()
    try:
        database.execute(f"{statement} {mark}")
    except DatabaseError as error:
        if error_code(error) != KILLED:
            raise
        raise OperationalError(TIMEOUT, "Lock wait timeout exceeded") from None
    finally:
        timer.cancel()
        timer.join()
        if late.is_set():
            _absorb(database)


def _end(other: Any, mark: str, late: threading.Event) -> None:
    """End what carries the mark, by another connection."""
    late.set()
    with suppress(Error), closing(other), other.cursor() as cursor:
        cursor.execute("SELECT id, info FROM performance_schema.processlist WHERE id <> CONNECTION_ID()")
        for number, info in cursor.fetchall():
            if mark in (info or ""):
                cursor.execute(f"KILL QUERY {int(number)}")


def _absorb(database: MySQL) -> None:
    """Let a KILL that came when the statement had just ended hit this one."""
    with suppress(DatabaseError):
        database.execute("DO 0")
