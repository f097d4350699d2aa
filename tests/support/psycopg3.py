"""Projects that use psycopg 3: beside psycopg2 in the environment, all tests would run by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing
from tests.support.projects import SETTINGS, Project
from tests.support.queues import PostgreSQLServer

PACKAGES = ["psycopg", "psycopg-binary", "psycopg-pool"]
#: It asks for psycopg 3, and for this Python.
if sys.version_info >= (3, 12):
    PACKAGES.append("django-deferred-migrations")


class Psycopg3Project(Project):
    """A project on a PostgreSQL database of its own, and what `python manage.py` finds there before all else."""

    def __init__(self, folder: Path, packages: Path, server: PostgreSQLServer, database: str) -> None:
        super().__init__(folder)
        self.packages, self.server, self.database = packages, server, database
        self.use()

    def use(self, settings: str = "", **options: object) -> None:
        """Write its settings, with these options of its database."""
        own = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": self.database,
            "USER": self.server.user,
            "HOST": self.server.host,
            "PORT": self.server.port,
            "OPTIONS": options,
        }
        self.write("settings.py", f"{SETTINGS}DATABASES = {{'default': {own!r}}}\n{settings}\n")

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(PYTHONPATH=os.pathsep.join([str(self.packages), str(ROOT)]), **more)

    def run(
        self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run manage.py in a process of its own: a fork of this one has psycopg2 already."""
        return super().run(*arguments, prefix=prefix or ("env",), **environment)

    def sql(self, alias: str, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        return self.server.sql(self.database, statement, *arguments)

    def seed(self, alias: str, rows: int) -> None:
        self.sql(
            alias,
            "INSERT INTO polls_question (question_text, pub_date) "
            "SELECT 'Question ' || i, now() FROM generate_series(1, %s) i",
            rows,
        )


@pytest.fixture(scope="session", name="psycopg3_packages")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("psycopg3")
    wanted = ["--no-deps", "--target", str(folder), "-c", str(ROOT / "constraints.txt"), *PACKAGES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"psycopg cannot be installed: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(name="psycopg3_project")
def make_project(psycopg3_packages: Path, tmp_path: Path) -> Iterator[Psycopg3Project]:
    url = os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL")
    if url is None:
        pytest.skip(missing("postgresql"))
    server = PostgreSQLServer.at(url)
    with server.database() as name:
        yield Psycopg3Project(tmp_path, psycopg3_packages, server, name)
