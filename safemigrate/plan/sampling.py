"""Some rows filled in a table that no other session sees: how long a fill takes, and whether it would fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from django.db import DataError, Error, IntegrityError, connections, models
from django.db.models import Count, Model, Q
from django.db.transaction import atomic

from safemigrate.backends import Database, for_connection
from safemigrate.engine.batch_runner import BatchFailed, Work, reason, work_for
from safemigrate.engine.batches import Batches, Range, Target
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import BadRow
from safemigrate.populate.sources import AsWritten, Source
from safemigrate.types import AnyField, field_of

ROWS = 2_000
SLICES = 10
SECONDS = 0.5
FIRST_BATCH = 50


@dataclass(frozen=True)
class Sample:
    """What filling some rows has shown.

    `per_row` are the seconds for one row in the larger batches. Where the column comes with a value that most rows
    get, `share` is the part of them that has to be written, and `per_look` the seconds to see that of one. `problem`
    says why the whole fill would fail, as far as these rows show it; `skipped` why no row was tried.
    """

    rows: int = 0
    seconds: float = 0.0
    per_row: float | None = None
    problem: str | None = None
    skipped: str | None = None
    share: float = 1.0
    per_look: float = 0.0


def take(target: Target, source: Source, *, largest: int | None = None) -> Sample:
    """Fill up to 2,000 rows, spread over the keys, in batches of at most `largest`, for half a second.

    The rows are copies, in a table that no other session sees and that is gone afterwards; a function that
    computes values is called for them. On the real table nothing is held but what a reader holds.
    """
    if isinstance(source, AsWritten):
        return Sample(skipped=f"{source.title} runs in the migration alone, and writes what it likes")
    database = for_connection(connections[target.alias])
    scratch = _renamed(target.model, database.scratch_name(target.model))
    # Columns that are filled where they are NULL are made anew in the copy; with a condition they are what it reads.
    names = target.null_fields if target.where is None else []
    mistaken, target = target.mistaken, replace(target, mistaken=Q())
    fields = [field_of(target.model, name) for name in names]
    with ExitStack() as stack:
        try:
            slices = _slices(Batches(target.model, target.alias))
            if not slices:
                return Sample(skipped="the table has no rows")
            stack.enter_context(database.scratch(target.model, scratch, fields, slices))
        except Error as error:
            return Sample(skipped=f"no copy of some rows could be made: {reason(error)}")
        tried = _Trial(replace(target, model=scratch), source, database, largest or ROWS)
        sample = tried.run()
        return tried.among_others(sample, mistaken) if mistaken else sample


def _renamed(model: type[Model], table: str) -> Any:
    """Return the model on another table, unknown to its apps, which go on relating to the real one."""
    options = copy(model._meta)
    options.db_table = table
    # Past the metaclass, which would register it and make its fields anew.
    return type.__new__(
        type(model), model.__name__, (model,), {"__module__": model.__module__, "_meta": options}
    )


def _slices(rows: Batches) -> list[Q]:
    """Return conditions that choose up to ROWS rows, spread over the keys where these are numbers."""
    first, last = rows.first_todo(), rows.last()
    if first is None:
        return []
    number = SLICES if isinstance(first, int) and last - first > ROWS else 1
    ranges: list[Range] = []
    for start in range(number):
        after = first + (last - first) * start // number if number > 1 else first
        if ranges and after <= ranges[-1].last:
            continue
        found = rows.next(after, last, ROWS // number, inclusive=True)
        ranges += [found] if found else []
    return [found.condition for found in ranges]


class _Trial:
    """The engine's own work on the copied rows, in growing batches."""

    def __init__(self, target: Target, source: Any, database: Database, largest: int) -> None:
        self.target, self.source, self.database, self.largest = target, source, database, largest
        self.batches = target.batches
        self.bad: list[BadRow] = []
        self.times: list[tuple[int, float]] = []

    def run(self) -> Sample:
        try:
            work = work_for(self.target, self.source, self.database)
            for batch in self._growing():
                self._fill(work, batch)
                self.done = batch
            problem = self._problem()
        except (DataError, IntegrityError, BatchFailed) as error:
            problem = f"there is no value for the row with the key {self._culprit(work, batch, error)}"
        except Exception as error:  # noqa: BLE001  whatever the populate raises is what there is to report
            problem = f"the fill fails: {reason(error)}"
        rows, seconds = (sum(column) for column in zip(*self.times, strict=True)) if self.times else (0, 0.0)
        return Sample(int(rows), seconds, self._per_row(), problem)

    def _growing(self) -> Iterator[Range]:
        first, last = self.batches.first_todo(), self.batches.last()
        size = min(FIRST_BATCH, self.largest)
        batch = self.batches.next(first, last, size, inclusive=True)
        while batch is not None:
            yield batch
            if sum(seconds for _, seconds in self.times) > SECONDS:
                return
            size = min(size * 2, self.largest)
            batch = self.batches.next(batch.last, last, size)

    def _fill(self, work: Work, batch: Range) -> None:
        with atomic(self.target.alias):
            started = time.monotonic()
            filled, bad = work(self.batches, batch)
            self.times.append((filled + len(bad), time.monotonic() - started))
        self.bad += bad

    def _culprit(self, work: Work, batch: Range, error: Exception) -> BadRow:
        """Halve a batch that failed until the first row at fault stands alone."""
        halves = self.batches.halves(batch)
        if len(halves) < 2:
            return BadRow(batch.last, reason(error))
        for half in halves:
            try:
                with atomic(self.target.alias):
                    work(self.batches, half)
            except (DataError, IntegrityError, BatchFailed) as deeper:
                return self._culprit(work, half, deeper)
        return BadRow(batch.last, reason(error))

    def among_others(self, sample: Sample, mistaken: Q) -> Sample:
        """Say how many of the rows get another value than the common one, and how long it takes to look for them."""
        field = field_of(self.target.model, self.target.names[0])
        common = self.source.values[field.name].default.value
        filled = self.batches.rows.filter(Q(**{f"{field.attname}__isnull": False}))
        rows = max(filled.count(), 1)
        started = time.monotonic()
        replace(self.target, mistaken=mistaken).batches.count()
        looked = time.monotonic() - started
        return replace(
            sample, share=filled.filter(Q(Differs(field, common))).count() / rows, per_look=looked / rows
        )

    def _per_row(self) -> float | None:
        """Return the seconds for a row in the larger batches, in which the work by the batch weighs little."""
        larger = [seconds / rows for rows, seconds in sorted(self.times)[-3:] if rows]
        return median(larger) if larger else None

    def _problem(self) -> str | None:
        tried = self.batches.rows.filter(pk__lte=self.done.last)
        left = self.batches.todo.filter(pk__lte=self.done.last).order_by("pk")
        fields = [field_of(self.target.model, name) for name in self.target.names]
        found = [self._nulls(tried, left), *(self._repeated(tried, f) for f in fields if f.unique)]
        found += [self._orphans(f) for f in fields if f.remote_field and f.db_constraint]
        return next(filter(None, found), None)

    def _nulls(self, tried: Any, left: Any) -> str | None:
        number = left.count()
        if not number:
            return None
        row = self.bad[0] if self.bad else BadRow(left.values_list("pk")[0][0], "its value came out as NULL")
        return f"{number:,} of {tried.count():,} rows got no value, the first with the key {row}"

    def _repeated(self, tried: Any, field: models.Field[Any, Any]) -> str | None:
        counts = tried.aggregate(rows=Count(field.attname), values=Count(field.attname, distinct=True))
        repeated = counts["rows"] - counts["values"]
        if not repeated:
            return None
        return (
            f"{field.name} is to be unique, and {repeated:,} of {counts['rows']:,} values were there already"
        )

    def _orphans(self, field: AnyField) -> str | None:
        orphans = self.database.orphans(self.target.model, field)
        number = orphans.count()
        if not number:
            return None
        value = orphans.values_list(field.attname, flat=True)[0]
        return f"{number:,} rows got a {field.name} that is no row of {_label(field)}, such as {value!r}"


def _label(field: AnyField) -> str:
    return str(field.remote_field.model._meta.label)
