"""Behind a pooler in transaction mode: whatever safemigrate does, no session of the site is left with its settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from django.db import OperationalError, connections, migrations, models
from django.db.models import F
from pytest_django import DjangoDbBlocker

from safemigrate.backends import for_connection, get_backend
from safemigrate.exceptions import StepRefused
from safemigrate.operations import AddRequiredField
from tests.plan.test_plan import look
from tests.support.sandbox import MigrationSandbox, question
from tools.servers import MissingServer, PgBouncer, PostgreSQL

pytestmark = pytest.mark.slow

SESSIONS = 4
LIMITS = {
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "2min",
    "lock_timeout": "30s",
    "transaction_timeout": "3min",
}
KIND = migrations.CreateModel("Kind", [("id", models.BigAutoField(primary_key=True))])
FIELDS: dict[str, tuple[Any, Any]] = {
    "plain": (models.DateTimeField(), F("pub_date")),
    "an index": (models.DateTimeField(db_index=True), F("pub_date")),
    "unique, by a function": (models.SlugField(unique=True), lambda row: f"row-{row.pk}"),
    "a foreign key": (models.ForeignKey("boxes.Kind", models.CASCADE), 1),
    "a check": (models.PositiveIntegerField(), 7),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgreSQL, PgBouncer]]:
    try:
        server = PostgreSQL()
        pooler = PgBouncer(server, pool_size=SESSIONS)
    except MissingServer as reason:
        pytest.skip(str(reason))
    with server, pooler:
        yield server, pooler


@pytest.fixture
def pooled(
    servers: tuple[PostgreSQL, PgBouncer], django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[str]:
    """An alias that goes through the pooler, as a user with limits, beside requests that use all its sessions."""
    server, pooler = servers
    options = {"ENGINE": "django.db.backends.postgresql", "NAME": server.database, "USER": server.user}
    options = connections["default"].settings_dict | options | {"HOST": server.host, "OPTIONS": {}}
    connections.settings["direct"] = options | {"PORT": server.port}
    connections.settings["pooled"] = options | {"PORT": pooler.port}
    with django_db_blocker.unblock(), ExitStack() as stack:
        for alias in ("direct", "pooled"):
            stack.callback(connections.settings.pop, alias)
            stack.callback(connections.__delitem__, alias)
            stack.callback(connections[alias].close)
        direct = for_connection(connections["direct"])
        for name, value in known().items():
            direct.execute(f"ALTER ROLE {server.user} SET {name} = '{value}'")
        stack.callback(
            direct.execute,
            f"ALTER ROLE {server.user} RESET ALL",
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
        )
        # The sessions that the pooler has are those of before.
        direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        connections["pooled"].close()
        _find_out()
        yield "pooled"


def _find_out() -> None:
    """Have the pooler notice that its sessions are gone, which it may have given to a client just then."""
    others = (
        "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    while for_connection(connections["direct"]).fetch(others):
        time.sleep(0.01)
    for _ in range(SESSIONS):
        with suppress(OperationalError), connections["pooled"].copy().temporary_connection() as cursor:
            cursor.execute("SELECT 1")


def known() -> dict[str, str]:
    rows = for_connection(connections["direct"]).fetch(
        "SELECT name FROM pg_settings WHERE name = ANY(%s)", [[*LIMITS]]
    )
    return {name: LIMITS[name] for (name,) in rows}


@contextmanager
def requests() -> Iterator[None]:
    """Have as many requests as there are sessions, each in its transactions."""
    over = threading.Event()

    def serve() -> None:
        with connections["pooled"].copy().temporary_connection() as cursor:
            while not over.wait(0.002):
                cursor.execute("SELECT count(*), pg_sleep(0.001) FROM boxes_kind")

    threads = [threading.Thread(target=serve) for _ in range(SESSIONS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def settings_of_all_sessions() -> list[dict[str, str]]:
    """Ask each of the pooler's sessions, all of them at once."""
    with ExitStack() as stack:
        found = {}
        for _ in range(SESSIONS):
            own = connections["pooled"].copy()
            stack.callback(own.close)
            own.set_autocommit(False)
            cursor = own.cursor()
            cursor.execute(
                "SELECT pg_backend_pid(), name, current_setting(name) FROM unnest(%s::text[]) AS name",
                [[*known()]],
            )
            rows = cursor.fetchall()
            found[rows[0][0]] = {name: value for _, name, value in rows}
    assert len(found) == SESSIONS
    return list(found.values())


@pytest.mark.parametrize("name", FIELDS)
def test_no_session_is_left_with_our_settings(pooled: str, name: str) -> None:
    box = MigrationSandbox(pooled, KIND, question())
    box.fill(500)
    box.rows("Kind").create(pk=1)
    field, populate = FIELDS[name]
    operation, before = AddRequiredField("question", "new", field, populate, batch_size=100), box.state
    with requests():
        look(box, operation)
        box.run(operation)
        get_backend(box.connection).monitoring.vacuum(box.model())
    assert None not in box.values("new")
    assert settings_of_all_sessions() == [known()] * SESSIONS
    with requests():
        box.undo(operation, before=before)
    assert settings_of_all_sessions() == [known()] * SESSIONS
    assert not for_connection(box.connection).fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")


def test_a_limit_that_could_not_be_lifted_is_named(pooled: str) -> None:
    box = MigrationSandbox(pooled, KIND, question())
    box.fill(100)
    operation = AddRequiredField("question", "new", models.DateTimeField(db_index=True), F("pub_date"))
    direct, user = for_connection(connections["direct"]), connections[pooled].settings_dict["USER"]
    direct.execute(f"ALTER ROLE {user} SET statement_timeout = '1s'")
    direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    connections[pooled].close()
    reader = connections["direct"].copy()
    reader.set_autocommit(False)
    try:
        with reader.cursor() as cursor:  # For the end of its snapshot CREATE INDEX CONCURRENTLY waits.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM boxes_kind")
        with pytest.raises(StepRefused, match="ended by a limit .* past the pooler"):
            box.run(operation)
    finally:
        reader.rollback()
        reader.close()
    box.run(operation)
    assert not box.column("new").nullable
