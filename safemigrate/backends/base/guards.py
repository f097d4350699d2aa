"""A write guard: the database itself gives a new row the value that it was inserted without."""

from __future__ import annotations

from typing import Any

from django.db.backends.utils import split_identifier
from django.db.models import Model
from django.db.models.expressions import RawSQL
from django.db.models.sql import UpdateQuery

from safemigrate.backends.base.schema import short_name
from safemigrate.exceptions import NoGuard
from safemigrate.schema.steps import Lock, Step
from safemigrate.types import AnyField

SUFFIX = "safemigrate_guard"
#: What a trigger runs at. A column that no code knows yet is NULL in no row that is only updated.
Events = tuple[str, ...]
INSERT, WRITES = ("insert",), ("insert", "update")


class Guards:
    """The guards of one database. Subclasses write the triggers; without one there is no guard."""

    alter = Lock("the table, exclusively", "everyone")
    #: Can a column's default be changed by a statement of its own, and what is added to that.
    sets_defaults, ending = True, ""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.connection = database.connection
        self.quote = database.quote

    # Questions

    def random_uuid(self, field: AnyField) -> str | None:
        """Return the SQL of a random uuid (version 4) as the field's column holds it, None without any."""
        return None

    def sql(self, model: type[Model], field: AnyField, value: Any) -> str:
        """Return the SQL of `value` as an UPDATE of the model would have it, parameters written in.

        Columns stand in it qualified by the table's name.
        """
        query = UpdateQuery(model)
        query.add_update_values({field.name: value})
        sql, params = query.get_compiler(connection=self.connection).as_sql()
        beginning = f"UPDATE {self.quote(model._meta.db_table)} SET {self.quote(field.column)} = "
        if not sql.startswith(beginning):
            raise NoGuard(f"Django compiles it to an UPDATE of an unexpected form: {sql}")
        self.refuse(model, sql)
        self.refuse_raw(value)
        return str(self.database.with_values(sql.removeprefix(beginning), params))

    def refuse_raw(self, value: Any) -> None:
        """Raise NoGuard for raw SQL: its columns are not named with their table, for which the new row stands."""
        if any(isinstance(part, RawSQL) for part in getattr(value, "flatten", list)()):
            raise NoGuard("it is raw SQL, in which the columns of the new row cannot be found")

    def refuse(self, model: type[Model], sql: str) -> None:
        """Raise NoGuard where the database could not compute this for a row that is just coming in."""
        if split_identifier(model._meta.db_table)[0]:
            raise NoGuard("its table is named together with a schema, so a new row cannot stand for it")
        if generated := [field for field in self.read(model, sql) if getattr(field, "generated", False)]:
            raise NoGuard(f"{generated[0].name} is a generated field, not known before the row is stored")

    def read(self, model: type[Model], sql: str) -> list[Any]:
        """Return the fields whose columns an expression over the model reads."""
        table = self.quote(model._meta.db_table)
        return [
            field
            for field in model._meta.local_concrete_fields
            if f"{table}.{self.quote(field.column)}" in sql
        ]

    def defaults(self, field: AnyField, sql: str) -> list[str]:
        """Return `sql`, which reads no column, as what may follow DEFAULT: the plainest form first."""
        return [sql]

    def is_limited(self, model: type[Model], field: AnyField) -> bool:
        """Does a CHECK compare the column with others, so that no value is right in each row?"""
        checks = self.database.checks(model, field.column)
        return any(check.columns != (field.column,) for check in checks)

    def refuse_unique(self, model: type[Model], field: AnyField) -> None:
        """Raise NoGuard where a row with a value that another has would be refused, and with NULL would not."""
        index = "its unique index" if field.unique else self.database.unique_index(model, field.column)
        if index:
            raise NoGuard(
                f"two rows may not have the same value ({index}), and a row that comes in with one that is taken would "
                "be refused"
            )

    def if_there(self, model: type[Model], field: AnyField, sql: str) -> str:
        """Return `sql` as NULL where it is no key of the table that the field refers to."""
        if not (field.remote_field and field.db_constraint):
            return sql
        target = field.target_field
        table, key = self.quote(target.model._meta.db_table), self.quote(target.column)
        # A name of our own: `sql` names the columns with their table, which may be called anything.
        row = self.quote("safemigrate_target")
        return f"(SELECT {row}.{key} FROM {table} AS {row} WHERE {row}.{key} = {sql})"

    # Steps

    def constant(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        """Return the steps that put `sql`, which reads no column, into new rows."""
        return self.expression(model, field, sql, events)

    def expression(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        """Return the steps that put `sql` into rows that come in without the field."""
        return self.triggers(model, field, sql, events)

    def triggers(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        """Return the steps that put `sql` into rows that come in (or are updated) with NULL, named or not."""
        raise NoGuard(f"no write guard is written for {self.connection.display_name}")

    def names(self, model: type[Model], field: AnyField) -> set[str]:
        """Return what the field's triggers are called."""
        return set()

    def drop_triggers(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that take the field's triggers away."""
        return []

    # For the subclasses

    def name(self, model: type[Model], field: AnyField, *more: str, limit: int = 63) -> str:
        table = split_identifier(model._meta.db_table)[1].strip('"')
        return short_name(table, field.column, suffix="_".join([SUFFIX, *more]), limit=limit)

    def row(self, model: type[Model], sql: str) -> str:
        """Return `sql` with the columns of NEW in the place of the table's own."""
        columns = [self.quote(field.column) for field in self.read(model, sql)]
        if not columns:
            return f"({sql})"
        listed = ", ".join(f"NEW.{column} AS {column}" for column in columns)
        return f"(SELECT {sql} FROM (SELECT {listed}) AS {self.quote(model._meta.db_table)})"

    def is_refused(self, model: type[Model], field: AnyField) -> str:
        """Return the SQL of whether a CHECK refuses the new row, "" without one."""
        table = self.quote(model._meta.db_table)
        tests = []
        for check in self.database.checks(model, field.column):
            listed = ", ".join(f"NEW.{name} AS {name}" for name in map(self.quote, check.columns))
            tests.append(f"NOT COALESCE((SELECT {check.sql} FROM (SELECT {listed}) AS {table}), TRUE)")
        return " OR ".join(tests)

    def default_steps(self, model: type[Model], field: AnyField, sql: str) -> list[Step]:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        return [
            Step(
                f"guard {field.column}: new rows get a default",
                (f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {sql}{self.ending}",),
                self.alter,
                tables=(table,),
            )
        ]

    def drop_default(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that take the field's default away, unless it is a db_default."""
        if field.has_db_default() or not self.sets_defaults:
            return []
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        return [
            Step(
                f"take the guard of {field.column} away: its default",
                (f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT{self.ending}",),
                self.alter,
                tables=(table,),
                needed=lambda: getattr(self.database.column(model, field.column), "has_default", False),
            )
        ]
