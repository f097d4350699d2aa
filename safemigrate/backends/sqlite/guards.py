"""SQLite: two triggers, after INSERT and after UPDATE; a column's default cannot be changed there."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import Any

from django.db.models import Model, UUIDField

from safemigrate.backends.base.guards import WRITES, Events, Guards
from safemigrate.backends.base.schema import key_columns
from safemigrate.exceptions import NoGuard
from safemigrate.schema.steps import Lock, Step
from safemigrate.types import AnyField

UUID4 = (
    "lower(hex(randomblob(6)) || '4' || substr(hex(randomblob(2)), 2) || "
    "substr('89AB', 1 + (random() & 3), 1) || substr(hex(randomblob(8)), 2))"
)


class SQLiteGuards(Guards):
    alter = Lock("the database's one writer", "writers")
    sets_defaults = False

    def random_uuid(self, field: AnyField) -> str | None:
        return UUID4 if isinstance(field, UUIDField) else None

    def refuse(self, model: type[Model], sql: str) -> None:
        """The row is stored when the trigger runs: nothing of it is unknown then."""

    def refuse_unique(self, model: type[Model], field: AnyField) -> None:
        """A value that is taken is passed over."""

    def refuse_raw(self, value: Any) -> None:
        """The trigger is an UPDATE of the table, in which raw SQL means what it means in the fill."""

    def triggers(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        key = " AND ".join(
            f"{table}.{name} = NEW.{name}"
            for name in (self.quote(part.column) for part in key_columns(model))
        )
        # What a CHECK or a unique index refuses stays NULL, and is no reason to refuse the row.
        update = f"UPDATE OR IGNORE {table} SET {column} = {sql} WHERE {key}"
        self._refuse_functions(update)
        return [self._up(model, field, event, f"BEGIN {update}; END") for event in events]

    def _up(self, model: type[Model], field: AnyField, event: str, body: str) -> Step:
        table, name = self.quote(model._meta.db_table), self.name(model, field, event)
        create = (
            f"CREATE TRIGGER {self.quote(name)} AFTER {event.upper()} ON {table} FOR EACH ROW "
            f"WHEN NEW.{self.quote(field.column)} IS NULL {body}"
        )
        return Step(
            f"guard {field.column}: new rows get the same expression (on {event.upper()})",
            (f"DROP TRIGGER IF EXISTS {self.quote(name)}", create),
            self.alter,
            tables=(table,),
            needed=lambda: self._trigger(name) != create,
        )

    def names(self, model: type[Model], field: AnyField) -> set[str]:
        return {self.name(model, field, event) for event in WRITES}

    def drop_triggers(self, model: type[Model], field: AnyField) -> list[Step]:
        return [self._drop(model, field, name) for name in sorted(self.names(model, field))]

    def _drop(self, model: type[Model], field: AnyField, name: str) -> Step:
        return Step(
            f"take the guard of {field.column} away: a trigger",
            (f"DROP TRIGGER IF EXISTS {self.quote(name)}",),
            self.alter,
            tables=(self.quote(model._meta.db_table),),
            needed=lambda: self._trigger(name) is not None,
        )

    def _trigger(self, name: str) -> str | None:
        rows = self.database.fetch(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = %s", [name]
        )
        return str(rows[0][0]) if rows else None

    def _refuse_functions(self, update: str) -> None:
        """Raise NoGuard for what only a connection of Django's can compute: any other insert would fail."""
        tables = self.database.fetch(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%%'", []
        )
        with closing(sqlite3.connect(":memory:")) as plain:
            for (sql,) in tables:
                with suppress(sqlite3.Error):
                    plain.execute(sql)
            try:
                plain.execute(f"EXPLAIN {update}")
            except sqlite3.Error as error:
                if "no such function" in str(error):
                    raise NoGuard(
                        f"SQLite computes it by a Python function of Django's ({error}), which another "
                        "program's insert does not have"
                    ) from error
