"""MySQL and MariaDB: no transaction around DDL; INSTANT and INPLACE changes that let writers pass."""

from __future__ import annotations

import math
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from django.db import DatabaseError, Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import Model, Q, QuerySet

from safemigrate.backends.base.schema import Check, Column, Database, Helper, error_code, short_name
from safemigrate.backends.mysql import blockers, impatience, obstacles
from safemigrate.conf import get
from safemigrate.exceptions import OrphanRows
from safemigrate.schema import fields
from safemigrate.schema.steps import Blocked, Lock, Obstacle, Requirement, Step, Time
from safemigrate.types import AnyField, field_of, is_text

ONLINE = "ALGORITHM=INPLACE, LOCK=NONE"
STRICT = "CONCAT_WS(',', NULLIF(@@SESSION.sql_mode, ''), 'STRICT_TRANS_TABLES')"
INSTANT = "ALGORITHM=INSTANT"
# 1205 lock wait timeout, 3572 the same where NOWAIT was asked for.
LOCKED = {1205, 3572}
# "Operation not permitted during COMMIT": MariaDB to a SELECT .. SKIP LOCKED, 10.11 where the only row is locked,
# 11.8 also where a locked row is passed on the way to others.
SKIP_FAILED = 1180
# 1213 deadlock, 1020 row changed since last read, 2006/2013/4031 connection lost.
LOCK_TIMEOUT, TRANSIENT = {*LOCKED, 1213}, {*LOCKED, 1213, 1020, 2006, 2013, 4031}
# A subquery of several rows, what a trigger signals, and a text that is no JSON.
ROW_FAULT = {1242, 1644, 3140, 3141, 3143, 3144, 4037, 4038}
# The end of a statement that gives a column a text as its default.
LITERAL = re.compile(r"SET DEFAULT \(?('.*')\)?$", re.DOTALL)
# The time allowed for a statement is over: MariaDB's max_statement_time, MySQL's max_execution_time.
CANCELLED = {1969, 3024}
# 1138/1265/1048 a NULL in a NOT NULL column, 1845/1846 the algorithm or lock asked for is not possible, 4092
# nothing is INSTANT any more, because the versions of rows are used up.
NULL_REFUSED, COPY_REFUSED = {1138, 1265, 1048}, {1845, 1846, 4092}
# Columns that were added and dropped in an instant count for the size of a row, until the table is built anew.
ROW_TOO_LARGE = 1118
# A privilege is missing: on a command, on any, and (1419) to make triggers while the server keeps a binary log.
DENIED = {1142, 1227, 1419}

METADATA = Lock("exclusive metadata lock on the table", "everyone")
SHARED = "metadata lock on {}, shared but at both ends"


#: How many settings are made for now within each other, by thread.
_nested = threading.local()


