"""What a server reports of its load and of a table. Ask `for_connection`; nothing is changed by asking."""

from __future__ import annotations

from typing import Any

from safemigrate.backends.base.monitoring import Monitoring
from safemigrate.backends.mysql.monitoring import MySQLMonitoring
from safemigrate.backends.postgresql.monitoring import PostgreSQLMonitoring
from safemigrate.backends.sqlite.monitoring import SQLiteMonitoring

__all__ = ["Monitoring", "for_connection"]

_BY_VENDOR: dict[str, type[Monitoring]] = {
    "postgresql": PostgreSQLMonitoring,
    "mysql": MySQLMonitoring,
    "sqlite": SQLiteMonitoring,
}


def for_connection(connection: Any) -> Monitoring:
    """Return the monitoring of the database behind `connection`; of an unknown one, what Django knows."""
    return _BY_VENDOR.get(connection.vendor, Monitoring)(connection)
