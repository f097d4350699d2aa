from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.db import OperationalError, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import isolate_apps

from tests.conftest import ROOT, cleaned
from tests.support.sessions import is_mysql
from tools.servers import (
    MariaDB,
    MissingServer,
    PostgreSQL,
    RabbitMQ,
    Redis,
    Server,
    ServerError,
    is_public,
    system_postgresql,
    wheel_postgresql,
)


def make_table(connection: BaseDatabaseWrapper) -> type[models.Model]:
    with isolate_apps("polls"):

        class Parcel(models.Model):
            label = models.TextField()

            class Meta:
                app_label = "polls"

    with connection.schema_editor() as editor:
        editor.create_model(Parcel)
    return Parcel


class TestAlias:
    def test_a_table_is_made_written_and_read(self, alias: str, connection: BaseDatabaseWrapper) -> None:
        parcel = make_table(connection)
        parcel.objects.using(alias).create(label="träge ☃ 🐌")
        assert list(parcel.objects.using(alias).values_list("label", flat=True)) == ["träge ☃ 🐌"]

    def test_the_table_of_an_earlier_test_is_gone(self, connection: BaseDatabaseWrapper) -> None:
        assert "polls_parcel" not in connection.introspection.table_names()

    def test_no_transaction_is_open(self, connection: BaseDatabaseWrapper) -> None:
        assert not connection.in_atomic_block

    def test_a_second_connection_sees_what_the_first_commits(self, alias: str) -> None:
        parcel = make_table(connections[alias])
        second = connections[alias].copy()
        try:
            parcel.objects.using(alias).create(label="here")
            with second.cursor() as cursor:
                cursor.execute("SELECT label FROM polls_parcel")
                assert cursor.fetchone() == ("here",)
        finally:
            second.close()

    def test_another_process_sees_what_this_one_commits(
        self, alias: str, environment: dict[str, str]
    ) -> None:
        make_table(connections[alias]).objects.using(alias).create(label="here")
        script = (
            "from django.db import connections; import sys\n"
            "cursor = connections[sys.argv[1]].cursor()\n"
            "cursor.execute('SELECT label FROM polls_parcel')\n"
            "print(cursor.fetchall()[0][0])"
        )
        output = subprocess.run(
            [sys.executable, "-c", script, alias],
            check=True,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        assert output == "here\n"

    def test_the_server_is_the_one_that_the_alias_names(
        self, alias: str, connection: BaseDatabaseWrapper
    ) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {'sqlite_version' if alias == 'default' else 'version'}()")
            version = cursor.fetchone()[0]
        expected = {
            "default": r"^3\.",
            "postgresql": rf"^PostgreSQL {PostgreSQL().version}\.",
            "postgresql_old": r"^PostgreSQL 1[3-9]\.",
            "mariadb": r"^\d+\.\d+\.\d+" if is_mysql(alias) else r"MariaDB",
        }
        assert re.search(expected[alias], version)

    @pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
    def test_the_servers_databases_begin_empty(self, connection: BaseDatabaseWrapper) -> None:
        assert connection.introspection.table_names() == []

    @pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
    def test_the_default_database_has_the_examples_tables(self, connection: BaseDatabaseWrapper) -> None:
        assert "polls_question" in connection.introspection.table_names()


class TestCleaned:
    @pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
    def test_schemas_functions_and_tables_that_refer_to_each_other_are_dropped(
        self, alias: str, connection: BaseDatabaseWrapper
    ) -> None:
        with cleaned(alias), connection.cursor() as cursor:
            cursor.execute('CREATE SCHEMA "Warehouse"')
            cursor.execute('CREATE TABLE "Warehouse".shelf (id int PRIMARY KEY)')
            cursor.execute('CREATE TABLE box (shelf int REFERENCES "Warehouse".shelf)')
            cursor.execute("CREATE FUNCTION ship(box) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'Warehouse'")
            assert cursor.fetchone() == (0,)
            cursor.execute("SELECT count(*) FROM pg_proc WHERE proname = 'ship'")
            assert cursor.fetchone() == (0,)
        assert connection.introspection.table_names() == []

    def test_a_transaction_left_open_does_not_keep_the_table(
        self, alias: str, connection: BaseDatabaseWrapper
    ) -> None:
        with cleaned(alias):
            parcel = make_table(connection)
            connection.set_autocommit(False)
            parcel.objects.using(alias).create(label="uncommitted")
        assert "polls_parcel" not in connection.introspection.table_names()

    @pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
    def test_a_forgotten_connection_is_an_error_and_no_endless_wait(
        self, alias: str, connection: BaseDatabaseWrapper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tests.conftest.LOCK_SECONDS", 1)
        forgotten = connection.copy()
        with pytest.raises(OperationalError, match="lock timeout"), cleaned(alias):
            make_table(connection)
            forgotten.set_autocommit(False)
            with forgotten.cursor() as cursor:
                cursor.execute("SELECT * FROM polls_parcel")
        forgotten.close()
        connection.close()


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_both_databases_of_one_server_are_apart(alias: str) -> None:
    with cleaned("postgresql_archive"):
        make_table(connections["postgresql_archive"])
        assert "polls_parcel" not in connections["postgresql"].introspection.table_names()


def wheel() -> PostgreSQL:
    return PostgreSQL(wheel_postgresql())


def system() -> PostgreSQL:
    return PostgreSQL(system_postgresql())


DATABASES = [wheel, system, MariaDB]
#: The lines that another process needs to make the same server.
RECIPES = {
    "PostgreSQL": "PostgreSQL(Path(sys.argv[1]))",
    "MariaDB": "MariaDB()",
    "Redis": "Redis()",
    "RabbitMQ": "RabbitMQ()",
}


@pytest.fixture(params=[*DATABASES, Redis, RabbitMQ])
def server(request: pytest.FixtureRequest) -> Server:
    if request.param is system and system_postgresql() is None:
        pytest.skip("the system has no PostgreSQL: apt-get install postgresql")
    try:
        return request.param()
    except MissingServer as error:
        pytest.skip(str(error))


def answers(server: Server) -> bool:
    with socket.socket() as client:
        return client.connect_ex((server.host, server.port)) == 0


def processes_of(folder: str | Path) -> list[str]:
    """Return the command lines of the processes that were given the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended, or is another user's.
            given = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in given:
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


class TestServer:
    @pytest.mark.slow
    def test_answers_until_it_is_stopped_and_leaves_no_folder(self, server: Server) -> None:
        with server:
            assert answers(server)
            assert f":{server.port}/" in server.url
        assert not answers(server)
        assert not server.folder.exists()
        assert processes_of(server.folder) == []
        server.stop()  # A second time it does nothing.

    @pytest.mark.slow
    def test_halted_it_goes_on_where_it_was(self, server: Server) -> None:
        with server:
            url = server.url
            server.halt()
            assert not answers(server)
            assert server.folder.exists()
            server.go_on()
            assert answers(server)
            assert server.url == url
        assert not server.folder.exists()

    @pytest.mark.slow
    def test_a_killed_parent_leaves_no_server_behind(self, server: Server) -> None:
        script = (
            "import sys, time; from pathlib import Path; from tools.servers import *\n"
            f"server = {RECIPES[type(server).__name__]}\n"
            "server.start()\n"
            "print(server.port, server.folder, flush=True)\n"
            "time.sleep(60)\n"
        )
        programs = str(getattr(server, "programs", ""))
        parent = subprocess.Popen(
            [sys.executable, "-c", script, programs], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        port, folder = parent.stdout.readline().split()
        server.port = int(port)
        assert answers(server)

        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()

        deadline = time.monotonic() + 10
        while (processes_of(folder) or Path(folder).exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not answers(server)
        assert not Path(folder).exists()
        assert processes_of(folder) == []

    @pytest.mark.parametrize("server", [*DATABASES, Redis], indirect=True)
    def test_one_that_cannot_start_shows_its_log(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = server._command
        monkeypatch.setattr(server, "_command", lambda: [*original(), "--no-such-option=1"])
        with pytest.raises(ServerError, match=r"(?s)did not start.*no.such.option"):
            server.start()
        assert not server.folder.exists()


@pytest.mark.slow
def test_programs_below_a_private_folder_are_copied(tmp_path: Path) -> None:
    """A virtual environment in a private home folder cannot be read by the user who runs the server."""
    source = wheel_postgresql()
    assert source is not None
    package = source.parent.parent
    private = tmp_path / "private" / "site-packages"
    private.mkdir(parents=True)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        subprocess.run(["cp", "-R", folder, private], check=True)
    private.parent.chmod(0o700)
    programs = private / source.relative_to(package.parent)
    assert not is_public(programs)
    with PostgreSQL(programs) as server:
        assert answers(server)


@pytest.mark.parametrize(
    ("kind", "package"),
    [(MariaDB, "mariadb-server"), (Redis, "redis-server"), (RabbitMQ, "rabbitmq-server")],
)
def test_a_missing_server_names_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, kind: type[Server], package: str
) -> None:
    monkeypatch.setattr("tools.servers.find_program", lambda name: None)
    with pytest.raises(MissingServer, match=f"apt-get install {package}"):
        kind()


def test_a_restarted_postgresql_has_what_was_committed() -> None:
    with PostgreSQL() as server:
        run_sql(server, "CREATE TABLE parcel AS SELECT 7 AS number")
        server.restart()
        assert run_sql(server, "SELECT number FROM parcel") == [(7,)]


def run_sql(server: Server, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(server.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "outcome"), [("false", "1 skipped"), ("true", "1 error")])
def test_a_skip_is_a_failure_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    skipping = tmp_path / "test_skipping.py"
    skipping.write_text("import pytest\n@pytest.mark.skip('no reason')\ndef test_it():\n    pass\n")
    options = ["-c", ROOT / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, skipping],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name} | {"CI": ci},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert outcome in run.stdout
    assert "no reason" in run.stdout
