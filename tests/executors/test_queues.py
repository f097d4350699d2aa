"""A fill by the workers of real queues, of which workers, brokers and databases are stopped and killed."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import django
import pytest

from tests.conftest import IN_CI, ROOT, missing
from tests.support.projects import Project
from tests.support.queues import (
    AUDIT,
    AUDIT_ENDS,
    FIELD,
    KINDS,
    MIGRATIONS,
    POPULATE,
    PostgreSQLServer,
    QueueProject,
    copy_without,
)
from tools.servers import MissingServer, PostgreSQL, RabbitMQ, Redis, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc"),
]

#: 500,000 rows once, and in CI six more rounds with fewer, in which the workers are slow: three at once, as a
#: round mostly waits for leases to end.
ROWS = int(os.environ.get("QUEUE_ROWS", "500000"))
AT_ONCE = 3
THOROUGH = 2 * AT_ONCE if django.VERSION >= (6,) else AT_ONCE
ROUNDS = int(os.environ.get("QUEUE_ROUNDS", THOROUGH if IN_CI else 0))
FEW, SLOW = 30_000, 2e-4
#: Rows, and kills of a worker, of a backfill that must do each row once, where they are not a few.
CURSOR_KILLS = {"celery-redis": (200_000, 50)} if IN_CI and django.VERSION >= (6,) else {}
SEED = int(os.environ.get("QUEUE_SEED", "") or random.SystemRandom().randrange(10**6))

Make = Callable[..., QueueProject]


def started(kind: type[Server]) -> Iterator[Server]:
    try:
        server = kind()
    except MissingServer as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[Server]:
    yield from started(RabbitMQ)


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    yield from started(Redis)


@pytest.fixture(scope="session")
def server() -> PostgreSQLServer:
    url = os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL")
    if url is None:
        pytest.skip(missing("postgresql"))
    return PostgreSQLServer.at(url)


@pytest.fixture(scope="session")
def template(server: PostgreSQLServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty database with the tables of all projects, to copy."""
    with server.database() as name:
        folder = tmp_path_factory.mktemp("template")
        tabled(QueueProject(folder, KINDS["tasks"], server, {"default": name}))
        server.leave(name)  # PostgreSQL copies only what no session uses.
        yield name


def tabled(project: QueueProject) -> QueueProject:
    project.migrate()
    for alias in project.databases:
        project.sql(alias, AUDIT + AUDIT_ENDS)
    return project


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest) -> Server | None:
    needed = KINDS[kind].broker
    return None if needed is None else request.getfixturevalue(needed.__name__.lower())


@pytest.fixture
def make(
    kind: str, broker: Server | None, server: PostgreSQLServer, template: str, tmp_path: Path
) -> Iterator[Make]:
    """Make a project with some rows on both databases; all of it is ended after the test."""
    url = "" if broker is None else broker.url
    with ExitStack() as stack:

        def made(rows: int, archived: int = 0, **options: Any) -> QueueProject:
            names = {
                alias: stack.enter_context(server.database(template)) for alias in ("default", "archive")
            }
            folder = tmp_path / names["default"]
            project = QueueProject(folder, KINDS[kind], server, names, url, **options)
            stack.callback(project.close)
            project.seed("default", rows)
            project.seed("archive", archived)
            return project

        yield made


# Killed


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_do_nothing_twice(make: Make) -> None:
    project = make(ROWS)
    project.work(2)
    killed_and_paused(project, ROWS, random.Random(SEED))


