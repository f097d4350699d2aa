"""All that is known about each database. Ask `for_connection` and put questions to what it returns."""

from __future__ import annotations

from typing import Any

from safemigrate.backends.base.schema import Column, Database
from safemigrate.backends.mysql.schema import MySQL
from safemigrate.backends.postgresql.schema import PostgreSQL
from safemigrate.backends.sqlite.schema import SQLite

__all__ = ["Column", "Database", "for_connection"]

_BY_VENDOR: dict[str, type[Database]] = {"postgresql": PostgreSQL, "mysql": MySQL, "sqlite": SQLite}


def for_connection(connection: Any) -> Database:
    """Return what is known about the database behind `connection`; of an unknown one, the safe answers."""
    return _BY_VENDOR.get(connection.vendor, Database)(connection)
