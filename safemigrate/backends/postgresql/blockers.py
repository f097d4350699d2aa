"""PostgreSQL: pg_locks, with what pg_stat_activity and pg_prepared_xacts report of the holders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safemigrate.backends.base.schema import Database
from safemigrate.schema.steps import Blocked

# The modes that a lock has to wait for, by whom it blocks itself: SHARE UPDATE EXCLUSIVE blocks no query,
# SHARE ROW EXCLUSIVE writers, ACCESS EXCLUSIVE everyone.
_STRONG = [
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]
_CONFLICTING: dict[Blocked, list[str]] = {
    "nobody": _STRONG,
    "writers": ["RowExclusiveLock", *_STRONG],
    "everyone": ["AccessShareLock", "RowShareLock", "RowExclusiveLock", *_STRONG],
}

# Three kinds of holders: a prepared transaction, a process of the server, a session.
_HOLDERS = """
SELECT p.gid, p.owner, a.pid, a.usename, a.application_name, a.state, a.query,
    date_trunc('second', clock_timestamp() - COALESCE(p.prepared, a.xact_start))::text,
    -- Is it time to prevent wraparound? A limit of the table's own that is above the server's does not count.
    bool_or(l.mode = 'ShareUpdateExclusiveLock' AND age(c.relfrozenxid) > LEAST(
        current_setting('autovacuum_freeze_max_age')::int,
        (SELECT option_value::int FROM pg_options_to_table(c.reloptions)
         WHERE option_name = 'autovacuum_freeze_max_age')))
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
-- A prepared transaction has no process, but like any that has a number a lock on its number.
LEFT JOIN pg_locks n ON l.pid IS NULL AND n.pid IS NULL AND n.locktype = 'transactionid'
    AND n.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = n.transactionid
WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.mode = ANY(%s)
    AND (a.pid IS NOT NULL OR p.gid IS NOT NULL)
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)
GROUP BY p.gid, p.owner, p.prepared, a.pid, a.usename, a.application_name, a.state, a.query, a.xact_start
ORDER BY COALESCE(p.prepared, a.xact_start)
"""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as far as this user may know: a row of the query above."""

    prepared: str | None
    owner: str | None
    pid: int | None
    user: str | None
    application: str | None
    state: str | None
    query: str | None
    age: str | None
    overdue: bool

    def __str__(self) -> str:
        if self.prepared:
            return f"prepared transaction {self.prepared}, user {self.owner}, open for {self.age}"
        if not self.user:  # A process of the server, of which autovacuum alone locks tables.
            return self._autovacuum()
        who = f"pid {self.pid}, user {self.user}"
        who += f", application {self.application}" if self.application else ""
        if not self.state:
            return f"{who}, which this user may not see: with the role pg_read_all_stats it may"
        query = " ".join((self.query or "").split())[:80]
        return f"{who}, {self.state}, in a transaction for {self.age}: {query}"

    def _autovacuum(self) -> str:
        # What a plain user may not see of it, the age of the table shows.
        wraparound = "wraparound" in (self.query or "") if self.age else self.overdue
        why = "to prevent wraparound: wait for it" if wraparound else "which gives way by itself"
        query = f", running for {self.age}: {self.query}" if self.age else ""
        return f"pid {self.pid}, autovacuum ({why}){query}"


def named(database: Database, tables: Sequence[str], blocks: Blocked) -> list[str]:
    """Return who holds a lock on the tables that one of this kind has to wait for, the oldest first."""
    # Within a transaction the activity is what it was at the first look.
    database.fetch("SELECT pg_stat_clear_snapshot()")
    rows = database.fetch(_HOLDERS, [_CONFLICTING[blocks], list(tables)])
    return [str(Holder(*row)) for row in rows]
