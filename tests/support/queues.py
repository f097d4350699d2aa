"""Throw-away projects on PostgreSQL with a queue of each kind, and real workers that may be killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2

from tests.conftest import ROOT
from tests.support.projects import MANAGE, Project
from tools.servers import RabbitMQ, Redis, Server

SETTINGS = """\
SECRET_KEY = "only-for-tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "polls", "safemigrate", *{apps}]
DATABASES = {{
    alias: {{
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "{host}",
        "PORT": {port},
        "USER": "{user}",
        "NAME": name,
    }}
    for alias, name in {databases}.items()
}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

SAFEMIGRATE_EXECUTOR = "{executor}"
SAFEMIGRATE_QUEUE = "{queue}"
SAFEMIGRATE_LEASE_SECONDS = 3
SAFEMIGRATE_TASK_SECONDS = 2
"""

CELERY_SETTINGS = """
CELERY_BROKER_URL = "{broker}"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
"""

CELERY_APP = """\
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""

RQ_SETTINGS = """
RQ_QUEUES = {{"{queue}": {{"URL": "{broker}"}}}}
"""

TASKS_SETTINGS = """
TASKS = {{"default": {{"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": ["{queue}"]}}}}
"""

MODELS = """\
from django.db import models


class Question(models.Model):
    question_text = models.CharField(max_length=200)
    pub_date = models.DateTimeField()
    expires_date = models.DateTimeField()
"""

MIGRATIONS = {
    "0001_initial": """\
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            "Question",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("question_text", models.CharField(max_length=200)),
                ("pub_date", models.DateTimeField()),
            ],
        ),
    ]
""",
    "0002_add": """\
from django.db import migrations, models
from safemigrate.operations import AddNullableField


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0001_initial")]
    operations = [AddNullableField("question", "expires_date", models.DateTimeField())]
""",
    "0003_fill": """\
from django.db import migrations
from polls.populate import expires
from safemigrate.operations import Populate
from safemigrate.populate import PerBatch


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_add")]
    operations = [Populate("question", "expires_date", PerBatch(expires, only=["question_text", "pub_date"]))]
""",
    "0004_require": """\
from django.db import migrations, models
from safemigrate.operations import SetNotNull


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0003_fill")]
    operations = [SetNotNull("question", "expires_date", models.DateTimeField())]
""",
}

# The value depends on all of the row, and SQL can say it too: see EXPECTED.
POPULATE = """\
import time
from datetime import timedelta
from hashlib import md5


def expires(rows):
    time.sleep(len(rows) * {seconds_a_row})
    return [row.pub_date + timedelta(days=30, seconds=minutes(row.question_text) * 60) for row in rows]


def minutes(text):
    if text == "bad":
        raise ValueError("a bad question")
    return int(md5(text.encode()).hexdigest()[:4], 16)
"""
#: A backfill that writes a row into another table for each row that it is given.
BACKFILLS = """\
import time

from django.db import connections
from polls.models import Question
from safemigrate.backfills import Backfill


class Audited(Backfill):
    model = Question

    def queryset(self):
        return Question.objects.defer("expires_date")

    def batch(self, rows):
        keys = list(rows.values_list("pk", flat=True))
        with connections[self.using].cursor() as cursor:
            cursor.execute("INSERT INTO audited SELECT unnest(%s)", [keys])
        time.sleep(0.01)
"""

#: What beat or cron would do.
REQUEUEING = """\
import time

from django.core.management import call_command

while True:
    call_command("backfill", "requeue")
    time.sleep(2)
"""

#: Does one command after another, without the time that Python takes to start.
PROMPT = """\
import json
import sys

from django.core.management import call_command

for line in sys.stdin:
    call_command(*json.loads(line))
    print("done", flush=True)
"""

EXPECTED = (
    "pub_date + interval '30 days' + "
    "('x' || substr(md5(question_text), 1, 4))::bit(16)::int * interval '1 minute'"
)

TASKS = """\
from pathlib import Path

from safemigrate.executors import background


@background
def touch(path):
    Path(path).touch()
"""

SEED = (
    "INSERT INTO polls_question (id, question_text, pub_date) SELECT 3 * n, 'Question ' || n || '?', "
    "timestamptz '2026-01-01 12:00+00' + n * interval '1 second' FROM generate_series(1, %s) AS n"
)

#: Who writes what: every UPDATE of the polls with the rows that it met, and those of them that had a value already;
#: every time that the end of a range was noted, or undone.
AUDIT = """
CREATE TABLE audit_writes (rows bigint, again bigint);
CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit_writes SELECT count(*), count(expires_date) FROM before;
    RETURN NULL;
END $$;
CREATE TRIGGER note_write AFTER UPDATE ON polls_question
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION note_write();
"""
AUDIT_ENDS = """
CREATE TABLE audit_ends (range_id bigint);
CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit_ends VALUES (NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER note_end AFTER UPDATE ON safemigrate_backfillrange
    FOR EACH ROW WHEN (OLD.ended IS DISTINCT FROM NEW.ended) EXECUTE FUNCTION note_end();
"""

FIELD = "polls.Question.expires_date"


@dataclass(frozen=True)
class Kind:
    """A queue of one kind: its executor and broker, and how a project has it."""

    executor: str
    broker: type[Server] | None
    worker: str
    settings: str
    apps: tuple[str, ...] = ()


CELERY_WORKER = (
    "-m celery -A celery_app worker --queues {queue} --concurrency 1 --hostname {name}@{queue} "
    "--loglevel INFO --without-mingle --without-gossip"
)
KINDS = {
    "celery-rabbitmq": Kind("celery", RabbitMQ, CELERY_WORKER, CELERY_SETTINGS),
    "celery-redis": Kind("celery", Redis, CELERY_WORKER, CELERY_SETTINGS),
    "rq": Kind("rq", Redis, "manage.py rqworker {queue} --with-scheduler", RQ_SETTINGS, ("django_rq",)),
    "tasks": Kind(
        "tasks",
        None,
        "manage.py db_worker --queue-name {queue} --interval 0.2 --no-startup-delay",
        TASKS_SETTINGS,
        ("django_tasks_db",),
    ),
}


class PostgreSQLServer:
    """A server whose databases the projects are to use."""

    def __init__(self, host: str, port: int, user: str) -> None:
        self.host, self.port, self.user = host, port, user
        self.connections: dict[str, Any] = {}

    @classmethod
    def at(cls, url: str) -> PostgreSQLServer:
        parts = urlsplit(url)
        return cls(str(parts.hostname), int(parts.port or 0), str(parts.username))

    def sql(self, database: str, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        try:
            with self.connection(database).cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.connections.pop(database, None)
            raise

    def connection(self, database: str) -> Any:
        """Return one that is kept: the tests ask often."""
        if database not in self.connections:
            made = psycopg2.connect(host=self.host, port=self.port, user=self.user, dbname=database)
            made.autocommit = True
            self.connections[database] = made
        return self.connections[database]

    def leave(self, database: str) -> None:
        if database in self.connections:
            self.connections.pop(database).close()

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Make a database for a moment."""
        name = f"queues_{uuid.uuid4().hex}"
        self.sql("postgres", f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        try:
            yield name
        finally:
            self.leave(name)
            with suppress(
                psycopg2.OperationalError, psycopg2.InterfaceError
            ):  # The server has gone already, and all with it.
                self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


class QueueProject(Project):
    """A project with the polls before the field is filled, on two databases, and a queue."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        server: PostgreSQLServer,
        databases: dict[str, str],
        broker: str = "",
        *,
        seconds_a_row: float = 0.0,
        settings: str = "",
    ) -> None:
        self.folder, self.kind, self.server, self.databases = folder, kind, server, databases
        self.queue = f"safemigrate-{uuid.uuid4().hex[:8]}"
        names = {"queue": self.queue, "broker": broker, "executor": kind.executor, "apps": kind.apps}
        names |= {"host": server.host, "port": server.port, "user": server.user, "databases": databases}
        self.write("manage.py", MANAGE)
        self.write("settings.py", SETTINGS.format(**names) + kind.settings.format(**names) + settings)
        self.write("celery_app.py", CELERY_APP)
        self.write("polls/__init__.py", "from celery_app import app" if kind.executor == "celery" else "")
        self.write("polls/models.py", MODELS)
        self.write("polls/populate.py", POPULATE.format(seconds_a_row=seconds_a_row))
        self.write("polls/tasks.py", TASKS)
        self.write("polls/backfills.py", BACKFILLS)
        self.write("polls/migrations/__init__.py", "")
        for name, text in MIGRATIONS.items():
            self.write(f"polls/migrations/{name}.py", text)
        self.workers: list[Process] = []
        self.clock: Process | None = None
        self.prompt: subprocess.Popen[str] | None = None

    def migrate(self) -> None:
        """Make the tables, with the column, which is NULL everywhere."""
        for alias in self.databases:
            self.must("migrate", "-v0", "--database", alias)
            self.must("migrate", "polls", "0002", "-v0", "--database", alias)

    def sql(self, alias: str, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self.server.sql(self.databases[alias], statement, *arguments)

    def value(self, statement: str, *arguments: Any, alias: str = "default") -> Any:
        return self.sql(alias, statement, *arguments)[0][0]

    def seed(self, alias: str, rows: int) -> None:
        self.sql(alias, SEED, rows)
        self.sql(alias, "ANALYZE polls_question")

    # Action

    def backfill(self, *arguments: str) -> str:
        return self.at_prompt("backfill", *arguments) if self.prompt else self.must("backfill", *arguments)

    def open_prompt(self) -> None:
        """Let one process do all further commands, as they are many."""
        with self.log("prompt").open("ab") as log:
            self.prompt = subprocess.Popen(
                [sys.executable, "manage.py", "shell", "-c", PROMPT],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def at_prompt(self, *command: str) -> str:
        assert self.prompt is not None
        assert self.prompt.stdin is not None
        assert self.prompt.stdout is not None
        self.prompt.stdin.write(json.dumps(command) + "\n")
        self.prompt.stdin.flush()
        said = ""
        while (line := self.prompt.stdout.readline()) != "done\n":
            assert line, self.report()
            said += line
        return said

    def begin(self, *arguments: str) -> str:
        return self.backfill("run", FIELD, "--executor", self.kind.executor, *arguments)

    def later(self, path: str, *arguments: Any, times: int = 1) -> None:
        """Enqueue a function by hand."""
        module, _, name = path.rpartition(".")
        self.must(
            "shell",
            "-c",
            f"from {module} import {name}; from safemigrate.executors import later\n"
            f"for _ in range({times}): later({name}, *{arguments!r})",
        )

    # What came of it

    def status(self) -> str:
        return str(self.value("SELECT status FROM safemigrate_backfillrun ORDER BY id DESC LIMIT 1"))

    def written(self) -> int:
        """Return how many rows were written, all commits counted."""
        return int(self.value("SELECT coalesce(sum(rows), 0) FROM audit_writes"))

    def live_leases(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM safemigrate_backfillrange WHERE ended IS NULL AND lease_until > now()"
            )
        )

    def assert_all_filled_once(self, rows: int, alias: str = "default") -> None:
        """Every row has the value that the function gives; each was written once, and each range ended once."""
        wrong = f"SELECT count(*) FROM polls_question WHERE expires_date IS DISTINCT FROM {EXPECTED}"
        assert self.value(wrong, alias=alias) == 0
        assert self.value("SELECT count(*) FROM polls_question", alias=alias) == rows
        assert self.sql(alias, "SELECT sum(rows), sum(again) FROM audit_writes") == [(rows, 0)]
        ended = "SELECT id FROM safemigrate_backfillrange WHERE ended IS NOT NULL ORDER BY id"
        assert self.sql("default", "SELECT range_id FROM audit_ends ORDER BY 1") == self.sql("default", ended)
        assert self.value("SELECT count(*) FROM safemigrate_backfillrange WHERE ended IS NULL") == 0

    def again(self) -> None:
        """Forget all values and runs."""
        self.sql(
            "default",
            "UPDATE polls_question SET expires_date = NULL; TRUNCATE audit_writes, audit_ends, "
            "safemigrate_backfillrange, safemigrate_backfillevent, safemigrate_backfillrun RESTART IDENTITY",
        )

    # Workers

    @cached_property
    def guard(self) -> subprocess.Popen[bytes]:
        """A process that ends all that work in the folder, when our end of the pipe closes: see close()."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.queues", str(self.folder)], cwd=ROOT, stdin=subprocess.PIPE
        )

    def work(self, number: int, folder: Path | None = None) -> list[Process]:
        """Start so many workers, and a clock that requeues; see keep()."""
        assert self.guard.poll() is None
        names = [f"worker-{len(self.workers) + n}" for n in range(number)]
        command = partial(self.kind.worker.format, queue=self.queue)
        begun = [Process(self, name, command(name=name).split(), folder) for name in names]
        self.workers += begun
        self.clock = self.clock or Process(self, "requeue", ["manage.py", "shell", "-c", REQUEUEING])
        return begun

    def keep(self) -> None:
        """Start again what has ended, as supervisord would."""
        for process in [*self.workers, *filter(None, [self.clock])]:
            process.keep()

    def wait(self, until: Callable[[], Any], seconds: float = 90.0, pause: float = 0.1) -> None:
        """Keep the workers alive until it is true."""
        deadline = time.monotonic() + seconds
        while not self.safely(until):
            assert time.monotonic() < deadline, f"after {seconds} s it is not so:\n{self.report()}"
            self.keep()
            time.sleep(pause)

    def wait_for_status(self, status: str, seconds: float = 90.0) -> None:
        self.wait(lambda: self.status() == status, seconds)

    @staticmethod
    def safely(ask: Callable[[], Any]) -> Any:
        """Return None while the database is away."""
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            return ask()

    def report(self) -> str:
        """Return what a person would look at."""
        tables = {
            "run": "SELECT id, status, rows_done, waiting_for, error, lease_until, enqueue_attempts "
            "FROM safemigrate_backfillrun",
            "range": "SELECT id, number, cursor, rows_done, attempts, worker, lease_until, error, ended "
            "FROM safemigrate_backfillrange WHERE ended IS NULL",
            "event": "SELECT at, text FROM safemigrate_backfillevent",
        }
        lines = [f"{datum}: {row}" for datum, query in tables.items() for row in self.sql("default", query)]
        logs = [
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(lines + logs)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def close(self) -> None:
        self.guard.communicate()
        for process in [*self.workers, *filter(None, [self.clock])]:
            process.process.wait()
        if self.prompt is not None:
            self.prompt.communicate()


class Process:
    """A process of a project, and its children; the first is started again when it has ended."""

    def __init__(
        self, project: QueueProject, name: str, command: list[str], folder: Path | None = None
    ) -> None:
        self.project, self.name, self.command = project, name, command
        self.folder = folder or project.folder
        self.start()

    def start(self) -> None:
        with self.project.log(self.name).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=self.folder,
                env=self.project.environment(PYTHONUNBUFFERED="1"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def keep(self) -> None:
        if self.process.poll() is not None:
            self.start()

    def kill(self, rng: random.Random) -> None:
        """Kill one of its processes: the first, a child, or all of them."""
        processes = [pid for pid, session in processes_in(self.folder).items() if session == self.process.pid]
        victims = rng.choice([[pid] for pid in processes] + [processes])
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it cleanly, for good."""
        self.project.workers.remove(self)
        self.process.terminate()
        self.process.wait()

    @property
    def said(self) -> str:
        return self.project.log(self.name).read_text(errors="replace")


def copy_without(project: QueueProject, *names: str) -> Path:
    """Return a folder with the project's code as it was before these files."""
    folder = project.folder / "old"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns("*.log", "__pycache__", *names))
    return folder


def processes_in(folder: Path) -> dict[int, int]:
    """Return the processes whose current folder is below this one, with the session of each."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended, or is another user's.
            if (process / "cwd").resolve(strict=True).is_relative_to(folder.resolve()):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                found[int(process.name)] = int(fields[3])
    return found


def guard(folder: Path) -> None:
    """Wait for the end of the pipe, then end all that works in the folder."""
    sys.stdin.read()
    while left := processes_in(folder):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
