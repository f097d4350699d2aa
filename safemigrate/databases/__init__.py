"""All that is known about each database. Ask `for_connection` and put questions to what it returns."""

from __future__ import annotations

from typing import Any

from safemigrate.databases.base import Column, Database
from safemigrate.databases.mysql import MySQL
from safemigrate.databases.postgresql import PostgreSQL
from safemigrate.databases.sqlite import SQLite

__all__ = ["Column", "Database", "for_connection"]

_BY_VENDOR: dict[str, type[Database]] = {"postgresql": PostgreSQL, "mysql": MySQL, "sqlite": SQLite}


def for_connection(connection: Any) -> Database:
    """Return what is known about the database behind `connection`; of an unknown one, the safe answers."""
    return _BY_VENDOR.get(connection.vendor, Database)(connection)
