"""A run that fails is an error in the log, with its exception, and one message on a terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from django.db import models

from safemigrate.engine.progress import Terminal
from safemigrate.exceptions import BadRows
from safemigrate.operations import AddNullableField, Populate
from tests.runs.test_recorder import _recorded as _recorded  # noqa: PLC0414  an autouse fixture
from tests.support.projects import Project
from tests.support.sandbox import MigrationSandbox


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_failed_run_is_logged_with_its_exception(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(AddNullableField("question", "n", models.IntegerField()))
    with pytest.raises(BadRows):
        sandbox.run(Populate("question", "n", lambda row: None))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert isinstance(record.exc_info[1], BadRows)
    assert record.status == "failed"  # type: ignore[attr-defined]
    assert record.label == "boxes.Question.n"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_in_migrate_the_error_is_on_the_terminal_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.must("makemigrations", "-v0")
    project.must("migrate", "-v0")
    project.add_field()
    project.seed("default", 3)
    project.write("polls/populate.py", "def nothing(question):\n    return None\n")
    project.must("add_required_field", "polls.Question.expires_date", "--populate", "polls.populate.nothing")
    done = project.run("migrate")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("got no value, so the column was not made required") == 1


def record(level: int, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("safemigrate", level, "", 0, "a %s", ("message",), None)
    vars(made).update(extra)
    return made


def test_where_no_logging_is_configured_messages_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(logging.WARNING)
    monkeypatch.setattr(terminal, "_others", lambda: False)
    terminal.handle(record(logging.WARNING))
    terminal.handle(record(logging.ERROR, on_terminal=False))
    assert capsys.readouterr().err == "a message\n"
    monkeypatch.undo()
    assert terminal._others()  # pytest has handlers of its own
    terminal.handle(record(logging.WARNING))
    assert capsys.readouterr().err == ""
