"""What blocks on a PostgreSQL server by itself: autovacuum, prepared transactions, what a user may not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import F
from mysite import database_urls
from pytest_django import DjangoDbBlocker

from safemigrate.backends import for_connection
from safemigrate.backends.postgresql import schema
from safemigrate.exceptions import LockNotAcquired
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from tests.plugin import old_postgresql
from tests.support.sandbox import MONTH, MigrationSandbox, month_later
from tests.support.sessions import Traffic, run
from tools.servers import MissingServer, PostgreSQL

TABLE = "boxes_question"
SUPERUSER, PLAIN = "postgres", "site"
ROWS = 20_000
# Autovacuum at a snail's pace: it pauses 100 ms after each page.
SLOWLY = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, vacuum_truncate = off"


class Eager(PostgreSQL):
    """A server that looks each second for tables to vacuum, once a test has turned that on."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "autovacuum_naptime=1s", "-c", "max_prepared_transactions=2"]


def programs(kind: str) -> Any:
    return PostgreSQL().programs if kind == "postgresql" else old_postgresql().programs


@pytest.fixture(scope="module", params=["postgresql", "postgresql_old"])
def server(request: pytest.FixtureRequest, django_db_setup: None) -> Iterator[PostgreSQL]:
    try:
        server = Eager(programs(request.param))
    except MissingServer as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(params=[SUPERUSER, PLAIN])
def user(request: pytest.FixtureRequest) -> str:
    """Who migrates: with all rights, or as most sites do, with those over its own tables alone."""
    return str(request.param)


@pytest.fixture
def admin(server: PostgreSQL, django_db_blocker: DjangoDbBlocker) -> Iterator[Any]:
    """The superuser's connection, with autovacuum off."""
    with django_db_blocker.unblock(), connected(server, "admin", SUPERUSER, server.database) as connection:
        configure(connection, "autovacuum = off")
        run(connection, "DROP DATABASE IF EXISTS polls WITH (FORCE)")
        run(connection, f"DO $$ BEGIN CREATE ROLE {PLAIN} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        run(connection, f"CREATE DATABASE polls OWNER {PLAIN}")
        yield connection
        run(
            connection,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum w%'",
        )


@pytest.fixture
def sandbox(server: PostgreSQL, admin: Any, user: str, settings: Any) -> Iterator[MigrationSandbox]:
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.05
    with connected(server, "eager", user, "polls"):
        sandbox = MigrationSandbox("eager")
        run(sandbox.connection, INSERT)
        yield sandbox


INSERT = (
    f"INSERT INTO {TABLE} (question_text, pub_date) "
    f"SELECT repeat('?', 50), timestamptz '2026-01-01 12:00+00' FROM generate_series(1, {ROWS})"
)


@contextmanager
def connected(server: PostgreSQL, alias: str, user: str, name: str) -> Iterator[Any]:
    """An alias of the project, for as long as it takes."""
    given = database_urls.parse(server.url) | {"USER": user, "NAME": name}
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: given})[alias]
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def configure(connection: Any, setting: str) -> None:
    run(connection, f"ALTER SYSTEM SET {setting}")
    run(connection, "SELECT pg_reload_conf()")


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def add_expires() -> AddRequiredField:
    return AddRequiredField(
        "question",
        "expires_date",
        models.DateTimeField("expires at"),
        F("pub_date") + MONTH,
        batch_size=5_000,
    )


def vacuumed(server: PostgreSQL, admin: Any) -> int:
    """Let autovacuum begin, and return the pid of the worker that is at the table; none comes after it."""
    configure(admin, "autovacuum = on")
    with connected(server, "watcher", SUPERUSER, "polls") as watcher:
        worker = int(until(lambda: workers(watcher))[0][0])
    configure(admin, "autovacuum = off")
    return worker


def workers(connection: Any) -> list[Any]:
    return run(
        connection,
        "SELECT a.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        f"WHERE l.relation = '{TABLE}'::regclass AND a.backend_type = 'autovacuum worker'",
    )


@pytest.mark.slow
@pytest.mark.parametrize("user", [PLAIN], indirect=True)
def test_autovacuum_gives_way_and_nobody_waits(
    server: PostgreSQL, admin: Any, sandbox: MigrationSandbox
) -> None:
    # Without the weaker lock first, everybody would wait for deadlock_timeout, which is 1 s.
    run(sandbox.connection, f"ALTER TABLE {TABLE} SET ({SLOWLY})")
    run(sandbox.connection, f"UPDATE {TABLE} SET question_text = 'dead rows'")
    sandbox.connection.close()  # An idle session reports to the server only after 10 s what it wrote.
    worker = vacuumed(server, admin)
    with Traffic(sandbox.alias) as traffic:
        sandbox.run(add_expires())
    assert worker not in [pid for (pid,) in run(admin, "SELECT pid FROM pg_stat_activity")]
    assert month_later(sandbox.rows())
    assert not sandbox.column("expires_date").nullable
    assert traffic.worst < 0.9


