"""What is in example_polls/deploy: started here as on a server, but for Docker, of which there is none."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from django.db.utils import ConnectionHandler
from mysite import database_urls
from pytest_django import DjangoDbBlocker
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tools.servers import MissingServer, PostgreSQL, RabbitMQ, Redis, Server, free_port

if TYPE_CHECKING:
    from typing_extensions import Self

DEPLOY = ROOT / "example_polls/deploy"
FIELD = "polls.Question.expires_date"
ROWS = 20_000
SECONDS = 60

#: As in the example, but for what makes a fill slow enough to be interrupted, and found dead soon enough to be tested.
SETTINGS = """
from mysite.settings import *

SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 0
SAFEMIGRATE_BATCH_SIZE = 100
SAFEMIGRATE_THROTTLES = ["pauses.Pauses"]
SAFEMIGRATE_TASK_SECONDS = 1.0
SAFEMIGRATE_LEASE_SECONDS = 3.0
CELERY_BEAT_SCHEDULE["requeue"]["schedule"] = 2.0
"""


PAUSES = """
from safemigrate.throttles import Nice


class Pauses(Nice):
    ratio = 10.0
"""


def soon(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return what comes to be true; the test fails if it does not."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


class Machine:
    """A folder with the example as it lies on a server, and the environment of its programs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder / "srv"
        shutil.copytree(
            ROOT / "example_polls", self.folder, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3")
        )
        (self.folder / "deployed_settings.py").write_text(SETTINGS)
        (self.folder / "pauses.py").write_text(PAUSES)
        self.logs, self.run = folder / "logs", folder / "run"
        self.logs.mkdir()
        self.run.mkdir()
        self.environment = self._example() | {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "deployed_settings",
            "DJANGO_SECRET_KEY": "of-a-test",
            "DJANGO_ALLOWED_HOSTS": "127.0.0.1",
            "DJANGO_STATIC_ROOT": str(folder / "static"),
            "DATABASE_URL": f"sqlite:///{folder}/default.sqlite3",
            "ARCHIVE_DATABASE_URL": f"sqlite:///{folder}/archive.sqlite3",
            "REPORTS_FOLDER": str(folder / "reports"),
            "POLLS_BIND": f"127.0.0.1:{free_port()}",
            "POLLS_LOGS": str(self.logs),
            "POLLS_RUN": str(self.run),
            **environment,
        }
        lines = [f"{name}={value}\n" for name, value in self.environment.items()]
        (self.folder / "deploy/environment").write_text("".join(lines))

    @staticmethod
    def _example() -> dict[str, str]:
        lines = (DEPLOY / "environment.example").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Do a command as cron or a person does: with nothing but what the file `environment` says."""
        environment = {"PATH": self.environment["PATH"]}
        return subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True)

    def manage(self, *arguments: str) -> str:
        done = self.do("python", "manage.py", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def do(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True)

    def requeued(self) -> bool:
        """Do the first line of the crontab."""
        line = crontab()[0][1].replace("/srv/polls", str(self.folder))
        return self("sh", "-c", line).returncode == 0

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()


# Cron and its wrapper


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if shutil.which("flock") is None:
        pytest.skip("no flock: apt-get install util-linux")
    return Machine(tmp_path, SAFEMIGRATE_EXECUTOR="inline")


WITH_LOG = "deploy/with_log.sh"


class TestWithLog:
    @pytest.mark.slow
    def test_it_keeps_what_was_printed_how_long_it_took_and_how_it_ended(self, machine: Machine) -> None:
        done = machine(WITH_LOG, "job", "sh", "-c", "echo out; echo err >&2; sleep 1")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        date = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+"
        start, *printed, end = machine.log("job").splitlines()
        assert re.fullmatch(rf"{date} start: sh -c .*", start)
        assert printed == ["out", "err"]
        assert re.fullmatch(rf"{date} end: exit code 0 after [12] s", end)

    def test_its_exit_code_is_the_commands_and_the_last_lines_go_to_cron(self, machine: Machine) -> None:
        done = machine(WITH_LOG, "job", "sh", "-c", "seq 100; exit 7")
        assert done.returncode == 7
        first, *lines = done.stderr.splitlines()
        assert first.startswith("job ended with exit code 7 after ")
        assert lines == [str(number) for number in range(81, 101)]
        assert "end: exit code 7" in machine.log("job")
        assert machine(WITH_LOG, "job", "no-such-command").returncode == 127

    def test_an_argument_with_spaces_stays_one(self, machine: Machine) -> None:
        machine(WITH_LOG, "job", "printf", "<%s>", "two words", "", "a*", "it's")
        assert "<two words><><a*><it's>" in machine.log("job")

    def test_a_later_run_is_appended(self, machine: Machine) -> None:
        for word in ("first", "second"):
            machine(WITH_LOG, "job", "echo", word)
        assert [line for line in machine.log("job").splitlines() if line in ("first", "second")] == [
            "first",
            "second",
        ]

    def test_two_of_a_name_do_not_overlap_and_others_do(self, machine: Machine) -> None:
        with subprocess.Popen(
            [machine.folder / WITH_LOG, "job", "sleep", "60"], env=machine.environment
        ) as first:
            soon(
                lambda: (
                    "start" in (machine.logs / "job.log").read_text()
                    if (machine.logs / "job.log").exists()
                    else ""
                )
            )
            second = machine(WITH_LOG, "job", "echo", "never")
            assert (second.returncode, second.stderr) == (0, "")
            assert "not started: the one before is still at work" in machine.log("job")
            assert "never\n" not in machine.log("job")
            assert machine(WITH_LOG, "other", "true").returncode == 0
            first.terminate()
            assert first.wait() == 128 + signal.SIGTERM
        assert f"end: exit code {128 + signal.SIGTERM}" in machine.log("job")

    @pytest.mark.slow
    def test_a_signal_is_the_commands_which_may_take_its_time(self, machine: Machine) -> None:
        slow = "trap 'sleep 1; echo saved; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
        with subprocess.Popen(
            [machine.folder / WITH_LOG, "job", "sh", "-c", slow], env=machine.environment
        ) as process:
            soon(lambda: (machine.logs / "job.log").exists() and "ready\n" in machine.log("job"))
            process.terminate()
            assert process.wait() == 3
        assert "saved\n" in machine.log("job")

    def test_a_command_whose_wrapper_was_killed_still_keeps_others_away(self, machine: Machine) -> None:
        command = [machine.folder / WITH_LOG, "job", "sh", "-c", "echo $$; exec sleep 60"]
        with subprocess.Popen(command, env=machine.environment) as wrapper:
            soon(
                lambda: (
                    (machine.logs / "job.log").exists()
                    and re.search(r"^\d+$", machine.log("job"), re.MULTILINE)
                )
            )
            wrapper.kill()
        left = re.search(r"^\d+$", machine.log("job"), re.MULTILINE)
        assert left is not None
        machine(WITH_LOG, "job", "echo", "never")
        os.kill(int(left[0]), signal.SIGKILL)
        assert "not started" in machine.log("job")

    def test_it_says_how_it_is_used(self, machine: Machine) -> None:
        done = machine(WITH_LOG, "job")
        assert (done.returncode, done.stderr) == (2, "usage: with_log.sh NAME COMMAND [ARGUMENT ...]\n")


def crontab() -> list[tuple[str, str]]:
    lines = (DEPLOY / "crontab").read_text().splitlines()
    return [
        (" ".join(line.split()[:5]), line.split(maxsplit=5)[5])
        for line in lines
        if line.startswith(("*", "3"))
    ]


@pytest.mark.slow
def test_the_lines_of_the_crontab_do_what_they_say(machine: Machine) -> None:
    from croniter import croniter

    machine.manage("migrate", "-v", "0")
    machine.manage("migrate", "-v", "0", "--database", "archive")
    lines = crontab()
    assert [name for _, line in lines for name in re.findall(r"with_log.sh (\w+)", line)] == [
        "requeue",
        "fill",
    ]
    for times, line in lines:
        assert croniter.is_valid(times)
        assert "%" not in line  # cron would end the line there
        done = machine("sh", "-c", line.replace("/srv/polls", str(machine.folder)))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "end: exit code 0" in machine.log("requeue")
    assert f"{FIELD} on archive: every row has a value" in machine.log("fill")


# Supervisord

#: `migrate` adds the column, leaves the rows to the workers, and says so.
FULL_TABLE = f"""
from django.core.management import CommandError, call_command

