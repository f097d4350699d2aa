"""The outputs that the how-tos show: each is produced here, and compared with its page.

On a page an output stands under a comment with its name, `<!-- output: plan -->`. What differs from one machine to
the next (times, sizes, process ids) is compared by its form. `UPDATE_DOCS=1` writes the outputs into the pages anew.
"""

from __future__ import annotations

import logging
import os
import re
import textwrap
from datetime import datetime, timedelta, timezone
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, models
from django.db.models import F

from safemigrate.exceptions import BadRows, LockNotAcquired
from safemigrate.models import BackfillRun
from safemigrate.operations import AddNullableField, AddRequiredField, GuardWrites
from safemigrate.plan import render
from safemigrate.populate import PerRow
from safemigrate.runs.status import Status
from tests.conftest import ROOT
from tests.plan.test_plan import look
from tests.support.processes import Polls
from tests.support.sandbox import APP, MONTH, MigrationSandbox
from tests.support.sessions import blocking, run

MARKED = re.compile(r"^( *)<!-- output: ([\w-]+) -->\n\1```text\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/how-to").glob("*.md")])
WIDTH = 100
ROWS = 100_000
LABEL = "polls.Question.expires_date"

VARYING = {
    r"[\d,.]+ (?:ms|s|kB|MB|bytes)\b": "<measured>",
    r"\b(?:about [\d,]+ batches|1 batch)": "<batches>",
    r"'30 days[^']*'::interval": "<interval>",  # the drivers write it in different ways
    r"\bpid \d+, user \w+": "<session>",
    r"\b\d\d:\d\d:\d\d\b": "<time>",
    r"\b\d{4}-\d\d-\d\d\b": "<date>",
}

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)


def test_every_text_block_of_a_how_to_is_an_output_that_is_produced_here() -> None:
    blocks, named = 0, []
    for page in PAGES:
        body = page.read_text(encoding="utf-8")
        blocks += len(re.findall(r"^ *```text$", body, re.MULTILINE))
        named += [name for _, name, _ in MARKED.findall(body)]
    assert blocks == len(named)
    assert sorted(named) == sorted(OUTPUTS)


def check(name: str, output: str) -> None:
    """Compare the output with the block of this name, wherever it stands."""
    (page,) = (page for page in PAGES if f"<!-- output: {name} -->" in page.read_text(encoding="utf-8"))
    body = page.read_text(encoding="utf-8")
    (shown,) = (block for _, found, block in MARKED.findall(body) if found == name)
    if os.environ.get("UPDATE_DOCS") and comparable(shown) != comparable(output):

        def written(match: re.Match[str]) -> str:
            if match[2] != name:
                return match[0]
            block = textwrap.indent(f"```text\n{output.rstrip()}\n```", match[1])
            return f"{match[1]}<!-- output: {name} -->\n{block}"

        page.write_text(MARKED.sub(written, body), encoding="utf-8")
        return
    assert comparable(shown) == comparable(output)


def comparable(text: str) -> str:
    """One line of it all, with what varies named by its form."""
    text = " ".join(text.split())
    for pattern, form in VARYING.items():
        text = re.sub(pattern, form, text)
    return text


def wrapped(text: str) -> str:
    """A message as a terminal of this width breaks it, of a model of polls."""
    return "\n".join(
        textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in text.replace(APP, "polls").splitlines()
    )


# What --plan shows


def plan_of(alias: str, **options: Any) -> str:
    output = StringIO()
    call_command("add_required_field", LABEL, plan=True, database=[alias], stdout=output, **options)
    return output.getvalue()


@POSTGRESQL
def test_the_plan(alias: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    Polls(alias, environment, ROWS)
    with connections[alias].cursor() as cursor:
        cursor.execute("ANALYZE polls_question")
    check("plan", shortened(plan_of(alias)))


def shortened(plan: str) -> str:
    """The plan without the statements of the guard and of the steps that follow the backfill."""
    guard = r"(   2  .*\n)(?:        .*\n)+"
    later = r"^   6  .*?\n(?=\n)"
    plan = re.sub(guard, r"\1        ...\n", plan, count=1)
    return re.sub(later, "  ...\n", plan, count=1, flags=re.MULTILINE | re.DOTALL)


def odd(row: Any) -> Any:
    if row.pk % 7 == 0:
        raise ValueError("odd text")
    return row.pub_date


@SQLITE
def test_a_sample_that_fails(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2_000)
    seen = look(sandbox, AddRequiredField("question", "expires_date", models.DateTimeField(), odd))
    lines = render.text([seen]).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  !! In the sample"))
    check("failing-sample", "\n".join(lines[first : first + 2]))


# What stops a migration


def slug(row: Any) -> str | None:
    if row.pk == 63:
        return None
    if row.pk == 89:
        raise ValueError("no text")
    return f"question-{row.pk}"


@SQLITE
def test_bad_rows(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    with pytest.raises(BadRows) as stopped:
        sandbox.run(AddRequiredField("question", "slug", models.SlugField(), PerRow(slug)))
    check("bad-rows", wrapped(str(stopped.value)))


@POSTGRESQL
def test_a_lock_that_is_never_given(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.001
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 0.001
    sandbox = MigrationSandbox(alias)
    with blocking(alias) as other, pytest.raises(LockNotAcquired) as stopped:
        run(other, "SELECT COUNT(*) FROM boxes_question")
        sandbox.run(AddNullableField("question", "expires_date", models.DateTimeField()))
    check("lock", wrapped(str(stopped.value)))


@SQLITE
def test_a_field_that_is_not_guarded(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(1)
    populate = F("pub_date") + MONTH
    with caplog.at_level(logging.WARNING, "safemigrate"):
        sandbox.run(
            AddNullableField("question", "expires_date", models.DateTimeField()),
            GuardWrites("question", "expires_date", populate),
        )
    check("not-guarded", wrapped(caplog.messages[-1]))


# What a run says of itself


@SQLITE
def test_a_run_that_workers_share(alias: str, settings: Any) -> None:
    now = datetime.now(timezone.utc)
    shared = BackfillRun.objects.create(
        pk=7,
        app_label="polls",
        model_name="Question",
        field_names="expires_date",
        migration="polls.0003_question_expires_date",
        alias="default",
        status=Status.RUNNING,
        executor="rq",
        options={"queue": "safemigrate"},
        rows_done=113_100,
        rows_total=400_000,
        total_is_exact=True,
        batch_size=4_000,
        samples=[[0.0, 0], [30.0, 113_100]],
        started=now,
        started_by="deploy",
        attempts=1,
        heartbeat=now,
        lease_until=now + timedelta(seconds=15),
        seconds_running=30,
    )
    for number, first in ((1, 0), (2, 40_000), (3, 75_000)):
        shared.ranges.create(number=number, first=first, last=first + 35_000, ended=now)
    shared.ranges.create(
        number=4,
        first=105_000,
        last=142_500,
        cursor=113_100,
        worker="web1:6275",
        attempts=1,
        lease_until=now + timedelta(seconds=15),
    )
    output = StringIO()
    call_command("backfill", "show", "7", stdout=output, no_color=True)
    check("run", output.getvalue())


OUTPUTS = ["plan", "failing-sample", "bad-rows", "lock", "not-guarded", "run"]
