"""Does a row differ from what would be written? Asked of the database, as it would store it."""

from __future__ import annotations

from typing import Any

from django.db.models import BooleanField, F, Func, Model, Value
from django.db.models.functions import Cast

from safemigrate.backends import for_connection
from safemigrate.types import AnyField

#: Columns that round what they are given.
ROUNDED = {"DecimalField", "IntegerField", "BigIntegerField", "SmallIntegerField", "DateField", "TimeField"}
ROUNDED |= {"PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"}


class Differs(Func):
    """Is the column's value another one than the expression's? NULL is distinguished from a value, and `a` from `A`."""

    arity = 2
    output_field = BooleanField()

    def __init__(self, field: AnyField, value: Any, **extra: Any) -> None:
        self.column_field = field
        super().__init__(F(field.attname), _stored(field, value), **extra)

    def as_sql(self, compiler: Any, connection: Any, *more: Any, **extra: Any) -> Any:
        column, params = compiler.compile(self.source_expressions[0])
        value, given = compiler.compile(self.source_expressions[1])
        return for_connection(connection).differs(self.column_field, column, value), [*params, *given]


def _stored(field: AnyField, value: Any) -> Any:
    """Return what of the value the column would hold."""
    if hasattr(value, "resolve_expression"):
        rounds = field.get_internal_type() in ROUNDED and not isinstance(value, F | Value)
        return Rounded(value, output_field=field) if rounds else value
    if value is None:  # Of a JSONField this would be JSON's null, which is not what an UPDATE writes.
        return Value(None)
    return Value(value.pk if isinstance(value, Model) else value, output_field=field)


class Rounded(Cast):
    """A cast to the type of a column, where the database rounds what it stores."""

    def as_sql(self, compiler: Any, connection: Any, *more: Any, **extra: Any) -> Any:
        if not for_connection(connection).rounds:
            return compiler.compile(self.source_expressions[0])
        return super().as_sql(compiler, connection, *more, **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, **extra)
