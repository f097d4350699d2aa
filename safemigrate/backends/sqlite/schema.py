"""SQLite: one writer at a time, and NOT NULL by a copy of the table, in one transaction."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from django.db import DatabaseError
from django.db.models import Model, Q
from django.db.transaction import atomic

from safemigrate.backends.base.schema import Check, Column, Database, Helper, short_name
from safemigrate.backends.sqlite.definition import Definition, split
from safemigrate.conf import get
from safemigrate.schema import fields
from safemigrate.schema.steps import Blocked, Lock, Requirement, Step
from safemigrate.types import AnyField, field_of, is_text

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows has none.
    flock = None  # type: ignore[assignment]

#: The files that this process has locked, by their paths.
_lock_files: dict[str, int] = {}
EARLY = "safemigrate_early"
# It has one code for all: a function of Python's that raised, a text that is no JSON, a value that is too large.
ROW_FAULT = re.compile(r"user-defined (function|aggregate)|JSON|integer overflow|too big")
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

    def checks(self, model: type[Model], column: str) -> list[Check]:
        stored = self.fetch(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = %s COLLATE NOCASE",
            [model._meta.db_table],
        )
        names = self._stored(model) if stored else []
        found = []
        for name, sql in Definition.parse(stored[0][0]).checks() if stored else ():
            words = {word.strip('"`[]').lower() for word in split(sql)}
            read = tuple(each for each in names if each.lower() in words)
            found += [Check(name, sql, read)] if column in read else []
        return found

    def other_type(self, model: type[Model], field: AnyField) -> str | None:
        table = self.quote(model._meta.db_table)
        types = {row[1]: row[2] for row in self.fetch(f"PRAGMA table_info({table})")}
        found = types.get(field.column)
        return None if found is None or found.lower() == field.db_type(self.connection).lower() else found

    @contextmanager
    def filling(self) -> Iterator[None]:
        # Django looks at no foreign key while a migration runs: a value that is no key would be stored, and the
        # migration fail at its very end, each time.
        ((checked,),) = self.fetch("PRAGMA foreign_keys")
        self.execute("PRAGMA foreign_keys = ON")
        try:
            yield
        finally:
            self.execute(f"PRAGMA foreign_keys = {checked}")

    def is_lock_timeout(self, error: BaseException) -> bool:
        return isinstance(error, DatabaseError) and "locked" in str(error)

    rounds = False

    def differs(self, field: AnyField, column: str, value: str) -> str:
        return (
            f"({column} COLLATE BINARY IS NOT ({value}))"
            if is_text(field)
            else f"({column} IS NOT ({value}))"
        )

    def is_fault_of_a_row(self, error: BaseException) -> bool:
        return super().is_fault_of_a_row(error) or (
            isinstance(error, DatabaseError) and ROW_FAULT.search(str(error)) is not None
        )

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
        return Requirement(enforce=[self._copying(step, model, field) for step in steps])

    def add_required(
        self, from_model: type[Model], model: type[Model], field: AnyField, value: str = "NULL"
    ) -> Step:
        (step,) = super().require(model, model, field).enforce
        # Where another process has added the column in the meantime, this fails, and its values stay.
        add = self.sql(lambda editor: editor.add_field(model, self.bare(field)))
        step = self._copying(step, model, field, self._referring(field, value))
        return replace(
            step,
            title=f"add the column {field.column}, filled and required, by one copy of the table",
            statements=(*add, *step.statements),
            needed=lambda: True,
        )

    def _referring(self, field: AnyField, value: str) -> str:
        """Return the SQL of a value; what refers to no row comes out as NULL, which NOT NULL refuses."""
        if not (field.remote_field and field.db_constraint):
            return value
        parent = self.quote(field.remote_field.model._meta.db_table)
        key = f"p.{self.quote(field.target_field.column)}"
        return f"(SELECT {key} FROM (SELECT {value} AS v) AS c CROSS JOIN {parent} AS p WHERE {key} = c.v)"

    def release(self, from_model: type[Model], model: type[Model], field: AnyField) -> list[Step]:
        dropped = self._index_names(model, fields.gained(field_of(from_model, field.name), field))
        steps = super().release(from_model, model, field)
        return [self._copying(step, model, field, dropped=dropped) for step in steps]

    def drop_column(self, model: type[Model], field: AnyField) -> list[Step]:
        return [self._copying(step, model, field) for step in super().drop_column(model, field)]

    def _index_names(self, model: type[Model], field: AnyField) -> list[str]:
        statements = self.editor()._field_indexes_sql(model, field)
        return [str(statement.parts["name"]).strip('"') for statement in statements]

    def _copying(
        self, step: Step, model: type[Model], field: AnyField, value: str = "", dropped: Sequence[str] = ()
    ) -> Step:
        """Return the step with a copy of the table as it is, but for this column, in place of Django's of the model.

        The table may have columns, constraints, options, indexes and triggers that no model knows of, and what
        else reads it, such as a view, may not be looked at while it is away. `value` is the SQL of the column's;
        the indexes `dropped` are not made again.
        """
        made = [text for text in step.statements if text.startswith("CREATE TABLE ")]
        table, column = model._meta.db_table, field.column
        # Where a view or another table's trigger is, the table's new name would be looked up in it.
        master = self._master(table, views=True) if made else []
        stored = [each for each in master if each[1] != "other"]
        unread = len(master) > len(stored)
        found = [sql for _, kind, sql in stored if kind == "table"]
        if not found:
            return step
        name, new = self.quote(table), self.quote(f"new__{table}")
        wanted = Definition.parse(made[0]).columns.get(column.lower())
        copied = [each for each in self._stored(model) if each != column]
        values = dict(zip(copied, map(self.quote, copied), strict=True))
        if wanted:
            values[column] = value or self.quote(column)
        indexes = [key for key, kind, _ in stored if kind == "index"]
        kept = {
            key: sql
            for key, kind, sql in stored
            if kind != "table"
            and not key.endswith(EARLY)
            and key not in dropped
            and (wanted or column not in self._indexed(key))
        }
        own = [
            text
            for text in step.statements
            if field.db_index and INDEX.search(text) and self.quote(column) in text
        ]
        statements = (
            Definition.parse(found[0]).with_column(column, wanted).create(new),
            f"INSERT INTO {new} ({', '.join(map(self.quote, values))}) SELECT {', '.join(values.values())} FROM {name}",
            *(self._copying_last_key(table) if "AUTOINCREMENT" in found[0].upper() else ()),
            f"DROP TABLE {name}",
            *(("PRAGMA legacy_alter_table = ON",) if unread else ()),
            f"ALTER TABLE {new} RENAME TO {name}",
            *kept.values(),
            *(text for text in own if not any(self.quote(key) in text for key in indexes)),
        )
        return replace(
            step, statements=statements, cleanup=("PRAGMA legacy_alter_table = OFF",) if unread else ()
        )

    def _copying_last_key(self, table: str) -> tuple[str, ...]:
        """Return what lets AUTOINCREMENT go on from the last key that it gave out, also where that row is gone."""
        old, new = (self.editor().quote_value(name) for name in (table, f"new__{table}"))
        row = f"SELECT {new}, seq FROM sqlite_sequence WHERE name = {old}"
        return (
            f"DELETE FROM sqlite_sequence WHERE name = {new}",
            f"INSERT INTO sqlite_sequence (name, seq) {row}",
        )

    def _stored(self, model: type[Model]) -> list[str]:
        """Return the columns that have values of their own."""
        rows = self.fetch(f"PRAGMA table_xinfo({self.quote(model._meta.db_table)})")
        return [row[1] for row in rows if not row[6]]

    def editor(self) -> Any:
        editor = super().editor()
        execute = editor.execute
        # With an empty list of parameters a percent sign in a default would be taken for a place of one.
        editor.execute = lambda sql, params=(): execute(sql, params or None)
        return editor

    def lock_name(self, name: str) -> bool:
        """Lock a file of its own: the database's can be locked only together with its one writer."""
        if flock is None or self.connection.is_in_memory_db():
            return True
        try:
            file = _opened(self._lock_file(name))
        except (
            OSError
        ):  # It is another user's, or there is no room for it. The database keeps its writers apart.
            return True
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except OSError:
            os.close(file)
            return False
        _lock_files[self._lock_file(name)] = file
        return True

    def unlock_name(self, name: str) -> None:
        file = _lock_files.pop(self._lock_file(name), None)
        if file is not None:
            os.close(
                file
            )  # It stays: were it removed, another process might hold a file that has no name any more.

    def _lock_file(self, name: str) -> str:
        path = os.path.realpath(self.connection.settings_dict["NAME"])
        digest = hashlib.sha256(f"{path}:{name}".encode()).hexdigest()[:16]
        return str(Path(gettempdir()) / f"safemigrate-{digest}.lock")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        # One that reads first could not become the writer where another has written since, and would be done again.
        mode = self.connection.transaction_mode
        self.connection.transaction_mode = "IMMEDIATE"
        try:
            with super().transaction():
                yield
        finally:
            self.connection.transaction_mode = mode

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

    def _indexed(self, name: str) -> list[str]:
        return [row[2] for row in self.fetch(f"PRAGMA index_info({self.quote(name)})")]

    def _extras(self, table: str, *kinds: str) -> dict[str, str]:
        rows = self._master(table)
        return {name: sql for name, kind, sql in rows if kind in (kinds or ("index", "trigger"))}

    def _master(self, table: str, *, views: bool = False) -> list[tuple[Any, ...]]:
        """Return name, kind and text of the table, its indexes and triggers; with `views`, "other" readers too."""
        return self.fetch(
            "SELECT name, CASE WHEN tbl_name = %s COLLATE NOCASE THEN type ELSE 'other' END, sql FROM sqlite_master "
            "WHERE sql IS NOT NULL AND (tbl_name = %s COLLATE NOCASE OR (%s AND type IN ('view', 'trigger')))",
            [table, table, views],
        )

    def helpers(self) -> list[Helper]:
        rows = self.fetch(
            "SELECT tbl_name, type, name FROM sqlite_master WHERE type = 'trigger' AND name LIKE %s ESCAPE '!' "
            "OR type = 'index' AND name LIKE %s ESCAPE '!' ORDER BY 1, 3",
            ["%!_safemigrate!_guard!_%", f"%!_{EARLY.replace('_', '!_')}"],
        )
        return [
            Helper(table, kind, name, f"DROP {kind.upper()} {self.quote(name)};")
            for table, kind, name in rows
        ]

    def helper_names(self, model: type[Model], field: AnyField) -> set[str]:
        return {self._early_index(model, field)}

    @staticmethod
    def _early_index(model: type[Model], field: AnyField) -> str:
        return short_name(model._meta.db_table, field.column, suffix=EARLY)


def _opened(path: str) -> int:
    # A file that is there is not asked to be made: in a folder for all, another user's could not be opened then.
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
