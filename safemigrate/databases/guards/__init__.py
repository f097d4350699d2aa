"""How each database guards writes."""

from safemigrate.databases.base import Database
from safemigrate.databases.guards.base import Guards
from safemigrate.databases.guards.mysql import MySQLGuards
from safemigrate.databases.guards.postgresql import PostgreSQLGuards
from safemigrate.databases.guards.sqlite import SQLiteGuards

GUARDS: dict[str, type[Guards]] = {
    "postgresql": PostgreSQLGuards,
    "mysql": MySQLGuards,
    "sqlite": SQLiteGuards,
}


def for_database(database: Database) -> Guards:
    return GUARDS.get(database.connection.vendor, Guards)(database)


__all__ = ["Guards", "for_database"]
