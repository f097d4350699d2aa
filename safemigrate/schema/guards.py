"""Write guards: what a row gets that is inserted without the field, by code that does not know it."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import Model, Value

from safemigrate.backends import Database, get_backend
from safemigrate.exceptions import NoGuard
from safemigrate.populate.sources import InDatabase, Source
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField


def why_not(source: Source) -> str | None:
    """Return why no database could guard a field by this populate, None where most can."""
    if isinstance(source, InDatabase) or _is_random_uuid(source):
        return None
    return f"{source.title} is computed in Python, and a database cannot run that when old code inserts a row"


def up(
    database: Database,
    model: type[Model],
    field: AnyField,
    source: Source,
    apps: Any,
    *,
    is_known: bool = False,
) -> list[Step]:
    """Return the steps that guard the field: a default for a value or a uuid, triggers for an expression.

    Each takes a short lock. Run again they replace a guard that is different. A field with a default of the
    database's own (db_default) is guarded by that. Where the column `is_known` to older code, which may write NULL
    into it by name, it is triggers always. Raises NoGuard where this database cannot.
    """
    guards = get_backend(database.connection).guards
    reason = why_not(source)
    constant = guards.triggers if is_known else guards.constant
    if field.has_db_default() and not is_known:
        source = InDatabase({field.name: field.db_default}, "its db_default")
        if database.gives_defaults_early:
            return []
    elif reason:
        raise NoGuard(reason)
    elif _is_random_uuid(source):
        sql = guards.random_uuid(field)
        if sql is None:
            raise NoGuard(f"{database.connection.display_name} makes no uuid for a {type(field).__name__}")
        return constant(model, field, sql)
    (value,) = source.assignments(model, apps).values()  # type: ignore[union-attr]
    sql = guards.sql(model, field, value)
    reads_no_column = isinstance(value, Value) or not hasattr(value, "resolve_expression")
    expression = guards.triggers if is_known else guards.expression
    return (constant if reads_no_column else expression)(model, field, sql)


def down(database: Database, model: type[Model], field: AnyField, *, is_known: bool = False) -> list[Step]:
    """Return the steps that take any guard of the field away; nothing is done where there is none.

    A default of a column that `is_known` to older code is not the guard's, and stays.
    """
    triggers = get_backend(database.connection).guards.drop_triggers(model, field)
    return [*([] if is_known else drop_default(database, model, field)), *triggers]


def drop_default(database: Database, model: type[Model], field: AnyField) -> list[Step]:
    """Return the step that takes a default away which guards the field, unless it is a db_default."""
    return get_backend(database.connection).guards.drop_default(model, field)


def random_uuid(database: Database, field: AnyField) -> str | None:
    """Return the SQL of a uuid as uuid.uuid4 makes it, in the form of the field's column; None without any."""
    return get_backend(database.connection).guards.random_uuid(field)


def _is_random_uuid(source: Source) -> bool:
    return getattr(source, "function", None) is uuid.uuid4