call_command("migrate", verbosity=0)
call_command("migrate", "polls", "0002", verbosity=0)
call_command("seed_polls", {ROWS}, choices=0, verbosity=0)
call_command("collectstatic", interactive=False, verbosity=0)
try:
    call_command("migrate", verbosity=0)
except CommandError as stopped:
    print(stopped)
"""


class Supervised(Machine):
    """A machine on which the real supervisord runs the real site and its workers."""

    def __enter__(self) -> Self:
        assert f"backfill run {FIELD}" in self.manage("shell", "-v", "0", "-c", FULL_TABLE)
        with (self.logs / "supervisord.out").open("w") as output:
            self.supervisord = subprocess.Popen(
                ["sh", "-c", "set -a; . deploy/environment; exec supervisord -c deploy/supervisord.conf"],
                cwd=self.folder,
                env={"PATH": self.environment["PATH"]},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()
        for process in self.processes():  # The orphans of what the test has killed, if any.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        self.supervisord.terminate()
        self.supervisord.wait(SECONDS)

    def processes(self) -> list[int]:
        everyone = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return list(filter(self._is_ours, everyone))

    def _is_ours(self, process: int) -> bool:
        try:
            return os.getsid(process) == self.supervisord.pid
        except ProcessLookupError:
            return False

    def running(self, program: str) -> int:
        """Return the process of a program that runs, 0 while it does not."""
        state = re.search(rf"^{program} +RUNNING +pid (\d+)", self.status(), re.MULTILINE)
        return int(state[1]) if state else 0

    def all_run(self) -> bool:
        states = self.status().splitlines()
        return bool(states) and all(" RUNNING " in state for state in states)

    def status(self) -> str:
        return self.do("supervisorctl", "-c", "deploy/supervisord.conf", "status").stdout

    def get(self, path: str) -> int:
        with suppress(OSError), urlopen(f"http://{self.environment['POLLS_BIND']}{path}", timeout=5) as page:
            return int(page.status)
        return 0


#: By executor: its broker, the variable that names that, and the worker that is killed.
QUEUES: dict[str, tuple[type[Server] | None, str, str]] = {
    "celery": (RabbitMQ, "CELERY_BROKER_URL", "celery:celery_fills"),
    "rq": (Redis, "REDIS_URL", "rq:rq_fills_0"),
    "tasks": (None, "", "tasks:tasks_fills_0"),
}


@pytest.fixture
def database() -> Iterator[Server]:
    with started(PostgreSQL) as server:
        yield server


@contextmanager
def started(kind: type[Server]) -> Iterator[Server]:
    try:
        server = kind()
    except MissingServer as reason:
        pytest.skip(str(reason))
    with server:
        yield server


@pytest.fixture(params=QUEUES)
def supervised(request: pytest.FixtureRequest, tmp_path: Path, database: Server) -> Iterator[Supervised]:
    for package in ("gunicorn", "supervisor", "whitenoise"):
        if find_spec(package) is None:
            pytest.skip(f"no {package}: pip install {package}")
    broker, variable, _ = QUEUES[request.param]
    environment = {"SAFEMIGRATE_EXECUTOR": request.param, "DATABASE_URL": database.url}
    with ExitStack() as stack:
        if broker is not None:
            environment[variable] = stack.enter_context(started(broker)).url
        yield stack.enter_context(Supervised(tmp_path, **environment))


class Progress:
    """The newest run, as its database has it."""

    def __init__(self, url: str) -> None:
        self.connection = ConnectionHandler({"default": database_urls.parse(url)})["default"]

    def query(self, sql: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    def status(self) -> str:
        return str(self.query("SELECT status FROM safemigrate_backfillrun ORDER BY id DESC LIMIT 1")[0])

    def filled(self) -> int:
        return int(self.query("SELECT count(expires_date) FROM polls_question")[0])

    def wrong(self) -> int:
        right = "expires_date = pub_date + interval '30 days'"
        return int(self.query(f"SELECT count(*) FROM polls_question WHERE ({right}) IS NOT TRUE")[0])


@pytest.fixture
def progress(database: Server, django_db_blocker: DjangoDbBlocker) -> Iterator[Progress]:
    with django_db_blocker.unblock():
        found = Progress(database.url)
        yield found
        found.connection.close()


@pytest.mark.slow
def test_a_killed_worker_comes_back_and_the_run_ends(supervised: Supervised, progress: Progress) -> None:
    executor = supervised.environment["SAFEMIGRATE_EXECUTOR"]
    worker = QUEUES[executor][2]
    soon(supervised.all_run)
    soon(lambda: supervised.get("/admin/login/") == 200)
    assert supervised.get("/static/admin/css/base.css") == 200

    killed = supervised.running(worker)
    supervised.manage("backfill", "run", FIELD)
    soon(progress.filled)
    os.kill(killed, signal.SIGKILL)
    assert progress.filled() < ROWS
    soon(lambda: supervised.running(worker) not in (0, killed))
    if executor != "celery":  # Which has a clock of its own.
        soon(lambda: supervised.requeued() and progress.status() == "succeeded")
    soon(lambda: progress.status() == "succeeded")

    supervised.manage("migrate", "-v", "0")
    assert progress.wrong() == 0
    assert supervised.get("/polls/") == 200
    supervised.stop()
    if executor != "rq":  # Whose scheduler outlives its killed worker.
        assert supervised.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("executor", QUEUES)
def test_the_example_needs_no_queue_and_can_use_each(executor: str, machine: Machine) -> None:
    """The database's queue has tables, and django-rq has pages; nothing else of the project depends on which it is."""
    machine.environment["SAFEMIGRATE_EXECUTOR"] = executor
    machine.manage("check", "--fail-level", "WARNING")
    machine.manage("makemigrations", "--check", "polls")


