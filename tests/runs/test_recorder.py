"""Every fill is recorded, can be controlled while it works, is worked on by one process, and never needs its record."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections, models
from django.db.models import F, QuerySet, Value
from django.db.transaction import atomic
from django.utils import timezone

from safemigrate import apps, signals
from safemigrate.backends import for_connection
from safemigrate.engine import context, engine
from safemigrate.engine.observers import Limited, Limits
from safemigrate.exceptions import AlreadyRunning, BadRows, LeaseLost, LimitReached, RunCancelled
from safemigrate.models import BackfillEvent, BackfillRange, BackfillRun, open_key
from safemigrate.operations import AddNullableField, AddRequiredField, Populate
from safemigrate.runs import heartbeat, recorder, store
from safemigrate.runs.status import Status
from safemigrate.schema.change import Change
from tests.conftest import ROOT, cleaned
from tests.support.processes import Polls
from tests.support.projects import Project
from tests.support.sandbox import MONTH, MigrationSandbox, Statements, month_later
from tools.servers import PostgreSQL

pytestmark = pytest.mark.matrix

LABEL = "polls.Question.expires_date"
LATER = F("pub_date") + MONTH
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
BOTH = pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)

#: The example's migration, with a populate that takes its time, as the environment says.
SLOW = """\
import os
import time
from datetime import timedelta

from django.db import migrations, models

from safemigrate.operations import AddRequiredField


def later(question):
    time.sleep(float(os.environ.get("SLOW", "0")))
    return question.pub_date + timedelta(days=30)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [
        AddRequiredField("question", "expires_date", models.DateTimeField("expires at"), later),
    ]
"""


# In this process


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The observers as the app plugs them in, and nothing said yet."""
    monkeypatch.setattr(engine, "new_observer", apps.new_observer)
    monkeypatch.setattr(store, "_warned", set())


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    return MigrationSandbox(alias)


