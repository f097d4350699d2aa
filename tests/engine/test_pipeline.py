"""Others work beside the caller: a thread that writes, threads that fill, processes that compute."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, models
from django.db.backends.signals import connection_created
from django.db.models import F
from django.db.transaction import atomic

from safemigrate import conf
from safemigrate.backends import for_connection
from safemigrate.engine import engine, pipeline
from safemigrate.engine.batch_runner import work_for
from safemigrate.engine.batches import Batches, Target, null_in
from safemigrate.exceptions import BadRows, LimitReached
from safemigrate.operations import AddNullableField
from safemigrate.populate import PerRow, Suffix
from safemigrate.populate.sources import resolve
from safemigrate.runs.heartbeat import Heartbeat, is_gone, machine
from tests.conftest import ROOT
from tests.support.processes import Polls, Process
from tests.support.sandbox import MONTH, START, MigrationSandbox
from tests.support.sessions import is_mysql

SERVERS = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
LATER = F("pub_date") + MONTH
NAME = "expires_date"
ROWS, SIZE = 300, 20


def month_later(question: Any) -> Any:
    return question.pub_date + MONTH


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(ROWS)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField("expires at")))
    return sandbox


def target(
    sandbox: MigrationSandbox, names: tuple[str, ...] = (NAME,), null_fields: tuple[str, ...] = (NAME,)
) -> Target:
    return Target(sandbox.model(), names, null_fields, sandbox.alias, sandbox.state.apps)


def fill(sandbox: MigrationSandbox, populate: Any, observer: Any = None) -> engine.Run:
    before = engine.new_observer
    engine.use_observer(lambda: observer or engine.NullObserver())
    try:
        return engine.fill(target(sandbox), resolve(populate, [NAME]), batch_size=SIZE)
    finally:
        engine.use_observer(before)


def assert_filled(sandbox: MigrationSandbox) -> None:
    assert sandbox.rows().filter(expires_date=LATER).count() == ROWS


class Writes:
    """Writes down which thread sent each UPDATE, and may do something before one."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.threads: list[str] = []
        self.before = before
        self.lock = threading.Lock()

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE"):
            with self.lock:
                self.threads.append(threading.current_thread().name)
                number = len(self.threads)
            self.before(number)
        return execute(sql, params, many, context)

    @property
    def elsewhere(self) -> int:
        return sum(name.startswith("safemigrate") for name in self.threads)


@contextmanager
def watched(
    sandbox: MigrationSandbox, before: Callable[[int], None] = lambda number: None
) -> Iterator[Writes]:
    """See the UPDATEs of this thread's connection and of those that others open."""
    writes, own = Writes(before), sandbox.connection

    def opened(connection: Any, **kwargs: Any) -> None:
        # MySQL's asks for its server's version by a connection that it closes again.
        if (
            connection.alias == sandbox.alias
            and connection is not own
            and writes not in connection.execute_wrappers
        ):
            connection.execute_wrappers.append(writes)

    connection_created.connect(opened)
    try:
        with own.execute_wrapper(writes):
            yield writes
    finally:
        connection_created.disconnect(opened)


# A thread that writes


