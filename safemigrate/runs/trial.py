"""A backfill tried on some rows: what they are before and after, and all of it rolled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import connections, transaction
from django.db.models import Model

from safemigrate.backends import for_connection
from safemigrate.engine.batch_runner import LeftRow, work_for
from safemigrate.engine.batches import Range
from safemigrate.formatting import table
from safemigrate.populate.sources import AsWritten
from safemigrate.runs.lookup import Job

#: The rows that are tried, the columns that are shown where no fields are named, and the letters of a value.
ROWS, COLUMNS, LETTERS = 10, 5, 40


@dataclass(frozen=True)
class Trial:
    """For each row that was tried: its key, and each field before and after; `after` is None where it was deleted."""

    fields: list[str]
    rows: list[tuple[Any, list[Any], list[Any] | None]]
    bad: dict[Any, str]

    @property
    def headings(self) -> list[str]:
        return ["key", *self.fields]

    def cells(self) -> list[list[str]]:
        """Return the key, and what becomes of each field, in words."""
        return [[self._key(key, after), *self._row(key, before, after)] for key, before, after in self.rows]

    def _key(self, key: Any, after: list[Any] | None) -> str:
        return f"{key} → deleted" if after is None and key not in self.bad else str(key)

    def _row(self, key: Any, before: list[Any], after: list[Any] | None) -> list[str]:
        if key in self.bad:
            return [f"bad: {self.bad[key]}", *[""] * (len(self.fields) - 1)]
        if after is None:
            return [shown(value) for value in before]
        return [
            shown(old) if old == new else f"{shown(old)} → {shown(new)}"
            for old, new in zip(before, after, strict=True)
        ]


def trial(job: Job, rows: int = ROWS) -> Trial:
    """Do the first rows that are to be done in a transaction that is rolled back.

    Locks these rows for so long. What a function does elsewhere than in this database is not rolled back.
    """
    target, source = job.target, job.source
    assert not isinstance(source, AsWritten), "no backfill is of this kind"
    job.validate()
    batches, model = target.batches, target.model
    names = list(target.names) or [
        field.name for field in model._meta.concrete_fields if not field.primary_key
    ]
    names = names if target.names else names[:COLUMNS]
    bad: dict[Any, str] = {}
    with transaction.atomic(target.alias):
        keys = batches.remaining_keys(rows)
        before = _values(model, target.alias, keys, names)
        work = work_for(target, source, for_connection(connections[target.alias]))
        for key in keys:
            try:
                with transaction.atomic(target.alias):
                    _done, found = work(batches, Range(key, key))
                bad |= {row.key: row.reason for row in found if not isinstance(row, LeftRow)}
            except Exception as error:  # noqa: BLE001  what it is stands beside the row
                bad[key] = " ".join(f"{type(error).__name__}: {error}".split())
        after = _values(model, target.alias, keys, names)
        transaction.set_rollback(True, using=target.alias)
    return Trial(names, [(key, before[key], after.get(key)) for key in keys if key in before], bad)


def tried(job: Job) -> str:
    """Return the trial as a table for the terminal, "" where there is no row."""
    found = trial(job)
    if not found.rows:
        return ""
    return f"The first of them, tried and rolled back:\n{table(found.headings, found.cells())}"


def _values(model: type[Model], alias: str, keys: list[Any], names: list[str]) -> dict[Any, list[Any]]:
    rows = model._base_manager.using(alias).filter(pk__in=keys).values_list("pk", *names)
    return {key: list(values) for key, *values in rows}


def shown(value: Any) -> str:
    """Return a value in one short line."""
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
