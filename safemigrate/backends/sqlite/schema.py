"""SQLite: one writer at a time, and NOT NULL by a copy of the table, in one transaction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.db import DatabaseError
from django.db.backends.utils import strip_quotes
from django.db.models import Model, Q
from django.db.transaction import atomic

from safemigrate.backends.base.schema import Column, Database, short_name
from safemigrate.conf import get
from safemigrate.schema.steps import Blocked, Lock, Requirement, Step
from safemigrate.types import AnyField

EARLY = "safemigrate_early"
# As a name stands in the SQL that the file keeps.
NAME = r'\s*(?:"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\w+)'
INDEX = re.compile(rf"\bINDEX{NAME}\s+ON{NAME}", re.IGNORECASE)


class SQLite(Database):
    guards_before_not_null = False
    limits_values = False
    fills_at_once = True

    def column(self, model: type[Model], column: str) -> Column | None:
        table = self.quote(model._meta.db_table)
        for _, name, _, not_null, default, _ in self.fetch(f"PRAGMA table_info({table})"):
            if name == column:
                return Column(not not_null, default is not None)
        return None

    def other_type(self, model: type[Model], field: AnyField) -> str | None:
        table = self.quote(model._meta.db_table)
        types = {row[1]: row[2] for row in self.fetch(f"PRAGMA table_info({table})")}
        found = types.get(field.column)
        return None if found is None or found.lower() == field.db_type(self.connection).lower() else found

    def is_lock_timeout(self, error: BaseException) -> bool:
        return isinstance(error, DatabaseError) and "locked" in str(error)

    def is_transient(self, error: BaseException) -> bool:
        return self.is_lock_timeout(error)

    def is_null_refused(self, error: BaseException) -> bool:
        return isinstance(error, DatabaseError) and "NOT NULL constraint failed" in str(error)

    def blockers(self, tables: Sequence[str], blocks: Blocked = "everyone") -> list[str]:
        return ["another connection that reads or writes the file; SQLite does not show which"]

    def index_early(self, model: type[Model], field: AnyField) -> list[Step]:
        # A UNIQUE constraint needs the copy of the table; until then a plain index serves.
        name, table, column = self._early_index(model, field), model._meta.db_table, field.column
        return [
            Step(
                f"index {column} for the search of free values",
                (f"CREATE INDEX {self.quote(name)} ON {self.quote(table)} ({self.quote(column)})",),
                Lock("the database's one writer", "writers", "while it is read"),
                needed=lambda: name not in self._extras(table),
            )
        ]

    def require(self, from_model: type[Model], model: type[Model], field: AnyField) -> Requirement:
        steps = super().require(from_model, model, field).enforce
        return Requirement(enforce=[self._keeping_extras(step, model) for step in steps])

    def add_required(
        self, from_model: type[Model], model: type[Model], field: AnyField, value: str = "NULL"
    ) -> Step:
        (step,) = self.require(model, model, field).enforce
        # Where another process has added the column in the meantime, this fails, and its values stay.
        add = self.sql(lambda editor: editor.add_field(model, self.bare(field)))
        copy = self._copying(from_model, field, value)
        return replace(
            step,
            title=f"add the column {field.column}, filled and required, by one copy of the table",
            statements=(
                *add,
                *(copy if text.startswith("INSERT INTO") else text for text in step.statements),
            ),
            needed=lambda: True,
        )

    def _copying(self, from_model: type[Model], field: AnyField, value: str) -> str:
        """Return the statement that copies the rows when Django changes a table, with `value` for the field."""
        if field.remote_field and field.db_constraint:
            # What refers to no row comes out as NULL, which NOT NULL refuses.
            parent = self.quote(field.remote_field.model._meta.db_table)
            key = f"p.{self.quote(field.target_field.column)}"
            value = (
                f"(SELECT {key} FROM (SELECT {value} AS v) AS c CROSS JOIN {parent} AS p WHERE {key} = c.v)"
            )
        name = from_model._meta.db_table
        stored = [f for f in from_model._meta.local_concrete_fields if not getattr(f, "generated", False)]
        columns = ", ".join(self.quote(str(f.column)) for f in stored)
        return (
            f"INSERT INTO {self.quote(f'new__{strip_quotes(name)}')} ({columns}, {self.quote(field.column)}) "
            f"SELECT {columns}, {value} FROM {self.quote(name)}"
        )

    def release(self, from_model: type[Model], model: type[Model], field: AnyField) -> list[Step]:
        steps = super().release(from_model, model, field)
        return [self._keeping_extras(step, model, without=field.column) for step in steps]

    def drop_column(self, model: type[Model], field: AnyField) -> list[Step]:
        steps = super().drop_column(model, field)
        return [self._keeping_extras(step, model, without=field.column) for step in steps]

    @contextmanager
    def prepared(self, tables: Sequence[str]) -> Iterator[None]:
        """Take the write lock at once: a transaction that reads first could not become the writer later."""
        mode, wait = self.connection.transaction_mode, self.fetch("PRAGMA busy_timeout")[0][0]
        self.connection.transaction_mode = "IMMEDIATE"
        self.execute(f"PRAGMA busy_timeout = {max(1, round(get('SAFEMIGRATE_LOCK_TIMEOUT') * 1000))}")
        try:
            with atomic(self.connection.alias):
                yield
        finally:
            self.connection.transaction_mode = mode
            self.execute(f"PRAGMA busy_timeout = {wait}")

    @contextmanager
    def scratch(
        self, model: type[Model], copy: Any, fields: Sequence[Any], samples: Sequence[Q]
    ) -> Iterator[None]:
        mode, checked = self.connection.transaction_mode, self.connection.disable_constraint_checking()
        # Any other mode would lock the file, though only what is not in the file is written.
        self.connection.transaction_mode = "DEFERRED"
        try:
            self._make_scratch(model, copy, fields)
            self.copy_rows(model, copy, fields, samples)
            with self.rolled_back():
                yield
        finally:
            self.execute(f"DROP TABLE IF EXISTS temp.{self.quote(copy._meta.db_table)}")
            self.connection.transaction_mode = mode
            if checked:
                self.connection.enable_constraint_checking()

    def _make_scratch(self, model: type[Model], copy: Any, fields: Sequence[Any]) -> None:
        table, name = model._meta.db_table, self.quote(copy._meta.db_table)
        ((made,),) = self.fetch("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = %s", [table])
        self.execute(re.sub(rf"^CREATE TABLE{NAME}", f"CREATE TEMP TABLE {name}", made, count=1))
        self.renew_columns(model, copy, fields)
        new = {field.column for field in fields}
        for number, (index, sql) in enumerate(self._extras(table, "index").items()):
            if not new & set(self._indexed(index)):
                own = self.quote(f"safemigrate_sample_{number}")
                self.execute(INDEX.sub(f"INDEX temp.{own} ON {name}", sql, count=1))

    def _keeping_extras(self, step: Step, model: type[Model], without: str | None = None) -> Step:
        """Make a copied table get back the triggers and indexes that only the database knows of."""
        if not any("new__" in statement for statement in step.statements):
            return step
        remade = " ".join(step.statements)
        kept = [
            sql
            for name, sql in self._extras(model._meta.db_table).items()
            if self.quote(name) not in remade
            and not name.endswith(EARLY)
            and (without is None or without not in self._indexed(name))
        ]
        return replace(step, statements=(*step.statements, *kept))

    def _indexed(self, name: str) -> list[str]:
        return [row[2] for row in self.fetch(f"PRAGMA index_info({self.quote(name)})")]

    def _extras(self, table: str, *kinds: str) -> dict[str, str]:
        rows = self.fetch(
            "SELECT name, type, sql FROM sqlite_master WHERE tbl_name = %s AND sql IS NOT NULL", [table]
        )
        return {name: sql for name, kind, sql in rows if kind in (kinds or ("index", "trigger"))}

    @staticmethod
    def _early_index(model: type[Model], field: AnyField) -> str:
        return short_name(model._meta.db_table, field.column, suffix=EARLY)
