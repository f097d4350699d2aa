"""What a server tells of its load and of a table. Ask `for_connection`; nothing is changed by asking."""

from __future__ import annotations

from typing import Any

from safemigrate.backends.base.monitoring import Vitals
from safemigrate.backends.mysql.monitoring import MySQLVitals
from safemigrate.backends.postgresql.monitoring import PostgreSQLVitals
from safemigrate.backends.sqlite.monitoring import SQLiteVitals

__all__ = ["Vitals", "for_connection"]

_BY_VENDOR: dict[str, type[Vitals]] = {
    "postgresql": PostgreSQLVitals,
    "mysql": MySQLVitals,
    "sqlite": SQLiteVitals,
}


def for_connection(connection: Any) -> Vitals:
    """Return the vitals of the database behind `connection`; of an unknown one, what Django knows."""
    return _BY_VENDOR.get(connection.vendor, Vitals)(connection)
