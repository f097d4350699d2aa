"""MySQL and MariaDB: no transaction around DDL; INSTANT and INPLACE changes that let writers pass."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from django.db import Error
from django.db.transaction import atomic

from safemigrate import fields
from safemigrate.conf import get
from safemigrate.databases.base import Column, Database, error_code, key_columns
from safemigrate.exceptions import OrphanRows
from safemigrate.steps import Requirement, Step

ONLINE = "ALGORITHM=INPLACE, LOCK=NONE"
INSTANT = "ALGORITHM=INSTANT"
# 1205 lock wait timeout, 1213 deadlock, 1020 row changed since last read, 2006/2013/4031 connection lost.
LOCK_TIMEOUT, TRANSIENT = {1205}, {1205, 1213, 1020, 2006, 2013, 4031}
# 1138/1265/1048 a NULL in a NOT NULL column, 1845/1846 the algorithm or lock asked for is not possible.
NULL_REFUSED, COPY_REFUSED = {1138, 1265, 1048}, {1845, 1846}


class MySQL(Database):
    def column(self, model: Any, column: str) -> Column | None:
        table = self.quote(model._meta.db_table)
        for row in self.fetch(f"SHOW COLUMNS FROM {table} WHERE Field = %s", [column]):
            # MariaDB gives the text 'NULL' as the default of a nullable column without one.
            return Column(row[2] == "YES", row[4] is not None and row[4] != "NULL")
        return None

    def estimated_rows(self, model: Any) -> int:
        rows = self.fetch(
            "SELECT table_rows FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name = %s",
            [model._meta.db_table],
        )
        return int(rows[0][0] or 0) if rows else 0

    def is_lock_timeout(self, error: BaseException) -> bool:
        return error_code(error) in LOCK_TIMEOUT

    def is_transient(self, error: BaseException) -> bool:
        return error_code(error) in TRANSIENT

    def is_null_refused(self, error: BaseException) -> bool:
        return error_code(error) in NULL_REFUSED

    def is_copy_refused(self, error: BaseException) -> bool:
        return error_code(error) in COPY_REFUSED

    def blockers(self, tables: Sequence[str]) -> list[str]:
        # Which of them holds this table is told only by the plugin metadata_lock_info: name all that are open.
        rows = self.fetch(
            "SELECT p.id, p.user, p.host, p.command, t.trx_started, COALESCE(p.info, '') "
            "FROM information_schema.innodb_trx t "
            "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
            "WHERE p.id <> CONNECTION_ID() ORDER BY t.trx_started"
        )
        return [
            f"connection {pid}, user {user}@{host}, {command.lower()}, in a transaction since {since}: "
            f"{' '.join(query.split())[:80] or 'no statement running'}"
            for pid, user, host, command, since, query in rows
        ]

    def same_text(self, value: str) -> str:
        # The usual collations ignore case, accents and trailing spaces.
        plain = unicodedata.normalize("NFKD", value).casefold().rstrip()
        return "".join(letter for letter in plain if not unicodedata.combining(letter))

    def add_column(self, model: Any, field: Any) -> list[Step]:
        steps = [
            replace(
                step, statements=self._with(step.statements, f", {INSTANT}"), lock="metadata lock, an instant"
            )
            for step in super().add_column(model, field)
        ]
        return [*steps, *self._default_steps(model, field)]

    def _default_steps(self, model: Any, field: Any) -> list[Step]:
        if not field.has_db_default():
            return []
        old, new = self.bare(field), fields.with_default(field)
        return [
            Step(
                f"give {field.column} the default of the database for rows that come in from now on",
                self.sql(lambda editor: editor.alter_field(model, old, new)),
                "metadata lock, an instant",
                needed=lambda: not self._has_default(model, field),
            )
        ]

    def _has_default(self, model: Any, field: Any) -> bool:
        column = self.column(model, field.column)
        return column is not None and column.has_default

    def require(self, from_model: Any, model: Any, field: Any) -> Requirement:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        modify = f"ALTER TABLE {table} MODIFY {column} {self._definition(model, field)}"
        settle = Step(
            f"set {field.column} NOT NULL",
            self._with((modify,), f", {ONLINE}"),
            "shared metadata lock while the table is rebuilt; exclusive for an instant at both ends",
            needed=lambda: self._is_nullable(model, field),
        )
        return Requirement(
            before=self._index_steps(model, field),
            settle=[settle],
            after=self._foreign_key_steps(model, field),
        )

    def _definition(self, model: Any, field: Any) -> str:
        """Return the whole column: MODIFY drops a default, collation, comment or check that it is not told of."""
        required = fields.bare(field, null=False)
        required.db_default = field.db_default
        editor = self.editor()
        definition, params = editor.column_sql(model, required)
        if params:
            definition %= tuple(map(editor.quote_value, params))
        check = required.db_parameters(connection=self.connection)["check"]
        # MySQL keeps a check with the table, MariaDB with the column.
        return str(
            f"{definition} CHECK ({check})" if check and self.connection.mysql_is_mariadb else definition
        )

    def _index_steps(self, model: Any, field: Any) -> list[Step]:
        editor, steps = self.editor(), []
        if field.unique:
            statement = editor._create_unique_sql(model, [field])
            steps.append(self._index_step(model, field, statement, f", {ONLINE}"))
        online = f" {ONLINE.replace(',', '')}"
        indexes = editor._field_indexes_sql(model, field)
        steps += [self._index_step(model, field, statement, online) for statement in indexes]
        return steps

    def _index_step(self, model: Any, field: Any, statement: Any, online: str) -> Step:
        name = str(statement.parts["name"]).strip("`")
        return Step(
            f"index {field.column} as {name}",
            self._with((str(statement),), online),
            "shared metadata lock; exclusive for an instant at both ends",
            needed=lambda: not self._index_exists(model, name),
        )

    def _index_exists(self, model: Any, name: str) -> bool:
        table = self.quote(model._meta.db_table)
        return bool(self.fetch(f"SHOW INDEX FROM {table} WHERE Key_name = %s", [name]))

    def _foreign_key_steps(self, model: Any, field: Any) -> list[Step]:
        if not (field.remote_field and field.db_constraint):
            return []
        statement = self.editor()._create_fk_sql(model, field, "_fk_%(to_table)s_%(to_column)s")
        table, name = self.quote(model._meta.db_table), str(statement.parts["name"])
        checked = self.fetch("SELECT @@SESSION.foreign_key_checks")[0][0]
        return [
            Step(
                f"add the foreign key of {field.column}",
                # Unchecked, because a checked one is made by a copy that blocks writers; see `verify`.
                ("SET foreign_key_checks = 0", *self._with((str(statement),), f", {ONLINE}")),
                "shared metadata lock on both tables; exclusive for an instant at both ends",
                needed=lambda: not self._foreign_key_exists(model, name.strip("`")),
                cleanup=(f"SET foreign_key_checks = {checked}",),
                verify=lambda: self._take_back_for_orphans(
                    model, field, f"ALTER TABLE {table} DROP FOREIGN KEY {name}"
                ),
            )
        ]

    def _foreign_key_exists(self, model: Any, name: str) -> bool:
        with self.connection.cursor() as cursor:
            return name in self.connection.introspection.get_constraints(cursor, model._meta.db_table)

    def _take_back_for_orphans(self, model: Any, field: Any, undo: str) -> None:
        try:
            self.refuse_orphans(model, field)
        except OrphanRows:
            self.execute(undo)
            raise

    @contextmanager
    def prepared(self, tables: Sequence[str]) -> Iterator[None]:
        seconds = self.lock_wait(get("SAFEMIGRATE_LOCK_TIMEOUT"))
        with self._session("lock_wait_timeout", seconds), self._strict():
            yield

    def lock_wait(self, timeout: float) -> int:
        # The server counts in whole seconds.
        return max(1, math.ceil(timeout))

    @contextmanager
    def _session(self, name: str, value: Any) -> Iterator[None]:
        before = self.fetch(f"SELECT @@SESSION.{name}")[0][0]
        self._set(name, value)
        try:
            yield
        finally:
            with suppress(Error):  # The connection may be what was lost.
                self._set(name, before)

    def _strict(self) -> Any:
        # Without a strict mode NOT NULL turns NULLs into zeros and empty texts.
        mode = self.fetch("SELECT @@SESSION.sql_mode")[0][0]
        return self._session("sql_mode", ",".join(filter(None, [mode, "STRICT_TRANS_TABLES"])))

    def _set(self, name: str, value: Any) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET SESSION {name} = %s", [value])

    @staticmethod
    def _with(statements: Sequence[str], ending: str) -> tuple[str, ...]:
        """Ask the server to refuse rather than to copy the table, unless the project allows the copy."""
        if get("SAFEMIGRATE_ALLOW_TABLE_COPY"):
            return tuple(statements)
        return tuple(statement + ending for statement in statements)

    def write(
        self, model: Any, names: Sequence[str], marks: Sequence[str], kept: Sequence[str], rows: Sequence[Any]
    ) -> int:
        keys = key_columns(model)
        if len(keys) > 1 or keys[0].get_internal_type() not in _NUMERIC_KEYS:
            return super().write(model, names, marks, kept, rows)
        size = 1_000
        with atomic(self.connection.alias):
            return sum(
                self._write_joined(model, names, marks, kept, rows[start : start + size])
                for start in range(0, len(rows), size)
            )

    def _write_joined(
        self, model: Any, names: Sequence[str], marks: Sequence[str], kept: Sequence[str], rows: Sequence[Any]
    ) -> int:
        meta, quote = model._meta, self.quote
        table, key = quote(meta.db_table), quote(key_columns(model)[0].column)
        columns = {name: f"{table}.{quote(meta.get_field(name).column)}" for name in {*names, *marks}}
        new = [f"safemigrate_v{number}" for number in range(len(names))]
        first = "SELECT %s AS safemigrate_key, " + ", ".join(f"%s AS {name}" for name in new)
        other = " UNION ALL SELECT " + ", ".join(["%s"] * (len(names) + 1))
        assignments = ", ".join(
            f"{columns[name]} = " + self._assigned(columns[name], value, name, names, kept)
            for name, value in zip(names, new, strict=True)
        )
        todo = " OR ".join(f"{columns[name]} IS NULL" for name in marks)
        sql = (
            f"UPDATE {table} JOIN ({first}{other * (len(rows) - 1)}) AS safemigrate_new "
            f"ON {table}.{key} = safemigrate_key SET {assignments} "
            f"WHERE {table}.{key} BETWEEN %s AND %s AND ({todo})"
        )
        params = [part for row in rows for part in row]
        with self.connection.cursor() as cursor:
            cursor.execute(sql, [*params, rows[0][0], rows[-1][0]])
            return int(cursor.rowcount)


_NUMERIC_KEYS = {
    "AutoField",
    "BigAutoField",
    "SmallAutoField",
    "IntegerField",
    "BigIntegerField",
    "SmallIntegerField",
    "PositiveIntegerField",
    "PositiveBigIntegerField",
    "PositiveSmallIntegerField",
}
