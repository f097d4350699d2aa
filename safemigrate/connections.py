"""The connections that a run opens beside the caller's, and the tenant's schema (django-tenants) that they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


def schema_of(alias: str) -> str:
    """Return the tenant's schema that this thread's connection is in; "" in a project without tenants."""
    return getattr(connections[alias], "schema_name", "") or ""


def is_shared(alias: str, table: str) -> bool:
    """Is the table in a schema that all tenants share, behind that of the one whose schema the connection is in?"""
    connection = connections[alias]
    if not schema_of(alias):
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [connection.ops.quote_name(table)])
        return bool(cursor.fetchone()[0])


@contextmanager
def in_schema(schema: str) -> Iterator[None]:
    """Have this thread's connections in a tenant's schema, those that know of tenants; "" leaves all as they are."""
    tenanted: list[Any] = [each for each in connections.all() if schema and hasattr(each, "set_schema")]
    before = [(connection, connection.tenant) for connection in tenanted]
    for connection in tenanted:
        connection.set_schema(schema)
    try:
        yield
    finally:
        for connection, tenant in before:
            connection.set_tenant(tenant)


class Beside:
    """Has the connections of another thread, or process, opened as a run needs them: called there, made here.

    They are in the schemas of those of this thread. And they are opened beside the project's pool
    (`OPTIONS["pool"]`): that is as large as the site needs, and who waits in it for another one of the same run
    would wait until the pool's time is over.
    """

    def __init__(self) -> None:
        self.schemas = {alias: schema for alias in connections if (schema := schema_of(alias))}

    def __call__(self) -> None:
        for connection in connections.all():
            leave_pool(connection)
            if connection.alias in self.schemas:
                connection.set_schema(self.schemas[connection.alias])  # type: ignore[attr-defined]


def leave_pool(connection: Any) -> Any:
    """Have a connection that is not open yet opened beside the project's pool; return it."""
    options = connection.settings_dict.get("OPTIONS", {})
    if "pool" in options:
        without = {name: value for name, value in options.items() if name != "pool"}
        connection.settings_dict = connection.settings_dict | {"OPTIONS": without}
    return connection
