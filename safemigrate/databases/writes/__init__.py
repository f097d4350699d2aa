"""How values that Python made are written into each database."""

from typing import Any

from safemigrate.databases.base import Database
from safemigrate.databases.writes.base import Write, has_own_sql
from safemigrate.databases.writes.mysql import MySQLWrite
from safemigrate.databases.writes.postgresql import PostgreSQLWrite
from safemigrate.databases.writes.sqlite import SQLiteWrite

WRITES: dict[str, type[Write]] = {
    "postgresql": PostgreSQLWrite,
    "mysql": MySQLWrite,
    "sqlite": SQLiteWrite,
}


def for_target(database: Database, target: Any) -> Write:
    """Return what writes the values of a `batches.Target` by this database's connection."""
    fields = [target.model._meta.get_field(name) for name in target.names]
    fast = not any(map(has_own_sql, fields))
    return (WRITES.get(database.connection.vendor, Write) if fast else Write)(database, target)


__all__ = ["Write", "for_target"]
