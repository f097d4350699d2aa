"""`manage.py backfill`, as a person or cron calls it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, load_command_class
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.db.models import F, QuerySet

from safemigrate.engine import observers
from safemigrate.exceptions import NothingToRun, TooManyRows
from safemigrate.models import BackfillRun
from safemigrate.runs import lookup, store
from safemigrate.runs.status import Status
from tests.conftest import ROOT
from tests.support.processes import MONTH, Polls
from tests.support.projects import Project

LABEL = "polls.Question.expires_date"


def backfill(*arguments: str) -> str:
    output = io.StringIO()
    call_command("backfill", *arguments, stdout=output, no_color=True)
    return output.getvalue()


@pytest.fixture
def full(
    alias: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polls]:
    """Full polls without the column, on SQLite in a file of their own."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "polls.sqlite3"))
    yield Polls(alias, request.getfixturevalue("environment"), rows=3_000)
    connection.close()


@pytest.fixture
def polls(full: Polls, settings: Any) -> Iterator[Polls]:
    """Full polls whose column was added by a `migrate` that left the fill to the command."""
    polls, alias = full, full.alias
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 1_000
    settings.SAFEMIGRATE_BATCH_SIZE = 100
    with pytest.raises(TooManyRows):
        call_command("migrate", "polls", database=alias, verbosity=0)
    yield polls
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = None


def newest() -> BackfillRun:
    run = store.records().first()
    assert run is not None
    return run


# run


def test_migrate_names_the_command_that_then_leaves_it_nothing_to_fill(polls: Polls, settings: Any) -> None:
    with pytest.raises(TooManyRows, match="3,000 rows of") as refused:
        call_command("migrate", "polls", database=polls.alias, verbosity=0)
    (line,) = re.findall(r"python manage.py (.*)", str(refused.value))
    assert line == f"backfill run {LABEL} --database {polls.alias}"
    assert polls.filled() == 0
    said = backfill(*line.split()[1:])
    assert said == f"{LABEL} on {polls.alias}: every row has a value, 3,000 of them now.\n"
    assert polls.filled() == 3_000
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    polls.assert_ended_well()
    (run,) = store.records()
    assert (run.status, run.rows_done, run.attempts) == (Status.SUCCEEDED, 3_000, 1)
    assert run.migration == "polls.0003_question_expires_date"


def test_a_limit_of_rows_ends_it_in_good_order_and_the_next_call_goes_on(polls: Polls) -> None:
    said = backfill("run", LABEL, "--database", polls.alias, "--max-rows", "450")
    assert "its 450 rows are filled; 500 rows filled this time." in said
    assert polls.filled() == 500
    assert (newest().status, newest().rows_done) == (Status.STOPPED, 500)
    backfill("run", LABEL, "--database", polls.alias, "--max-rows", "450")
    assert (polls.filled(), newest().attempts, newest().rows_done) == (1_000, 2, 1_000)
    backfill("run", LABEL, "--database", polls.alias)
    assert (polls.filled(), newest().rows_done, newest().rows_total) == (3_000, 3_000, 3_000)


def test_a_limit_of_time_and_the_hour(polls: Polls) -> None:
    assert "its time of 0 s is over" in backfill(
        "run", LABEL, "--database", polls.alias, "--max-time", "0.0001"
    )
    assert polls.filled() <= 100
    nearly = (datetime.now(timezone.utc) + timedelta(minutes=1)).strftime("%H:%M")
    assert "every row has a value" in backfill("run", LABEL, "--database", polls.alias, "--until", nearly)


def test_a_dry_run_counts_and_fills_nothing(polls: Polls) -> None:
    said = backfill("run", LABEL, "--database", polls.alias, "--dry-run")
    assert said.startswith(f"Would fill 3,000 rows of {LABEL} on {polls.alias} by F(pub_date) + ")
    assert "(polls.0003_question_expires_date)" in said
    assert polls.filled() == 0
    assert not store.records().exists()


def test_a_size_and_a_throttle_of_the_call(polls: Polls) -> None:
    with pytest.raises(CommandError, match="cannot be imported"):
        backfill("run", LABEL, "--database", polls.alias, "--throttle", "nowhere.Nice")
    nice = "safemigrate.throttles.Nice"
    backfill("run", LABEL, "--database", polls.alias, "--batch-size", "700", "--throttle", nice)
    assert newest().batch_size == 700
    assert newest().seconds_waiting > 0


