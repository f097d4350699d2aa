"""Values that Python made, written into the rows of one target, each by its key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

from django.db import models
from django.db.models import QuerySet
from django.db.models.sql import UpdateQuery

from safemigrate.backends.base.schema import key_columns
from safemigrate.types import AnyField

#: Django gives the database such a key as it is.
WHOLE_NUMBERS = {
    models.AutoField,
    models.BigAutoField,
    models.SmallAutoField,
    models.IntegerField,
    models.BigIntegerField,
    models.SmallIntegerField,
}


class Write:
    """Writes (keys, columns of values) into rows that still have the target's mark.

    Values are as `get_db_prep_save` gave them; keys are in the order in which the database has them, and not
    adapted. A field that is in `target.kept` keeps what it has where it is not NULL. Returns how many rows
    were written. Each call is one transaction.
    """

    def __init__(self, database: Any, target: Any) -> None:
        self.database, self.connection, self.quote = database, database.connection, database.quote
        self.target, self.meta = target, target.model._meta
        self.table = self.quote(self.meta.db_table)
        self.keys = key_columns(target.model)
        self.fields = [self.meta.get_field(name) for name in target.names]
        self.todo, self.todo_params = self._mark()

    def __call__(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> int:
        return self.one_by_one(keys, columns)

    def one_by_one(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> int:
        """Write row by row, each value in the SQL that its field puts around it."""
        written = 0
        with self.writing(keys), self.connection.cursor() as cursor:
            for values, key in zip(
                zip(*columns, strict=True), zip(*self._adapted(keys), strict=True), strict=True
            ):
                placed = [
                    self._placed(field, value) for field, value in zip(self.fields, values, strict=True)
                ]
                params = [param for _, params in placed for param in params]
                cursor.execute(
                    self._update_by_key([sql for sql, _ in placed]), [*params, *key, *self.todo_params]
                )
                written += cursor.rowcount
        return written

    def writing(self, keys: Sequence[Any]) -> AbstractContextManager[None]:
        """Return the transaction in which the rows of these keys, in their order, are written."""
        rows: QuerySet[Any] = QuerySet(self.target.model, using=self.connection.alias)
        writing: AbstractContextManager[None] = self.database.writing(
            rows.filter(self.target.write_mark, pk__gte=keys[0], pk__lte=keys[-1])
        )
        return writing

    def _placed(self, field: AnyField, value: Any) -> Any:
        """Return a value as SQL and parameters, as Django's UPDATE has it."""
        compiler = UpdateQuery(self.target.model).get_compiler(connection=self.connection)
        if hasattr(field, "get_placeholder_sql"):  # From Django 6.1 on.
            return field.get_placeholder_sql(value, compiler, self.connection)
        sql, params = compiler.compile(value) if hasattr(value, "as_sql") else ("%s", [value])
        if not hasattr(field, "get_placeholder"):
            return sql, params
        outer = field.get_placeholder(value, compiler, self.connection)
        return (outer % sql if hasattr(value, "as_sql") else outer), params

    def _update_by_key(self, values: Sequence[str] = ()) -> str:
        assignments = ", ".join(
            f"{self._column(field)} = {self._assigned(self._column(field), value, field)}"
            for field, value in zip(self.fields, values or ["%s"] * len(self.fields), strict=True)
        )
        keys = " AND ".join(f"{self._column(key)} = %s" for key in self.keys)
        return f"UPDATE {self.table} SET {assignments} WHERE {keys} AND ({self.todo})"

    def _by_key(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Return the parameters of `_update_by_key`, row by row."""
        mark = ([param] * len(keys) for param in self.todo_params)
        return list(zip(*columns, *self._adapted(keys), *mark, strict=True))

    def _adapted(self, keys: Sequence[Any]) -> list[Sequence[Any]]:
        """Return the keys as the database takes them, one column for each part of the key."""
        parts: Sequence[Any] = [keys] if len(self.keys) == 1 else list(zip(*keys, strict=True))
        return [self._prepared(field, part) for field, part in zip(self.keys, parts, strict=True)]

    def _prepared(self, field: AnyField, values: Sequence[Any]) -> Sequence[Any]:
        kind: type = type(field)
        if kind in WHOLE_NUMBERS:
            return values
        return [field.get_db_prep_value(value, self.connection) for value in values]

    def _column(self, field: AnyField, table: str = "") -> str:
        return f"{table}{self.quote(field.column)}"

    def _mark(self) -> tuple[str, list[Any]]:
        """Return the condition of rows still to be filled, the table before each column, and its parameters."""
        query = QuerySet(self.target.model, using=self.connection.alias).filter(self.target.write_mark).query
        if not query.where:
            return "1 = 1", []
        sql, params = query.get_compiler(connection=self.connection).compile(query.where)
        return str(sql), list(params)

    def _assigned(self, column: str, value: str, field: AnyField) -> str:
        # A single field is written only where it is NULL; of several, one may have its value already.
        return (
            f"COALESCE({column}, {value})"
            if field.name in self.target.kept and len(self.fields) > 1
            else value
        )


def in_rows(columns: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the values of all columns, row after row."""
    return list(chain.from_iterable(zip(*columns, strict=True)))


PLACEHOLDERS = ("get_placeholder_sql", "get_placeholder")


def has_own_sql(field: AnyField) -> bool:
    """Does the field put SQL of its own around each value, as fields do that encrypt in the database?"""
    for each in type(field).__mro__:
        if any(name in vars(each) for name in PLACEHOLDERS):
            # Django's own say again what the writes do: a cast, or that bytes are bytes.
            return not each.__module__.startswith(("django.db.models.", "django.contrib.postgres."))
    return False


def are_expressions(columns: Sequence[Sequence[Any]]) -> bool:
    return any(hasattr(kind, "as_sql") for column in columns for kind in {*map(type, column)})
