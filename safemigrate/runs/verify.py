"""The values of a backfill computed and not kept: beside those that stand in the rows, or tried on some rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any

from django.db import Error, connections, transaction
from django.db.models import Model, Q

from safemigrate.backends import for_connection
from safemigrate.engine.batch_runner import LeftRow, work_for
from safemigrate.engine.batches import Batches, Range
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import InvalidBackfill, SafemigrateError
from safemigrate.formatting import table
from safemigrate.populate.sources import AsWritten, InDatabase, InPython, LeftAsItIs
from safemigrate.runs import store
from safemigrate.runs.lookup import Job
from safemigrate.types import field_of

#: The rows that are read at once, and those that are shown.
AT_ONCE, SHOWN = 2_000, 10


@dataclass
class Verified:
    """How many rows were computed again, and those that differ: key, what stands there, what it would be."""

    rows: int = 0
    differ: int = 0
    since: int = 0  # of those, the rows that the site has written since the last run began
    first: list[tuple[Any, list[Any], list[Any]]] = field(default_factory=list)

    def note(self, key: Any, found: list[Any], computed: list[Any], *, is_newer: bool) -> None:
        self.differ += 1
        self.since += is_newer
        if len(self.first) < SHOWN:
            self.first.append((key, found, computed))

    @property
    def is_right(self) -> bool:
        return self.differ == self.since


def verify(job: Job, sample: int | None = None) -> Verified | None:
    """Compute the values of all rows again, or of about `sample` of them; None where that cannot be done.

    That is so for a function of a batch or of (apps, schema_editor), a delete, a function of no arguments, and where a
    condition chose the rows: which they were, no row says any more. Reads without a lock, in ranges of the primary key.
    """
    source = job.source
    if job.chose_by_condition:
        return None
    if isinstance(source, InDatabase):
        return _by_the_database(job, source, sample)
    if isinstance(source, InPython) and not (source.keys_only or source.unique):
        return _by_python(job, source, sample)
    return None


def _ranges(job: Job, sample: int | None) -> Iterator[Q]:
    """Yield conditions of ranges of keys: all, or some that lie apart."""
    batches = Batches(job.model, job.alias)
    first, last = (
        next(iter(batches.rows.order_by("pk").values_list("pk", flat=True)[:1]), None),
        batches.last(),
    )
    if first is None:
        return
    size = AT_ONCE if sample is None else min(max(sample // 10, 1), AT_ONCE)
    apart = 1 if sample is None else max(batches.rows.count() // max(sample, 1), 1)
    number, batch = 0, batches.next(first, last, size, inclusive=True)
    while batch is not None:
        if number % apart == 0:
            yield batch.condition
        number, batch = number + 1, batches.next(batch.last, last, size)


def _by_the_database(job: Job, source: InDatabase, sample: int | None) -> Verified:
    found, names = Verified(), list(source.values)
    values = source.assignments(job.model, job.target.apps)
    differ = Q()
    for name, value in values.items():
        differ |= Q(Differs(field_of(job.model, name), value))
    computed = {
        f"safemigrate_{name}": value for name, value in values.items() if hasattr(value, "resolve_expression")
    }
    rows, newer = _rows(job), _Newer(job)
    for condition in _ranges(job, sample):
        part = rows.filter(condition)
        found.rows += part.count()
        wrong = part.filter(differ).annotate(**computed)
        for row in wrong.values("pk", *names, *computed, *newer.names):
            shown = [row.get(f"safemigrate_{name}", values[name]) for name in names]
            found.note(row["pk"], [row[name] for name in names], shown, is_newer=newer.is_so(row))
    return found


def _by_python(job: Job, source: InPython, sample: int | None) -> Verified:
    found, target, connection = Verified(), job.target, connections[job.alias]
    fields, newer = [field_of(job.model, name) for name in target.names], _Newer(job)
    prepared = source.prepare(target.apps, job.alias) if source.prepare else None
    job.before()
    for condition in _ranges(job, sample):
        rows = list(source.read(_rows(job).filter(condition).order_by("pk"), target.apps))
        found.rows += len(rows)
        for row, result in zip(rows, source.compute(rows, prepared), strict=True):
            if isinstance(result, LeftAsItIs):
                continue
            before = [getattr(row, each.attname) for each in fields]
            after = [str(result)] if isinstance(result, Exception) else list(result)
            stored = [
                each.get_db_prep_save(value, connection) for each, value in zip(fields, before, strict=True)
            ]
            if isinstance(result, Exception) or stored != [
                each.get_db_prep_save(getattr(value, "pk", value), connection)
                for each, value in zip(fields, after, strict=True)
            ]:
                facts = {name: getattr(row, name) for name in newer.names}
                found.note(row.pk, before, after, is_newer=newer.is_so(facts))
    return found


def _rows(job: Job) -> Any:
    """Return the rows that the values are meant for: a condition that they end says of none that it was its own."""
    chosen = job.target.chosen
    return Batches(job.model, job.alias).rows if chosen is None else chosen.using(job.alias).order_by()


class _Newer:
    """Was a row written by the site since the last run began, as a field with auto_now says?"""

    def __init__(self, job: Job) -> None:
        run = store.last_run(job.target)
        self.since = run.started if run is not None else None
        named = [each.name for each in job.model._meta.concrete_fields if getattr(each, "auto_now", False)]
        self.names = named if self.since else []

    def is_so(self, facts: dict[str, Any]) -> bool:
        moments = [facts[name] for name in self.names if isinstance(facts[name], datetime)]
        return self.since is not None and any(moment > self.since for moment in moments)


# Tried, and rolled back

#: The rows that are tried, the columns that are shown where no fields are named, and the letters of a value.
ROWS, COLUMNS, LETTERS = 10, 5, 40


@dataclass(frozen=True)
class Trial:
    """For each row that was tried: its key, and each field before and after; `after` is None where it was deleted."""

    fields: list[str]
    rows: list[tuple[Any, list[Any], list[Any] | None]]
    bad: dict[Any, str]
    #: How many rows of other models are deleted along with them.
    along: dict[str, int]
    #: How many rows the table has, as the database estimates it.
    rows_about: int

    @property
    def headings(self) -> list[str]:
        return ["key", *self.fields]

    @property
    def listed_along(self) -> str:
        return ", ".join(f"{number:,} {label}" for label, number in sorted(self.along.items()))

    def cells(self, letters: int = LETTERS) -> list[list[str]]:
        """Return the key, and what becomes of each field, in words; of a value no more than so many letters."""
        return [
            [self._key(key, after), *self._row(key, before, after, letters)]
            for key, before, after in self.rows
        ]

    def _key(self, key: Any, after: list[Any] | None) -> str:
        return f"{key} → deleted" if after is None and key not in self.bad else str(key)

    def _row(self, key: Any, before: list[Any], after: list[Any] | None, letters: int) -> list[str]:
        if key in self.bad:
            return [f"bad: {self.bad[key]}", *[""] * (len(self.fields) - 1)]
        if after is None:
            return [shown(value, letters) for value in before]
        return [
            shown(old, letters) if old == new else changed(old, new, letters)
            for old, new in zip(before, after, strict=True)
        ]


def trial(job: Job) -> Trial:
    """Do the first rows that are to be done in a transaction that is rolled back, after `before()`.

    Locks these rows for so long. What a function does elsewhere than in this database is not rolled back.
    """
    target, source = job.target, job.source
    assert not isinstance(source, AsWritten), "no backfill is of this kind"
    job.validate()
    batches, model = target.batches, target.model
    others = [field.name for field in model._meta.concrete_fields if not field.primary_key]
    names = list(target.names) or others[:COLUMNS]
    bad: dict[Any, str] = {}
    with transaction.atomic(target.alias):
        if keys := batches.remaining_keys(ROWS):
            _prepare(job)
        along = _deleted_along(model, target.alias, keys) if job.deletes_along else {}
        before = _found(model, target.alias, keys, names)
        work = work_for(target, source, for_connection(connections[target.alias]))
        for key in keys:
            try:
                with transaction.atomic(target.alias):
                    _done, found = work(batches, Range(key, key))
                    connections[target.alias].check_constraints([model._meta.db_table])
                bad |= {row.key: row.reason for row in found if not isinstance(row, LeftRow)}
                written = not any(row.key == key for row in found)
                if written and target.is_marked and batches.todo.filter(pk=key).exists():
                    bad[key] = (
                        f"it still fulfils {target.where} after it was written, so the run would not end"
                    )
            except Exception as error:  # noqa: BLE001  what it is stands beside the row
                bad[key] = " ".join(f"{type(error).__name__}: {error}".split())
        after = _found(model, target.alias, keys, names)
        transaction.set_rollback(True, using=target.alias)
    rows_found = [(key, before[key], after.get(key)) for key in keys if key in before]
    database = for_connection(connections[target.alias])
    return Trial(names, rows_found, bad, along, database.estimated_rows(model))


def _prepare(job: Job) -> None:
    try:
        job.before()
    except (Error, SafemigrateError):
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidBackfill(f"before() of {job.label} raised {text}, so no row was tried.") from error


def tried(job: Job) -> tuple[str, int]:
    """Return the trial as a table for the terminal, "" where there is no row, and how many rows were bad ones."""
    found = trial(job)
    if not found.rows:
        return "", 0
    lines = ["The first of them, tried and rolled back:", table(found.headings, found.cells())]
    if found.along:
        lines.append(f"Deleted with these {len(found.rows):,}: {found.listed_along}.")
    return "\n".join(lines), len(found.bad)


def _deleted_along(model: type[Model], alias: str, keys: list[Any]) -> dict[str, int]:
    """Delete these rows, take it back, and return how many rows of which other models went with them."""
    by_label: dict[str, int] = {}
    # What a row refuses is said beside it.
    with suppress(Exception), transaction.atomic(alias):
        _number, by_label = model._base_manager.using(alias).filter(pk__in=keys).delete()
        transaction.set_rollback(True, using=alias)
    return {label: number for label, number in by_label.items() if number and label != model._meta.label}


def _found(model: type[Model], alias: str, keys: list[Any], names: list[str]) -> dict[Any, list[Any]]:
    rows = model._base_manager.using(alias).filter(pk__in=keys).values_list("pk", *names)
    return {key: list(values) for key, *values in rows}


def shown(value: Any, letters: int = LETTERS) -> str:
    """Return a value in one short line."""
    return _cut(_in_one_line(value), 0, letters)


def changed(old: Any, new: Any, letters: int = LETTERS) -> str:
    """Return what becomes of a value, each cut to where they begin to differ."""
    texts = [_in_one_line(old), _in_one_line(new)]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    start = max(same - letters // 4, 0) if max(map(len, texts)) > letters else 0
    return " → ".join(_cut(text, start, letters) for text in texts)


def _in_one_line(value: Any) -> str:
    text = "NULL" if value is None else " ".join(str(value).split())
    # Blanks at its ends are not seen.
    return repr(value) if isinstance(value, str) and (not value or value != text) else text


def _cut(text: str, start: int, letters: int) -> str:
    """Return so many letters of a text from there on, a dot for what is left out at an end."""
    start = min(start, max(len(text) - letters, 0))
    if start:
        text = f"…{text[start + 1 :]}"
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
