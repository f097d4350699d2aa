"""While the site writes to the rows that a condition means, both ways: its last word stands, and nothing is left."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.models import Case, CharField, F, Q, QuerySet, Value, When
from django.db.models.functions import Cast, Concat
from polls.models import Question

from safemigrate.backfills import Backfill
from safemigrate.runs.lookup import BackfillJob
from tests.support.processes import Polls

ROWS, PER_SECOND, SECONDS = 8_000, 200, 3.0
NAMED = Concat(Value("q-"), Cast("pk", CharField()))


class ByValues(Backfill):
    model = Question
    where = Q(url_name="")
    values = {"url_name": NAMED}


class ByRow(Backfill):
    model = Question
    where = Q(url_name="")
    fields = ["url_name"]

    def row(self, instance: Question) -> str:
        time.sleep(0.0001)
        return f"q-{instance.pk}"


class ByBatch(Backfill):
    model = Question
    where = Q(url_name="")

    def batch(self, rows: QuerySet[Any]) -> None:
        keys = list(rows.values_list("pk", flat=True))
        time.sleep(0.002)
        Question._base_manager.using(self.using).filter(pk__in=keys).update(url_name=NAMED)


class Changed(Backfill):
    """What is written depends on what the site writes."""

    model = Question
    values = {"url_name": Case(When(url_name__startswith="site", then=F("url_name")), default=NAMED)}


class Site(threading.Thread):
    """Writes to rows at random, 200 times a second, and remembers its last word on each."""

    def __init__(self, alias: str, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self.alias, self.ended, self.rng = alias, ended, random.Random(7)
        self.last: dict[int, str] = {}
        self.writes: dict[int, int] = {}

    def run(self) -> None:
        began, number = time.monotonic(), 0
        while not self.ended.is_set():
            key = 3 * self.rng.randint(1, ROWS)
            text = f"site-{number}" if self.rng.random() < 0.5 else ""
            row = Question._base_manager.using(self.alias).filter(pk=key)
            row.update(url_name=text, vote_count=F("vote_count") + 1)
            self.last[key], self.writes[key] = text, self.writes.get(key, 0) + 1
            number += 1
            time.sleep(max(began + number / PER_SECOND - time.monotonic(), 0))
        connections.close_all()


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("kind", [ByValues, ByRow, ByBatch, Changed])
def test_no_write_of_the_site_is_lost_and_nothing_is_left(
    place: dict[str, Any], settings: Any, kind: type[Backfill]
) -> None:
    polls = Polls(**place, rows=ROWS)
    settings.SAFEMIGRATE_BATCH_SIZE = 50
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    ended = threading.Event()
    site = Site(polls.alias, ended)
    site.start()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        BackfillJob(kind(using=polls.alias)).run()
    ended.set()
    site.join()
    BackfillJob(kind(using=polls.alias)).run()
    assert sum(site.writes.values()) > 100
    rows = Question._base_manager.using(polls.alias).values_list("pk", "url_name", "vote_count")
    for key, name, votes in rows:
        assert name == (site.last.get(key) or f"q-{key}"), (key, name, site.last.get(key))
        assert votes == site.writes.get(key, 0)
