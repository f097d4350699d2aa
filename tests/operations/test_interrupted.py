"""Ctrl-C and SIGTERM end a fill after the running batch; a bar or log lines say how far it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import F

from safemigrate.engine import engine, progress
from safemigrate.exceptions import Interrupted
from safemigrate.operations import AddNullableField, AddRequiredField
from safemigrate.populate.sources import resolve
from tests.support.processes import Polls
from tests.support.sandbox import MONTH, MigrationSandbox, Statements, month_later

pytestmark = pytest.mark.matrix

SIGNALS = {"SIGINT": 130, "SIGTERM": 143}
STOPPED = re.compile(
    r"Stopped: (?:polls|boxes)\.Question\.expires_date on \w+: ([\d,]+) of about [\d,]+ rows, [\d,]+ rows/s"
    r"(?:, [\d,]+ s left)?\. They stay filled; the same command carries on from here\."
)

LATER = F("pub_date") + MONTH


def add_expires(populate: Any = LATER, **kwargs: Any) -> AddRequiredField:
    return AddRequiredField(
        "question", "expires_date", models.DateTimeField("expires at"), populate, **kwargs
    )


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Progress as the app plugs it in, at verbosity 1; the signals' handlers are put back in any case."""
    monkeypatch.setattr(engine, "new_observer", progress.Progress)
    monkeypatch.setattr(progress, "_verbosity", 1)
    handlers = {number: signal.getsignal(number) for number in progress.SIGNALS}
    # As in the foreground of a shell: a background job ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# A process of its own


@pytest.fixture
def polls(
    alias: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polls]:
    """Polls whose fill takes hundreds of small batches."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "polls.sqlite3"))
    environment = request.getfixturevalue("environment")
    settings = "from tests.settings import *\n\nSAFEMIGRATE_BATCH_SIZE = 20\n"
    (tmp_path / "small_batches.py").write_text(settings)
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    small = {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "small_batches"}
    yield Polls(alias, environment | small, rows=20_000)
    connection.close()


def wait_until(fact: Callable[[], Any], process: Any) -> None:
    end = time.monotonic() + 60
    while not fact():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_migrate_after_the_batch_and_it_carries_on(polls: Polls, name: str) -> None:
    with polls.start() as process:
        wait_until(polls.filled, process)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == SIGNALS[name], errors
    said = STOPPED.findall(errors.decode())
    assert len(said) == 1, errors
    assert "Traceback" not in errors.decode()
    assert int(said[0].replace(",", "")) == polls.filled()
    assert 0 < polls.filled() < polls.rows
    assert polls.filled() % 20 == 0
    polls.environment["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    polls.finish()
    polls.assert_ended_well()


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_on_a_terminal_there_is_a_bar(polls: Polls) -> None:
    polls.environment["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    text = on_a_terminal(polls)
    assert "polls.Question.expires_date on default: 100%" in text
    assert "20.0k/20.0k" in text
    assert "rows/s" in text


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_resumed_the_bar_goes_on_where_it_was_and_ends_at_100(polls: Polls) -> None:
    with polls.start() as process:
        wait_until(lambda: polls.filled() > 4_000, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert polls.filled() < polls.rows
    shown = [int(percent) for percent in re.findall(r"(\d+)%\|", on_a_terminal(polls))]
    assert shown[1] >= 20, shown  # The first is drawn before the record is read.
    assert shown[-1] == 100


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_at_verbosity_0_there_is_nothing(polls: Polls) -> None:
    polls.environment["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    assert on_a_terminal(polls, "-v", "0") == ""


def on_a_terminal(polls: Polls, *arguments: str) -> str:
    """Return what `migrate` writes to a terminal as its standard error."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    command = [sys.executable, "-m", "django", "migrate", "polls", "--database", polls.alias, *arguments]
    with subprocess.Popen(
        command, env=polls.environment, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux says that the other end is closed by an error.
            while more := os.read(ours, 4096):
                text += more
    os.close(ours)
    assert process.returncode == 0, text
    return text.decode()


# In this process


def test_a_signal_between_rows_lets_the_batch_end(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    keys = sandbox.values("pk")
    signal.signal(signal.SIGTERM, own_handler)
    with pytest.raises(Interrupted) as caught:
        sandbox.run(add_expires(signalling(keys[25], signal.SIGTERM), batch_size=20))
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is own_handler
    assert STOPPED.findall(capsys.readouterr().err) == ["40"]
    filled = sandbox.after(AddNullableField("question", "expires_date", models.DateTimeField("expires at")))
    rows = filled.apps.get_model("boxes", "question")._base_manager.using(alias)
    assert rows.filter(expires_date__isnull=False).count() == 40
    sandbox.run(add_expires())
    assert month_later(sandbox.rows())


def own_handler(number: int, frame: Any) -> None:
    raise AssertionError("not while the fill runs")


def signalling(at: Any, *numbers: int) -> Callable[[Any], Any]:
    def populate(question: Any) -> Any:
        if question.pk == at:
            for number in numbers:
                signal.raise_signal(number)
        return question.pub_date + MONTH

    return populate


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_second_ctrl_c_does_what_it_always_does(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run(
            add_expires(signalling(sandbox.values("pk")[25], signal.SIGINT, signal.SIGINT), batch_size=20)
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_signal_after_the_last_batch_is_not_lost(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(10)
    sandbox.run(AddNullableField("question", "expires_date", models.DateTimeField("expires at")))
    statements = Statements()

    def late(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        filled = statements.like("UPDATE")
        if filled and sql.startswith("SELECT"):
            signal.raise_signal(signal.SIGTERM)
        return statements(execute, sql, params, many, context)

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    target = engine.Target(sandbox.model(), ["expires_date"], ["expires_date"], alias, sandbox.state.apps)
    source = resolve(F("pub_date") + MONTH, ["expires_date"])
    with connections[alias].execute_wrapper(late), pytest.raises(Interrupted):
        engine.fill(target, source, batch_size=10)


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_the_old_handlers_are_back_after_success_and_failure(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(10)
    signal.signal(signal.SIGTERM, own_handler)
    during: list[Any] = []

    def populate(question: Any) -> Any:
        during.append(signal.getsignal(signal.SIGTERM))
        raise LookupError

    with pytest.raises(Exception, match="LookupError"):
        sandbox.run(add_expires(populate))
    assert during[0] is not own_handler
    assert signal.getsignal(signal.SIGTERM) is own_handler
    sandbox.run(add_expires())
    assert signal.getsignal(signal.SIGTERM) is own_handler


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_elsewhere_there_are_lines(
    alias: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    sandbox.run(add_expires(batch_size=40))
    lines = capsys.readouterr().err.splitlines()
    label = r"boxes\.Question\.expires_date on default"
    for line, rows in zip(lines[:-1], [40, 80, 100], strict=True):
        assert re.match(rf"{label}: {rows} of about 100 rows, [\d,]+ rows/s", line)
    assert re.fullmatch(rf"Filled: 100 rows of {label} in \d+ s", lines[-1])


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_short_fill_says_nothing(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(10)
    sandbox.run(add_expires())
    assert capsys.readouterr() == ("", "")


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    observer, run = progress.Progress(), engine.Run("polls.Question.expires_date", "default", total=1)
    observer.start(run)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == observer._stop
    observer.end(run, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
