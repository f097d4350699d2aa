"""`backfill verify` computes the values again, and finds the rows that have others."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from polls.models import Question

from safemigrate import backfills
from safemigrate.backfills import Backfill
from safemigrate.runs import store
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.verify import verify
from tests.support.processes import Polls
from tests.support.sandbox import MigrationSandbox, question

ROWS = 5_000


@pytest.fixture(name="polls")
def full_polls(place: dict[str, Any], settings: Any) -> Polls:
    polls = Polls(**place, rows=ROWS)
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    store.records().delete()
    return polls


class Values(Backfill):
    model = Question
    values = {"vote_count": F("pk") * 2, "url_name": "x"}


class Rows(Backfill):
    model = Question
    fields = ["vote_count"]

    def row(self, instance: Question) -> int | None:
        return None if instance.pk == 3 else instance.pk * 2


class Chosen(Backfill):
    model = Question
    where = Q(vote_count=0)
    values = {"vote_count": 7}


@pytest.mark.parametrize("kind", [Values, Rows])
def test_rows_that_differ_are_found(polls: Polls, kind: type[Backfill]) -> None:
    job = BackfillJob(kind(using=polls.alias))
    job.run()
    found = verify(job)
    assert found is not None
    assert (found.rows, found.differ) == (ROWS, 0)
    polls.questions().filter(pk__in=[3, 600, 15_000]).update(vote_count=1)
    found = verify(job)
    assert found is not None
    keys = [3, 600, 15_000] if kind is Values else [600, 15_000]
    assert [key for key, *_values in found.first] == keys
    assert found.first[-1][1:] == (([1, "x"], [30_000, "x"]) if kind is Values else ([1], [30_000]))


def test_a_sample_reads_a_part_of_the_table(polls: Polls) -> None:
    job = BackfillJob(Values(using=polls.alias))
    job.run()
    found = verify(job, sample=500)
    assert found is not None
    assert 250 <= found.rows <= 1_000


def test_what_a_condition_chose_cannot_be_computed_again(polls: Polls) -> None:
    job = BackfillJob(Chosen(using=polls.alias))
    job.run()
    assert verify(job) is None


def test_the_command_shows_them_and_ends_with_1(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfills, "find", lambda label: Values)
    monkeypatch.setattr(Values, "databases", [polls.alias])
    monkeypatch.setattr(Values, "label", classmethod(lambda cls: "polls.Values"))
    BackfillJob(Values(using=polls.alias)).run()
    polls.questions().filter(pk=6).update(url_name="y")
    out = io.StringIO()
    with pytest.raises(CommandError, match=f"Not every row is right on {polls.alias}") as refused:
        call_command("backfill", "verify", "polls.Values", stdout=out)
    assert refused.value.returncode == 1
    assert out.getvalue() == (
        f"polls.Values on {polls.alias}: 1 rows still to be done; of 5,000 computed again, 1 differ\n"
        "key  vote_count  url_name  vote_count, computed  url_name, computed\n"
        "6    12          y         12                    x\n"
    )


def test_what_the_site_has_written_since_is_told_apart(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    call_command("migrate", "safemigrate", database=alias, verbosity=0)
    fields = [("votes", models.IntegerField(default=0)), ("changed", models.DateTimeField(auto_now=True))]
    box = MigrationSandbox(alias, question(fields=fields))
    box.fill(20, changed=lambda n: timezone.now())

    class Double(Backfill):
        model = box.model()
        fields = ["votes"]

        def row(self, instance: Any) -> int:
            return instance.pk * 2

    job = BackfillJob(Double(using=alias))
    job.run()
    later = timezone.now() + timedelta(seconds=60)
    box.rows().filter(pk=5).update(votes=1, changed=later)
    found = verify(job)
    assert found is not None
    assert (found.differ, found.since, found.is_right) == (1, 1, True)
    box.rows().filter(pk=6).update(votes=1)
    found = verify(job)
    assert found is not None
    assert (found.differ, found.since, found.is_right) == (2, 1, False)
