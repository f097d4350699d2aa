"""A table lock that another session holds: asked for shortly and again, and named when it is not to be had."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, connections, migrations, models
from django.db.models import F

from safemigrate.backends import for_connection
from safemigrate.backends.postgresql import schema as postgresql
from safemigrate.engine import engine
from safemigrate.exceptions import LockNotAcquired
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.schema import runner
from safemigrate.schema.steps import Lock, Step
from tests.support.replicas import wait_for
from tests.support.sandbox import MONTH, MigrationSandbox, month_later
from tests.support.sessions import (
    Traffic,
    another,
    between_tries,
    blocking,
    later,
    lock_plugin,
    release,
    run,
    skip_on_mysql,
    until_waiting,
)

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
WEAK = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}

LATER = F("pub_date") + MONTH


def add_expires(populate: Any = LATER, **kwargs: Any) -> AddRequiredField:
    return AddRequiredField(
        "question", "expires_date", models.DateTimeField("expires at"), populate, **kwargs
    )


@pytest.fixture(autouse=True)
def _short_tries(settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES = 2
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 0.05
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.01


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(20)
    if sandbox.connection.vendor == "sqlite":
        run(sandbox.connection, "PRAGMA busy_timeout = 50")
    return sandbox


def test_who_blocks_is_named_and_the_table_is_as_it_was(sandbox: MigrationSandbox) -> None:
    schema = sandbox.schema()
    with blocking(sandbox.alias) as other:
        holder = identity(other)
        with pytest.raises(LockNotAcquired) as caught:
            sandbox.run(add_expires())
    text = " ".join(str(caught.value).split())
    assert text.startswith("To add the column expires_date, ")
    assert 'a lock on "boxes_question" was' in text.replace("`", '"')
    assert "was asked for 2 times in" in text
    waited = re.search(r"the last time for (\d+) ms, and never given", text)
    assert waited is not None
    assert int(waited[1]) >= 50
    assert "Nothing was changed by this step" in text
    for word in holder:
        assert word in text
    assert sandbox.schema() == schema


def identity(other: Any) -> list[str]:
    """What the message is to say of a connection that blocks."""
    if other.vendor == "postgresql":
        ((pid, user),) = run(other, "SELECT pg_backend_pid(), current_user")
        run(other, "SELECT COUNT(*) FROM boxes_question")
        state = "idle in transaction, in a transaction for"
        query = "SELECT COUNT(*) FROM boxes_question"
        return [f"pid {pid}, user {user}, application nightly report, {state}", query]
    if other.vendor == "mysql":
        ((pid, user),) = run(other, "SELECT CONNECTION_ID(), SUBSTRING_INDEX(USER(), '@', 1)")
        return [f"connection {pid}, user {user}@", "sleep, in a transaction since", "no statement running"]
    return ["Blocked by: another connection that reads or writes the file"]


def test_released_between_two_tries_it_is_taken(sandbox: MigrationSandbox) -> None:
    with blocking(sandbox.alias) as other, between_tries(lambda: release(other)) as tries:
        sandbox.run(add_expires())
    assert tries.calls == 1
    assert month_later(sandbox.rows())
    assert not sandbox.column("expires_date").nullable


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_others_read_and_write_between_two_tries(sandbox: MigrationSandbox) -> None:
    read: list[Any] = []

    def work() -> None:
        read.extend(run(third, "SELECT COUNT(*) FROM boxes_question"))
        run(third, "UPDATE boxes_question SET question_text = 'changed'")

    with blocking(sandbox.alias), another(sandbox.alias) as third:
        limit = "lock_timeout = 50" if third.vendor == "postgresql" else "lock_wait_timeout = 1"
        run(third, f"SET {limit}")
        with between_tries(work), pytest.raises(LockNotAcquired):
            sandbox.run(add_expires())
    assert read == [(20,)]
    assert set(sandbox.values("question_text")) == {"changed"}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_others_read_while_the_one_writer_is_waited_for(sandbox: MigrationSandbox) -> None:
    read: list[Any] = []
    with blocking(sandbox.alias), another(sandbox.alias) as third:
        look = lambda: read.extend(run(third, "SELECT COUNT(*) FROM boxes_question"))  # noqa: E731
        with between_tries(look), pytest.raises(LockNotAcquired):
            sandbox.run(add_expires())
    assert read == [(20,)]


SESSIONS = {
    "postgresql": (
        ["SET lock_timeout = '7s'", "SET statement_timeout = '9min'"],
        "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')",
        ("7s", "9min"),
    ),
    "mysql": (
        [
            "SET lock_wait_timeout = 77",
            "SET sql_mode = 'NO_ENGINE_SUBSTITUTION'",
            "SET foreign_key_checks = 1",
        ],
        "SELECT @@lock_wait_timeout, @@sql_mode, @@foreign_key_checks",
        (77, "NO_ENGINE_SUBSTITUTION", 1),
    ),
    "sqlite": (["PRAGMA busy_timeout = 77"], "PRAGMA busy_timeout", (77,)),
}


def test_the_session_s_settings_are_as_they_were(sandbox: MigrationSandbox) -> None:
    orders, question, answer = SESSIONS[sandbox.connection.vendor]
    for order in orders:
        run(sandbox.connection, order)
    mode = getattr(sandbox.connection, "transaction_mode", None)
    with blocking(sandbox.alias), pytest.raises(LockNotAcquired):
        sandbox.run(add_expires())
    assert run(sandbox.connection, question) == [answer]
    sandbox.run(add_expires())
    parent = models.ForeignKey("boxes.question", models.CASCADE, related_name="+")
    sandbox.run(AddRequiredField("question", "parent", parent, F("pk")))
    assert run(sandbox.connection, question) == [answer]
    assert getattr(sandbox.connection, "transaction_mode", None) == mode
    assert sandbox.connection.get_autocommit()


@POSTGRESQL
def test_what_vacuum_holds_is_named_and_given_way_to(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(sandbox, monkeypatch)
    with another(sandbox.alias) as other:
        other.set_autocommit(False)
        hold = 'LOCK TABLE "boxes_question" IN SHARE UPDATE EXCLUSIVE MODE'
        run(other, hold)
        with pytest.raises(LockNotAcquired, match="LOCK TABLE") as caught:
            sandbox.run(add_expires())
        assert f"pid {other.connection.info.backend_pid}" in str(caught.value)
        with between_tries(lambda: release(other)) as tries:
            sandbox.run(add_expires())
    assert tries.calls == 1
    assert month_later(sandbox.rows())


class Watching(engine.NullObserver):
    """Notes the locks on the table after each batch, as another connection sees them."""

    def __init__(self, look: Callable[[], set[str]]) -> None:
        self.look, self.seen = look, list[set[str]]()

    def advance(self, run: engine.Run) -> None:
        self.seen.append(self.look())


@POSTGRESQL
def test_the_fill_holds_nothing_between_batches_and_little_in_them(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.SAFEMIGRATE_WRITER_THREAD = False  # This connection is the one that is looked at.
    inside: list[set[str]] = []
    with another(sandbox.alias) as other:

        def look() -> set[str]:
            held = "SELECT mode FROM pg_locks WHERE relation = 'boxes_question'::regclass AND pid <> pg_backend_pid()"
            return {mode for (mode,) in run(other, held)}

        class Inside:
            def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
                result = execute(sql, params, many, context)
                if sql.startswith("UPDATE"):
                    inside.append(look())
                return result

        watching = Watching(look)
        monkeypatch.setattr(engine, "new_observer", lambda: watching)
        with sandbox.connection.execute_wrapper(Inside()):
            sandbox.run(add_expires(lambda question: question.pub_date + MONTH, batch_size=5))
    assert watching.seen == [set()] * 4
    assert len(inside) == 4
    assert all("RowExclusiveLock" in modes and modes <= WEAK for modes in inside)


@pytest.mark.slow
@POSTGRESQL
def test_who_is_named_is_who_is_there_by_then(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    # What pg_stat_activity says stays the same within a transaction, and so does now().
    settings.SAFEMIGRATE_LOCK_PAUSE = 1.0
    caplog.set_level(logging.INFO, "safemigrate")
    with blocking(sandbox.alias) as first, another(sandbox.alias) as second:

        def change_over() -> None:
            run(first, "ROLLBACK")
            run(second, "SET application_name = 'second report'")
            second.set_autocommit(False)
            run(second, "SELECT 2 FROM boxes_question")

        with between_tries(change_over), pytest.raises(LockNotAcquired) as caught:
            sandbox.run(add_expires())
        who = f"pid {second.connection.info.backend_pid}, user postgres, application second report, idle"
    assert "nightly report" in caplog.text
    text = str(caught.value)
    assert who in text
    assert re.search(r"in a transaction for 00:00:0[1-9]: SELECT 2 FROM boxes_question", text)
    assert "nightly report" not in text


@POSTGRESQL
def test_who_only_reads_does_not_block_a_lock_that_lets_readers_pass(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES = 1
    quickly(sandbox, monkeypatch)
    with blocking(sandbox.alias), another(sandbox.alias) as vacuum:
        vacuum.set_autocommit(False)
        run(vacuum, 'LOCK TABLE "boxes_question" IN SHARE UPDATE EXCLUSIVE MODE')
        with pytest.raises(LockNotAcquired) as caught:
            sandbox.run(add_expires())
    assert "LOCK TABLE" in str(caught.value)
    assert "nightly report" not in str(caught.value)


def quickly(sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the lock to which autovacuum gives way wait for a tenth of a second, where it waits for 3 s."""
    monkeypatch.setattr(postgresql, "YIELD_SECONDS", 0.05)
    run(sandbox.connection, "SET deadlock_timeout = 50")