@pytest.fixture
def overdue(admin: Any, sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many transactions ago was the table frozen that autovacuum gives way to none; tries are few."""
    monkeypatch.setattr(schema, "YIELD_SECONDS", 0.1)
    settings.SAFEMIGRATE_LOCK_TRIES = 2
    run(sandbox.connection, f"ALTER TABLE {TABLE} SET ({SLOWLY}, autovacuum_freeze_max_age = 100000)")
    run(admin, "DO $$ BEGIN FOR n IN 1..101000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")


@pytest.mark.slow
def test_autovacuum_against_wraparound_is_named_as_such(
    server: PostgreSQL, admin: Any, sandbox: MigrationSandbox, overdue: None
) -> None:
    worker = vacuumed(server, admin)
    with Traffic(sandbox.alias) as traffic, pytest.raises(LockNotAcquired) as caught:
        sandbox.run(add_expires())
    assert f"Blocked by: pid {worker}, autovacuum (to prevent wraparound: wait for it)" in str(caught.value)
    assert "was asked for 2 times" in str(caught.value)
    assert sandbox.column("expires_date") is None
    assert traffic.worst < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("user", [PLAIN], indirect=True)
def test_an_online_step_does_not_wait_for_it_without_end(
    server: PostgreSQL, admin: Any, sandbox: MigrationSandbox, overdue: None
) -> None:
    field = models.DateTimeField("expires at", db_index=True)
    sandbox.run(
        AddNullableField("question", "expires_date", field),
        Populate("question", "expires_date", F("pub_date") + MONTH),
    )
    worker = vacuumed(server, admin)
    with pytest.raises(LockNotAcquired) as caught:
        sandbox.run(SetNotNull("question", "expires_date", field))
    assert str(caught.value).startswith("To index expires_date as ")
    assert f"pid {worker}, autovacuum (to prevent wraparound" in str(caught.value)


@pytest.fixture
def few_tries(settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES = 2
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 0.05


@pytest.mark.parametrize("user", [PLAIN], indirect=True)
def test_a_forgotten_prepared_transaction_is_named(
    server: PostgreSQL, admin: Any, sandbox: MigrationSandbox, few_tries: None
) -> None:
    with connected(server, "forgetful", SUPERUSER, "polls") as forgetful:
        run(forgetful, "BEGIN")
        run(forgetful, f"SELECT COUNT(*) FROM {TABLE}")
        run(forgetful, "PREPARE TRANSACTION 'transfer 7'")
        try:
            with pytest.raises(
                LockNotAcquired, match="prepared transaction transfer 7, user postgres, open for 00:"
            ):
                sandbox.run(add_expires())
        finally:
            run(forgetful, "ROLLBACK PREPARED 'transfer 7'")
    sandbox.run(add_expires())
    assert month_later(sandbox.rows())


def test_a_session_of_another_user_is_named_as_far_as_it_may_be_seen(
    server: PostgreSQL, sandbox: MigrationSandbox, user: str, few_tries: None
) -> None:
    with connected(server, "report", SUPERUSER, "polls") as report:
        run(report, "BEGIN")
        run(report, f"SELECT COUNT(*) FROM {TABLE}")
        with pytest.raises(LockNotAcquired) as caught:
            sandbox.run(add_expires())
        who = f"pid {report.connection.info.backend_pid}, user postgres"
    seen = {
        SUPERUSER: f", idle in transaction, in a transaction for 00:00:00: SELECT COUNT(*) FROM {TABLE}. Nothing",
        PLAIN: ", which this user may not see: with the role pg_read_all_stats it may. Nothing",
    }
    assert f"Blocked by: {who}{seen[user]}" in str(caught.value)


@pytest.mark.parametrize("user", [PLAIN], indirect=True)
def test_who_holds_the_same_table_of_another_database_does_not_block(
    server: PostgreSQL, admin: Any, sandbox: MigrationSandbox
) -> None:
    database = for_connection(sandbox.connection)
    ((table,),) = database.fetch(f"SELECT '{TABLE}'::regclass::oid")
    sandbox.connection.close()
    run(admin, "CREATE DATABASE twin TEMPLATE polls")
    with connected(server, "twin", SUPERUSER, "twin") as twin:
        assert run(twin, f"SELECT '{TABLE}'::regclass::oid") == [(table,)]
        run(twin, "BEGIN")
        run(twin, f"LOCK TABLE {TABLE}")
        assert database.blockers([f'"{TABLE}"']) == []
    run(admin, "DROP DATABASE twin")
