"""With psycopg 3 and Django's own pool, however small, a run has the connections that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing
from tests.support.projects import SETTINGS, Project
from tests.support.queues import PostgreSQLServer

pytestmark = pytest.mark.slow

ROWS = 30_000
#: How long Django's pool lets one wait for a connection, in seconds.
POOL_TIMEOUT = 30


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a psycopg 3: beside psycopg2 in the environment, all tests would run by it."""
    folder = tmp_path_factory.mktemp("psycopg")
    wanted = ["--target", str(folder), "-c", str(ROOT / "constraints.txt"), "psycopg[binary,pool]"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"psycopg cannot be installed: {done.stderr.strip()[-300:]}")
    return str(folder)


@pytest.fixture
def server() -> PostgreSQLServer:
    url = os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL")
    if url is None:
        pytest.skip(missing("postgresql"))
    return PostgreSQLServer.at(url)


@pytest.fixture
def database(server: PostgreSQLServer) -> Iterator[dict[str, object]]:
    with server.database() as name:
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": server.user,
            "HOST": server.host,
            "PORT": server.port,
        }


@pytest.mark.parametrize("pool", [True, {"min_size": 1, "max_size": 1}], ids=["as it comes", "of one"])
@pytest.mark.parametrize("workers", [1, 2])
def test_migrate_waits_for_no_connection_of_the_pool(
    server: PostgreSQLServer,
    database: dict[str, object],
    driver: str,
    pool: object,
    workers: int,
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    own = {"default": database | {"OPTIONS": {"pool": pool}}}
    project.write("settings.py", f"{SETTINGS}DATABASES = {own!r}\nSAFEMIGRATE_WORKERS = {workers}\n")
    project.write("polls/populate.py", "def later(question):\n    return question.pub_date\n")
    paths = os.pathsep.join([driver, str(ROOT)])

    def must(*arguments: str) -> str:
        return project.must(*arguments, PYTHONPATH=paths)

    must("makemigrations", "-v0")
    must("migrate", "-v0")
    server.sql(
        str(database["NAME"]),
        "INSERT INTO polls_question (question_text, pub_date) "
        f"SELECT 'Question ' || i, now() FROM generate_series(1, {ROWS}) i",
    )
    project.add_field()
    must("add_required_field", "polls.Question.expires_date", "--populate", "polls.populate.later")
    began = time.monotonic()
    said = must("migrate")
    assert time.monotonic() - began < POOL_TIMEOUT - 5
    assert "No other worker could start" not in said
    assert must(
        "shell",
        "-v0",
        "-c",
        "from django.db.backends.postgresql.psycopg_any import is_psycopg3; from django.db.models import F; "
        "from polls.models import Question; "
        "print(is_psycopg3, Question.objects.filter(expires_date=F('pub_date')).count())",
    ).split() == ["True", str(ROWS)]
