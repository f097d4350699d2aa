"""How values that Python made are written into each database."""

from typing import Any

from safemigrate.backends.base.schema import Database
from safemigrate.backends.base.writer import Write, has_own_sql
from safemigrate.backends.mysql.writer import MySQLWrite
from safemigrate.backends.postgresql.writer import PostgreSQLWrite
from safemigrate.backends.sqlite.writer import SQLiteWrite

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
