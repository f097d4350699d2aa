"""Looks at the table and its rows before a step that they would refuse, and refuses it in words."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.core.exceptions import FieldError, ValidationError
from django.db import connections
from django.db.models import CharField, Count, DecimalField, IntegerField, Model, QuerySet, Value

from safemigrate import conf
from safemigrate.backends import Database, for_connection
from safemigrate.engine import context
from safemigrate.engine.batches import Batches, Target
from safemigrate.exceptions import (
    BadRows,
    DuplicateValues,
    InvalidPopulate,
    NullsRemain,
    TooManyRows,
)
from safemigrate.populate import FromApps, FromRelated
from safemigrate.populate.sources import InDatabase, Source
from safemigrate.types import AnyField, field_of

EXAMPLES = 10


def refuse_left(target: Target, source: str = "") -> None:
    """Raise NullsRemain, or BadRows where `source` has just filled them, while a row is still to be filled."""
    batches = target.batches
    if not batches.any_left():
        return
    keys = ", ".join(map(str, batches.remaining_keys(EXAMPLES)))
    filled_by = f" after {source}" if source else ""
    cure = (
        "Correct the function, or those rows, and run migrate again."
        if source
        else "The migrations do not say how to fill them: give RequireField a populate (or let a Populate stand before "
        "SetNotNull), or fill these rows yourself, and run migrate again."
    )
    still = "are still NULL" if target.where is None else f"still fulfil {target.where}"
    so = ", so the column was not made required" if target.where is None else ""
    message = (
        f"{batches.count():,} rows of {target.label} on {target.alias} {still}{filled_by}{so}. The first keys: {keys}. "
        f"{cure}"
    )
    raise BadRows(message, count=batches.count(), examples=[]) if source else NullsRemain(message)


def refuse_condition(target: Target) -> None:
    """Raise InvalidPopulate for a `where` that cannot stand in the UPDATE of a batch."""
    if target.where is None:
        return
    what = f"The where of Populate on {target.label} on {target.alias}, {target.where},"
    rows: QuerySet[Any] = QuerySet(target.model, using=target.alias)
    try:
        query = rows.filter(target.where).query
    except (FieldError, ValueError, TypeError, ValidationError) as error:
        raise InvalidPopulate(f"{what} cannot be asked of the table: {error}") from error
    if len([alias for alias in query.alias_map if query.alias_refcount[alias]]) > 1:
        raise InvalidPopulate(
            f"{what} reads columns of another table. It is repeated by each UPDATE, which has the rows of "
            f"{target.model._meta.label} alone: say it by a subquery, as in Q(Exists(Page.objects.filter("
            'pk=OuterRef("page"), ...))), or let a function of one row decide.'
        )


def refuse_duplicates(model: type[Model], alias: str, field: AnyField) -> None:
    """Raise DuplicateValues when a value of the field stands in more than one row."""
    rows = Batches(model, alias).rows
    rows = rows.filter(**{f"{field.attname}__isnull": False})
    repeated = rows.values(field.attname).annotate(safemigrate_rows=Count("*")).filter(safemigrate_rows__gt=1)
    database = for_connection(connections[alias])
    most = repeated.order_by("-safemigrate_rows", field.attname)[:EXAMPLES]
    examples = database.patiently(lambda: list(most))
    if not examples:
        return
    listed = "\n".join(f"  {row[field.attname]!r} in {row['safemigrate_rows']:,} rows" for row in examples)
    raise DuplicateValues(
        f"{database.patiently(repeated.count):,} values of {model._meta.label}.{field.name} on {alias} stand in "
        f"more than one row, but the field is to be unique; no constraint was created. For example:\n{listed}\n"
        'Correct these rows, or set all back to NULL and populate by PerRow(..., unique=Suffix("-")), and run '
        "migrate again: it carries on from here."
    )


def refuse_many(target: Target) -> None:
    """Raise TooManyRows where the project leaves so many rows to `backfill run`."""
    most = conf.get("SAFEMIGRATE_MAX_ROWS_IN_MIGRATE")
    if most is None:
        return
    rows = target.batches.count()
    if rows <= most:
        return
    label = f"{target.model._meta.label}.{target.names[0]}"
    too_many = (
        f"{rows:,} rows of {target.label} on {target.alias} are to be filled, more than `migrate` may fill here "
        f"(SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = {most:,})."
    )
    if handed_over := context.hand_over(label, target.alias):
        raise TooManyRows(f"{too_many} {handed_over} When it has succeeded, run migrate again.")
    raise TooManyRows(
        f"{too_many} Fill them outside, while the site runs:\n"
        f"    python manage.py backfill run {label} --database {target.alias}\n"
        "Then run migrate again: it finds nothing left to fill, and goes on."
    )


def confirm_required(database: Database, model: type[Model], field: AnyField) -> None:
    """Raise NullsRemain unless the table itself says that the column is there and NOT NULL."""
    if database.is_required(model, field):
        return
    raise NullsRemain(
        f"{model._meta.label}.{field.name} on {database.connection.alias} was to be required by now, and in the table "
        f"{model._meta.db_table} the column {field.column} still takes NULL. Something else changes this table at the "
        "same time, or the migrations before this one are not what was run here: compare them with the table, and run "
        "migrate again."
    )


def refuse_unmarked(target: Target) -> None:
    """Raise InvalidPopulate where there are rows, and no field whose NULL says that one is still to be filled."""
    if not Batches(target.model, target.alias).rows.exists():
        return
    name, label = target.names[0], target.model._meta.label
    raise InvalidPopulate(
        f"Populate of {label}.{', '.join(target.names)} on {target.alias} would change nothing: it fills rows that are "
        f"NULL, and {name} is not null=True in the migrations. To give a new field its value, let AddNullableField "
        "stand before it and SetNotNull behind it. To write values anew in rows that have one, use RunPython with one "
        f"UPDATE: {target.model.__name__}.objects.update({name}=...). In a squashed migration, take the Populate out."
    )


def refuse_not_unique(target: Target) -> None:
    """Raise InvalidPopulate where values are to be made unique in a field that may hold equal ones."""
    field = field_of(target.model, target.names[0])
    if not field.unique:
        raise InvalidPopulate(
            f"unique=Suffix(...) makes the values of {target.model._meta.label}.{field.name} unique, but the field "
            "is not unique=True, so nothing would keep them so. Make it unique=True, or leave unique out."
        )


def refuse_constants(target: Target, source: Source) -> None:
    """Raise InvalidPopulate for a value, the same for all rows, that the column cannot hold.

    Else the write guard would give it to each row that old code inserts, and make that statement fail.
    """
    for field, value in _constants(target, source):
        reason = _does_not_fit(field, value, for_connection(connections[target.alias])).rstrip(".")
        if reason:
            raise InvalidPopulate(
                f"{value!r} does not fit into {target.model._meta.label}.{field.name} on {target.alias}: {reason}. "
                "Nothing was changed. Give another value in the migration, or a field that takes this one."
            )


def refuse_missing(target: Target, source: Source) -> None:
    """Raise InvalidPopulate for a constant that is the key of no row, where the column has, or gets, a foreign key."""
    for field, value in _constants(target, source):
        if not (field.remote_field and field.db_constraint):
            continue
        rows: QuerySet[Any] = QuerySet(field.remote_field.model, using=target.alias)
        if value is not None and not rows.filter(**{field.target_field.attname: value}).exists():
            raise InvalidPopulate(
                f"{target.model._meta.label}.{field.name} on {target.alias} cannot be filled with {value!r}: no row of "
                f"{field.remote_field.model._meta.label} has this {field.target_field.name}. Nothing was changed. "
                "Make that row first, in a migration before this one, or give another key, and run migrate again."
            )


def _constants(target: Target, source: Source) -> Iterator[tuple[AnyField, Any]]:
    """Yield the fields that get one value in all rows, and that value."""
    for name, given in source.values.items() if isinstance(source, InDatabase) else ():
        value = given.value if isinstance(given, Value) else given
        if not (hasattr(value, "resolve_expression") or isinstance(value, FromRelated | FromApps)):
            yield field_of(target.model, name), value


def _does_not_fit(field: AnyField, value: Any, database: Database) -> str:
    most = field.max_length if isinstance(field, CharField) and database.limits_values else None
    if most is not None and isinstance(value, str) and len(value) > most:
        return f"it has {len(value)} characters, and the column takes {most}"
    if isinstance(field, DecimalField) and isinstance(value, Decimal | int) and database.limits_values:
        whole = (field.max_digits or 0) - (field.decimal_places or 0)
        if abs(value) >= 10**whole:
            return f"the column takes {whole} digits before the point"
    if isinstance(field, IntegerField) and isinstance(value, int) and database.limits_values:
        low, high = database.connection.ops.integer_field_range(field.get_internal_type())
        if low is not None and high is not None and not low <= value <= high:
            return f"the column takes numbers from {low:,} to {high:,}"
    try:
        stored = field.get_db_prep_save(value, database.connection)
    except ValidationError as error:
        return "; ".join(error.messages)
    except (ArithmeticError, TypeError, ValueError) as error:
        return str(error) or type(error).__name__
    return database.refused_by_type(field, stored) or database.refused_by_check(field, stored)
