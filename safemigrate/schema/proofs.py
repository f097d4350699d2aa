"""Looks at the data, before NOT NULL or a unique constraint is asked for."""

from __future__ import annotations

from typing import Any

from django.db.models import Count

from safemigrate.engine.batches import Batches
from safemigrate.exceptions import BadRows, DuplicateValues, NullsRemain

EXAMPLES = 10


def refuse_nulls(batches: Batches, label: str, source: str = "") -> None:
    """Raise NullsRemain, or BadRows where `source` has just filled them, while a row is NULL."""
    if not batches.any_left():
        return
    keys = ", ".join(map(str, batches.remaining_keys(EXAMPLES)))
    filled_by = f" after {source}" if source else ""
    cure = (
        "Correct the function, or those rows, and run migrate again."
        if source
        else "No Populate of this field stands before SetNotNull in the migrations: add one, or fill these rows "
        "yourself, and run migrate again."
    )
    message = (
        f"{batches.todo.count():,} rows of {label} on {batches.alias} are still NULL{filled_by}, so the column was "
        f"not made required. The first keys: {keys}. {cure}"
    )
    raise BadRows(message, count=batches.todo.count(), examples=[]) if source else NullsRemain(message)


def refuse_duplicates(model: Any, alias: str, field: Any) -> None:
    """Raise DuplicateValues when a value of the field stands in more than one row."""
    rows = Batches(model, alias, [field.name]).rows
    rows = rows.filter(**{f"{field.attname}__isnull": False})
    repeated = rows.values(field.attname).annotate(safemigrate_rows=Count("*")).filter(safemigrate_rows__gt=1)
    examples = list(repeated.order_by("-safemigrate_rows", field.attname)[:EXAMPLES])
    if not examples:
        return
    listed = "\n".join(f"  {row[field.attname]!r} in {row['safemigrate_rows']:,} rows" for row in examples)
    raise DuplicateValues(
        f"{repeated.count():,} values of {model._meta.label}.{field.name} on {alias} stand in "
        f"more than one row, but the field is to be unique; no constraint was created. For example:\n{listed}\n"
        'Correct these rows, or set all back to NULL and populate by PerRow(..., unique=Suffix("-")), and run '
        "migrate again: it carries on from here."
    )