@pytest.mark.slow
@pytest.mark.skipif(not ROUNDS, reason="thorough, for CI: QUEUE_ROUNDS=6")
def test_killed_workers_again_and_again(make: Make) -> None:
    def rounds(project: QueueProject, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(ROUNDS // AT_ONCE):
            killed_and_paused(project, FEW, rng)
            project.again()

    projects = [make(FEW, seconds_a_row=SLOW) for _ in range(AT_ONCE)]
    for project in projects:
        project.open_prompt()
        project.work(2)
    with ThreadPoolExecutor() as pool:
        list(pool.map(rounds, projects, range(SEED + 1, SEED + 1 + AT_ONCE)))


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_backfill_with_a_cursor_does_each_row_once_whichever_worker_is_killed(
    make: Make, kind: str
) -> None:
    rows, kills = CURSOR_KILLS.get(kind, (FEW, 5))
    project, rng = make(rows), random.Random(SEED)
    print(f"QUEUE_SEED={SEED}")  # shown when the test fails
    project.sql("default", "CREATE TABLE audited (id bigint)")
    project.work(3)
    project.backfill(
        "run", "polls.Audited", "--executor", project.kind.executor, "--workers", "3", "--batch-size", "200"
    )
    done = "SELECT count(*) FROM audited"
    for part in sorted(rng.uniform(0.02, 0.9) for _ in range(kills)):
        project.wait(lambda part=part: project.value(done) >= part * rows, pause=0.02)
        rng.choice(project.workers).kill(rng)
    project.wait_for_status("succeeded")
    assert project.sql("default", "SELECT count(*), count(DISTINCT id) FROM audited") == [(rows, rows)]
    assert project.value("SELECT rows_done FROM safemigrate_backfillrun") == rows


def killed_and_paused(project: QueueProject, rows: int, rng: random.Random) -> None:
    """Begin a run; kill two workers and pause it at random moments; see that it ends as if nothing had been."""
    print(f"QUEUE_SEED={SEED}")  # shown when the test fails
    kills = [(rng.uniform(0.02, 0.9), partial(worker.kill, rng)) for worker in project.workers]
    acts = [(rng.uniform(0.02, 0.3), partial(paused, project)), *kills]
    project.begin()
    for part, act in sorted(acts, key=lambda pair: pair[0]):
        project.wait(lambda part=part: project.written() >= part * rows, pause=0.02)
        time.sleep(rng.uniform(0, 0.1))
        act()
    project.wait_for_status("succeeded")
    project.assert_all_filled_once(rows)


def paused(project: QueueProject) -> None:
    project.backfill("pause", "1")
    project.wait(lambda: project.status() == "paused" and not project.live_leases())
    written = project.written()
    time.sleep(0.5)
    assert project.written() == written
    project.backfill("resume", "1")


# Brokers and databases that go away


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.broker], indirect=True)
def test_a_broker_that_is_stopped_and_started_again(make: Make, broker: Server) -> None:
    project = make(FEW, seconds_a_row=SLOW)
    project.work(2)
    project.begin()
    project.wait(lambda: project.written() > FEW / 5, pause=0.02)
    broker.halt()
    try:
        time.sleep(2)
    finally:
        broker.go_on()
    project.wait_for_status("succeeded")
    project.assert_all_filled_once(FEW)


def test_a_database_that_is_stopped_and_started_again(
    kind: str, broker: Server | None, tmp_path: Path
) -> None:
    with PostgreSQL() as postgresql, ExitStack() as stack:
        server, url = PostgreSQLServer.at(postgresql.url), "" if broker is None else broker.url
        name = stack.enter_context(server.database())
        project = QueueProject(tmp_path, KINDS[kind], server, {"default": name}, url, seconds_a_row=SLOW)
        stack.callback(project.close)
        tabled(project).seed("default", FEW)
        project.work(2)
        project.begin()
        project.wait(lambda: project.written() > FEW / 5, pause=0.02)
        postgresql.halt()
        try:
            time.sleep(2)
        finally:
            postgresql.go_on()
        project.wait_for_status("succeeded")
        project.assert_all_filled_once(FEW)


#: Cuts a connection off, once, at the statement that would close the run.
CUT_OFF = """
CREATE SEQUENCE closings;
CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('closings') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER cut_off BEFORE UPDATE ON safemigrate_backfillrun
    FOR EACH ROW WHEN (NEW.status = 'succeeded') EXECUTE FUNCTION cut_off();
"""


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
def test_a_worker_that_is_lost_right_before_it_closes_the_run(make: Make) -> None:
    project = make(1_000)
    project.sql("default", CUT_OFF)
    project.work(2)
    project.begin()
    project.wait_for_status("succeeded")
    assert project.value("SELECT last_value FROM closings") > 1
    project.assert_all_filled_once(1_000)


# Code, messages and people

