"""How each database guards writes."""

from safemigrate.backends.base.guards import Guards
from safemigrate.backends.base.schema import Database
from safemigrate.backends.mysql.guards import MySQLGuards
from safemigrate.backends.postgresql.guards import PostgreSQLGuards
from safemigrate.backends.sqlite.guards import SQLiteGuards

GUARDS: dict[str, type[Guards]] = {
    "postgresql": PostgreSQLGuards,
    "mysql": MySQLGuards,
    "sqlite": SQLiteGuards,
}


def for_database(database: Database) -> Guards:
    return GUARDS.get(database.connection.vendor, Guards)(database)


__all__ = ["Guards", "for_database"]
