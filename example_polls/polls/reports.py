"""A report of all polls, as CSV: how it is made, where it is kept, how long."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from tempfile import TemporaryFile
from typing import Any

from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage, storages
from django.db.models import OuterRef, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from polls.models import Choice, Question

KEPT = timedelta(days=7)
BATCH = 2_000
CSV = "text/csv; charset=utf-8"
FORMULAS = tuple("=+-@\t\r\n")
HEADER = (
    "id",
    "question",
    "published",
    "expires",
    "expired",
    "votes",
)


@dataclass(frozen=True)
class Report:
    """What a person has asked for by this key: asked for twice, it is the same report.

    Kept in the storage "reports", which all machines of the site and its workers have to share: a file of
    rows, under a name of its own each time that it is made, and a mark that names it once it is whole. So a
    worker may die at any moment, and nobody is given half a report.
    """

    person: str
    key: str

    @property
    def is_ready(self) -> bool:
        rows = self._rows()
        return rows != "" and storage().exists(rows)

    @property
    def size(self) -> int:
        return storage().size(self._rows())

    @property
    def made(self) -> datetime:
        return storage().get_modified_time(self._rows())

    def open(self) -> File:
        return storage().open(self._rows())

    def make(self) -> None:
        """Write all polls to the storage. Where another worker was quicker, its report stays."""
        # Excel takes for UTF-8 what says so by a mark.
        with TemporaryFile("w+", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(chain([HEADER], map(line, polls())))
            file.flush()
            file.buffer.seek(0)
            rows = storage().save(self._name("csv"), File(file.buffer))
        if not self.mark("ready", rows):
            storage().delete(rows)

    def mark(self, word: str, content: str = "yes") -> bool:
        """Note what happens once only. Return False where it was noted before, here or on another machine."""
        saved = storage().save(self._name(word), ContentFile(content.encode()))
        if saved != self._name(word):  # The storage does not write over a file: it takes a name like it.
            storage().delete(saved)
        return saved == self._name(word)

    def unmark(self, word: str) -> None:
        storage().delete(self._name(word))

    def _rows(self) -> str:
        """Return the name of the file of rows, as the mark has it; none before there is one."""
        with suppress(FileNotFoundError), storage().open(self._name("ready")) as mark:
            return mark.read().decode()
        return ""

    def _name(self, ending: str) -> str:
        return f"{self.person}/{self.key}.{ending}"


def of(person: str) -> list[Report]:
    """Return the reports that are kept for a person, the newest first."""
    keys = [name.split("/")[1].removesuffix(".ready") for name in names(person) if name.endswith(".ready")]
    ready = [report for key in keys if (report := Report(person, key)).is_ready]
    return sorted(ready, key=lambda report: report.made, reverse=True)


def forget_old() -> None:
    """Delete what was made longer ago than KEPT."""
    for name in chain.from_iterable(map(names, folders())):
        with suppress(FileNotFoundError):  # Another worker does the same.
            if storage().get_modified_time(name) < timezone.now() - KEPT:
                storage().delete(name)


def names(folder: str) -> list[str]:
    with suppress(FileNotFoundError):
        return [f"{folder}/{name}" for name in storage().listdir(folder)[1]]
    return []


def folders() -> Iterable[str]:
    with suppress(FileNotFoundError):
        return storage().listdir("")[0]
    return []


def storage() -> Storage:
    return storages["reports"]


def polls() -> Iterator[Any]:
    """Read all polls with their votes, a batch at a time.

    By ranges of the key, not by one long query: that would hold a snapshot for as long as it takes, and on
    MariaDB all rows in memory.
    """
    choices = Choice.objects.filter(question=OuterRef("pk")).order_by().values("question")
    votes = Subquery(choices.annotate(total=Sum("votes")).values("total"))
    questions = Question.objects.order_by("pk").annotate(votes=Coalesce(votes, 0))
    batch = list(questions[:BATCH])
    while batch:
        yield from batch
        batch = list(questions.filter(pk__gt=batch[-1].pk)[:BATCH])


def line(poll: Any) -> tuple[Any, ...]:
    return (
        poll.pk,
        defused(poll.question_text),
        iso(poll.pub_date),
        iso(poll.expires_date),
        "yes" if poll.is_expired() else "no",
        poll.votes,
    )


def defused(text: str) -> str:
    """Put a quote before what a spreadsheet would take for a formula: anybody may have written it."""
    return f"'{text}" if text.startswith(FORMULAS) else text


def iso(date: datetime) -> str:
    """Say a date in the site's time zone, whichever the person or the worker has."""
    return timezone.localtime(date, timezone.get_default_timezone()).isoformat(timespec="seconds")