NULLABLE = (
    "SELECT is_nullable FROM information_schema.columns "
    "WHERE table_name = 'polls_question' AND column_name = 'expires_date'"
)


def test_a_worker_with_old_code_gives_the_task_back(make: Make) -> None:
    project = make(5_000)
    (old,) = project.work(1, copy_without(project, "0003_fill.py", "0004_require.py"))
    project.begin()
    project.wait(lambda: "has no polls.0003_fill" in old.said)
    assert "nothing is lost" in old.said
    assert project.written() == 0
    assert "restart it with the code of this run" in project.value(
        "SELECT waiting_for FROM safemigrate_backfillrun"
    )
    old.stop()
    project.work(1)
    project.wait_for_status("succeeded")
    project.assert_all_filled_once(5_000)
    assert project.value("SELECT waiting_for FROM safemigrate_backfillrun") == ""


def test_a_task_that_comes_five_times_does_nothing_twice(make: Make) -> None:
    project = make(10_000, seconds_a_row=SLOW)
    project.begin()
    project.later("safemigrate.tasks.work", 1, times=5)
    project.work(2)
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, project.live_leases())
        return project.status() == "succeeded"

    project.wait(ended, pause=0.02)
    assert 1 <= most <= 2
    project.assert_all_filled_once(10_000)
    # Nor does it when all is done.
    project.later("safemigrate.tasks.work", 1, times=2)
    project.later("polls.tasks.touch", str(project.path("touched")))
    project.wait(project.path("touched").exists)
    project.assert_all_filled_once(10_000)
    assert project.value("SELECT count(*) FROM safemigrate_backfillrun") == 1


def test_no_more_workers_than_the_limit_work_at_once(make: Make) -> None:
    project = make(10_000, seconds_a_row=SLOW, settings="SAFEMIGRATE_QUEUE_WORKERS = 1")
    project.work(3)
    project.begin()
    project.later("safemigrate.tasks.work", 1, times=2)
    seen = []

    def ended() -> bool:
        seen.append(project.live_leases())
        return project.status() == "succeeded"

    project.wait(ended, pause=0.01)
    assert set(seen) == {0, 1}
    project.assert_all_filled_once(10_000)


def test_a_cancelled_run_ends_and_what_was_filled_stays(make: Make) -> None:
    project = make(FEW, seconds_a_row=SLOW)
    project.work(2)
    project.begin()
    project.wait(lambda: project.written() > 0, pause=0.02)
    project.backfill("cancel", "1")
    project.wait_for_status("cancelled")
    project.wait(lambda: not project.live_leases())
    written = project.written()
    assert 0 < written < FEW
    project.later("polls.tasks.touch", str(project.path("touched")))
    project.wait(project.path("touched").exists)
    assert project.written() == written
    assert project.value("SELECT count(expires_date) FROM polls_question") == written


def test_a_chain_fills_both_databases_and_then_requires(make: Make) -> None:
    project = make(5_000, archived=3_000)
    project.work(2)
    project.begin("--all-databases", "--chain", "--migrate")
    project.wait(lambda: project.value(NULLABLE, alias="archive") == "NO")
    assert project.value(NULLABLE) == "NO"
    project.assert_all_filled_once(5_000)
    project.assert_all_filled_once(3_000, alias="archive")
    runs = project.sql("default", "SELECT alias, status FROM safemigrate_backfillrun ORDER BY id")
    assert runs == [("default", "succeeded"), ("archive", "succeeded")]
    in_turn = "SELECT max(started) > min(finished) FROM safemigrate_backfillrun"
    assert project.value(in_turn)
    for alias in ("default", "archive"):
        assert "[X] 0004_require" in project.must("showmigrations", "polls", "--database", alias)


@pytest.mark.parametrize("kind", ["celery-redis", "tasks"], indirect=True)
def test_a_chain_stops_where_a_database_fails(make: Make) -> None:
    project = make(1_000, archived=1_000)
    project.sql("archive", "UPDATE polls_question SET question_text = 'bad' WHERE id = 300")
    project.work(2)
    project.begin("--all-databases", "--chain", "--migrate")
    project.wait_for_status("failed")
    runs = project.sql("default", "SELECT alias, status FROM safemigrate_backfillrun ORDER BY id")
    assert runs == [("default", "succeeded"), ("archive", "failed")]
    error = project.value("SELECT error FROM safemigrate_backfillrun WHERE alias = 'archive'")
    assert "300: ValueError: a bad question" in error
    assert [project.value(NULLABLE, alias=alias) for alias in ("default", "archive")] == ["YES", "YES"]


