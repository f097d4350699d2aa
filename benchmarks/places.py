"""The databases that are measured: each begins every run with a fresh copy of the same table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.report import facts
from benchmarks.sites import connect
from benchmarks.tables import Shape
from tools.demo import ROOT
from tools.servers import MariaDB, MissingServer, PostgreSQL, default_postgresql, system_postgresql

WAL = "?init_command=PRAGMA+journal_mode%3DWAL"


class Place:
    """A database with tables to be copied. `driver` is what the runs use; no name is what Django chooses."""

    def __init__(self, driver: str = "") -> None:
        self.driver = driver
        self.prefix = f"bench_{os.getpid()}"
        self.copy = f"{self.prefix}_run"
        self.built: set[str] = set()

    def fresh(self, shape: Shape) -> str:
        """Return the URL of a new copy of the table; the one before is gone."""
        name = f"{self.prefix}_{shape.name}"
        if name not in self.built:
            self._make(name)
            child("build", url=self._url(name), driver=self.driver, shape=asdict(shape))
            self.built.add(name)
        self._copy(name)
        return self._url(self.copy)

    def measure(self, method: str, shape: Shape) -> dict[str, Any]:
        """Run a method on a new copy, and return its figures, or its error."""
        url = self.fresh(shape)
        try:
            outcome: dict[str, Any] = child(
                "measure", url=url, driver=self.driver, shape=asdict(shape), method=method
            )
        except ChildFailed as failure:
            return {"error": str(failure)}
        return outcome

    def facts(self) -> dict[str, Any]:
        return facts(self._url(self.copy), self.driver)

    def clear(self) -> None:
        """Drop all that was made."""
        for name in (*self.built, self.copy):
            self._drop(name)
        self.built.clear()

    def _make(self, name: str) -> None:
        raise NotImplementedError

    def _drop(self, name: str) -> None:
        raise NotImplementedError

    def _copy(self, name: str) -> None:
        raise NotImplementedError

    def _url(self, name: str) -> str:
        raise NotImplementedError


class OnServer(Place):
    def __init__(self, url: str, driver: str = "") -> None:
        super().__init__(driver)
        self.url = url

    def _url(self, name: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def _make(self, name: str) -> None:
        self._execute(f"CREATE DATABASE {name}")

    def _drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name}")

    def _execute(self, *statements: str, url: str = "") -> list[Any]:
        with closing(connect(url or self.url)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


class OnPostgreSQL(OnServer):
    def _drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _copy(self, name: str) -> None:
        self._drop(self.copy)
        self._execute(f"CREATE DATABASE {self.copy} TEMPLATE {name} STRATEGY FILE_COPY")


class OnMariaDB(OnServer):
    def _copy(self, name: str) -> None:
        self._drop(self.copy)
        self._make(self.copy)
        for (table,) in self._execute("SHOW TABLES", url=self._url(name)):
            self._execute(
                f"CREATE TABLE {self.copy}.{table} LIKE {name}.{table}",
                f"INSERT INTO {self.copy}.{table} SELECT * FROM {name}.{table}",
            )


class OnSQLite(Place):
    def __init__(self, folder: Path, options: str = "") -> None:
        super().__init__()
        self.folder, self.options = folder, options

    def _url(self, name: str) -> str:
        return f"sqlite:///{self.folder / name}.sqlite3{self.options}"

    def _make(self, name: str) -> None:
        pass

    def _drop(self, name: str) -> None:
        for ending in ("", "-wal", "-shm"):
            (self.folder / f"{name}.sqlite3{ending}").unlink(missing_ok=True)

    def _copy(self, name: str) -> None:
        self._drop(self.copy)
        shutil.copy(self.folder / f"{name}.sqlite3", self.folder / f"{self.copy}.sqlite3")


class ChildFailed(Exception):
    """A job came to an error; the message ends with all that it printed."""


def child(task: str, **job: Any) -> Any:
    """Do one job in a process of its own, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", task, json.dumps(job)],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ChildFailed(f"{task} {job} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


# Where they are


@dataclass(frozen=True)
class Kind:
    """A database as `--databases` names it. `main` has all methods, the others those that differ by driver."""

    variant: str
    open: Callable[[], Any]
    vendor: str
    main: bool = True
    rows: int = 1_000_000

    def title(self, machine: dict[str, Any]) -> str:
        return ", ".join(filter(None, [machine["database"], self.variant]))


class SmallBuffers(PostgreSQL):
    """Keeps 16 MB of the tables in its own memory."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "shared_buffers=16MB"]


@contextmanager
def postgresql(
    driver: str = "",
    programs: Callable[[], Path | None] = default_postgresql,
    server: type[PostgreSQL] = PostgreSQL,
) -> Iterator[Place]:
    if driver and find_spec(driver) is None:
        raise MissingServer(f"no driver: pip install {DISTRIBUTIONS[driver]}")
    if (found := programs()) is None:
        raise MissingServer("no PostgreSQL of the system's packages: apt-get install postgresql")
    with server(found, durable=True) as running:
        yield OnPostgreSQL(running.url, driver)


@contextmanager
def mariadb() -> Iterator[Place]:
    with MariaDB(durable=True) as server:
        yield OnMariaDB(server.url)


@contextmanager
def sqlite(options: str = "") -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="safemigrate-") as folder:
        yield OnSQLite(Path(folder), options)


DISTRIBUTIONS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
KINDS = {
    "postgresql": Kind("psycopg 3", lambda: postgresql("psycopg"), "postgresql"),
    "postgresql-psycopg2": Kind("psycopg2", lambda: postgresql("psycopg2"), "postgresql", main=False),
    "postgresql-system": Kind(
        "psycopg 3", lambda: postgresql("psycopg", system_postgresql), "postgresql", main=False
    ),
    "mariadb": Kind("", mariadb, "mysql", rows=300_000),
    "sqlite": Kind("journal", sqlite, "sqlite"),
    "sqlite-wal": Kind("WAL", lambda: sqlite(WAL), "sqlite", main=False),
}
