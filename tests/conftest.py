from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import override_settings, setup_databases, teardown_databases
from pytest_django import DjangoDbBlocker

ROOT = Path(__file__).resolve().parent.parent

#: A test that takes the fixture `alias` runs once on each of these.
ALIASES = {
    "sqlite": "default",
    "postgresql": "postgresql",
    "postgresql_old": "postgresql_old",
    "mariadb": "mariadb",
}

#: A connection that a test forgot to close is to be an error and no endless wait.
LOCK_SECONDS = 10

IN_CI = os.environ.get("CI") == "true"


class MigrateSQLiteOnly:
    """The router under which the test databases are made: the servers' ones begin empty."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return db in ("default", "archive")


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None,
    django_db_blocker: DjangoDbBlocker,
    django_db_modify_db_settings: None,
) -> Iterator[None]:
    """Make the test databases of all aliases, whichever of them the chosen tests use."""
    with django_db_blocker.unblock():
        with override_settings(DATABASE_ROUTERS=["tests.conftest.MigrateSQLiteOnly"]):
            config = setup_databases(verbosity=0, interactive=False)
        yield
        teardown_databases(config, verbosity=0)


@pytest.fixture(params=ALIASES)
def alias(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[str]:
    """Each database in turn, outside any transaction; what the test makes in it is dropped after.

    To run on some of them only: `@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)`.
    """
    name = ALIASES[request.param]
    if name not in connections:
        pytest.skip(missing(request.param))
    with django_db_blocker.unblock(), cleaned(name):
        yield name


@pytest.fixture
def connection(alias: str) -> BaseDatabaseWrapper:
    return connections[alias]


@pytest.fixture
def environment(django_db_setup: None) -> dict[str, str]:
    """The environment of a process that is to work on this test's databases."""
    names = {name: str(connections[name].settings_dict["NAME"]) for name in connections}
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "example_polls")]),
        "SAFEMIGRATE_TEST_NAMES": json.dumps(names),
        "PYTHONWARNINGS": "error" if sys.warnoptions else "default",
    }


@pytest.fixture
def place(
    alias: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Where the polls can be made, on an empty database: SQLite's is a file of its own."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "polls.sqlite3"))
    yield {"alias": alias, "environment": request.getfixturevalue("environment")}
    connection.close()


def missing(kind: str) -> str:
    return os.environ.get(f"SAFEMIGRATE_TEST_{kind.upper()}_MISSING", f"no server for {kind}")


@contextmanager
def cleaned(*aliases: str) -> Generator[None, None, None]:
    """Drop from these databases, at the end, what is new: tables, schemas, functions, applied migrations.

    For a test that uses more databases than the fixture `alias` gives.
    """
    before = {alias: Inventory(connections[alias]) for alias in aliases}
    try:
        yield
    finally:
        for inventory in before.values():
            inventory.restore()
        for alias in {"default", *before} & {"default", "archive"}:  # Those that may have runs recorded.
            apps.get_model("safemigrate", "BackfillRun").objects.using(alias).all().delete()
        connections["default"].close()  # The test may have given it another file.


class Inventory:
    """What was in a database."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.tables = self._tables()
        self.schemas = self._schemas()
        self.functions = self._functions()
        self.migrations = self._migrations()

    def restore(self) -> None:
        """Drop what is new, on a fresh connection: the test may have left this one in any state."""
        self.connection.close()
        with self.connection.cursor() as cursor:
            cursor.execute(self._lock_timeout())
        with self.connection.constraint_checks_disabled(), self.connection.cursor() as cursor:
            for schema in self._schemas() - self.schemas:
                cursor.execute(f"DROP SCHEMA {self._quoted(schema)} CASCADE")
            for table in self._tables() - self.tables:
                cursor.execute(self._drop_table() % {"table": self._quoted(table)})
            for function in self._functions() - self.functions:
                cursor.execute(f"DROP FUNCTION {function} CASCADE")
        if new := self._migrations() - self.migrations:
            MigrationRecorder(self.connection).migration_qs.filter(pk__in=new).delete()
        self.connection.close()

    def _tables(self) -> set[str]:
        return set(self.connection.introspection.table_names())

    def _schemas(self) -> set[str]:
        return self._postgresql_names("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'")

    def _functions(self) -> set[str]:
        return self._postgresql_names(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
        )

    def _postgresql_names(self, query: str) -> set[str]:
        if self.connection.vendor != "postgresql":
            return set()
        with self.connection.cursor() as cursor:
            cursor.execute(query)
            return {name for (name,) in cursor.fetchall()}

    def _migrations(self) -> set[int]:
        recorder = MigrationRecorder(self.connection)
        return set(recorder.migration_qs.values_list("pk", flat=True)) if recorder.has_table() else set()

    def _quoted(self, name: str) -> str:
        return self.connection.ops.quote_name(name)

    def _drop_table(self) -> str:
        return self.connection.SchemaEditorClass.sql_delete_table

    def _lock_timeout(self) -> str:
        return {
            "sqlite": f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}",
            "postgresql": f"SET lock_timeout = '{LOCK_SECONDS}s'",
            "mysql": f"SET lock_wait_timeout = {LOCK_SECONDS}",
        }[self.connection.vendor]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        forbid(report)
    return report


def forbid(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure: in CI all that the tests need is installed."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{reason} (with CI=true nothing may be skipped)"