@pytest.mark.slow
def test_without_a_queue_no_package_of_one_is_imported(machine: Machine) -> None:
    found = machine.manage("shell", "-v", "0", "-c", "import sys; print([*sys.modules])")
    assert "'polls.models'" in found
    assert not re.search(r"'(django_rq|django_tasks_db|rq|mysite\.celery)'", found)


# Containers


@pytest.mark.slow
def test_the_databases_are_waited_for_and_left_as_they_are(
    machine: Machine, database: Server, progress: Progress
) -> None:
    machine.environment["DATABASE_URL"] = database.url
    database.halt()
    command = ["python", "-m", "deploy.wait_for_databases"]
    with subprocess.Popen(command, cwd=machine.folder, env=machine.environment) as process:
        time.sleep(3)
        assert process.poll() is None
        database.go_on()
        assert process.wait(SECONDS) == 0
    assert progress.connection.introspection.table_names() == []


@pytest.mark.slow
def test_who_waits_too_long_for_a_database_is_told_which(machine: Machine) -> None:
    machine.environment["DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    done = machine.do("python", "-m", "deploy.wait_for_databases", "1")
    assert done.returncode == 1
    assert re.match(r"After 1 s there is still no answer.\ndefault: .*refused", done.stderr, re.DOTALL)


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
    ],
    ids=["Dockerfile", "compose"],
)
def test_it_is_valid(command: list[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        pytest.skip(f"no {command[0]}: pip install -e '.[test]'")
    done = subprocess.run([program, *command[1:]], cwd=DEPLOY, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def compose() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(DEPLOY / "compose.yaml"))


def test_only_the_service_that_is_asked_for_migrates() -> None:
    migrating = [
        name
        for name, service in compose()["services"].items()
        if "manage.py migrate" in str(service.get("command"))
    ]
    assert migrating == ["migrate"]
    assert compose()["services"]["migrate"]["profiles"] == ["migrate"]
    assert "migrate" not in (DEPLOY / "Dockerfile").read_text().split("CMD")[1]


def test_the_workers_are_the_same_with_supervisord_and_in_containers() -> None:
    commands = "".join(path.read_text() for path in (DEPLOY / "supervisord").iterdir()).replace("%%h", "%h")
    workers = [
        service["command"]
        for name, service in compose()["services"].items()
        if re.match(r"(celery|rq)-(f|d)", name)
    ]
    assert len(workers) == 4
    assert [command for command in workers if command not in commands] == []


def test_every_variable_is_read_by_something() -> None:
    readers = [*(ROOT / "example_polls/mysite").glob("*.py"), *DEPLOY.rglob("*.conf"), DEPLOY / "with_log.sh"]
    read = "".join(path.read_text() for path in readers)
    example = re.findall(r"^(\w+)=", (DEPLOY / "environment.example").read_text(), re.MULTILINE)
    in_containers = compose()["x-polls"]["environment"]
    assert [name for name in {*example, *in_containers} - {"PATH"} if name not in read] == []