class MySQL(Database):
    alter = METADATA
    locks_what_it_reads = True
    gives_defaults_early = True
    writes_at_once = True
    adds_constants = True

    def column(self, model: type[Model], column: str) -> Column | None:
        table = self.quote(model._meta.db_table)
        for row in self.fetch(f"SHOW COLUMNS FROM {table} WHERE Field = %s", [column]):
            # MariaDB gives the text 'NULL' as the default of a nullable column without one.
            return Column(row[2] == "YES", row[4] is not None and row[4] != "NULL")
        return None

    def checks(self, model: type[Model], column: str) -> list[Check]:
        mariadb = self.connection.mysql_is_mariadb
        tables = "information_schema.check_constraints"
        if not mariadb:
            tables += " JOIN information_schema.table_constraints USING (constraint_schema, constraint_name)"
        rows = self.fetch(
            f"SELECT constraint_name, check_clause FROM {tables} "
            "WHERE constraint_schema = DATABASE() AND table_name = %s ORDER BY 1",
            [model._meta.db_table],
        )
        table = self.quote(model._meta.db_table)
        names = [row[0] for row in (self.fetch(f"SHOW COLUMNS FROM {table}") if rows else ())]
        found = []
        for name, clause in rows:
            sql = f"({clause})" if mariadb else clause.replace("\\'", "'")
            read = tuple(each for each in names if self.quote(each) in sql)
            found += [Check(name, sql, read)] if column in read else []
        return found

    def unique_index(self, model: type[Model], column: str) -> str | None:
        computed = "''" if self.connection.mysql_is_mariadb else "COALESCE(expression, '')"
        rows = self.fetch(
            "SELECT index_name FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = %s "
            f"AND non_unique = 0 AND (column_name = %s OR INSTR({computed}, %s) > 0)",
            [model._meta.db_table, column, self.quote(column)],
        )
        return rows[0][0] if rows else None

    def _typed(self, field: AnyField) -> str:
        return "%s"

    def other_type(self, model: type[Model], field: AnyField) -> str | None:
        table = self.quote(short_name(model._meta.db_table, suffix="safemigrate_type", limit=64))
        column = f"{self.quote(field.column)} {field.db_type(self.connection)}"
        try:
            with self.impatient(model):
                found = self._type(self.quote(model._meta.db_table), field.column)
            if found is None:
                return None
            # The server has its own names of the types, as tinyint(1) for bool, and calls this one by its own. It may
            # demand a key of each table (sql_require_primary_key).
            self.execute(f"CREATE TEMPORARY TABLE {table} (safemigrate_key integer PRIMARY KEY, {column})")
            wanted = self._type(table, field.column)
            self.execute(f"DROP TEMPORARY TABLE {table}")
        except DatabaseError as error:
            if self.is_denied(error) or self.is_lock_timeout(error):
                return None
            raise
        return None if found == wanted else found

    def _type(self, table: str, column: str) -> str | None:
        rows = self.fetch(f"SHOW COLUMNS FROM {table} WHERE Field = %s", [column])
        return rows[0][1] if rows else None

    def estimated_rows(self, model: type[Model]) -> int:
        rows = self.fetch(
            "SELECT table_rows FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name = %s",
            [model._meta.db_table],
        )
        return int(rows[0][0] or 0) if rows else 0

    @property
    def reads_what_it_updates(self) -> bool:  # type: ignore[override]
        return bool(self.connection.mysql_is_mariadb)

    def session(self, model: type[Model]) -> tuple[Any, ...]:
        return self.fetch("SELECT DATABASE(), CURRENT_USER()")[0]

    def is_lock_timeout(self, error: BaseException) -> bool:
        return error_code(error) in LOCK_TIMEOUT

    def is_skip_failed(self, error: BaseException) -> bool:
        return bool(error_code(error) == SKIP_FAILED)

    def is_row_locked(self, error: BaseException) -> bool:
        return error_code(error) in LOCKED

    def is_fault_of_a_row(self, error: BaseException) -> bool:
        return super().is_fault_of_a_row(error) or error_code(error) in ROW_FAULT

    def is_cancelled(self, error: BaseException) -> bool:
        return error_code(error) in CANCELLED

    def is_transient(self, error: BaseException) -> bool:
        return error_code(error) in TRANSIENT

    def is_null_refused(self, error: BaseException) -> bool:
        return error_code(error) in NULL_REFUSED

    def is_copy_refused(self, error: BaseException) -> bool:
        return error_code(error) in COPY_REFUSED

    def is_denied(self, error: BaseException) -> bool:
        return error_code(error) in DENIED

    def blockers(self, tables: Sequence[str], blocks: Blocked = "everyone") -> list[str]:
        return blockers.named(self, tables)

    def same_text(self, value: str) -> str:
        # The usual collations ignore case, accents and trailing spaces.
        plain = unicodedata.normalize("NFKD", value).casefold().rstrip()
        return "".join(letter for letter in plain if not unicodedata.combining(letter))

    def editor(self) -> Any:
        editor = super().editor()
        quote = editor.quote_value

        def quoted(value: Any) -> Any:
            # In quotes they would be taken for text of the connection's character set.
            if isinstance(value, bytes | bytearray | memoryview):
                return f"X'{value.hex()}'"
            literal = quote(value)
            # mysqlclient makes bytes of what it has no type for, a UUID, and Django leaves them so.
            return literal.decode() if isinstance(literal, bytes) else literal

        editor.quote_value = quoted
        return editor

    def obstacles(self, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
        yield from obstacles.found(self, model, field)

    def bare(self, field: AnyField) -> Any:
        clone = fields.bare(field)
        if not self.connection.mysql_is_mariadb and field.get_internal_type().startswith("Positive"):
            # UNSIGNED holds the numbers to it; with a CHECK the column would be added by a copy of the table.
            clone.db_check = lambda connection: None
        return clone

    def add_column(self, model: type[Model], field: AnyField) -> list[Step]:
        steps = [
            replace(step, statements=self._with(step.statements, f", {INSTANT}"))
            for step in super().add_column(model, field)
        ]
        return [*steps, *self._default_steps(model, field)]

    def _default_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        if not field.has_db_default():
            return []
        old, new = self.bare(field), fields.with_default(field)
        statements = self.sql(lambda editor: editor.alter_field(model, old, new))
        if not self.connection.mysql_is_mariadb and field.db_type(self.connection) in ("longtext", "json"):
            # For these MySQL takes no literal, not even in parentheses.
            statements = tuple(LITERAL.sub(r"SET DEFAULT (CONCAT(\1))", text) for text in statements)
        return [
            Step(
                f"give {field.column} the default of the database for rows that come in from now on",
                statements,
                METADATA,
                tables=(self.quote(model._meta.db_table),),
                needed=lambda: not self._has_default(model, field),
            )
        ]

    def _has_default(self, model: type[Model], field: AnyField) -> bool:
        column = self.column(model, field.column)
        return column is not None and column.has_default

    def require(self, from_model: type[Model], model: type[Model], field: AnyField) -> Requirement:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        modify = f"ALTER TABLE {table} MODIFY {column} {self._definition(model, field)}"
        enforce = Step(
            f"set {field.column} NOT NULL",
            self._with((modify,), f", {ONLINE}"),
            self._lock("while it is copied"),
            tables=(table,),
            needed=lambda: self._is_nullable(model, field),
        )
        accept_nulls = self._open_door(model, field)
        return Requirement(
            before=self._index_steps(model, field),
            reject_nulls=self._close_door(model, field),
            accept_nulls=accept_nulls,
            enforce=[enforce, *accept_nulls],
            after=self._foreign_key_steps(model, field),
        )

    def add_constant(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], *, ask: bool = True
    ) -> Step | None:
        table = self.quote(model._meta.db_table)
        forms = [
            tuple(f"{text}, {INSTANT}" for text in self.constant_column(model, field, default))
            for default in defaults
        ]
        statements = self._first_taken(model, forms) if ask else forms[0]
        if statements is None:
            return None
        return Step(
            f"add the column {field.column}, required, with one value for all rows: none is written",
            statements,
            METADATA,
            tables=(table,),
            needed=lambda: self.column(model, field.column) is None,
        )

    def add_common(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], comment: str, *, ask: bool = True
    ) -> list[Step]:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        forms = [
            tuple(
                f"{text} COMMENT '{comment}', {INSTANT}"
                for text in self.constant_column(model, field, default, null=True)
            )
            for default in defaults
        ]
        statements = self._first_taken(model, forms) if ask else forms[0]
        if statements is None:
            return []
        add = Step(
            f"add the column {field.column} with the value that most rows get: none is written",
            statements,
            METADATA,
            tables=(table,),
            needed=lambda: self.column(model, field.column) is None,
        )
        # Without any default, an INSERT that does not name the column would fail.
        late = Step(
            f"let {field.column} be NULL in rows that come in from now on",
            (f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT NULL, {INSTANT}",),
            METADATA,
            tables=(table,),
            needed=lambda: self._has_default(model, field),
        )
        return [add, late]

    def comment(self, model: type[Model], field: AnyField) -> str:
        rows = self.fetch(
            "SELECT column_comment FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = %s",
            [model._meta.db_table, field.column],
        )
        return rows[0][0] if rows else ""

    def _first_taken(self, model: type[Model], forms: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
        table = self.quote(model._meta.db_table)
        # Where the server takes no writes at all there is nothing to ask.
        with self.strict(), suppress(DatabaseError), obstacles.empty_copy(self, model) as copy:
            for statements in forms if copy else ():
                with suppress(DatabaseError):
                    self.execute(*(text.replace(table, str(copy), 1) for text in statements))
                    return statements
        return None

    def release(self, from_model: type[Model], model: type[Model], field: AnyField) -> list[Step]:
        table, final = self.quote(model._meta.db_table), field_of(from_model, field.name)
        definition = self._definition(from_model, field, null=True)
        modify = f"ALTER TABLE {table} MODIFY {self.quote(field.column)} {definition}"
        nullable = Step(
            f"let {field.column} be NULL again",
            self._with((modify,), f", {ONLINE}"),
            self._lock("while it is copied"),
            tables=(table,),
            needed=lambda: not self._is_nullable(model, field),
        )
        old, new = fields.nullable(final), fields.nullable(field)
        new.db_default = old.db_default
        drops = [
            Step(
                f"drop an index or constraint of {field.column}",
                (text,),
                METADATA,
                tables=self.tables(model, final),
            )
            for text in self.sql(lambda editor: editor.alter_field(from_model, old, new))
        ]
        return [nullable, *drops, *self._drop_implied_index(from_model, fields.gained(final, field))]

    def _drop_implied_index(self, model: type[Model], field: AnyField) -> list[Step]:
        """The server makes an index for a foreign key, under its name, and keeps it when the key is dropped."""
        if not (field.remote_field and field.db_constraint and field.db_index):
            return []
        statement = self.editor()._create_fk_sql(model, field, "_fk_%(to_table)s_%(to_column)s")
        table, name = self.quote(model._meta.db_table), str(statement.parts["name"])
        return [
            Step(
                f"drop the index {name}",
                (f"ALTER TABLE {table} DROP INDEX {name}",),
                METADATA,
                tables=(table,),
                needed=lambda: self._index_exists(model, name.strip("`")),
            )
        ]

    def add_required(
        self, from_model: type[Model], model: type[Model], field: AnyField, value: str = "NULL"
    ) -> Step:
        # Nullable first: the server would give a row that has come in a zero or an empty text.
        require = self.require(model, model, field)
        steps = [*self.add_column(model, field), *require.before, require.enforce[0], *require.after]
        return Step(
            f"add the column {field.column}, required, to the table without rows",
            tuple(statement for step in steps for statement in step.statements),
            METADATA,
            tables=self.tables(model, field),
            cleanup=steps[-1].cleanup,
            verify=steps[-1].verify,
        )

    def _close_door(self, model: type[Model], field: AnyField) -> list[Step]:
        """Refuse new NULLs by triggers, or rows of old code would make the rebuild fail at its end, each time."""
        column = self.quote(field.column)
        message = self.editor().quote_value(f"{field.column} must not be NULL any more (safemigrate)"[:128])
        signal = f"SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 1048, MESSAGE_TEXT = {message}"
        # A row that is NULL already may be updated: it is filled in a moment.
        conditions = {
            "insert": f"NEW.{column} IS NULL",
            "update": f"NEW.{column} IS NULL AND OLD.{column} IS NOT NULL",
        }
        return [
            create_trigger(
                self,
                model,
                name,
                f"BEFORE {event.upper()}",
                f"BEGIN IF {conditions[event]} THEN {signal}; END IF; END",
                f"let no new NULL into {field.column} (on {event.upper()})",
                needed=lambda: self._is_nullable(model, field),
            )
            for event, name in self._door(model, field).items()
        ]

    def _open_door(self, model: type[Model], field: AnyField) -> list[Step]:
        names = self._door(model, field).values()
        return [drop_trigger(self, model, name, f"let NULL into {field.column} again") for name in names]

    def helpers(self) -> list[Helper]:
        rows = self.fetch(
            "SELECT event_object_table, trigger_name FROM information_schema.triggers "
            "WHERE trigger_schema = DATABASE() AND trigger_name REGEXP %s ORDER BY 1, 2",
            ["_safemigrate_(guard_)?(insert|update)$"],
        )
        return [Helper(table, "trigger", name, f"DROP TRIGGER {self.quote(name)};") for table, name in rows]

    def helper_names(self, model: type[Model], field: AnyField) -> set[str]:
        return set(self._door(model, field).values())

    @staticmethod
    def _door(model: type[Model], field: AnyField) -> dict[str, str]:
        return {
            event: short_name(model._meta.db_table, field.column, suffix=f"safemigrate_{event}", limit=64)
            for event in ("insert", "update")
        }

    def _definition(self, model: type[Model], field: AnyField, *, null: bool = False) -> str:
        """Return the whole column: MODIFY drops a default, collation, comment or check that it does not name."""
        field = field_of(model, field.name)
        required = fields.bare(field, null=null)
        required.db_default = field.db_default
        editor = self.editor()
        definition, params = editor.column_sql(model, required)
        if params:
            definition %= tuple(map(editor.quote_value, params))
        if not field.has_db_default():
            definition += self._kept_default(model, field)
        check = required.db_parameters(connection=self.connection)["check"]
        # MySQL keeps a check with the table, MariaDB with the column.
        return str(
            f"{definition} CHECK ({check})" if check and self.connection.mysql_is_mariadb else definition
        )

    def _kept_default(self, model: type[Model], field: AnyField) -> str:
        """Return the default of a write guard, for old code that goes on inserting while the column is changed."""
        rows = self.fetch(
            "SELECT column_default, extra FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = %s AND column_default <> 'NULL'",
            [model._meta.db_table, field.column],
        )
        if not rows:
            return ""
        default, extra = rows[0]
        if (
            not self.connection.mysql_is_mariadb
        ):  # It gives a literal without its quotes, an expression with escaped ones.
            generated = "DEFAULT_GENERATED" in extra
            default = default.replace("\\'", "'") if generated else str(self.editor().quote_value(default))
        return f" DEFAULT ({default})"

    def _index_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        editor, steps = self.editor(), []
        if field.unique:
            statement = editor._create_unique_sql(model, [field])
            steps.append(self._index_step(model, field, statement, f", {ONLINE}"))
        online = f" {ONLINE.replace(',', '')}"
        indexes = editor._field_indexes_sql(model, field)
        steps += [self._index_step(model, field, statement, online) for statement in indexes]
        return steps

    def _index_step(self, model: type[Model], field: AnyField, statement: Any, online: str) -> Step:
        name = str(statement.parts["name"]).strip("`")
        return Step(
            f"index {field.column} as {name}",
            self._with((str(statement),), online),
            self._lock("while it is read"),
            tables=(self.quote(model._meta.db_table),),
            needed=lambda: not self._index_exists(model, name),
        )

    def _index_exists(self, model: type[Model], name: str) -> bool:
        table = self.quote(model._meta.db_table)
        return bool(self.fetch(f"SHOW INDEX FROM {table} WHERE Key_name = %s", [name]))

    def _foreign_key_steps(self, model: type[Model], field: AnyField) -> list[Step]:
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
                self._lock("while it is read", "both tables"),
                tables=self.tables(model, field),
                needed=lambda: not self._foreign_key_exists(model, name.strip("`")),
                cleanup=(f"SET foreign_key_checks = {checked}",),
                verify=lambda: self._take_back_for_orphans(
                    model, field, f"ALTER TABLE {table} DROP FOREIGN KEY {name}"
                ),
            )
        ]

    def _foreign_key_exists(self, model: type[Model], name: str) -> bool:
        with self.connection.cursor() as cursor:
            return name in self.connection.introspection.get_constraints(cursor, model._meta.db_table)

    def _take_back_for_orphans(self, model: type[Model], field: AnyField, undo: str) -> None:
        try:
            self.refuse_orphans(model, field)
        except OrphanRows:
            self.execute(undo)
            raise

    def attempt(self, statements: Sequence[str], timeout: float) -> None:
        for statement in statements:
            self.run_alter(statement)

    def run_alter(self, statement: str) -> None:
        """Run it; what cannot be done in an instant is asked for online."""
        try:
            self.execute(statement)
        except DatabaseError as error:
            anew = error_code(error) == ROW_TOO_LARGE
            if not ((anew or self.is_copy_refused(error)) and statement.endswith(INSTANT)):
                raise
            self.execute(statement.removesuffix(INSTANT) + ("FORCE, " if anew else "") + ONLINE)

    @contextmanager
    def prepared(self, tables: Sequence[str]) -> Iterator[None]:
        limits = {
            "lock_wait_timeout": str(self.lock_wait(get("SAFEMIGRATE_LOCK_TIMEOUT"))),
            "sql_mode": STRICT,
        }
        if self.connection.mysql_is_mariadb:  # Where a table is built anew, it takes its time.
            limits["max_statement_time"] = "0"
        with self._for_now(**limits):
            self._wait_until_free(tables)
            yield

    def _wait_until_free(self, tables: Sequence[str]) -> None:
        """Find out, for no longer than others may wait behind it, whether another session holds the tables."""
        if not tables:
            return
        lock = f"LOCK TABLES {', '.join(f'{table} WRITE' for table in tables)}"
        try:
            if self.connection.mysql_is_mariadb:
                self._lock_nowait(lock)
            else:
                impatience.execute(self, lock, get("SAFEMIGRATE_LOCK_TIMEOUT"))
        except DatabaseError as error:
            if error_code(error) not in DENIED | {1044}:
                raise
            return  # Without the privilege LOCK TABLES the step itself finds it out, in its second.
        self.execute("UNLOCK TABLES")

    def _lock_nowait(self, lock: str) -> None:
        """Ask again and again without queueing: behind a queue all wait."""
        deadline = time.monotonic() + get("SAFEMIGRATE_LOCK_TIMEOUT")
        while True:
            try:
                return self.execute(f"{lock} NOWAIT")
            except DatabaseError as error:
                if not self.is_lock_timeout(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def lock_wait(self, timeout: float) -> int:
        # The server counts in whole seconds.
        return max(1, math.ceil(timeout))

    def strict(self) -> Any:
        # Without a strict mode NOT NULL turns NULLs into zeros and empty texts, and cuts what does not fit.
        return self._for_now(sql_mode=STRICT)

    @staticmethod
    def _lock(lasts: Time, on: str = "the table") -> Lock:
        if get("SAFEMIGRATE_ALLOW_TABLE_COPY"):
            return Lock(
                f"metadata lock on {on}, which lets only readers pass", "writers", "while it is copied"
            )
        return Lock(SHARED.format(on), "nobody", lasts)

    @staticmethod
    def _with(statements: Sequence[str], ending: str) -> tuple[str, ...]:
        """Ask the server to refuse rather than to copy the table, unless the project allows the copy."""
        if get("SAFEMIGRATE_ALLOW_TABLE_COPY"):
            return tuple(statements)
        return tuple(statement + ending for statement in statements)

    @contextmanager
    def filling(self) -> Iterator[None]:
        def make_strict(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
            if connection.alias == self.connection.alias:
                with connection.cursor() as cursor:
                    cursor.execute(f"SET SESSION sql_mode = {STRICT}")

        connection_created.connect(make_strict, weak=False)
        try:
            with self.strict():
                yield
        finally:
            connection_created.disconnect(make_strict)

    def lock_name(self, name: str) -> bool:
        return bool(self.fetch("SELECT GET_LOCK(%s, 0)", [self._named_lock(name)])[0][0])

    def unlock_name(self, name: str) -> None:
        self.fetch("SELECT RELEASE_LOCK(%s)", [self._named_lock(name)])

    def _named_lock(self, name: str) -> str:
        # A lock is the whole server's, and its name no longer than 64 characters.
        return short_name(str(self.connection.settings_dict["NAME"]), name, suffix="safemigrate", limit=60)

    def differs(self, field: AnyField, column: str, value: str) -> str:
        if is_text(field):  # Most collations take a for A, and leave out blanks at the end.
            column, value = (f"CAST(CONVERT({each} USING utf8mb4) AS BINARY)" for each in (column, value))
        elif field.get_internal_type() == "JSONField" and not self.connection.mysql_is_mariadb:
            value = f"CAST({value} AS JSON)"
        return f"(NOT ({column} <=> {value}))"

    @contextmanager
    def writing(self, rows: QuerySet[Any]) -> Iterator[None]:
        self.connection.ensure_connection()  # Without one, Django opens one more to ask for the server's kind.
        if self.connection.mysql_is_mariadb:
            with self._for_now(innodb_lock_wait_timeout="0"), super().writing(rows):
                yield
            return
        with super().writing(rows):  # MySQL counts in whole seconds, and from 1 on.
            # Not the rows of tables that the condition joins.
            own = ("self",) if len(rows.query.alias_map) > 1 else ()
            list(rows.order_by().select_for_update(nowait=True, of=own).values_list("pk"))
            yield

    @contextmanager
    def impatient(self, model: type[Model]) -> Iterator[None]:
        with self._for_now(lock_wait_timeout="1"):
            yield

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        limit = "max_statement_time" if self.connection.mysql_is_mariadb else "max_execution_time"
        with self._for_now(**{limit: "0"}):
            yield

    @contextmanager
    def _for_now(self, **values: str) -> Iterator[None]:
        """Set variables of the session, each to an expression; one within another keeps values of its own."""
        depth = _nested.depth = getattr(_nested, "depth", 0) + 1
        before = {name: f"@safemigrate_{name}_{depth}" for name in values}
        keep = [f"{kept} = @@SESSION.{name}" for name, kept in before.items()]
        try:
            self.execute(
                "SET " + ", ".join([*keep, *(f"SESSION {name} = {to}" for name, to in values.items())])
            )
            try:
                yield
            finally:
                with suppress(Error):  # The connection may be what was lost, and the variables with it.
                    self.execute(
                        "SET " + ", ".join(f"SESSION {name} = {kept}" for name, kept in before.items())
                    )
        finally:
            _nested.depth = depth - 1

    @contextmanager
    def scratch(
        self, model: type[Model], copy: Any, fields: Sequence[Any], samples: Sequence[Q]
    ) -> Iterator[None]:
        table = self.quote(copy._meta.db_table)
        try:
            self.execute(f"CREATE TEMPORARY TABLE {table} LIKE {self.quote(model._meta.db_table)}")
            self.renew_columns(model, copy, fields)
            # Before the transaction, which would keep locks on the rows that were read, where it is REPEATABLE READ.
            self.copy_rows(model, copy, fields, samples)
            with self.rolled_back():
                yield
        finally:
            self.execute(f"DROP TEMPORARY TABLE IF EXISTS {table}")


def create_trigger(
    database: Database,
    model: type[Model],
    name: str,
    timing: str,
    body: str,
    title: str,
    needed: Callable[[], bool] = lambda: True,
) -> Step:
    """Return the step that makes the trigger, or makes it anew where it does something else."""
    quoted, table = database.quote(name), database.quote(model._meta.db_table)
    create = f"TRIGGER {quoted} {timing} ON {table} FOR EACH ROW {body}"
    if database.connection.mysql_is_mariadb:
        statements: tuple[str, ...] = (f"CREATE OR REPLACE {create}",)
    else:
        statements = (f"DROP TRIGGER IF EXISTS {quoted}", f"CREATE {create}")
    return Step(
        title,
        statements,
        METADATA,
        tables=(table,),
        needed=lambda: needed() and _trigger_body(database, name) != body,
    )


def drop_trigger(database: Database, model: type[Model], name: str, title: str) -> Step:
    return Step(
        title,
        (f"DROP TRIGGER IF EXISTS {database.quote(name)}",),
        METADATA,
        tables=(database.quote(model._meta.db_table),),
        needed=lambda: _trigger_body(database, name) is not None,
    )


def _trigger_body(database: Database, name: str) -> str | None:
    rows = database.fetch(
        "SELECT action_statement FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE() AND trigger_name = %s",
        [name],
    )
    return str(rows[0][0]) if rows else None
