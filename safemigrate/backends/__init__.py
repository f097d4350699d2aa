"""All that is known about each database: `get_backend` gives it, by what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from safemigrate.backends.base.guards import Guards
from safemigrate.backends.base.monitoring import Monitoring
from safemigrate.backends.base.schema import Column, Database
from safemigrate.backends.base.writer import Write, has_own_sql
from safemigrate.backends.mysql.guards import MySQLGuards
from safemigrate.backends.mysql.monitoring import MySQLMonitoring
from safemigrate.backends.mysql.schema import MySQL
from safemigrate.backends.mysql.writer import MySQLWrite
from safemigrate.backends.postgresql.guards import PostgreSQLGuards
from safemigrate.backends.postgresql.monitoring import PostgreSQLMonitoring
from safemigrate.backends.postgresql.schema import PostgreSQL
from safemigrate.backends.postgresql.writer import PostgreSQLWrite
from safemigrate.backends.sqlite.guards import SQLiteGuards
from safemigrate.backends.sqlite.monitoring import SQLiteMonitoring
from safemigrate.backends.sqlite.schema import SQLite
from safemigrate.backends.sqlite.writer import SQLiteWrite
from safemigrate.types import field_of

__all__ = [
    "Column",
    "Database",
    "Guards",
    "Monitoring",
    "Write",
    "for_connection",
    "get_backend",
    "has_own_sql",
]

VENDORS: dict[str, tuple[type[Database], type[Guards], type[Write], type[Monitoring]]] = {
    "postgresql": (PostgreSQL, PostgreSQLGuards, PostgreSQLWrite, PostgreSQLMonitoring),
    "mysql": (MySQL, MySQLGuards, MySQLWrite, MySQLMonitoring),
    "sqlite": (SQLite, SQLiteGuards, SQLiteWrite, SQLiteMonitoring),
}


@dataclass(frozen=True)
class Backend:
    """`schema` knows the DDL, `guards` how writes are guarded, `monitoring` what the server reports of its load."""

    schema: Database
    guards: Guards
    monitoring: Monitoring
    write: type[Write]

    def writer(self, target: Any) -> Write:
        """Return what writes the values of a `batches.Target` that Python made."""
        fields = [field_of(target.model, name) for name in target.names]
        write = Write if any(map(has_own_sql, fields)) else self.write
        return write(self.schema, target)


def get_backend(connection: BaseDatabaseWrapper) -> Backend:
    """Return what is known about the database behind the connection; of an unknown one, the safe answers."""
    known = VENDORS.get(connection.vendor, (Database, Guards, Write, Monitoring))
    schema, guards, write, monitoring = known
    database = schema(connection)
    return Backend(database, guards(database), monitoring(connection), write)


def for_connection(connection: BaseDatabaseWrapper) -> Database:
    """Return the `schema` of the database's backend, which most callers are after."""
    return get_backend(connection).schema