def test_a_field_without_a_fill_or_a_column_is_told(full: Polls) -> None:
    polls, alias = full, full.alias
    with pytest.raises(CommandError, match="No migration fills polls.question.pub_date"):
        backfill("run", "polls.Question.pub_date", "--database", alias)
    with pytest.raises(
        CommandError, match="has no column yet: polls.0003_question_expires_date is to add it"
    ):
        backfill("run", LABEL, "--database", alias)
    with pytest.raises(CommandError, match="Did you mean expires_date"):
        backfill("run", "polls.Question.expires_dat", "--database", alias)
    with pytest.raises(NothingToRun, match="is no field"):
        lookup.find("polls", alias)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    assert "every row has a value" in backfill("run", LABEL, "--database", alias)


@pytest.mark.parametrize(
    "arguments",
    [["--max-time", "soon"], ["--max-rows", "0"], ["--until", "25:00"], ["--batch-size", "many"]],
    ids=lambda arguments: arguments[0],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match=re.escape(f"argument {arguments[0]}")):
        backfill("run", LABEL, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_a_second_call_while_one_is_at_work_says_who_and_ends_with_0(polls: Polls, tmp_path: Path) -> None:
    throttles = "SAFEMIGRATE_THROTTLES = ['tests.support.pauses.Pauses']\n"
    text = f"from tests.settings import *\n{throttles}SAFEMIGRATE_BATCH_SIZE = 100\n"
    (tmp_path / "slow.py").write_text(text)
    command = [sys.executable, "-m", "django", "backfill", "run", LABEL, "--database", polls.alias]
    more = {"PYTHONPATH": f"{tmp_path}:{polls.environment['PYTHONPATH']}", "DJANGO_SETTINGS_MODULE": "slow"}
    more |= {"SAFEMIGRATE_TEST_NICE": "1000"}
    environment = polls.environment | more
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as first:
        wait_until(lambda: store.records().filter(rows_done__gt=0).exists() or first.poll() is not None)
        assert first.poll() is None, first.stderr.read()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stderr
        assert f"being filled already: run {newest().pk}, by process {first.pid} on " in second.stdout
        assert len(second.stdout.splitlines()) == 1
        with pytest.raises(CommandError, match="at work"):
            backfill("retry", str(newest().pk))
        assert "cancelling" in backfill("cancel", str(newest().pk))
        assert first.wait(timeout=30) == 1
    assert newest().status == Status.CANCELLED
    assert "every row has a value" in backfill("run", LABEL, "--database", polls.alias)
    assert [run.status for run in store.records()] == [Status.SUCCEEDED, Status.CANCELLED]


def wait_until(fact: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, list(store.records().values())
        time.sleep(0.05)


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"], indirect=True)
def test_rows_that_get_no_value_end_it_with_1_and_are_listed(polls: Polls) -> None:
    polls.questions().filter(pk=6).update(pub_date="9999-12-30T00:00:00Z")
    with pytest.raises(CommandError, match="6: "):
        backfill("run", LABEL, "--database", polls.alias)
    assert polls.filled() == 2_999
    assert newest().status == Status.FAILED
    assert [key for key, _ in newest().bad_rows] == [6]
    assert "6: " in backfill("show", str(newest().pk))


# list, show, verify, and action


def test_verify_counts_and_its_exit_code_tells(polls: Polls) -> None:
    with pytest.raises(CommandError, match="Not every row is right") as ended:
        backfill("verify", LABEL, "--database", polls.alias)
    assert ended.value.returncode == 1
    backfill("run", LABEL, "--database", polls.alias)
    said = backfill("verify", LABEL, "--database", polls.alias, "--left")
    assert said == f"{LABEL} on {polls.alias}: 0 rows without a value\n"
    said = backfill("verify", LABEL, "--database", polls.alias)
    rows = f"{polls.rows:,}"
    assert said == f"{LABEL} on {polls.alias}: 0 rows without a value; of {rows} computed again, 0 differ\n"
    polls.questions().filter(pk__in=[3, 6]).update(expires_date=F("pub_date"))
    with pytest.raises(CommandError, match="Not every row is right"):
        backfill("verify", LABEL, "--database", polls.alias)


def test_list_and_show_as_text_and_as_json(polls: Polls) -> None:
    assert backfill("list").startswith("No runs are recorded yet.\n\nNever run yet:\n")
    backfill("run", LABEL, "--database", polls.alias, "--max-rows", "900")
    run = newest()
    heading, line = backfill("list").partition("\n\n")[0].splitlines()
    assert heading.split() == [
        "id",
        "field",
        "database",
        "status",
        "rows",
        "of",
        "done",
        "rows/s",
        "left",
        "started",
        "by",
    ]
    assert line.split()[:5] == [str(run.pk), LABEL, polls.alias, "stopped", "900"]
    (found,) = json.loads(backfill("list", "--json"))
    assert (found["label"], found["alias"], found["state"], found["rows_done"]) == (
        LABEL,
        polls.alias,
        "stopped",
        900,
    )
    assert datetime.fromisoformat(found["started"]) == run.started
    page = backfill("show", str(run.pk), "--follow")  # It is at rest: shown once.
    assert f"Run {run.pk}" in page
    assert "queued → running" in page
    shown = json.loads(backfill("show", str(run.pk), "--json"))
    assert [event["text"] for event in shown["events"]] == ["queued → running", "running → stopped"]
    with pytest.raises(CommandError, match="There is no run 99999"):
        backfill("show", "99999")


def test_a_paused_run_is_not_started_until_it_is_resumed(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias, "--max-rows", "100")
    key = str(newest().pk)
    assert "is paused" in backfill("pause", key)
    with pytest.raises(CommandError, match=f"backfill resume {key}"):
        backfill("run", LABEL, "--database", polls.alias)
    assert polls.filled() == 100
    assert "The next process takes it" in backfill("resume", key)
    backfill("run", LABEL, "--database", polls.alias)
    assert (newest().pk, polls.filled()) == (int(key), 3_000)
    with pytest.raises(CommandError, match="is succeeded, so it cannot become paused"):
        backfill("pause", key)


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_stalled_run_is_shown_with_what_to_do(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias, "--max-rows", "100")
    store.records().update(
        status=Status.RUNNING, lease_until=datetime.now(timezone.utc) - timedelta(seconds=1)
    )
    assert " stalled " in backfill("list")
    page = backfill("show", str(newest().pk))
    assert f"python manage.py backfill run {LABEL} --database default" in page
    assert "is queued" in backfill("retry", str(newest().pk))


@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_a_run_that_died_after_its_last_batch_is_closed_by_the_next_call(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias, "--max-rows", "100")
    polls.questions().filter(expires_date=None).update(expires_date="2027-01-01T00:00:00Z")
    assert newest().status == Status.STOPPED
    backfill("run", LABEL, "--database", polls.alias)
    assert newest().status == Status.SUCCEEDED


def test_a_large_table_is_counted_where_that_is_wanted(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = ("run", LABEL, "--database", polls.alias, "--dry-run")
    monkeypatch.setattr("safemigrate.management.commands.backfill.COUNTED", 0)
    assert re.match(r"Would fill some of about [\d,]+ rows \(--count counts them\) of", backfill(*dry))
    assert backfill(*dry, "--count").startswith("Would fill 3,000 rows of")
    monkeypatch.undo()
    assert backfill(*dry).startswith("Would fill 3,000 rows of")
    with pytest.raises(CommandError, match="--count is a part of --dry-run"):
        backfill(*dry[:-1], "--count")


# Everywhere


@pytest.mark.slow
def test_all_databases_of_a_project_in_one_call(tmp_path: Path) -> None:
    project = Project(tmp_path).made()
    for alias, rows in {"default": 5, "archive": 7}.items():
        project.seed(alias, rows)
    project.add_field()
    project.must("add_required_field", LABEL, "--populate", 'F("pub_date")', "--phases", "3")
    for alias in ("default", "archive"):
        project.must("migrate", "polls", "0002", "-v0", "--database", alias)
    said = project.must("backfill", "run", LABEL, "--all-databases")
    assert said.splitlines() == [
        f"{LABEL} on default: every row has a value, 5 of them now.",
        f"{LABEL} on archive: every row has a value, 7 of them now.",
    ]
    assert project.sql("archive", "SELECT count(expires_date) FROM polls_question") == [(7,)]
    assert project.sql("default", "SELECT count(*) FROM safemigrate_backfillrun") == [(2,)]
    project.must("migrate", "-v0")
    project.must("makemigrations", "--check")


@pytest.mark.parametrize(
    ("text", "found"), [("90", 90.0), ("0.5", 0.5), ("45m", 2700.0), ("1h30m", 5400.0), ("2d", 172800.0)]
)
def test_a_length_of_time(text: str, found: float) -> None:
    assert observers.seconds(text) == found


def test_a_time_of_day_is_the_next_one() -> None:
    noon = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
    assert observers.next_time("13:30", noon) == noon.replace(hour=13, minute=30)
    assert observers.next_time("06:00", noon) == noon.replace(day=22, hour=6)
    for wrong in ("24:00", "6", "06:60", "noon"):
        with pytest.raises(ValueError, match="is no time of day"):
            observers.next_time(wrong, noon)


def test_every_option_and_action_is_documented() -> None:
    page = (ROOT / "docs/reference/backfill.md").read_text(encoding="utf-8")
    parser = load_command_class("safemigrate", "backfill").create_parser("", "")
    common = set(BaseCommand().create_parser("", "")._option_string_actions)
    (actions,) = [action for action in parser._actions if action.dest == "action"]
    for name, sub in actions.choices.items():
        assert re.search(rf"\b{name}\b", page), name
        for option in set(sub._option_string_actions) - common:
            assert f"| `{option}" in page, option


def test_values_are_those_of_the_fill(polls: Polls) -> None:
    backfill("run", LABEL, "--database", polls.alias)
    rows: QuerySet[Any] = polls.questions()
    assert rows.filter(expires_date=None).count() == 0
    first = rows.order_by("pk")[0]
    assert first.expires_date == first.pub_date + MONTH
    assert connections[polls.alias].in_atomic_block is False


# What a user reads where something is wrong with the record


@pytest.fixture
def nowhere(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any
) -> Iterator[str]:
    """Runs kept in a database without tables."""
    connection = connections["archive"]
    with django_db_blocker.unblock():
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "empty.sqlite3"))
        settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
        yield "archive"
        connection.close()


ABOUT_RUNS = [
    ["list"],
    ["show", "1"],
    ["pause", "1"],
    ["resume", "1"],
    ["cancel", "1"],
    ["retry", "1"],
    ["requeue"],
]


@pytest.mark.parametrize("arguments", ABOUT_RUNS)
def test_before_the_runs_have_a_table_it_says_where_they_are_kept(nowhere: str, arguments: list[str]) -> None:
    with pytest.raises(CommandError) as ended:
        backfill(*arguments)
    assert str(ended.value) == (
        'The runs are kept in the database "archive" (SAFEMIGRATE_RUNS_DATABASE), which has no table for them yet: '
        "python manage.py migrate safemigrate --database archive"
    )
    assert ended.value.returncode == 1


@pytest.mark.parametrize("arguments", ABOUT_RUNS)
def test_while_the_runs_database_is_away_it_says_so(
    nowhere: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connections[nowhere].close()
    monkeypatch.setitem(
        connections[nowhere].settings_dict, "NAME", str(tmp_path / "no such folder" / "x.sqlite3")
    )
    with pytest.raises(CommandError) as ended:
        backfill(*arguments)
    assert "which cannot be read: unable to open database file. A field is filled without it." in str(
        ended.value
    )
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    "alias", ["sqlite", "mariadb"], indirect=True
)  # PostgreSQL computes later dates too.
def test_more_rows_without_a_value_than_are_looked_for(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_BAD_ROWS = 3
    polls.questions().filter(pk__lte=30).update(pub_date="9999-12-30T00:00:00Z")
    with pytest.raises(CommandError, match="more than 3 rows"):
        backfill("run", LABEL, "--database", polls.alias)
    run = newest()
    assert [key for key, _ in run.bad_rows] == [3, 6, 9, 12]
    shown = backfill("show", str(run.pk))
    assert f"all of them, as CSV: python manage.py backfill show {run.pk} --bad-rows" in shown
    lines = backfill("show", str(run.pk), "--bad-rows").splitlines()
    assert lines[0] == "key,reason"
    assert [line.split(",")[0] for line in lines[1:]] == [
        str(row.pk) for row in polls.questions().filter(expires_date=None)
    ]
    assert all(line.partition(",")[2] for line in lines[1:5])
    assert not lines[5].partition(",")[2]