def beat(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let a run be recorded so often."""
    monkeypatch.setattr(recorder, "BEAT", seconds)
    monkeypatch.setattr(heartbeat, "BEAT", seconds)


def add_expires(populate: Any = LATER, **kwargs: Any) -> AddRequiredField:
    field = models.DateTimeField("expires at")
    return AddRequiredField("question", "expires_date", field, populate, **kwargs)


def the_run() -> BackfillRun:
    return store.records().get()


def events(run: BackfillRun) -> list[str]:
    return [event.text for event in BackfillEvent.objects.using(store.database()).filter(run_id=run.pk)]


@contextlib.contextmanager
def limited(**limits: Any) -> Iterator[None]:
    factory = partial(Limited, Limits(time.monotonic(), **limits))
    with context.changed(observers=[factory]):
        yield


@contextlib.contextmanager
def heard(sent: Any, receiver: Callable[..., Any]) -> Iterator[None]:
    def adapted(sender: Any, **arguments: Any) -> None:
        receiver(**{key: value for key, value in arguments.items() if key != "signal"})

    sent.connect(adapted)
    try:
        yield
    finally:
        sent.disconnect(adapted)


def test_migrate_leaves_a_record_of_its_fill(place: dict[str, Any], settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SIZE = 1_000
    began = timezone.now()
    polls = Polls(**place, rows=3_000)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    run, now = the_run(), timezone.now()
    assert (run.label, run.alias) == (LABEL, polls.alias)
    assert (run.app_label, run.model_name, run.field_names) == ("polls", "Question", "expires_date")
    assert run.migration == "polls.0003_question_expires_date"
    assert run.populate.startswith("F(pub_date) + ")
    assert (run.executor, run.status, run.attempts) == ("inline", Status.SUCCEEDED, 1)
    assert (run.rows_done, run.cursor, run.batch_size) == (3_000, 9_000, 1_000)
    assert run.rows_total >= 3_000
    assert run.fraction == 1
    assert run.rate > 0
    assert run.seconds_running > 0
    assert (run.seconds_waiting >= 0, run.waiting_for) == (True, "")
    assert (run.bad_rows, run.error, run.traceback) == ([], "", "")
    assert began < run.created <= run.started <= run.heartbeat <= run.finished < now
    assert (run.process, run.host) == (os.getpid(), os.uname().nodename)
    assert run.started_by == store.person() != ""
    assert (run.open_key, run.lease_until, run.is_stalled()) == (None, None, False)
    assert events(run) == ["queued → running", "running → succeeded"]


def test_a_populate_by_itself_is_recorded_with_all_its_fields(sandbox: MigrationSandbox) -> None:
    sandbox.fill(10)
    sandbox.run(AddNullableField("question", "code", models.CharField(max_length=9)))
    sandbox.run(AddNullableField("question", "votes", models.IntegerField()))
    sandbox.run(Populate("question", ["code", "votes"], {"code": Value("draft"), "votes": 0}))
    run = the_run()
    assert (run.label, run.alias, run.rows_done) == ("boxes.Question.code+votes", sandbox.alias, 10)
    assert run.status == Status.SUCCEEDED


def test_nothing_is_recorded_where_nothing_is_to_be_filled(sandbox: MigrationSandbox) -> None:
    sandbox.run(add_expires())
    assert not store.records().exists()
    sandbox.fill(10, expires_date=lambda n: timezone.now())
    sandbox.run(AddNullableField("question", "votes", models.IntegerField()))
    QuerySet(sandbox.model(), using=sandbox.alias).update(votes=1)
    sandbox.run(Populate("question", "votes", 0))
    assert not store.records().exists()


@pytest.mark.slow
def test_the_total_is_estimated_at_once_and_counted_then(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(monkeypatch, 0.3)
    monkeypatch.setattr(recorder, "COUNTED", 70)
    totals: list[tuple[bool, int]] = []
    sandbox.fill(300)
    with heard(signals.batch_done, lambda run, **_: totals.append((run.total_is_exact, run.rows_total))):
        sandbox.run(add_expires(slowly(0.01), batch_size=10))
    assert totals[0][0] is False
    counted, total = totals[-1]
    assert counted
    assert 270 <= total <= 300  # Where a thread writes, what it had under way may be missing until the end.
    assert (the_run().rows_done, the_run().rows_total, the_run().total_is_exact) == (300, 300, True)


def slowly(seconds: float) -> Callable[[Any], Any]:
    def later(question: Any) -> Any:
        time.sleep(seconds)
        return question.pub_date + MONTH

    return later


def test_rows_without_a_value_are_recorded_with_their_reasons_and_the_run_goes_on_when_they_are_mended(
    sandbox: MigrationSandbox, settings: Any
) -> None:
    sandbox.fill(100)
    keys = sandbox.values("pk")
    bad = {keys[3], keys[77]}

    def later(question: Any) -> Any:
        if question.pk in bad:
            raise LookupError(f"no date in {question.question_text}")
        return question.pub_date + MONTH

    with pytest.raises(BadRows):
        sandbox.run(add_expires(later, batch_size=10))
    run = the_run()
    assert run.status == Status.FAILED
    assert run.bad_rows == [
        [keys[3], "LookupError: no date in Question 4?"],
        [keys[77], "LookupError: no date in Question 78?"],
    ]
    assert (run.rows_done, run.attempts, run.open_key is None) == (98, 1, False)
    assert run.error.startswith("2 rows of boxes.Question.expires_date on ")
    assert run.traceback.startswith("Traceback (most recent call last)")
    assert "BadRows" in run.traceback
    assert events(run)[:2] == ["queued → running", "running → failed"]
    assert events(run)[2] == run.error.splitlines()[0]
    bad.clear()
    sandbox.run(add_expires(later, batch_size=10))
    again = the_run()
    assert (again.pk, again.status, again.attempts, again.rows_done) == (run.pk, Status.SUCCEEDED, 2, 100)
    assert (again.bad_rows, again.error, again.traceback) == ([], "", "")


def test_what_the_populate_prints_is_shown_and_kept(
    sandbox: MigrationSandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fill(80)

    def talking(question: Any) -> Any:
        print("asked for", question.question_text, end="\n\n")
        logging.getLogger("safemigrate").warning("careful with %s", question.question_text)
        return question.pub_date + MONTH

    sandbox.run(add_expires(talking))
    assert capsys.readouterr().out.startswith("asked for Question 1?\n\nasked for Question 2?\n")
    lines = the_run().output.splitlines()
    assert len(lines) == engine.LINES
    assert lines[-2:] == ["asked for Question 80?", "careful with Question 80?"]


def test_a_line_that_is_not_ended_is_kept_and_no_line_is_endless(sandbox: MigrationSandbox) -> None:
    sandbox.fill(1)

    def talking(question: Any) -> Any:
        print("x" * 5_000)
        print("no end", end="")
        return question.pub_date + MONTH

    sandbox.run(add_expires(talking))
    assert the_run().output.splitlines() == ["x" * 1_000, "no end"]


def test_what_no_database_takes_is_kept_in_a_form_that_all_take(
    sandbox: MigrationSandbox, settings: Any
) -> None:
    sandbox.fill(1)

    def odd(question: Any) -> Any:
        print("null \0 half \ud800")
        raise ValueError("null \0 half \ud800")

    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(BadRows):
        sandbox.run(add_expires(odd))
    assert set(the_run().output.splitlines()) == {r"null \0 half \ud800"}
    assert the_run().bad_rows[0][1] == r"ValueError: null \0 half \ud800"
    assert the_run().status == Status.FAILED


@SQLITE
@pytest.mark.parametrize("fails", [False, True])
def test_standard_output_is_put_back(sandbox: MigrationSandbox, fails: bool) -> None:
    sandbox.fill(3)
    logger = logging.getLogger("safemigrate")
    handlers = list(logger.handlers)

    def later(question: Any) -> Any:
        assert sys.stdout is not before
        print("here")
        if fails:
            raise ZeroDivisionError
        return question.pub_date + MONTH

    with contextlib.redirect_stdout(io.StringIO()) as text:
        before = sys.stdout
        with pytest.raises(BadRows) if fails else contextlib.nullcontext():
            sandbox.run(add_expires(later))
        assert sys.stdout is before
    assert text.getvalue() == "here\n" * 3 * (1 + fails)
    assert (logger.filters, logger.handlers) == ([], handlers)


def test_the_outputs_of_two_threads_may_end_in_any_order() -> None:
    before = sys.stdout
    first, second = recorder.Output([]), recorder.Output([])  # type: ignore[arg-type]
    first.close()
    assert sys.stdout is second
    second.close()
    assert sys.stdout is before


@pytest.mark.slow
def test_threads_and_connections_are_closed(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(monkeypatch, 0.05)
    before, counted = set(threading.enumerate()), open_connections(sandbox.alias)
    sandbox.fill(100)
    during: list[int] = []
    with heard(signals.batch_done, lambda **_: during.append(len(set(threading.enumerate()) - before))):
        sandbox.run(add_expires(slowly(0.005), batch_size=10))
    writer = for_connection(sandbox.connection).writes_at_once  # from the fourth batch on
    assert during == [1] * 3 + [1 + writer] * 7
    assert set(threading.enumerate()) == before
    wait_until(lambda: open_connections(sandbox.alias) == counted)


def open_connections(alias: str) -> int:
    connection = connections[alias]
    query = {
        "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE()",
    }.get(connection.vendor)
    if query is None:
        name = connection.settings_dict["NAME"]
        files = (file for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
        return sum(str(file.readlink()) == name for file in files)
    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])


def wait_until(fact: Callable[[], Any], process: Any = None, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


# Where runs are recorded


def test_runs_are_recorded_in_the_database_that_is_set(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
    sandbox.fill(10)
    try:
        sandbox.run(add_expires())
        run = BackfillRun.objects.using("archive").get()
        assert (run.alias, run.status, run.rows_done) == (sandbox.alias, Status.SUCCEEDED, 10)
        assert [event.text for event in run.events.all()] == ["queued → running", "running → succeeded"]
        assert not BackfillRun.objects.using("default").exists()
    finally:
        BackfillRun.objects.using("archive").all().delete()


def test_the_runs_of_any_database_may_be_recorded_in_it(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each database: the heart writes beside the fill, and the fill must not wait for it."""
    beat(monkeypatch, 0.05)
    keep_runs_on(sandbox.alias, settings)
    sandbox.fill(100)
    sandbox.run(add_expires(slowly(0.005), batch_size=10))
    run = the_run()
    assert (run.status, run.rows_done, run.rows_total, run.attempts) == (Status.SUCCEEDED, 100, 100, 1)


def keep_runs_on(alias: str, settings: Any) -> None:
    if alias != "default":
        with connections[alias].schema_editor() as editor:
            editor.create_model(BackfillRun)
            editor.create_model(BackfillEvent)
            editor.create_model(BackfillRange)
    settings.SAFEMIGRATE_RUNS_DATABASE = alias


@SQLITE
def test_without_the_table_the_fill_works_and_says_so_once(
    sandbox: MigrationSandbox,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = connections["archive"]
    archive.close()
    monkeypatch.setitem(archive.settings_dict, "NAME", str(tmp_path / "empty.sqlite3"))
    settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
    sandbox.fill(10)
    sandbox.run(add_expires())
    sandbox.run(AddNullableField("question", "votes", models.IntegerField()))
    sandbox.run(Populate("question", "votes", 1))
    archive.close()
    assert month_later(sandbox.rows())
    (said,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert said == (
        "Runs are not recorded: archive has no table for them yet. The fill goes on without. To have it: "
        "python manage.py migrate safemigrate --database archive"
    )


@SQLITE
def test_a_table_that_cannot_be_written_stops_no_fill(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and "backfillrun" in sql:
            raise OperationalError("attempt to write a readonly database")
        return execute(sql, params, many, context)

    sandbox.fill(10)
    with connections["default"].execute_wrapper(refuse):
        sandbox.run(add_expires())
    assert month_later(sandbox.rows())
    (said,) = (record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    assert said == (
        "boxes.Question.expires_date is not recorded: attempt to write a readonly database. "
        "The fill goes on without."
    )


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_a_connection_to_the_runs_that_is_lost_is_made_again(
    sandbox: MigrationSandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs on PostgreSQL, the fill on SQLite; the server ends every connection in the middle."""
    beat(monkeypatch, 0.05)
    keep_runs_on("postgresql", settings)
    killer = connections["postgresql"].copy()
    killer.inc_thread_sharing()

    def kill(run: Any, **_: Any) -> None:
        if backfilled.append(1) or len(backfilled) == 3:
            with killer.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

    backfilled: list[int] = []
    with cleaned("default"), heard(signals.batch_done, kill):
        elsewhere = MigrationSandbox("default")
        elsewhere.fill(300)
        elsewhere.run(add_expires(slowly(0.005), batch_size=10))
        assert month_later(elsewhere.rows())
    killer.close()
    run = the_run()
    assert len(backfilled) == 30
    assert (run.status, run.rows_done) == (Status.SUCCEEDED, 300)


@pytest.mark.slow
@SQLITE
def test_a_runs_database_that_is_stopped_in_mid_run_stops_no_fill(polls: Polls, tmp_path: Path) -> None:
    with PostgreSQL() as server:
        away = (
            f"DATABASES['away'] = database_urls.parse({server.url!r})\nSAFEMIGRATE_RUNS_DATABASE = 'away'\n"
        )
        use(polls, tmp_path, f"SAFEMIGRATE_BATCH_SIZE = 20\n{away}")
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "safemigrate", "--database", "away", "-v0"],
            env=polls.environment,
            check=True,
        )
        with polls.start("--traceback", SLOW="0.0005") as process:
            wait_until(lambda: polls.filled() > 100, process)
            before = polls.filled()
            server.stop()
            _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert before < polls.rows
    polls.assert_ended_well()
    said = re.findall(r".*not recorded.*", errors.decode())
    assert len(said) <= 2, errors
    assert said[0].startswith(f"{LABEL} on default is not recorded for the moment: ")


# Where it goes on


def stopped(sandbox: MigrationSandbox, rows: int) -> int:
    """Fill some of the rows; return the key where it stopped."""
    with limited(rows=rows), pytest.raises(LimitReached):
        sandbox.run(add_expires(batch_size=10))
    sandbox.run(AddNullableField("question", "expires_date", models.DateTimeField("expires at")))
    run = the_run()
    assert (run.status, run.rows_done) == (Status.STOPPED, rows)
    assert run.cursor == sandbox.values("pk")[rows - 1]
    return int(run.cursor)


def go_on(sandbox: MigrationSandbox) -> list[str]:
    """Fill the rest; return the statements on the filled table."""
    statements = Statements()
    with connections[sandbox.alias].execute_wrapper(statements):
        sandbox.run(Populate("question", "expires_date", LATER, batch_size=10))
    return [
        text.replace("`", '"') for text in statements.texts if '"boxes_question"' in text.replace("`", '"')
    ]


def test_it_goes_on_at_its_cursor_without_a_search(sandbox: MigrationSandbox) -> None:
    sandbox.fill(100)
    stopped(sandbox, 70)
    texts = go_on(sandbox)
    updates = [number for number, text in enumerate(texts) if text.startswith("UPDATE")]
    assert len(updates) == 3
    searches = [text for text in texts[: updates[0]] if "IS NULL" in text and "ORDER BY" in text]
    assert searches == []
    assert '"id" > ' in texts[updates[0]]
    assert month_later(sandbox.rows())
    assert (the_run().status, the_run().rows_done, the_run().attempts) == (Status.SUCCEEDED, 100, 2)
    assert (the_run().rows_total, the_run().samples[0]) == (100, [0, 0])


def test_without_a_record_the_first_row_to_fill_is_searched(sandbox: MigrationSandbox) -> None:
    """So that the test above can fail."""
    sandbox.fill(100)
    stopped(sandbox, 70)
    store.records().delete()
    texts = go_on(sandbox)
    first = next(number for number, text in enumerate(texts) if text.startswith("UPDATE"))
    assert [text for text in texts[:first] if "IS NULL" in text and "ORDER BY" in text]


@pytest.mark.parametrize("many", [False, True])
def test_a_wrong_cursor_costs_time_only(
    sandbox: MigrationSandbox, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_REMAINING_KEYS", 3 if many else 10_000)  # times MAX_PASSES is fewer
    sandbox.fill(100)
    stopped(sandbox, 10)
    store.records().update(cursor=sandbox.values("pk")[94])
    go_on(sandbox)
    assert month_later(sandbox.rows())
    assert (the_run().status, the_run().rows_done) == (Status.SUCCEEDED, 100)


@SQLITE
@pytest.mark.parametrize("cursor", ["no number", [1, 2], 10**30, -5, {"a": 1}])
def test_a_cursor_that_is_no_key_of_the_table_costs_time_only(sandbox: MigrationSandbox, cursor: Any) -> None:
    sandbox.fill(30)
    stopped(sandbox, 10)
    store.records().update(cursor=cursor)
    go_on(sandbox)
    assert month_later(sandbox.rows())


@SQLITE
def test_a_cursor_is_not_lost_while_nothing_is_filled_yet(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(monkeypatch, 0.0)
    sandbox.fill(30)
    cursor = stopped(sandbox, 10)
    with pytest.raises(LimitReached), limited(seconds=0):
        go_on(sandbox)
    assert (the_run().cursor, the_run().attempts) == (cursor, 2)


# Controlled, in this process


@SQLITE
def test_a_pause_outlives_the_process(sandbox: MigrationSandbox) -> None:
    sandbox.fill(100)

    def pause(run: Any, **_: Any) -> None:
        if run.rows_done == 0 and the_run().status == Status.RUNNING:
            store.pause(run.pk, "ada")

    with heard(signals.batch_done, pause), limited(seconds=1), pytest.raises(LimitReached):
        sandbox.run(add_expires(slowly(0.02), batch_size=10))
    run = the_run()
    assert (run.status, run.lease_until) == (Status.PAUSED, None)
    assert 0 < run.rows_done < 100
    assert run.seconds_waiting > 0.2
    assert events(run) == ["queued → running", "running → pausing", "pausing → paused", "paused → paused"]


@SQLITE
def test_a_record_that_is_deleted_ends_the_fill_in_plain_words(sandbox: MigrationSandbox) -> None:
    sandbox.fill(100)
    gone = pytest.raises(LeaseLost, match=r"run \d+ was deleted, so this process can no longer be seen")
    with heard(signals.batch_done, lambda **_: store.records().delete()), gone:
        sandbox.run(add_expires(slowly(0.01), batch_size=10))
    assert not store.records().exists()


@SQLITE
def test_a_record_that_is_deleted_in_the_last_moment_fails_no_fill(sandbox: MigrationSandbox) -> None:
    sandbox.fill(10)
    with heard(signals.batch_done, lambda **_: store.records().delete()):
        sandbox.run(add_expires())
    assert month_later(sandbox.rows())
    assert not store.records().exists()


def test_a_cancel_ends_it_and_the_next_fill_is_a_new_run(sandbox: MigrationSandbox) -> None:
    sandbox.fill(100)
    with heard(signals.batch_done, lambda run, **_: store.cancel(run.pk, "ada") if not done else None):
        done: list[int] = []
        with pytest.raises(RunCancelled, match="What was filled stays filled"):
            sandbox.run(add_expires(slowly(0.01), batch_size=10))
    first = the_run()
    assert (first.status, first.open_key) == (Status.CANCELLED, None)
    assert 0 < first.rows_done < 100
    sandbox.run(add_expires())
    second = store.records()[0]
    assert second.pk != first.pk
    assert (second.status, second.rows_done) == (Status.SUCCEEDED, 100 - first.rows_done)


# Signals


@SQLITE
def test_the_signals_of_a_run(sandbox: MigrationSandbox) -> None:
    heard_of: list[tuple[str, Any]] = []
    sandbox.fill(25)
    with contextlib.ExitStack() as stack:
        for name in signals.__all__:
            stack.enter_context(
                heard(
                    getattr(signals, name),
                    lambda run, name=name, **more: heard_of.append((name, run.status, more)),
                )
            )
        sandbox.run(add_expires(batch_size=10))
    assert [(name, status) for name, status, _ in heard_of] == [
        ("run_started", Status.RUNNING),
        *[("batch_done", Status.RUNNING)] * 3,
        ("run_finished", Status.SUCCEEDED),
    ]
    assert [more["rows"] for name, _, more in heard_of if name == "batch_done"] == [10, 10, 5]
    assert all(more["seconds"] > 0 for name, _, more in heard_of if name == "batch_done")


@SQLITE
def test_the_signal_of_a_failure_has_the_exception(sandbox: MigrationSandbox) -> None:
    heard_of: list[Any] = []
    sandbox.fill(3)
    hears = heard(signals.run_failed, lambda run, error: heard_of.append((run.status, error)))
    with hears, pytest.raises(BadRows) as raised:
        sandbox.run(add_expires(lambda question: None))
    assert heard_of == [(Status.FAILED, raised.value)]


@SQLITE
def test_a_receiver_that_raises_is_logged_and_stops_nothing(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fill(3)

    def receiver(**_: Any) -> None:
        raise ZeroDivisionError("in the receiver")

    with heard(signals.run_finished, receiver):
        sandbox.run(add_expires())
    assert the_run().status == Status.SUCCEEDED
    traceback, line = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert (traceback.name, line.name) == ("django.dispatch", "safemigrate")
    assert traceback.exc_info
    assert "a receiver of a signal of boxes.Question.expires_date on default, raised" in line.getMessage()


# Logging


@SQLITE
def test_each_line_tells_its_run(sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "safemigrate")
    sandbox.fill(20)
    sandbox.run(add_expires(batch_size=10))
    key = the_run().pk
    lines = [record for record in caplog.records if hasattr(record, "run")]
    assert {(line.run, line.label, line.alias) for line in lines} == {
        (key, "boxes.Question.expires_date", "default")
    }
    assert [(line.levelname, line.getMessage().split(": ")[1]) for line in lines] == [
        ("INFO", f"run {key}, attempt 1"),
        ("DEBUG", line_of(lines[1])),
        ("DEBUG", line_of(lines[2])),
        ("INFO", f"run {key} succeeded"),
    ]
    assert [(line.rows, line.seconds > 0) for line in lines[1:]] == [(10, True), (10, True), (20, True)]
    assert (lines[-1].status, lines[-1].rows_total) == ("succeeded", 20)


def line_of(line: logging.LogRecord) -> str:
    assert re.fullmatch(r"boxes.Question.expires_date: 10 rows in \d\.\d{3} s", line.getMessage())
    return line.getMessage().split(": ")[1]


@SQLITE
def test_another_thread_s_lines_are_not_of_this_run(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fill(1)

    def later(question: Any) -> Any:
        thread = threading.Thread(target=lambda: logging.getLogger("safemigrate").warning("elsewhere"))
        thread.start()
        thread.join()
        return question.pub_date + MONTH

    sandbox.run(add_expires(later))
    (line,) = (record for record in caplog.records if record.getMessage() == "elsewhere")
    assert not hasattr(line, "run")


# Processes of their own


@pytest.fixture
def polls(place: dict[str, Any], tmp_path: Path) -> Polls:
    """Polls whose fill takes hundreds of small batches, by a function that may be slowed down."""
    polls = Polls(**place, rows=2_000)
    migrations = tmp_path / "slow_migrations"
    shutil.copytree(
        ROOT / "example_polls/polls/migrations", migrations, ignore=shutil.ignore_patterns("__pycache__")
    )
    (migrations / "0003_question_expires_date.py").write_text(SLOW)
    use(polls, tmp_path, "SAFEMIGRATE_BATCH_SIZE = 20\nSAFEMIGRATE_LEASE_SECONDS = 3\n")
    return polls


def use(polls: Polls, folder: Path, settings: str) -> None:
    """Let the processes have these settings."""
    head = "from tests.settings import *\nfrom tests.settings import database_urls\n"
    (folder / "slow_settings.py").write_text(
        f"{head}MIGRATION_MODULES = {{'polls': 'slow_migrations'}}\n{settings}"
    )
    path = [str(folder), str(ROOT), str(ROOT / "example_polls")]
    polls.environment = polls.environment | {
        "PYTHONPATH": os.pathsep.join(path),
        "DJANGO_SETTINGS_MODULE": "slow_settings",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def recorded() -> BackfillRun | None:
    return store.records().first()


def working(process: Any) -> BackfillRun:
    """Wait until the process fills; return its run."""
    return wait_until(lambda: (run := recorded()) and run.rows_done and run, process)


@pytest.mark.slow
def test_a_process_pauses_after_its_batch_goes_on_and_is_cancelled(polls: Polls) -> None:
    """Batches of 20 rows and about 0.2 s: asked between two looks, one more may have begun."""
    with polls.start(SLOW="0.01") as process:
        run = working(process)
        before = polls.filled()
        store.pause(run.pk, "ada")
        wait_until(lambda: recorded().status == Status.PAUSED, process)
        paused_at = polls.filled()
        assert paused_at - before <= 2 * 20
        assert paused_at < polls.rows
        wait_until(lambda: recorded().waiting_for, process)
        assert f"run {run.pk} was paused by ada; to go on: python manage.py backfill resume" in (
            recorded().waiting_for
        )
        assert polls.filled() == paused_at
        assert recorded().is_held()
        time.sleep(0.6)
        store.resume(run.pk, "bob")
        wait_until(lambda: polls.filled() > paused_at, process)
        before = polls.filled()
        store.cancel(run.pk, "cyd")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{LABEL} on {polls.alias} was cancelled (run {run.pk}). What was filled stays filled." in (
        errors.decode()
    )
    assert "Traceback" not in errors.decode()
    assert before <= polls.filled() <= before + 2 * 20
    ended = recorded()
    assert ended.status == Status.CANCELLED
    assert ended.rows_done == polls.filled()
    assert ended.seconds_waiting > 0.5
    events = [(event.text, event.who) for event in ended.events.all()]
    assert events[:-1] == [
        ("queued → running", store.person()),
        ("running → pausing", "ada"),
        ("pausing → paused", ""),
        ("paused → running", "bob"),
        ("running → cancelling", "cyd"),
        ("cancelling → cancelled", ""),
    ]
    assert "waiting: run " in errors.decode()
    polls.finish()
    polls.assert_ended_well()
    assert [run.status for run in store.records()] == [Status.SUCCEEDED, Status.CANCELLED]


@pytest.mark.slow
@BOTH
def test_the_lease_is_renewed_during_a_batch_that_is_longer(polls: Polls, tmp_path: Path) -> None:
    use(polls, tmp_path, "SAFEMIGRATE_BATCH_SIZE = 2_000\nSAFEMIGRATE_LEASE_SECONDS = 3\n")
    with polls.start(SLOW="0.003") as process:  # 6 s
        run = wait_until(recorded, process)
        time.sleep(4)
        assert polls.filled() == 0
        second = subprocess.run(
            [sys.executable, "-m", "django", "backfill", "run", LABEL, "--database", polls.alias],
            env=polls.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 0, second.stderr
        assert (
            f"{LABEL} on {polls.alias} is being filled already: run {run.pk}, by process {process.pid}"
            in second.stdout
        )
        assert process.wait(timeout=60) == 0, process.communicate()
        process.communicate()
    polls.assert_ended_well()
    assert (recorded().attempts, recorded().status) == (1, Status.SUCCEEDED)


@pytest.mark.slow
@BOTH
def test_a_run_whose_process_died_on_another_machine_is_waited_for(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_LEASE_SECONDS = 3
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    sandbox.run(AddNullableField("question", "expires_date", models.DateTimeField("expires at")))
    until = timezone.now() + timedelta(seconds=4)
    dead = {"status": Status.RUNNING, "lease_until": until, "machine": "another", "process": 1}
    names = {"app_label": "boxes", "model_name": "Question", "field_names": "expires_date", "alias": alias}
    store.records().create(open_key=open_key("boxes.Question.expires_date", alias), **names, **dead)
    populate = Populate("question", "expires_date", LATER)
    with pytest.raises(AlreadyRunning), context.changed(in_migrate=False):
        populate.fill(change_of(sandbox))
    sandbox.run(populate)
    assert timezone.now() > until
    assert the_run().status == Status.SUCCEEDED


def change_of(sandbox: MigrationSandbox) -> Change:
    return Change("boxes", for_connection(sandbox.connection), sandbox.state, sandbox.state)


def halt(process: Any, polls: Polls) -> None:
    """Stop it where it holds no lock: the database would keep it for as long as it sleeps, and none could go on."""
    for _ in range(200):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)  # What it sent before is done by now.
        if is_free("default", polls) and is_free(polls.alias, polls):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("it never stopped between two transactions")


def is_free(alias: str, polls: Polls) -> bool:
    """Does no session keep a writer waiting there?"""
    connection = connections[alias]
    try:
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA busy_timeout = 0")
                cursor.execute("BEGIN IMMEDIATE")
                cursor.execute("ROLLBACK")
        else:
            with atomic(alias):
                list(polls.questions().select_for_update(nowait=True).values_list("pk"))
    except OperationalError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.slow
def test_a_process_that_gives_no_sign_of_life_loses_the_run_and_writes_nothing_more(polls: Polls) -> None:
    with polls.start(SLOW="0.01") as first:
        run = working(first)
        halt(first, polls)
        stopped_at = polls.filled()
        wait_until(lambda: recorded().is_stalled())
        assert (timezone.now() - recorded().heartbeat) >= timedelta(seconds=2.9)
        polls.finish()
        polls.assert_ended_well()
        ended = facts()
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 1
    assert f"run {run.pk} was taken from this process, because it gave no sign of life" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert facts() == ended
    assert (recorded().status, recorded().attempts) == (Status.SUCCEEDED, 2)
    assert stopped_at < polls.rows
    polls.assert_ended_well()


@pytest.mark.slow
def test_a_process_that_wakes_up_before_anybody_took_its_run_goes_on(polls: Polls) -> None:
    with polls.start(SLOW="0.002") as process:
        working(process)
        halt(process, polls)
        wait_until(lambda: recorded().is_stalled())
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
        process.communicate()
    assert (recorded().status, recorded().attempts) == (Status.SUCCEEDED, 1)


@pytest.mark.slow
@SQLITE
def test_a_process_that_wakes_up_after_its_run_was_cancelled_ends(polls: Polls) -> None:
    with polls.start(SLOW="0.01") as process:
        run = working(process)
        halt(process, polls)
        wait_until(lambda: recorded().is_stalled())
        assert store.cancel(run.pk, "ada").status == Status.CANCELLED
        before = polls.filled()
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert polls.filled() <= before + 2 * 20
    assert recorded().status == Status.CANCELLED


def facts() -> list[Any]:
    return [store.records().values().get(), list(BackfillEvent.objects.values())]


def fill_with(polls: Polls, alias: str) -> Any:
    """Start `backfill run`."""
    return subprocess.Popen(
        [sys.executable, "-m", "django", "backfill", "run", LABEL, "--database", alias],
        env=polls.environment | {"SLOW": "0.001"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def add_column(polls: Polls, folder: Path) -> None:
    """Run `migrate` up to the fill."""
    small = "SAFEMIGRATE_BATCH_SIZE = 20\nSAFEMIGRATE_LEASE_SECONDS = 3\n"
    use(polls, folder, f"{small}SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 0\n")
    with polls.start() as process:
        assert b"backfill run" in process.communicate()[1]
    use(polls, folder, small)


@pytest.mark.slow
def test_of_two_processes_at_once_one_works_and_one_says_who_works(polls: Polls, tmp_path: Path) -> None:
    add_column(polls, tmp_path)
    with fill_with(polls, polls.alias) as one, fill_with(polls, polls.alias) as two:
        said = {process.pid: process.communicate(timeout=60) for process in (one, two)}
        assert [process.returncode for process in (one, two)] == [0, 0], said
    run = store.records().get()
    (idle,) = said.keys() - {run.process}
    everyone = f"{LABEL} on {polls.alias}: every row has a value, {polls.rows:,} of them now.\n"
    assert said[run.process][0].decode() == everyone
    assert said[idle][0].decode().startswith(f"{LABEL} on {polls.alias} is being "), said
    if "already" in said[idle][0].decode():
        assert f"run {run.pk}, by process {run.process} on {run.host}" in said[idle][0].decode()
    assert (run.status, run.attempts, run.rows_done) == (Status.SUCCEEDED, 1, polls.rows)


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_two_databases_at_once_are_both_filled(polls: Polls, tmp_path: Path, place: dict[str, Any]) -> None:
    if "postgresql_archive" not in connections:
        pytest.skip("no second database")
    with cleaned("postgresql_archive"):
        add_column(polls, tmp_path)
        archive = Polls("postgresql_archive", polls.environment, rows=2_000)
        add_column(archive, tmp_path)
        with fill_with(polls, polls.alias) as one, fill_with(polls, archive.alias) as two:
            for process in (one, two):
                output = process.communicate(timeout=60)
                assert process.returncode == 0, output
        assert (polls.filled(), archive.filled()) == (2_000, 2_000)
        made = {run.alias: run for run in store.records()}
        assert set(made) == {"postgresql", "postgresql_archive"}
        assert all(run.status == Status.SUCCEEDED and run.attempts == 1 for run in made.values())
        first, second = sorted(made.values(), key=lambda run: run.started)
        assert second.started < first.finished  # they were at work at the same time


def is_attempt(number: int) -> bool:
    run = recorded()
    return run is not None and run.attempts == number


@pytest.mark.slow
def test_killed_at_random_moments_the_record_ends_right(polls: Polls) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"{seed=}")
    rng, attempts = random.Random(seed), 3
    for attempt in range(1, attempts + 1):
        with polls.start(SLOW="0.001") as process:
            wait_until(partial(is_attempt, attempt), process)
            time.sleep(rng.uniform(0, 0.6))
            process.kill()
            process.communicate()
        killed = recorded()
        assert killed.status == Status.RUNNING
        assert killed.is_stalled()  # at once: it ran on this machine
        assert killed.rows_done <= polls.filled()
    polls.finish()
    polls.assert_ended_well()
    run = store.records().get()
    assert (run.status, run.attempts) == (Status.SUCCEEDED, attempts + 1)
    assert run.rows_done <= polls.rows
    assert run.token == run.attempts


@pytest.mark.slow
def test_killed_after_its_last_batch_it_is_settled_by_the_next_migrate(polls: Polls) -> None:
    """The record says running, no row is NULL, and so no fill would ever come back to it."""
    with polls.start(SLOW="0.001") as process:
        working(process)
        process.kill()
        process.communicate()
    polls.questions().filter(expires_date=None).update(expires_date=F("pub_date") + MONTH)
    assert recorded().status == Status.RUNNING
    polls.finish()
    run = store.records().get()
    assert (run.status, run.attempts, run.open_key) == (Status.SUCCEEDED, 1, None)
    assert events(run) == ["queued → running", "running → succeeded"]


# Other people's projects


@pytest.mark.slow
def test_before_the_tables_of_safemigrate_are_there_a_project_works(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.must("makemigrations", "-v0")
    project.must("migrate", "polls", "-v0")
    project.seed("default", 10)
    project.add_field()
    project.must("add_required_field", "polls.Question.expires_date", "--populate", "F('pub_date')")
    done = project.run("migrate", "polls")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Runs are not recorded: default has no table for them yet") == 1
    assert project.sql("default", "SELECT COUNT(*) FROM polls_question WHERE expires_date = pub_date") == [
        (10,)
    ]
    project.must("migrate")
    assert project.sql("default", "SELECT COUNT(*) FROM safemigrate_backfillrun") == [(0,)]


TESTS = """\
import time

from django.core.management import call_command
from django.db import connection
from django.test import TestCase, TransactionTestCase, skipUnlessDBFeature

from polls.models import Question
from safemigrate.models import BackfillRun


class Plain(TestCase):
    def test_the_tables_are_there_and_nothing_was_recorded(self):
        Question.objects.create(question_text="?", pub_date="2026-01-01 12:00Z", expires_date="2026-01-01 12:00Z")
        self.assertFalse(BackfillRun.objects.exists())


class WithoutTheDatabaseOfRuns(TestCase):
    databases = {"archive"}

    def test_it_is_as_before(self):
        self.assertFalse(Question.objects.using("archive").exists())


class Migrating(TransactionTestCase):
    def test_a_full_table(self):
        call_command("migrate", "polls", "0001", verbosity=0)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO polls_question (question_text, pub_date) VALUES (%s, %s)",
                [("?", "2026-01-01 12:00:00")] * 3000,
            )
        call_command("migrate", "polls", verbosity=0)
        self.assertEqual(Question.objects.exclude(expires_date=None).count(), 3000)
        run = BackfillRun.objects.get()
        self.assertEqual((run.status, run.rows_done), ("succeeded", 3000))
"""

POPULATE = """\
import time
from datetime import timedelta


def slowly(question):
    time.sleep(0.001)
    return question.pub_date
"""


@pytest.mark.slow
def test_django_s_test_runner_works_as_before(tmp_path: Path) -> None:
    """In memory, where the heart shares the file with the fill, and with warnings as errors."""
    project = Project(tmp_path).made()
    project.add_field()
    project.write("polls/populate.py", POPULATE)
    project.must(
        "add_required_field",
        "polls.Question.expires_date",
        "--populate",
        "polls.populate.slowly",
        "--batch-size",
        "50",
    )
    project.write("polls/tests.py", TESTS)
    done = project.run("test", "polls", PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr
    assert "ResourceWarning" not in done.stderr
    assert "not recorded" not in done.stderr


def test_on_empty_tables_a_fill_does_not_ask_for_its_record(sandbox: MigrationSandbox) -> None:
    statements = Statements()
    with contextlib.ExitStack() as stack:
        for each in {"default", sandbox.alias}:
            stack.enter_context(connections[each].execute_wrapper(statements))
        sandbox.run(add_expires())
    assert not [text for text in statements.texts if "backfillrun" in text]