@SERVERS
def test_after_some_batches_a_thread_writes_while_the_next_batch_is_computed(
    sandbox: MigrationSandbox,
) -> None:
    computed_in = set()

    def later(question: Any) -> Any:
        computed_in.add(threading.current_thread().name)
        return question.pub_date + MONTH

    with watched(sandbox) as writes:
        run = fill(sandbox, later)
    assert_filled(sandbox)
    assert (run.rows, run.batches) == (ROWS, ROWS // SIZE)
    assert writes.threads[: engine.ALONE] == ["MainThread"] * engine.ALONE
    assert writes.elsewhere == ROWS // SIZE - engine.ALONE
    assert computed_in == {"MainThread"}


@pytest.fixture
def exhausted(sandbox: MigrationSandbox) -> Iterator[None]:
    """A pool of Django's that has one connection, which the caller has: it gives no other."""
    own, settings = sandbox.connection, connections.settings[sandbox.alias]
    own.ensure_connection()
    own.settings_dict = dict(settings)
    settings["OPTIONS"] = settings["OPTIONS"] | {"pool": {"max_size": 1}}
    yield
    del settings["OPTIONS"]["pool"]


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.usefixtures("exhausted")
def test_what_works_beside_the_caller_takes_no_connection_of_the_projects_pool(
    sandbox: MigrationSandbox,
) -> None:
    # psycopg2 has no pool, and psycopg none of that size, so that to ask for one fails at once, in place of waiting.
    with pytest.raises((ImproperlyConfigured, ValueError), match="pool|max_size"):
        type(sandbox.connection)(connections.settings[sandbox.alias], sandbox.alias).connect()
    database = for_connection(sandbox.connection)
    with watched(sandbox) as writes:
        fill(sandbox, month_later)
    assert writes.elsewhere
    assert database.lock_name("boxes")
    database.unlock_name("boxes")
    beaten = threading.Event()

    def beat() -> float:
        with connections[sandbox.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        beaten.set()
        return 0.0

    heartbeat = Heartbeat("safemigrate test", beat)
    heartbeat.start()
    assert beaten.wait(10)
    heartbeat.stop()


@SERVERS
def test_a_batch_is_computed_while_the_one_before_is_written(sandbox: MigrationSandbox) -> None:
    """The fourth batch is the first that is written elsewhere: its writing waits for the fifth to be computed."""
    fifth = threading.Event()

    def later(question: Any) -> Any:
        if question.question_text == f"Question {5 * SIZE}?":
            fifth.set()
        return question.pub_date + MONTH

    def before(number: int) -> None:
        if number == 4:
            assert fifth.wait(timeout=10)

    with watched(sandbox, before):
        fill(sandbox, later)
    assert_filled(sandbox)


def test_a_setting_leaves_all_to_the_caller(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_WRITER_THREAD = False
    with watched(sandbox) as writes:
        fill(sandbox, month_later)
    assert_filled(sandbox)
    assert set(writes.threads) <= {"MainThread"}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_where_a_database_has_one_writer_the_caller_is_alone(sandbox: MigrationSandbox) -> None:
    with conf.changed(SAFEMIGRATE_WORKERS=4), watched(sandbox) as writes:
        fill(sandbox, month_later)
    assert_filled(sandbox)
    assert writes.elsewhere == 0


def test_inside_a_transaction_the_caller_is_alone(sandbox: MigrationSandbox) -> None:
    with atomic(sandbox.alias), watched(sandbox) as writes:
        fill(sandbox, month_later)
        assert_filled(sandbox)
        assert writes.elsewhere == 0
        connections[sandbox.alias].set_rollback(True)
    assert sandbox.rows().filter(expires_date__isnull=True).count() == ROWS


@SERVERS
def test_what_depends_on_the_batch_before_is_left_to_the_caller(alias: str) -> None:
    """Unique values are looked up; a column that is rewritten is read and written in one transaction."""
    sandbox = MigrationSandbox(alias)
    sandbox.run(AddNullableField("question", "slug", models.CharField(max_length=9, unique=True)))
    unique = resolve(PerRow(lambda row: row.question_text, unique=Suffix("-")), ["slug"])
    rewritten = resolve(lambda row: {"slug": "a", "question_text": "b"}, ["slug", "question_text"])
    for names, source in [(("slug",), unique), (("slug", "question_text"), rewritten)]:
        chosen = pipeline.chosen(
            work_for(target(sandbox, names, ("slug",)), source, for_connection(sandbox.connection)),
            Batches(sandbox.model(), alias, null_in(["slug"])),
            4,
            ("never.asked",),
        )
        assert isinstance(chosen, pipeline.Sequential)


# What goes wrong


@SERVERS
def test_an_error_that_passes_is_tried_again(sandbox: MigrationSandbox) -> None:
    def before(number: int) -> None:
        if number in (5, 9):
            raise OperationalError("server closed the connection unexpectedly")

    with watched(sandbox, before) as writes:
        run = fill(sandbox, month_later)
    assert_filled(sandbox)
    assert run.rows == ROWS
    assert len(writes.threads) == ROWS // SIZE + 2


@SERVERS
def test_a_row_that_the_database_refuses_is_found_and_all_others_are_filled(
    sandbox: MigrationSandbox,
) -> None:
    key = sandbox.values("pk")[150]
    sandbox.run(AddNullableField("question", "code", models.CharField(max_length=5)))
    wanted = resolve(lambda row: "too long" if row.pk == key else "short", ["code"])
    with pytest.raises(BadRows) as raised:
        engine.fill(target(sandbox, ("code",), ("code",)), wanted, batch_size=SIZE)
    assert [row.key for row in raised.value.examples] == [key]
    assert sandbox.rows().filter(code="short").count() == ROWS - 1


@SERVERS
@pytest.mark.parametrize("populate", [month_later, LATER], ids=["function", "expression"])
def test_what_was_under_way_when_the_run_is_ended_is_counted(
    sandbox: MigrationSandbox, populate: Any
) -> None:
    class Ends(engine.NullObserver):
        def advance(self, run: engine.Run) -> None:
            if run.rows >= 100:
                raise LimitReached("enough")

        def end(self, run: engine.Run, error: BaseException | None) -> None:
            self.run = run

    observer = Ends()
    with conf.changed(SAFEMIGRATE_WORKERS=3), pytest.raises(LimitReached):
        fill(sandbox, populate, observer)
    filled = sandbox.rows().exclude(expires_date=None).count()
    assert 100 <= filled <= 100 + 7 * SIZE
    assert observer.run.rows == filled
    assert fill(sandbox, populate).rows == ROWS - filled
    assert_filled(sandbox)


@SERVERS
def test_all_connections_and_threads_end_with_the_run(sandbox: MigrationSandbox) -> None:
    threads, opened = set(threading.enumerate()), []
    connection_created.connect(
        lambda connection, **kwargs: opened.append(connection), weak=False, dispatch_uid="open"
    )
    try:
        with conf.changed(SAFEMIGRATE_WORKERS=3):
            fill(sandbox, LATER)
    finally:
        connection_created.disconnect(dispatch_uid="open")
    assert 1 < len(opened) <= 3
    assert {connection.connection for connection in opened} == {None}
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_a_row_that_is_refused_in_the_first_batch_keeps_no_thread_away(sandbox: MigrationSandbox) -> None:
    sandbox.run(AddNullableField("question", "code", models.CharField(max_length=5)))
    first = sandbox.values("pk")[0]
    wanted = resolve(lambda row: "too long" if row.pk == first else "short", ["code"])
    with watched(sandbox) as writes, pytest.raises(BadRows):
        engine.fill(target(sandbox, ("code",), ("code",)), wanted, batch_size=SIZE)
    assert writes.elsewhere > 0


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_a_thread_whose_connection_was_lost_opens_another(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost, failed = pipeline._do, [], []

    def do(*arguments: Any) -> Any:
        connection = connections[sandbox.alias]
        connection.ensure_connection()
        if not lost:
            lost.append(connection.connection.close())  # As if the server had ended it.
        try:
            return real(*arguments)
        except Exception as error:
            failed.append(error)
            raise

    monkeypatch.setattr(pipeline, "_do", do)
    with conf.changed(SAFEMIGRATE_WORKERS=2):
        fill(sandbox, LATER)
    assert_filled(sandbox)
    assert len(failed) == 1


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
@pytest.mark.parametrize("populate", [month_later, LATER], ids=["function", "expression"])
def test_where_the_caller_s_connection_was_told_of_a_schema_it_is_alone(alias: str, populate: Any) -> None:
    """As django-tenants does it. Another connection would fill the table of the same name in another schema."""
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant")
        cursor.execute("SET search_path TO tenant")
        sandbox = MigrationSandbox(alias)
        sandbox.fill(ROWS)
        sandbox.run(AddNullableField("question", NAME, models.DateTimeField("expires at")))
        cursor.execute("CREATE TABLE public.boxes_question AS TABLE tenant.boxes_question")
        with conf.changed(SAFEMIGRATE_WORKERS=2):
            fill(sandbox, populate)
        assert_filled(sandbox)
        cursor.execute("SELECT count(*) FROM public.boxes_question WHERE expires_date IS NOT NULL")
        assert cursor.fetchone() == (0,)
        cursor.execute("RESET search_path")


# Throttles


class Slow:
    """A throttle that holds the run once, after some batches."""

    seconds = 0.2
    beside: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self, model: Any, alias: str) -> None:
        self.until: float | None = None

    def reason(self, run: engine.Run) -> str | None:
        if run.batches < 6:
            return None
        if self.until is None:
            self.until = time.monotonic() + Slow.seconds
            Slow.beside()
        return "a moment" if time.monotonic() < self.until else None


@SERVERS
def test_while_a_throttle_holds_the_run_nothing_is_written(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [f"{__name__}.Slow"]
    filled = []

    class Looks(engine.NullObserver):
        def advance(self, run: engine.Run) -> None:
            if run.waiting:
                filled.append(sandbox.rows().exclude(expires_date=None).count())

    fill(sandbox, month_later, Looks())
    assert len(filled) > 1
    assert set(filled) == {6 * SIZE}
    assert_filled(sandbox)


@SERVERS
def test_rows_that_were_read_before_a_long_wait_are_read_again(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_THROTTLES = [f"{__name__}.Slow"]
    monkeypatch.setattr(pipeline, "LONG", 0.1)
    monkeypatch.setattr(Slow, "beside", lambda: sandbox.rows().update(pub_date=START))
    fill(sandbox, month_later)
    assert sandbox.rows().filter(pub_date=START, expires_date=START + MONTH).count() == ROWS - 6 * SIZE


# Several threads


@SERVERS
def test_threads_share_an_expression_and_the_ledger_hears_of_the_batches_in_order(
    sandbox: MigrationSandbox,
) -> None:
    cursors, together = [], threading.Barrier(3)

    def before(number: int) -> None:
        if number in (4, 5, 6):
            together.wait(timeout=10)  # Three are under way at once.

    class Listens(engine.NullObserver):
        def advance(self, run: engine.Run) -> None:
            cursors.append((run.cursor, run.rows))

    with conf.changed(SAFEMIGRATE_WORKERS=3), watched(sandbox, before) as writes:
        run = fill(sandbox, LATER, Listens())
    assert_filled(sandbox)
    assert run.rows == ROWS
    # On MySQL a batch may meet the lock of the one beside it, and is then done last, here.
    assert is_mysql(sandbox.alias) or writes.elsewhere == ROWS // SIZE - engine.ALONE
    keys = sandbox.values("pk")
    assert cursors == [(keys[n - 1], n) for n in range(SIZE, ROWS + 1, SIZE)]


# Several processes

PIDS = """\
import os
import pathlib
import time
from datetime import timedelta

from django.db import migrations, models

from safemigrate.operations import AddNullableField, Populate


def later(question):
    pids = pathlib.Path(os.environ["PIDS"])
    (pids / str(os.getpid())).touch()
    time.sleep(float(os.environ.get("SLOW", "0.001")))
    if question.pk == 3 * 1500 and "DIE" in os.environ and not (pids / "died").exists():
        (pids / "died").touch()
        os.kill(os.getpid(), 9)
    return question.pub_date + timedelta(days=30)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [
        AddNullableField("question", "expires_date", models.DateTimeField("expires at")),
        Populate("question", "expires_date", later),
    ]
"""


@pytest.fixture
def polls(alias: str, environment: dict[str, str], tmp_path: Path) -> Polls:
    """Polls with the column, whose function leaves the numbers of the processes that called it."""
    polls = Polls(alias, environment, rows=2_000)
    migrations = tmp_path / "own_migrations"
    migrations.mkdir()
    for name in ("__init__", "0001_initial", "0002_alter_question_pub_date"):
        (migrations / f"{name}.py").write_text(
            (ROOT / f"example_polls/polls/migrations/{name}.py").read_text(encoding="utf-8")
        )
    (migrations / "0003_question_expires_date.py").write_text(PIDS)
    (tmp_path / "own_settings.py").write_text(
        "from tests.settings import *\nMIGRATION_MODULES = {'polls': 'own_migrations'}\n"
        "SAFEMIGRATE_BATCH_SIZE = 100\nSAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 10\n"
    )
    (tmp_path / "pids").mkdir()
    polls.environment = polls.environment | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "example_polls")]),
        "DJANGO_SETTINGS_MODULE": "own_settings",
        "PIDS": str(tmp_path / "pids"),
    }
    with polls.start() as process:
        process.communicate(timeout=60)  # It stops before the fill.
    return polls


def command(polls: Polls) -> list[str]:
    line = ["backfill", "run", "polls.Question.expires_date", "--database", polls.alias, "--workers", "2"]
    return [sys.executable, "-m", "django", *line]


def run(polls: Polls, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(polls),
        env=polls.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_processes_share_a_function(polls: Polls, tmp_path: Path) -> None:
    done = run(polls)
    assert done.returncode == 0, done.stderr
    assert "every row has a value" in done.stdout
    assert polls.questions().filter(expires_date=LATER).count() == polls.rows
    assert len(list((tmp_path / "pids").iterdir())) == 3  # The first batches are the caller's own.


OWN = """
import os
import pathlib
import time

from django import forms
from django.db import connections
from django.db.models import F, Q, Value
from django.db.models.functions import Concat

from polls.models import Question
from safemigrate.backfills import Backfill


class Given(forms.Form):
    word = forms.CharField()


class Marked:
    model, form, databases = Question, Given, list(connections)
    where = Q(question_text__startswith="Question")

    def before(self):
        self.word = self.cleaned_data["word"]

    def note(self):
        (pathlib.Path(os.environ["PIDS"]) / str(os.getpid())).touch()
        time.sleep(0.001)


class ByRow(Marked, Backfill):
    fields = ["question_text"]

    def row(self, question):
        self.note()
        return f"{self.word} {question.question_text}"


class ByBatch(Marked, Backfill):
    def batch(self, rows):
        self.note()
        time.sleep(0.2)
        rows.update(question_text=Concat(Value(f"{self.word} "), F("question_text")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("label", ["own.ByRow", "own.ByBatch"])
def test_processes_share_a_backfill_and_know_its_parameters(polls: Polls, tmp_path: Path, label: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").touch()
    (tmp_path / "own/backfills.py").write_text(OWN)
    with (tmp_path / "own_settings.py").open("a") as settings:
        settings.write("INSTALLED_APPS = [*INSTALLED_APPS, 'own']\n")
    line = ["run", label, "--database", polls.alias, "--workers", "2", "--set", "word=Hey"]
    done = subprocess.run(
        [sys.executable, "-m", "django", "backfill", *line],
        env=polls.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with polls.connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM polls_question WHERE question_text LIKE 'Hey Question%'")
        assert cursor.fetchone() == (polls.rows,)
    assert len(list((tmp_path / "pids").iterdir())) == 3  # The first batches are the caller's own.


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_a_process_that_is_killed_leaves_its_batches_to_the_caller(polls: Polls, tmp_path: Path) -> None:
    done = run(polls, DIE="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pids/died").exists()
    assert polls.questions().filter(expires_date=LATER).count() == polls.rows


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_the_processes_end_with_the_first_one_when_that_is_killed(polls: Polls, tmp_path: Path) -> None:
    with Process(command(polls), env=polls.environment | {"SLOW": "0.02"}) as first:
        pids = wait_for(lambda: {int(path.name) for path in (tmp_path / "pids").iterdir()} - {first.pid})
        first.kill()
    assert wait_for(lambda: all(is_gone(pid, machine()) for pid in pids))


def wait_for(found: Callable[[], Any]) -> Any:
    for _ in range(600):
        if answer := found():
            return answer
        time.sleep(0.05)
    raise AssertionError("it never came")