def test_a_run_begins_no_earlier_than_it_is_told(make: Make) -> None:
    project = make(1_000)
    project.work(1)
    project.wait(lambda: project.workers[0].said)
    began = time.monotonic()
    project.begin("--countdown", "4s")
    project.wait(lambda: project.written() > 0, pause=0.02)
    assert time.monotonic() - began >= 4
    project.wait_for_status("succeeded")
    project.assert_all_filled_once(1_000)


@pytest.mark.parametrize("kind", ["celery-redis", "rq", "tasks"], indirect=True)
def test_an_empty_table_enqueues_nothing(
    kind: str, server: PostgreSQLServer, template: str, tmp_path: Path
) -> None:
    """There is no broker at all, so nothing can have been sent."""
    with server.database(template) as name:
        project = QueueProject(tmp_path, KINDS[kind], server, {"default": name}, "redis://127.0.0.1:1/0")
        assert "every row has a value" in project.begin()
        assert project.value("SELECT count(*) FROM safemigrate_backfillrun") == 0
        assert project.value("SELECT count(*) FROM django_tasks_database_dbtaskresult") == 0


@pytest.mark.parametrize("kind", ["celery-redis", "rq"], indirect=True)
def test_without_its_broker_a_command_says_so_and_the_run_waits(
    kind: str, server: PostgreSQLServer, template: str, tmp_path: Path
) -> None:
    with server.database(template) as name:
        project = QueueProject(tmp_path, KINDS[kind], server, {"default": name}, "redis://127.0.0.1:1/0")
        project.seed("default", 10)
        ran = project.run("backfill", "run", FIELD, "--executor", project.kind.executor)
        assert ran.returncode == 1
        assert "does not take" in ran.stderr
        assert project.status() == "queued"


# What is not installed


#: Hides installed packages from every process that has it on its path.
HIDDEN = """\
import sys
from importlib.machinery import PathFinder


class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = {names}
        return None if {{name, name.partition(".")[0]}} & hidden else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""
QUEUES = {"celery", "kombu", "django_rq", "rq", "redis", "django_tasks", "django_tasks_db"}


@pytest.mark.parametrize(
    ("executor", "package"), [("celery", "Celery"), ("rq", "django-rq"), ("tasks", "django-tasks")]
)
def test_an_executor_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, executor: str, package: str
) -> None:
    project, hidden = hiding(tmp_path, QUEUES | {"django.tasks"})
    project.add_field()
    for name, text in MIGRATIONS.items():
        project.write(f"polls/migrations/{name}.py", text)
    project.write("polls/populate.py", POPULATE.format(seconds_a_row=0))
    project.must("migrate", "polls", "0002")
    project.must("migrate", "safemigrate")
    project.seed("default", 3)
    ran = project.run("backfill", "run", FIELD, "--executor", executor, **hidden)
    assert ran.returncode == 1
    assert (
        f"needs {package}, which is not installed here: pip install 'safemigrate[{executor}]'" in ran.stderr
    )
    assert "Traceback" not in ran.stderr


def test_the_field_is_added_where_no_queue_is_installed(tmp_path: Path) -> None:
    project, hidden = hiding(tmp_path, QUEUES)
    project.made().seed("default", 3)
    project.add_field()
    populate = 'F("pub_date") + timedelta(days=30)'
    project.must("add_required_field", "polls.Question.expires_date", "--populate", populate, **hidden)
    project.must("migrate", **hidden)
    assert project.sql("default", "SELECT count(*) FROM polls_question WHERE expires_date > pub_date") == [
        (3,)
    ]
    assert "safemigrate.W" not in project.must("check", **hidden)


def hiding(tmp_path: Path, names: set[str]) -> tuple[Project, dict[str, str]]:
    """Return a plain project, and the environment in which these packages are not installed."""
    project = Project(tmp_path / "project")
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(names=names))
    return project, {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