@POSTGRESQL
def test_autovacuum_is_given_the_time_after_which_this_server_makes_it_give_way(
    sandbox: MigrationSandbox,
) -> None:
    run(sandbox.connection, "SET deadlock_timeout = '20s'")
    with for_connection(sandbox.connection).prepared(['"boxes_question"']):
        assert run(sandbox.connection, "SHOW lock_timeout") == [("22s",)]


@POSTGRESQL
def test_all_tries_are_counted_whichever_lock_was_not_to_be_had(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES = 4
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.05
    quickly(sandbox, monkeypatch)
    with another(sandbox.alias) as vacuum, blocking(sandbox.alias):
        vacuum.set_autocommit(False)
        run(vacuum, 'LOCK TABLE "boxes_question" IN SHARE UPDATE EXCLUSIVE MODE')
        began = time.monotonic()
        with between_tries(lambda: release(vacuum)) as tries, pytest.raises(LockNotAcquired) as caught:
            sandbox.run(add_expires())
        lasted = time.monotonic() - began
    assert tries.calls == 3
    assert "nightly report" in str(caught.value)
    # One wait of 0.1 s, three of 0.05 s, three pauses of at most 0.1 s; the machine may be slow.
    assert lasted < 5


LIMITS = ["idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout"]


@contextmanager
def limited(sandbox: MigrationSandbox, value: str) -> Iterator[None]:
    """A session with all the limits that this server has; they are to be there afterwards."""
    known = f"SELECT name FROM pg_settings WHERE name = ANY(ARRAY{LIMITS})"
    names = [name for (name,) in run(sandbox.connection, known)]
    assert len(names) == (3 if sandbox.connection.pg_version >= 170000 else 2)
    for name in names:
        run(sandbox.connection, f"SET {name} = '{value}'")
    yield
    assert [run(sandbox.connection, f"SHOW {name}") for name in names] == [[(value,)]] * len(names)


@pytest.mark.slow
@POSTGRESQL
def test_limits_made_for_requests_end_no_pause_and_no_wait(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two tries the transaction, which keeps the weaker lock, is idle.
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.6
    monkeypatch.setattr(postgresql, "YIELD_SECONDS", 5.0)
    with blocking(sandbox.alias) as other, limited(sandbox, "500ms"):
        with between_tries(lambda: release(other)) as tries:
            sandbox.run(add_expires())
        assert tries.calls == 1
        run(other, "BEGIN")
        run(other, 'LOCK TABLE "boxes_question" IN SHARE UPDATE EXCLUSIVE MODE')
        with later(0.8, lambda: release(other)):
            sandbox.run(
                AddRequiredField("question", "votes", models.IntegerField(default=0, db_index=True), F("pk"))
            )
    assert sandbox.values("votes") == sandbox.values("pk")


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_table_is_built_anew_for_as_long_as_it_takes(sandbox: MigrationSandbox) -> None:
    skip_on_mysql(sandbox.alias, "its max_execution_time is for SELECT alone")
    field = models.DateTimeField("expires at")
    sandbox.fill(40_000)
    sandbox.run(
        AddNullableField("question", "expires_date", field), Populate("question", "expires_date", LATER)
    )
    run(sandbox.connection, "SET max_statement_time = 0.01")
    with pytest.raises(DatabaseError):
        run(sandbox.connection, "ALTER TABLE boxes_question FORCE, ALGORITHM=INPLACE, LOCK=NONE")
    sandbox.run(SetNotNull("question", "expires_date", field))
    assert not sandbox.column("expires_date").nullable
    assert float(run(sandbox.connection, "SELECT @@max_statement_time")[0][0]) == 0.01


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_limits_within_limits_are_taken_back(sandbox: MigrationSandbox) -> None:
    database, model = for_connection(sandbox.connection), sandbox.model()
    kept = "SELECT @@lock_wait_timeout, @@sql_mode"
    run(sandbox.connection, "SET lock_wait_timeout = 77, sql_mode = ''")
    with database.impatient(model), database.impatient(model), database.prepared([]):
        assert run(sandbox.connection, kept) == [(1, "STRICT_TRANS_TABLES")]
    assert run(sandbox.connection, kept) == [(77, "")]


@POSTGRESQL
def test_an_index_is_built_for_as_long_as_it_takes(sandbox: MigrationSandbox) -> None:
    field = models.DateTimeField("expires at", db_index=True)
    with another(sandbox.alias) as writer, limited(sandbox, "500ms"):
        run(sandbox.connection, "SET lock_timeout = 50")
        sandbox.run(
            AddNullableField("question", "expires_date", field), Populate("question", "expires_date", LATER)
        )
        writer.set_autocommit(False)
        run(writer, "UPDATE boxes_question SET question_text = 'new' WHERE id = 1")
        indexed = sandbox.after(SetNotNull("question", "expires_date", field)).apps.get_model(
            "boxes.Question"
        )
        database = for_connection(sandbox.connection)
        with later(0.8, writer.commit):
            runner.run(database, database.index_early(indexed, indexed._meta.get_field("expires_date")))
        assert run(sandbox.connection, "SHOW lock_timeout") == [("50ms",)]
    with sandbox.connection.cursor() as cursor:
        constraints = sandbox.connection.introspection.get_constraints(cursor, "boxes_question")
    assert [c["columns"] for c in constraints.values() if c["index"]] == [["expires_date"]]


def test_an_error_in_the_statement_leaves_the_session_as_it_was(sandbox: MigrationSandbox) -> None:
    orders, question, answer = SESSIONS[sandbox.connection.vendor]
    for order in orders:
        run(sandbox.connection, order)
    wrong = ("ALTER TABLE boxes_question ADD COLUMN question_text integer",)
    lock, tables = Lock("all", "everyone"), (sandbox.connection.ops.quote_name("boxes_question"),)
    for online in (False, True):
        with pytest.raises(DatabaseError, match="(?i)question_text"):
            runner.run(
                for_connection(sandbox.connection),
                [Step("add it twice", wrong, lock, online=online, tables=tables)],
            )
    assert run(sandbox.connection, question) == [answer]
    assert sandbox.connection.get_autocommit()


@POSTGRESQL
def test_a_deadlock_is_one_more_try(sandbox: MigrationSandbox, settings: Any) -> None:
    # Only where the limit of a try was set above deadlock_timeout, which is 1 s.
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 10
    sandbox.run(migrations.CreateModel("Site", [("id", models.BigAutoField(primary_key=True))]))
    run(sandbox.connection, "INSERT INTO boxes_site DEFAULT VALUES")
    site = models.ForeignKey("boxes.site", models.CASCADE)
    sandbox.run(AddNullableField("question", "site", site), Populate("question", "site", 1))
    done = []
    with another(sandbox.alias) as other:
        run(other, "SET deadlock_timeout = '30s'")  # Who looks first is the one that fails.
        other.set_autocommit(False)
        run(other, "UPDATE boxes_site SET id = 1")

        def write() -> None:
            until_waiting(sandbox.alias)
            run(other, "UPDATE boxes_question SET question_text = 'new'")
            done.append(other.commit())

        thread = threading.Thread(target=write)
        thread.start()
        with between_tries(lambda: None) as tries:
            sandbox.run(SetNotNull("question", "site", site))
        thread.join()
    assert done == [None]
    assert tries.calls == 1
    assert set(sandbox.values("question_text")) == {"new"}


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_behind_a_long_report_nobody_waits_for_its_end(sandbox: MigrationSandbox, settings: Any) -> None:
    for name in ("TRIES", "TIMEOUT", "PAUSE"):
        delattr(settings, f"SAFEMIGRATE_LOCK_{name}")
    with (
        blocking(sandbox.alias) as report,
        Traffic(sandbox.alias) as traffic,
        later(5, lambda: release(report)),
    ):
        began = time.monotonic()
        sandbox.run(add_expires())
        lasted = time.monotonic() - began
    assert month_later(sandbox.rows())
    assert 5 <= lasted + 0.1 < 10
    assert traffic.statements > 100
    # 0.1 s for a try, and more for a slow machine: not the whole second in which MariaDB and MySQL count.
    assert traffic.worst < 0.9


@pytest.fixture
def plugin(alias: str) -> Iterator[None]:
    with lock_plugin(alias):
        yield


@contextmanager
def bystander(alias: str) -> Iterator[Any]:
    """A connection with an open transaction, which has not touched the table."""
    with another(alias) as other:
        run(other, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
        yield other


MARIADB = pytest.mark.parametrize("alias", ["mariadb"], indirect=True)


@MARIADB
def test_without_the_plugin_all_open_transactions_are_named(sandbox: MigrationSandbox) -> None:
    with (
        lock_plugin(sandbox.alias, there=False),
        bystander(sandbox.alias) as other,
        blocking(sandbox.alias) as holder,
    ):
        both = {f"connection {thread(connection)}" for connection in (other, holder)}
        # Those of other databases on the same server are open too.
        wait_for(lambda: {text.partition(",")[0] for text in named_on(sandbox)} >= both)


def named_on(sandbox: MigrationSandbox) -> list[str]:
    """The server makes its list of transactions anew only where it was not read for a tenth of a second."""
    return for_connection(sandbox.connection).blockers(["`boxes_question`"])


def thread(connection: Any) -> int:
    ((number,),) = run(connection, "SELECT CONNECTION_ID()")
    return int(number)


@MARIADB
def test_with_the_plugin_it_is_the_holder_that_is_named(sandbox: MigrationSandbox, plugin: None) -> None:
    with bystander(sandbox.alias), blocking(sandbox.alias) as holder:
        who = rf"connection {thread(holder)}, user root@\S+"
        # The server may still be busy with the end of the holder's statement.
        now = "(sleep, {0} no statement running|query, {0} SELECT .*)".format(
            r"in a transaction since \S+ \S+:"
        )
        wait_for(lambda: [re.fullmatch(f"{who}, {now}", each) for each in named_on(sandbox)].count(None) == 0)


@MARIADB
def test_with_the_plugin_a_lock_without_a_transaction_is_named(
    sandbox: MigrationSandbox, plugin: None
) -> None:
    with another(sandbox.alias) as other:
        run(other, "LOCK TABLES boxes_question READ")
        (named,) = for_connection(sandbox.connection).blockers(["`boxes_question`"])
        assert re.fullmatch(
            rf"connection {thread(other)}, user root@\S+, (sleep, for \d+ s: no statement running|query, .*)",
            named,
        )


@pytest.fixture
def plain(alias: str, worker_id: str) -> Iterator[str]:
    """An alias of the same database for a user with rights over it alone, as most sites have."""
    given, user = connections[alias].settings_dict, f"site_{worker_id}"  # All workers share the server.
    with another(alias) as admin:
        run(admin, f"CREATE USER {user}@'%'")
        run(admin, f"GRANT ALL ON `{given['NAME']}`.* TO {user}@'%'")
        connections.settings["plain"] = given | {"USER": user}
        try:
            yield "plain"
        finally:
            connections["plain"].close()
            del connections["plain"], connections.settings["plain"]
            run(admin, f"DROP USER {user}@'%'")


@MARIADB
def test_a_user_who_may_not_see_the_others_gets_its_tries_all_the_same(
    sandbox: MigrationSandbox, plain: str
) -> None:
    sandbox.alias = plain
    with blocking("mariadb") as other:
        with pytest.raises(LockNotAcquired, match="which this user may not see: .* PROCESS"):
            sandbox.run(add_expires())
        with between_tries(lambda: release(other)) as tries:
            sandbox.run(add_expires())
    assert tries.calls == 1
    assert month_later(sandbox.rows())


@MARIADB
def test_a_user_who_may_not_see_the_others_is_told_their_number(
    sandbox: MigrationSandbox, plain: str, plugin: None
) -> None:
    with blocking("mariadb") as other, blocking(plain) as own:
        strange, known = for_connection(connections[plain]).blockers(["`boxes_question`"])
        assert (
            strange
            == f"connection {thread(other)}, which this user may not see: with the privilege PROCESS it may"
        )
        assert known.startswith(f"connection {thread(own)}, user site_")


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_reader_that_blocks_the_copy_s_commit_is_waited_for(sandbox: MigrationSandbox) -> None:
    # Without a write-ahead log, who reads keeps others from committing.
    with another(sandbox.alias) as reader:
        run(reader, "BEGIN")
        run(reader, "SELECT COUNT(*) FROM boxes_question")
        with between_tries(lambda: release(reader)) as tries:
            sandbox.run(add_expires())
    assert tries.calls == 1
    assert month_later(sandbox.rows())
