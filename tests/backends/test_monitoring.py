"""What the servers report of their load: with others that really wait, hold, vacuum and lag."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from django.db import Error, connections, models
from pytest_django import DjangoDbBlocker

from safemigrate.backends import Monitoring, get_backend
from safemigrate.exceptions import InvalidSetting, NotVisible
from tests.schema.test_runner import another
from tests.support import replicas
from tests.support.replicas import execute, fetch, wait_for
from tests.support.sandbox import MigrationSandbox, question
from tools.servers import system_postgresql, wheel_postgresql

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
MARIADB = pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
SERVERS = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)

TABLE = "boxes_question"


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    return sandbox


def seen(sandbox: MigrationSandbox) -> Monitoring:
    return get_backend(sandbox.connection).monitoring


@contextmanager
def elsewhere(alias: str, *statements: str) -> Iterator[None]:
    """Run statements in a thread, on a connection of its own, which may wait until the block ends."""

    def work() -> None:
        with suppress(Error):
            for statement in statements:
                execute(connections[alias], statement)
        connections[alias].close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=30)
        assert not thread.is_alive()


@contextmanager
def locked(alias: str, table: str = TABLE) -> Iterator[Any]:
    """Another connection that holds the table for itself until the block ends."""
    with another(alias) as other:
        if other.vendor == "mysql":
            execute(other, f"LOCK TABLES {table} WRITE")
        else:
            other.set_autocommit(False)
            execute(other, f"LOCK TABLE {table}")
        yield other


def unlock(other: Any) -> None:
    execute(other, "UNLOCK TABLES" if other.vendor == "mysql" else "ROLLBACK")


# Locks and transactions


@SERVERS
def test_who_waits_for_the_table_is_named(sandbox: MigrationSandbox) -> None:
    assert seen(sandbox).waiting_for(sandbox.model()) == []
    with (
        locked(sandbox.alias) as other,
        elsewhere(sandbox.alias, f"UPDATE {TABLE} SET question_text = 'mine'"),
    ):
        (line,) = wait_for(lambda: seen(sandbox).waiting_for(sandbox.model()))
        unlock(other)
    assert f"UPDATE {TABLE} SET question_text = 'mine'" in line
    wanted = "waiting for table metadata lock" if sandbox.alias == "mariadb" else "waits for RowExclusiveLock"
    assert wanted in line
    assert seen(sandbox).waiting_for(sandbox.model()) == []


@SERVERS
def test_who_waits_for_another_table_is_none_of_ours(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(), question_of("answer"))
    with locked(alias, "boxes_answer") as other, elsewhere(alias, "DELETE FROM boxes_answer"):
        wait_for(lambda: seen(sandbox).waiting_for(sandbox.model("Answer")))
        assert seen(sandbox).waiting_for(sandbox.model()) == []
        unlock(other)


def question_of(name: str) -> Any:
    made = question()
    made.name = name.capitalize()
    return made


@MARIADB
def test_who_waits_for_a_row_is_named(sandbox: MigrationSandbox) -> None:
    with another(sandbox.alias) as other:
        other.set_autocommit(False)
        execute(other, f"UPDATE {TABLE} SET question_text = 'first'")
        with elsewhere(sandbox.alias, f"UPDATE {TABLE} SET question_text = 'second'"):
            (line,) = wait_for(lambda: seen(sandbox).waiting_for(sandbox.model()))
            execute(other, "ROLLBACK")
    assert "second" in line


@SERVERS
def test_a_transaction_open_for_long_is_named(sandbox: MigrationSandbox) -> None:
    with another(sandbox.alias) as other:
        if other.vendor == "postgresql":
            execute(other, "SET application_name = 'nightly report'")
        ((pid,),) = fetch(
            other, "SELECT connection_id()" if sandbox.alias == "mariadb" else "SELECT pg_backend_pid()"
        )
        other.set_autocommit(False)
        execute(other, f"UPDATE {TABLE} SET question_text = 'mine' WHERE id = 1")

        def of_it() -> list[str]:  # Others test on the same server.
            return [line for line in seen(sandbox).open_transactions(0.5) if re.search(rf"\b{pid},", line)]

        (line,) = wait_for(of_it)
        assert seen(sandbox).open_transactions(3600) == []
    assert "in a transaction for" in line
    if sandbox.alias != "mariadb":
        assert "application nightly report, idle in transaction" in line
        assert "UPDATE" in line
    assert wait_for(lambda: of_it() == [])


@SQLITE
def test_a_file_tells_of_nobody(sandbox: MigrationSandbox) -> None:
    reported = seen(sandbox)
    assert reported.waiting_for(sandbox.model()) == []
    assert reported.open_transactions(0) == []
    assert reported.replication_lag() is None
    assert reported.vacuuming(sandbox.model()) is False

    reported.vacuum(sandbox.model())


@MARIADB
def test_a_user_without_the_right_is_told_which_one_it_lacks(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(sandbox.connection, "CREATE USER plain@'%'")
    execute(sandbox.connection, f"GRANT SELECT ON {sandbox.connection.settings_dict['NAME']}.* TO plain@'%'")
    with another(sandbox.alias) as other:
        monkeypatch.setitem(other.settings_dict, "USER", "plain")
        reported = get_backend(other).monitoring
        try:
            with pytest.raises(NotVisible, match="grant it PROCESS ON"):
                reported.waiting_for(sandbox.model())
            with pytest.raises(NotVisible, match="grant it PROCESS ON"):
                reported.open_transactions(1)
        finally:
            execute(sandbox.connection, "DROP USER plain@'%'")


# Vacuum


@contextmanager
def slow_vacuum(sandbox: MigrationSandbox) -> Iterator[None]:
    """A vacuum of the table that goes on until the block ends."""
    # A page is let go by a pause of 0.1 s, whatever it costs.
    slowly = ["SET vacuum_cost_delay = 100", "SET vacuum_cost_limit = 1", f"VACUUM {TABLE}"]
    own = seen(sandbox)
    execute(sandbox.connection, f"UPDATE {TABLE} SET question_text = repeat('x', 150)")
    with elsewhere(sandbox.alias, *slowly):
        wait_for(lambda: own.vacuuming(sandbox.model()))
        try:
            yield
        finally:
            fetch(
                sandbox.connection,
                "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum "
                "WHERE datname = current_database()",
            )


@POSTGRESQL
def test_a_vacuum_at_work_is_seen(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(), question_of("answer"))
    sandbox.fill(3_000)
    assert seen(sandbox).vacuuming(sandbox.model()) is False
    with slow_vacuum(sandbox):
        assert seen(sandbox).vacuuming(sandbox.model("Answer")) is False
        with plain_user(sandbox) as reported:
            assert reported.vacuuming(sandbox.model()) is True
    assert seen(sandbox).vacuuming(sandbox.model()) is False


@contextmanager
def plain_user(sandbox: MigrationSandbox) -> Iterator[Monitoring]:
    """What a user gets who may see no statistics of others."""
    with another(sandbox.alias) as other:
        execute(other, "CREATE ROLE plain")
        execute(other, "SET ROLE plain")
        try:
            yield get_backend(other).monitoring
        finally:
            execute(other, "RESET ROLE")
            execute(other, "DROP ROLE plain")


@POSTGRESQL
def test_a_vacuum_frees_the_dead_rows(sandbox: MigrationSandbox) -> None:
    execute(sandbox.connection, "SET statement_timeout = '60s'")
    execute(sandbox.connection, f"UPDATE {TABLE} SET question_text = 'again'")
    free = partial(fetch, sandbox.connection, f"SELECT count(*) FROM {TABLE}")
    before = seen(sandbox).size(sandbox.model())[0]
    seen(sandbox).vacuum(sandbox.model())
    wait_for(lambda: vacuums(sandbox) == 1)
    for _ in range(3):
        execute(sandbox.connection, f"UPDATE {TABLE} SET question_text = 'more'")
        seen(sandbox).vacuum(sandbox.model())
    assert free() == [(100,)]
    grown = seen(sandbox).size(sandbox.model())[0]
    assert before is not None
    assert grown is not None
    assert grown <= before + 2 * 8192 + 8192 * 3  # a free space map and a visibility map
    assert fetch(sandbox.connection, "SHOW statement_timeout") == [("1min",)]


def vacuums(sandbox: MigrationSandbox) -> int:
    with another(sandbox.alias) as other:
        sql = f"SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = '{TABLE}'"
        return int(fetch(other, sql)[0][0])


@POSTGRESQL
def test_a_vacuum_does_not_wait_for_a_lock(sandbox: MigrationSandbox) -> None:
    with locked(sandbox.alias):
        seen(sandbox).vacuum(sandbox.model())
    assert vacuums(sandbox) == 0


# A table


def test_the_size_of_the_table_and_of_its_indexes(alias: str) -> None:
    sandbox = MigrationSandbox(
        alias, question(fields=[("slug", models.CharField(max_length=50, db_index=True))])
    )
    sandbox.fill(500, slug=lambda n: f"slug-{n}", question_text="x" * 180)
    if alias == "mariadb":
        fetch(sandbox.connection, f"ANALYZE TABLE {TABLE}")
    table, indexes = seen(sandbox).size(sandbox.model())
    assert table is not None
    assert indexes is not None
    assert 500 * 180 < table < 1_000_000
    assert 500 * 6 < indexes < table


@SQLITE
def test_the_size_is_unknown_where_sqlite_cannot_tell(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_without(self: Any, sql: str, params: Any = ()) -> Any:
        return fetch(self.connection, sql.replace("dbstat", "no_such_table").replace("%s", "'x'"))

    monkeypatch.setattr(Monitoring, "fetch", fetch_without)
    assert seen(sandbox).size(sandbox.model()) == (None, None)


def test_the_number_of_indexes(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("number", models.IntegerField(unique=True))]))
    before = seen(sandbox).indexes(sandbox.model())
    # SQLite keeps a table by its integer key, without an index.
    assert before == (1 if alias == "default" else 2)
    execute(sandbox.connection, f"CREATE INDEX one_more ON {TABLE} (pub_date)")
    assert seen(sandbox).indexes(sandbox.model()) == before + 1
    assert Monitoring(sandbox.connection).indexes(sandbox.model()) == 3


@POSTGRESQL
def test_the_fillfactor(sandbox: MigrationSandbox) -> None:
    assert seen(sandbox).fillfactor(sandbox.model()) == 100
    execute(sandbox.connection, f"ALTER TABLE {TABLE} SET (fillfactor = 70, autovacuum_enabled = off)")
    assert seen(sandbox).fillfactor(sandbox.model()) == 70


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"], indirect=True)
def test_elsewhere_there_is_no_fillfactor(sandbox: MigrationSandbox) -> None:
    assert seen(sandbox).fillfactor(sandbox.model()) is None


def test_the_triggers_that_a_fill_fires(sandbox: MigrationSandbox) -> None:
    assert seen(sandbox).triggers(sandbox.model()) == []
    for name, event in {"audit": "UPDATE", "greet": "INSERT", "x_safemigrate_guard": "UPDATE"}.items():
        create_trigger(sandbox, name, event)
    if sandbox.alias != "mariadb":
        create_trigger(sandbox, "of_one_column", "UPDATE OF question_text")
    assert seen(sandbox).triggers(sandbox.model()) == ["audit"]


def create_trigger(sandbox: MigrationSandbox, name: str, event: str) -> None:
    body = {
        "sqlite": "BEGIN SELECT 1; END",
        "mysql": "SET @touched = 1",
        "postgresql": "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        if event == "UPDATE"
        else "EXECUTE FUNCTION nothing()",
    }[sandbox.connection.vendor]
    if sandbox.connection.vendor == "postgresql" and "nothing" in body:
        execute(
            sandbox.connection,
            "CREATE OR REPLACE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        )
    execute(sandbox.connection, f"CREATE TRIGGER {name} BEFORE {event} ON {TABLE} FOR EACH ROW {body}")


# Replicas


@SERVERS
def test_a_server_without_replicas_has_no_lag(sandbox: MigrationSandbox) -> None:
    assert seen(sandbox).replication_lag() is None


@SERVERS
def test_an_alias_that_is_no_replica_is_not_taken_for_one(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_REPLICAS = [sandbox.alias]
    with pytest.raises(NotVisible, match=f"{sandbox.alias} is in SAFEMIGRATE_REPLICAS and is not a replica"):
        seen(sandbox).replication_lag()


@SERVERS
def test_a_replica_of_another_kind_is_not_asked(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_REPLICAS = ["default"]
    assert seen(sandbox).replication_lag() is None


@SQLITE
def test_an_unknown_alias_is_refused(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_REPLICAS = ["no_such"]
    with pytest.raises(
        InvalidSetting, match="SAFEMIGRATE_REPLICAS names 'no_such', which is not in DATABASES"
    ):
        seen(sandbox).replication_lag()


PROGRAMS = {"wheel": wheel_postgresql, "system": system_postgresql}


@pytest.fixture(params=PROGRAMS)
def streaming(
    request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker
) -> Iterator[tuple[Any, Any]]:
    programs = PROGRAMS[request.param]()
    if programs is None:
        pytest.skip("the system has no PostgreSQL: apt-get install postgresql")
    with django_db_blocker.unblock(), replicas.postgresql(programs) as pair:
        yield pair


def lag_of(primary: Any) -> float | None:
    return get_backend(primary).monitoring.replication_lag()


def write(primary: Any) -> None:
    execute(primary, "CREATE TABLE IF NOT EXISTS parcels (n integer)")
    execute(primary, "INSERT INTO parcels VALUES (1)")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[], [replicas.REPLICA]], ids=["by the primary", "themselves"])
def test_a_postgresql_replica_that_stands_still_is_behind(
    streaming: tuple[Any, Any], asked: list[str], settings: Any
) -> None:
    settings.SAFEMIGRATE_REPLICAS = asked
    primary, replica = streaming
    write(primary)
    wait_for(lambda: fetch(replica, "SELECT to_regclass('parcels')") == [("parcels",)])
    assert wait_for(lambda: lag_of(primary) == 0)
    fetch(replica, "SELECT pg_wal_replay_pause()")
    write(primary)
    first = wait_for(lambda: lag_of(primary))
    assert wait_for(lambda: (lag_of(primary) or 0) > first + 1)
    fetch(replica, "SELECT pg_wal_replay_resume()")
    assert wait_for(lambda: lag_of(primary) == 0)


@pytest.mark.slow
def test_a_postgresql_user_without_the_right_is_told_which_one_it_lacks(streaming: tuple[Any, Any]) -> None:
    primary, _ = streaming
    execute(primary, "CREATE ROLE plain")
    execute(primary, "SET ROLE plain")
    with pytest.raises(NotVisible, match=r"may not see .* grant it the role pg_read_all_stats"):
        lag_of(primary)
    execute(primary, "RESET ROLE")
    execute(primary, "GRANT pg_read_all_stats TO plain")
    execute(primary, "SET ROLE plain")
    assert wait_for(lambda: lag_of(primary) == 0)


@pytest.mark.slow
def test_a_postgresql_replica_that_is_down_is_no_replica_without_lag(
    django_db_blocker: DjangoDbBlocker,
) -> None:
    with django_db_blocker.unblock(), replicas.postgresql() as (primary, _):
        stopped = replicas.SLOT
        fetch(primary, f"SELECT pg_create_physical_replication_slot('{stopped}_2', true)")
        with pytest.raises(
            NotVisible, match=f"no replica uses the replication slot {stopped}_2: its replica is down"
        ):
            lag_of(primary)


@pytest.fixture
def replicating(django_db_blocker: DjangoDbBlocker) -> Iterator[tuple[Any, Any]]:
    with django_db_blocker.unblock(), replicas.mariadb() as pair:
        yield pair


@pytest.mark.slow
def test_a_mariadb_replica_has_to_be_asked_itself(replicating: tuple[Any, Any], settings: Any) -> None:
    primary, replica = replicating
    with pytest.raises(NotVisible, match="replicas read from primary, and only they .* SAFEMIGRATE_REPLICAS"):
        lag_of(primary)
    settings.SAFEMIGRATE_REPLICAS = [replicas.REPLICA]
    assert lag_of(primary) == 0
    execute(primary, "CREATE TABLE parcels (n integer)")
    wait_for(lambda: fetch(replica, "SHOW TABLES LIKE 'parcels'"))
    with another(replicas.REPLICA) as other:
        execute(other, "LOCK TABLES parcels READ")
        execute(primary, "INSERT INTO parcels VALUES (1)")
        assert wait_for(lambda: (lag_of(primary) or 0) >= 2)
    assert wait_for(lambda: lag_of(primary) == 0)
    execute(replica, "STOP SLAVE SQL_THREAD")
    with pytest.raises(
        NotVisible, match="replication to replica does not run: see SHOW ALL SLAVES STATUS there"
    ):
        lag_of(primary)


@pytest.mark.slow
def test_a_replica_that_does_not_answer_is_not_visible(
    settings: Any, django_db_blocker: DjangoDbBlocker
) -> None:
    with django_db_blocker.unblock(), replicas.postgresql() as (primary, replica):
        settings.SAFEMIGRATE_REPLICAS = [replicas.REPLICA]
        replica.close()
        replica.settings_dict["PORT"] = "1"
        with pytest.raises(NotVisible, match="the replica replica does not answer: connection"):
            lag_of(primary)
