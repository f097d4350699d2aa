"""PostgreSQL: DDL in transactions, constraints that are added first and validated while writers pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, count
from typing import Any

from django.db import DatabaseError, DataError, Error, IntegrityError, InterfaceError, OperationalError
from django.db.backends.utils import split_identifier
from django.db.models import NOT_PROVIDED, Model, Q, QuerySet
from django.db.transaction import atomic

from safemigrate.backends.base.schema import (
    Check,
    Column,
    Database,
    Helper,
    error_code,
    key_columns,
    short_name,
)
from safemigrate.backends.postgresql import blockers, obstacles, partitions
from safemigrate.conf import get
from safemigrate.connections import leave_pool, schema_of
from safemigrate.exceptions import StepRefused
from safemigrate.schema import fields
from safemigrate.schema.steps import Blocked, Lock, Obstacle, Requirement, Step
from safemigrate.types import AnyField, field_of, is_text

LOCK_NOT_AVAILABLE, DEADLOCK = "55P03", "40P01"
INSUFFICIENT_PRIVILEGE, QUERY_CANCELED = "42501", "57014"
# All but the classes in which the server speaks of itself or of the statement: PL/pgSQL may raise any code.
ROW_FAULT = re.compile(r"(?!0|2[05-9A-E]|3|40|42|5[3-8]|72|F0|HV|XX)[0-9A-Z]{5}$")
# Serialization failure, deadlock, lock timeout, the server going down or up, the connection lost.
TRANSIENT = {"40001", DEADLOCK, LOCK_NOT_AVAILABLE, "57P01", "57P02", "57P03"}
# Autovacuum gives way to a lock that has waited for deadlock_timeout, 1 s unless it was changed.
YIELD_SECONDS = 2.0
# Limits for the site's requests, of which a server has some or all. A wait for autovacuum, a build or a proof
# takes its time, and between two tries the transaction is idle.
LIMITS = ["statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]
ONLINE_LIMITS = [*LIMITS, "lock_timeout"]
# What the server runs in transactions of its own.
OWN_TRANSACTIONS = re.compile(r"\bCONCURRENTLY\b|^VACUUM\b")
# Of the settings named in a parameter, those that the server has.
KNOWN = "unnest(%s::text[]) AS name WHERE current_setting(name, true) IS NOT NULL"

#: The connections that hold a lock by its name, by alias and name.
_holders: dict[tuple[str, str], Any] = {}

# The table of a name, and its partitions.
WITH_PARTITIONS = "SELECT to_regclass(%s) UNION SELECT relid FROM pg_partition_tree(to_regclass(%s))"

EXCLUSIVE = Lock("ACCESS EXCLUSIVE on the table", "everyone")
EXCLUSIVE_BOTH = Lock("ACCESS EXCLUSIVE on both tables", "everyone")
REFERRING = Lock("SHARE ROW EXCLUSIVE on both tables", "writers")
ONLINE = Lock("SHARE UPDATE EXCLUSIVE on the table", "nobody", "while it is read")
COMMENT = Lock("SHARE UPDATE EXCLUSIVE on the table", "nobody")


class PostgreSQL(Database):
    alter = EXCLUSIVE
    gives_defaults_early = True
    writes_at_once = True
    knows_constants = adds_constants = proves_by_reading = True

    def has_table(self, model: type[Model]) -> bool:
        # Also one in another schema than the first.
        return self.fetch("SELECT to_regclass(%s) IS NOT NULL", [self._table(model)]) == [(True,)]

    def column(self, model: type[Model], column: str) -> Column | None:
        rows = self.fetch(
            "SELECT attnotnull, atthasdef FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attname = %s AND attnum > 0 AND NOT attisdropped",
            [self._table(model), column],
        )
        if not rows:
            return None
        not_null, has_default = rows[0]
        # From 18 on attnotnull is true already while its constraint is NOT VALID.
        valid = not_null and not self._constraints(self._table(model), column, kind="n", valid=False)
        return Column(not valid, has_default)

    def _unique_columns(self, model: type[Model]) -> list[list[str]]:
        rows = self.fetch(
            "SELECT array_agg(attname::text) FROM pg_index JOIN pg_attribute ON attrelid = indrelid "
            "AND attnum = ANY ((indkey::int2[])[0:indnkeyatts - 1]) WHERE indrelid = to_regclass(%s) "
            "AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL GROUP BY indexrelid",
            [self._table(model)],
        )
        return [columns for (columns,) in rows]

    def other_type(self, model: type[Model], field: AnyField) -> str | None:
        wanted = field.db_type(self.connection)
        rows = self.fetch(
            "SELECT format_type(atttypid, atttypmod), atttypid = to_regtype(%s) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attname = %s AND attnum > 0 AND NOT attisdropped",
            [re.sub(r"\([^)]*\)", "", wanted), self._table(model), field.column],
        )
        found, same_kind = rows[0] if rows else (None, None)
        same = same_kind is not False and _limits(found or wanted) == _limits(wanted)
        return None if same else found

    def refused_by_type(self, field: AnyField, value: Any) -> str:
        # A domain has checks of its own. A default that it refuses would make each statement fail that uses it.
        kind = field.db_type(self.connection)
        name = re.sub(r"\([^)]*\)", "", kind)
        if not self.fetch("SELECT 1 FROM pg_type WHERE oid = to_regtype(%s) AND typtype = 'd'", [name]):
            return ""
        try:
            with atomic(self.connection.alias):
                self.fetch(f"SELECT CAST(%s AS {kind})", [value])
        except (DataError, IntegrityError) as error:
            return str(error).strip()
        return ""

    def checks(self, model: type[Model], column: str) -> list[Check]:
        rows = self.fetch(
            "SELECT c.conname, pg_get_expr(c.conbin, c.conrelid), array_agg(a.attname::text ORDER BY a.attnum) "
            "FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey) "
            "WHERE c.conrelid = to_regclass(%s) AND c.contype = 'c' GROUP BY c.oid HAVING bool_or(a.attname = %s) "
            "ORDER BY 1",
            [self._table(model), column],
        )
        ours = {helper.name for helper in self.helpers()} if rows else set()
        return [Check(name, sql, tuple(columns)) for name, sql, columns in rows if name not in ours]

    def unique_index(self, model: type[Model], column: str) -> str | None:
        rows = self.fetch(
            "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            "WHERE i.indrelid = to_regclass(%s) AND a.attname = %s AND (i.indisunique OR i.indisexclusion) "
            # What an index computes, or leaves out, by a column it depends on.
            "AND (a.attnum = ANY (i.indkey) OR EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = i.indexrelid "
            "AND d.classid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)) LIMIT 1",
            [self._table(model), column],
        )
        return rows[0][0] if rows else None

    def estimated_rows(self, model: type[Model]) -> int:
        rows = self.fetch(
            # Never analyzed (-1): as good a guess as any, and the progress goes on counting. A partitioned table has no
            # rows of its own.
            "SELECT CASE WHEN reltuples < 0 THEN pg_relation_size(oid) / 100 ELSE reltuples END::bigint FROM pg_class "
            f"WHERE relkind <> 'p' AND oid IN ({WITH_PARTITIONS})",
            [self._table(model)] * 2,
        )
        return sum(each for (each,) in rows)

    def session(self, model: type[Model]) -> tuple[Any, ...]:
        # A project may have set the path, for a tenant, or the role on the caller's connection alone.
        asked = (
            "SELECT current_database(), current_user, current_setting('search_path'), to_regclass(%s)::oid"
        )
        return self.fetch(asked, [self._table(model)])[0]

    def is_lock_timeout(self, error: BaseException) -> bool:
        return error_code(error) in {LOCK_NOT_AVAILABLE, DEADLOCK}

    def is_row_locked(self, error: BaseException) -> bool:
        return bool(error_code(error) == LOCK_NOT_AVAILABLE)

    def is_fault_of_a_row(self, error: BaseException) -> bool:
        return super().is_fault_of_a_row(error) or ROW_FAULT.match(str(error_code(error))) is not None

    def is_cancelled(self, error: BaseException) -> bool:
        return bool(error_code(error) == QUERY_CANCELED)

    def is_transient(self, error: BaseException) -> bool:
        code = error_code(error)
        if isinstance(code, str) and re.fullmatch(r"[0-9A-Z]{5}", code):
            return code in TRANSIENT or code.startswith("08")
        # Without an SQLSTATE it is the driver that speaks: the connection is lost.
        return isinstance(error, InterfaceError | OperationalError)

    def is_denied(self, error: BaseException) -> bool:
        return bool(error_code(error) == INSUFFICIENT_PRIVILEGE)

    def blockers(self, tables: Sequence[str], blocks: Blocked = "everyone") -> list[str]:
        return blockers.named(self, tables, blocks)

    def lock_name(self, name: str) -> bool:
        """Take an advisory lock in a transaction of a connection of its own.

        A pooler in transaction mode would give the session of another lock to the site, and never take it back. The
        transaction is idle and has no snapshot, so it keeps no row from a vacuum. Where the server gives no further
        connection, the lock is this session's.
        """
        holder = leave_pool(self.connection.copy())
        name = ":".join(filter(None, [schema_of(self.connection.alias), name]))
        try:
            holder.set_autocommit(False)
        except OperationalError:
            if self._is_pooled():
                raise
            return bool(self.fetch("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name])[0][0])
        with holder.cursor() as cursor:
            cursor.execute(f"SELECT set_config(name, '0', true) FROM {KNOWN}", [LIMITS])
            cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [name])
            (held,) = cursor.fetchone()
        if held:
            _holders[self.connection.alias, name] = holder
        else:
            holder.close()
        return bool(held)

    def unlock_name(self, name: str) -> None:
        name = ":".join(filter(None, [schema_of(self.connection.alias), name]))
        holder = _holders.pop((self.connection.alias, name), None)
        if holder is None:
            self.fetch("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])
        else:
            holder.rollback()
            holder.close()

    def differs(self, field: AnyField, column: str, value: str) -> str:
        if not is_text(field):
            return super().differs(field, column, f"({value})")
        # Of citext, and of some collations, two different texts are the same.
        return f'(({column})::text COLLATE "C" IS DISTINCT FROM ({value})::text COLLATE "C")'

    def repeated_columns(self, model: type[Model], names: Sequence[str]) -> list[str]:
        """Return one column of each index in which an UPDATE would look for entries that it may delete.

        Where no column of an index is named in the UPDATE, the server (from 14 on) goes through a full page of it, and
        through the rows that this leads to, before it splits the page. What was written since the last batch is then
        found again and again, a few entries at a time; of an index whose order is not that of the keys, such as a
        foreign key's, that is most of the time of a fill. With a column set to itself it splits the page, as within one
        long UPDATE. None where a trigger waits for columns by their names, and none that may not be written.
        """
        rows = self.fetch(
            "SELECT a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree' "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] "
            "WHERE i.indrelid = to_regclass(%s) AND NOT i.indisunique AND a.attgenerated = '' AND a.attidentity = '' "
            "AND has_column_privilege(i.indrelid, a.attnum, 'UPDATE') AND NOT EXISTS (SELECT 1 FROM pg_trigger t "
            f"WHERE t.tgrelid IN ({WITH_PARTITIONS}) AND cardinality(t.tgattr::int2[]) > 0) "
            "GROUP BY a.attname ORDER BY 1",
            [self._table(model)] * 3,
        )
        others = {field_of(model, name).column for name in names} | {key.column for key in key_columns(model)}
        return [name for (name,) in rows if name not in others]

    @contextmanager
    def writing(self, rows: QuerySet[Any]) -> Iterator[None]:
        with super().writing(rows):
            self.execute(f"SET LOCAL lock_timeout = {max(1, round(get('SAFEMIGRATE_LOCK_TIMEOUT') * 1000))}")
            yield

    @contextmanager
    def impatient(self, model: type[Model]) -> Iterator[None]:
        # One look under a limit of its transaction: of a session, a pooler would give the limit to others.
        if self.has_table(model):
            with atomic(self.connection.alias):
                self.execute("SET LOCAL lock_timeout = '1s'", f"SELECT 1 FROM {self._table(model)} LIMIT 1")
        yield

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        with atomic(self.connection.alias):
            self.execute("SET LOCAL statement_timeout = 0")
            yield

    def obstacles(self, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
        yield from obstacles.found(self, model, field)

    # The steps

    def bare(self, field: AnyField) -> Any:
        clone = fields.bare(field)
        # ADD COLUMN with a CHECK reads the whole table under its lock; `require` adds it, validated later.
        clone.db_check = lambda connection: None
        return clone

    def add_column(self, model: type[Model], field: AnyField) -> list[Step]:
        add = super().add_column(model, field)
        if field.db_default is NOT_PROVIDED:
            return add
        old, new = fields.bare(field), fields.with_default(field)
        default = self._short(
            model,
            f"give {field.column} the default of the database for rows that come in from now on",
            *self.sql(lambda editor: editor.alter_field(model, old, new)),
            needed=lambda: not getattr(self.column(model, field.column), "has_default", False),
        )
        return [*add, default]

    def add_required(
        self, from_model: type[Model], model: type[Model], field: AnyField, value: str = "NULL"
    ) -> Step:
        # Without a default, the server refuses NOT NULL where a row is. The rest is made under its own names.
        bare, final = fields.bare(field, null=False), fields.required(field)
        return Step(
            f"add the column {field.column}, required, to the table without rows",
            (
                *self.sql(lambda editor: editor.add_field(model, bare)),
                *self.sql(lambda editor: editor.alter_field(model, bare, final)),
            ),
            EXCLUSIVE_BOTH if self.tables(model, field)[1:] else EXCLUSIVE,
            tables=self.tables(model, field),
        )

    def add_constant(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], *, ask: bool = True
    ) -> Step | None:
        statements = self.constant_column(model, field, defaults[0])
        if ask and self._rewrites(model, statements[0]):
            return None
        return self._short(
            model,
            f"add the column {field.column}, required, with one value for all rows: none is written",
            *statements,
            needed=lambda: self.column(model, field.column) is None,
        )

    def add_common(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], comment: str, *, ask: bool = True
    ) -> list[Step]:
        statements = self.constant_column(model, field, defaults[0], null=True)
        if ask and self._rewrites(model, statements[0]):
            return []
        table, column = self._table(model), self.quote(field.column)
        return [
            self._short(
                model,
                f"add the column {field.column} with the value that most rows get: none is written",
                *statements,
                f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT",
                f"COMMENT ON COLUMN {table}.{column} IS '{comment}'",
                needed=lambda: self.column(model, field.column) is None,
            )
        ]

    def comment(self, model: type[Model], field: AnyField) -> str:
        rows = self.fetch(
            "SELECT col_description(attrelid, attnum) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped",
            [self._table(model), field.column],
        )
        return (rows and rows[0][0]) or ""

    def drop_comment(self, model: type[Model], field: AnyField) -> list[Step]:
        table, column = self._table(model), self.quote(field.column)
        return [
            Step(
                f"take the comment of {field.column} away",
                (f"COMMENT ON COLUMN {table}.{column} IS NULL",),
                COMMENT,
                tables=(table,),
                needed=lambda: self.comment(model, field) != "",
            )
        ]

    def _rewrites(self, model: type[Model], statement: str) -> bool:
        """Would the server write the table anew, or refuse? It is asked on an empty table of this session's own."""
        file = "SELECT pg_relation_filenode('pg_temp.safemigrate_try'::regclass)"
        try:
            with self.rolled_back():
                self.execute(
                    "SET LOCAL lock_timeout = '1s'",
                    f"CREATE TEMPORARY TABLE safemigrate_try (LIKE {self._table(model)})",
                )
                before = self.fetch(file)
                self.execute(statement.replace(self._table(model), "pg_temp.safemigrate_try", 1))
                return before != self.fetch(file)
        except DatabaseError:
            return True

    def drop_column(self, model: type[Model], field: AnyField) -> list[Step]:
        sql = f"ALTER TABLE {self._table(model)} DROP COLUMN {self.quote(field.column)} CASCADE"

        def there() -> bool:
            return self.column(model, field.column) is not None

        # Without its foreign key, which SetNotNull adds, the column has nothing to do with the other table.
        others = (
            self.tables(model, field)[1:]
            if self._constraints(self._table(model), field.column, kind="f")
            else ()
        )
        lock = EXCLUSIVE_BOTH if others else EXCLUSIVE
        return [
            self._short(model, f"drop the column {field.column}", sql, needed=there, lock=lock, others=others)
        ]

    def helpers(self) -> list[Helper]:
        rows = self.fetch(
            "SELECT c.relname, 'trigger', t.tgname, p.oid::regproc::text FROM pg_trigger t "
            "JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid "
            "WHERE t.tgname LIKE %s AND NOT t.tgisinternal AND t.tgparentid = 0 AND pg_table_is_visible(c.oid) "
            "UNION ALL SELECT c.relname, 'constraint', k.conname, '' FROM pg_constraint k "
            "JOIN pg_class c ON c.oid = k.conrelid "
            "WHERE k.conname LIKE %s AND k.contype = 'c' AND k.conislocal AND pg_table_is_visible(c.oid) ORDER BY 1, 3",
            [r"%safemigrate\_guard", r"%\_safemigrate"],
        )
        return [
            Helper(table, kind, name, self._drop_helper(table, kind, name, used))
            for table, kind, name, used in rows
        ]

    def _drop_helper(self, table: str, kind: str, name: str, function: str) -> str:
        if kind == "constraint":
            return f"ALTER TABLE {self.quote(table)} DROP CONSTRAINT {self.quote(name)};"
        return f"DROP TRIGGER {self.quote(name)} ON {self.quote(table)}; DROP FUNCTION {function}();"

    def helper_names(self, model: type[Model], field: AnyField) -> set[str]:
        return {self._default_name(model, field, "safemigrate")}

    def index_early(self, model: type[Model], field: AnyField) -> list[Step]:
        return self._index_steps(model, field)

    def require(self, from_model: type[Model], model: type[Model], field: AnyField) -> Requirement:
        before = [
            *self._index_steps(model, field),
            *self._check_steps(model, field),
            *self._foreign_key_steps(model, field),
        ]
        if self.connection.pg_version >= 180000:
            reject_nulls, accept_nulls, enforce = self._not_null_constraint(model, field)
        else:
            reject_nulls, accept_nulls, enforce = self._not_null_by_check(model, field)
        return Requirement(
            before=before, reject_nulls=[reject_nulls], accept_nulls=[accept_nulls], enforce=enforce
        )

    def _not_null_constraint(self, model: type[Model], field: AnyField) -> tuple[Step, Step, list[Step]]:
        alter, column = f"ALTER TABLE {self._table(model)}", self.quote(field.column)
        there = self._constraints(self._table(model), field.column, kind="n")
        # The name that CREATE TABLE would have given it, so that a dump equals that of a fresh database.
        name = self.quote(there[0] if there else self._default_name(model, field, "not_null"))

        def unvalidated() -> bool:
            return bool(self._constraints(self._table(model), field.column, kind="n", valid=False))

        reject_nulls = self._short(
            model,
            f"let no new NULL into {field.column}",
            f"{alter} ADD CONSTRAINT {name} NOT NULL {column} NOT VALID",
            needed=lambda: not self._constraints(self._table(model), field.column, kind="n"),
        )
        accept_nulls = self._short(
            model,
            f"let NULL into {field.column} again",
            f"{alter} ALTER COLUMN {column} DROP NOT NULL",
            needed=unvalidated,
        )
        validate = self.online(
            (self._table(model),),
            f"prove that no {field.column} is NULL",
            f"{alter} VALIDATE CONSTRAINT {name}",
            needed=unvalidated,
        )
        return reject_nulls, accept_nulls, [validate]

    def _not_null_by_check(self, model: type[Model], field: AnyField) -> tuple[Step, Step, list[Step]]:
        alter, column = f"ALTER TABLE {self._table(model)}", self.quote(field.column)
        plain = self._default_name(model, field, "safemigrate")
        name = self.quote(plain)
        drop = f"{alter} DROP CONSTRAINT {name}"

        def there() -> bool:
            return plain in self._constraints(self._table(model), field.column, kind="c")

        reject_nulls = self._short(
            model,
            f"let no new NULL into {field.column}",
            f"{alter} ADD CONSTRAINT {name} CHECK ({column} IS NOT NULL) NOT VALID",
            needed=lambda: self._is_nullable(model, field) and not there(),
        )
        accept_nulls = self._short(model, f"let NULL into {field.column} again", drop, needed=there)
        validate = self.online(
            (self._table(model),),
            f"prove that no {field.column} is NULL",
            f"{alter} VALIDATE CONSTRAINT {name}",
            needed=lambda: (
                plain in self._constraints(self._table(model), field.column, kind="c", valid=False)
            ),
        )
        # With the proof at hand SET NOT NULL reads nothing, so both share one instant.
        enforce = self._short(
            model,
            f"set {field.column} NOT NULL, and drop the helper",
            f"{alter} ALTER COLUMN {column} SET NOT NULL",
            f"{drop}",
            needed=there,
        )
        return reject_nulls, accept_nulls, [validate, enforce]

    def _index_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        editor, steps = self.editor(), []
        if field.unique:
            steps += self._unique_steps(model, field, editor)
        for statement in editor._field_indexes_sql(model, field):
            name = str(statement.parts["name"]).strip('"')
            definition = str(statement).partition(f" ON {self._table(model)} ")[2]
            steps += self._index(
                model, field, name, definition, needed=lambda name=name: not self._index_valid(model, name)
            )
        return steps

    def _unique_steps(self, model: type[Model], field: AnyField, editor: Any) -> list[Step]:
        name = str(editor._unique_constraint_name(model._meta.db_table, [field.column], quote=False))
        table, column, quoted = self._table(model), self.quote(field.column), self.quote(name)

        def missing() -> bool:
            return not self._constraints(self._table(model), field.column, kind="u")

        build = self._index(
            model,
            field,
            name,
            f"({column})",
            unique="UNIQUE ",
            needed=lambda: missing() and not self._index_valid(model, name),
        )
        use = self._short(
            model,
            f"make {field.column} unique by that index",
            f"ALTER TABLE {table} ADD CONSTRAINT {quoted} UNIQUE USING INDEX {quoted}",
            needed=missing,
        )
        return [*build, use]

    def _index(
        self,
        model: type[Model],
        field: AnyField,
        name: str,
        definition: str,
        *,
        unique: str = "",
        needed: Any,
    ) -> list[Step]:
        if tables := partitions.tree(self, model):
            return partitions.index_steps(self, tables, str(field.column), name, definition)
        on = (self._table(model),)
        drop = self.online(
            on,
            f"drop what a failed attempt left of {name}",
            f"DROP INDEX CONCURRENTLY IF EXISTS {self._qualified(model, name)}",
            needed=lambda: self._index_valid(model, name) is False,
        )
        sql = f"CREATE {unique}INDEX CONCURRENTLY {self.quote(name)} ON {on[0]} {definition}"
        return [drop, self.online(on, f"index {field.column} as {name}", sql, needed=needed)]

    def _index_valid(self, model: type[Model], name: str) -> bool | None:
        """Return whether the table's index of that name is valid, None where there is none."""
        rows = self.fetch(
            "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = to_regclass(%s) AND c.relname = %s",
            [self._table(model), name],
        )
        return bool(rows[0][0]) if rows else None

    def _check_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        check = field.db_parameters(connection=self.connection)["check"]
        if not check:
            return []
        name = self._default_name(model, field, "check")
        add = f"ADD CONSTRAINT {self.quote(name)} CHECK ({check}) NOT VALID"
        return self._validated_later(self._table(model), field, name, add, kind="c")

    def _foreign_key_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        if not (field.remote_field and field.db_constraint):
            return []
        statement = self.editor()._create_fk_sql(model, field, "_fk_%(to_table)s_%(to_column)s")
        name = str(statement.parts["name"]).strip('"')
        table = self._table(model)
        add = str(statement).partition(f"ALTER TABLE {table} ")[2]
        leaves = [
            partitions.qualified(self, each.schema, each.name)
            for each in partitions.tree(self, model)
            if each.is_leaf
        ]
        if not leaves:
            return self._validated_later(table, field, name, f"{add} NOT VALID", kind="f")

        def missing() -> bool:
            return name not in self._constraints(table, field.column, kind="f")

        others = self.tables(model, field)[1:]
        whole = Step(
            f"add the foreign key of {field.column} to the whole table",
            (f"ALTER TABLE {table} {add}",),  # It finds the partitions' own, and looks at no row.
            REFERRING,
            tables=(table, *others),
            needed=missing,
        )
        own = [
            step
            for leaf in leaves
            for step in self._validated_later(leaf, field, name, f"{add} NOT VALID", kind="f")
        ]
        return [*own, whole]

    def _validated_later(self, table: str, field: AnyField, name: str, add: str, *, kind: str) -> list[Step]:
        what = f"{'foreign key' if kind == 'f' else 'check'} of {field.column}"
        what += "" if table == self._table(field.model) else f" to {table}"
        others = self.tables(field.model, field)[1:] if kind == "f" else ()

        def there(valid: bool | None = None) -> bool:
            return name in self._constraints(table, field.column, kind=kind, valid=valid)

        return [
            Step(
                f"add the {what}, not validated",
                (f"ALTER TABLE {table} {add}",),
                REFERRING if kind == "f" else EXCLUSIVE,
                tables=(table, *others),
                needed=lambda: not there(),
            ),
            self.online(
                (table,),
                f"validate the {what}",
                f"ALTER TABLE {table} VALIDATE CONSTRAINT {self.quote(name)}",
                needed=lambda: there(valid=False),
            ),
        ]

    def release(self, from_model: type[Model], model: type[Model], field: AnyField) -> list[Step]:
        alter = f"ALTER TABLE {self._table(model)}"
        nullable = self._short(
            model,
            f"let {field.column} be NULL again",
            f"{alter} ALTER COLUMN {self.quote(field.column)} DROP NOT NULL",
            needed=lambda: not self._is_nullable(model, field),
        )
        old = fields.gained(field_of(from_model, field.name), field)
        constraints = [
            self._drop_constraint(from_model, old, name) for name in self._own_constraints(from_model, old)
        ]
        return [nullable, *constraints, *self._drop_index_steps(from_model, old)]

    def _drop_constraint(self, model: type[Model], field: AnyField, name: str) -> Step:
        sql = f"ALTER TABLE {self._table(model)} DROP CONSTRAINT {self.quote(name)}"
        others = self.tables(model, field)[1:]
        if name not in self._constraints(self._table(model), field.column, kind="f"):
            return self._short(model, f"drop the constraint {name}", sql)
        return self._short(model, f"drop the constraint {name}", sql, lock=EXCLUSIVE_BOTH, others=others)

    def _own_constraints(self, model: type[Model], field: AnyField) -> list[str]:
        names = [self._default_name(model, field, "safemigrate")]
        editor = self.editor()
        if field.db_check(self.connection):
            names.append(self._default_name(model, field, "check"))
        if field.unique:
            names.append(
                str(editor._unique_constraint_name(model._meta.db_table, [field.column], quote=False))
            )
        if field.remote_field and field.db_constraint:
            names.append(
                str(editor._fk_constraint_name(model, field, "_fk_%(to_table)s_%(to_column)s")).strip('"')
            )
        there = {
            name for kind in "cuf" for name in self._constraints(self._table(model), field.column, kind=kind)
        }
        return [name for name in names if name in there]

    def _drop_index_steps(self, model: type[Model], field: AnyField) -> list[Step]:
        statements = self.editor()._field_indexes_sql(model, field)
        return [self._drop_index(model, str(statement.parts["name"]).strip('"')) for statement in statements]

    def _drop_index(self, model: type[Model], name: str) -> Step:
        def there() -> bool:
            return self._index_valid(model, name) is not None

        title, index = f"drop the index {name}", self._qualified(model, name)
        if partitions.tree(self, model):  # Of these none can be dropped CONCURRENTLY.
            return self._short(model, title, f"DROP INDEX {index}", needed=there)
        return self.online((self._table(model),), title, f"DROP INDEX CONCURRENTLY {index}", needed=there)

    def with_values(self, sql: str, params: Sequence[Any]) -> str:
        self.connection.ensure_connection()
        return str(self.connection.ops.compose_sql(sql, params))

    # How a step is run

    @contextmanager
    def prepared(self, tables: Sequence[str]) -> Iterator[None]:
        """Take SHARE UPDATE EXCLUSIVE first: autovacuum gives way to it, and no reader or writer waits."""
        with atomic(self.connection.alias):
            # Not by the view pg_settings, which makes all of the server's settings to show a few.
            self.fetch(f"SELECT set_config(name, '0', true) FROM {KNOWN}", [LIMITS])
            self._set_local(self._deadlock_timeout() + YIELD_SECONDS)
            for table in tables:
                self._lock_first(table, own=table == tables[0])
            yield

    def _lock_first(self, table: str, *, own: bool) -> None:
        try:
            with nullcontext() if own else atomic(self.connection.alias):
                self.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        except DatabaseError as error:
            # Who may let a foreign key refer to a table may not lock it, unless it may write it too.
            if own or not self.is_denied(error):
                raise

    def attempt(self, statements: Sequence[str], timeout: float) -> None:
        with atomic(self.connection.alias):
            self._set_local(timeout)
            self.execute(*statements)

    def _deadlock_timeout(self) -> float:
        rows = self.fetch("SELECT extract(epoch FROM current_setting('deadlock_timeout')::interval)")
        return float(rows[0][0])

    def _set_local(self, seconds: float) -> None:
        self.execute(f"SET LOCAL lock_timeout = {max(1, round(seconds * 1000))}")

    def run_online(self, statements: Sequence[str]) -> None:
        for statement in statements:
            if OWN_TRANSACTIONS.search(statement):
                with self._unlimited(statement):
                    self.execute(statement)
            else:
                with atomic(self.connection.alias):
                    self.fetch(f"SELECT set_config(name, '0', true) FROM {KNOWN}", [ONLINE_LIMITS])
                    self.execute(statement)

    @contextmanager
    def _unlimited(self, statement: str) -> Iterator[None]:
        """Lift this session's limits for a statement that runs in transactions of its own, and knows no SET LOCAL."""
        some = f"SELECT name, current_setting(name) FROM {KNOWN} AND current_setting(name) <> '0'"
        limits = dict(self.fetch(some, [ONLINE_LIMITS]))
        if limits and self._is_pooled():
            with self._limited(statement, limits):
                yield
            return
        self._set(dict.fromkeys(limits, "0"))
        try:
            yield
        finally:
            with suppress(Error):  # The connection may be what was lost.
                self._set(limits)

    @contextmanager
    def _limited(self, statement: str, limits: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            if not (self.is_cancelled(error) or self.is_lock_timeout(error)):
                raise
            listed = ", ".join(f"{name} = {value}" for name, value in limits.items())
            raise StepRefused(
                f"{statement} on {self.connection.alias} was ended by a limit of the user or the database ({listed}). "
                "A pooler gives each transaction another session, so the limit could not be lifted without leaving the "
                "session of a request without it. Run migrate over a connection past the pooler: it carries on from "
                "here."
            ) from error

    def _is_pooled(self) -> bool:
        """May a pooler give the next statement another session? One gives a process number of its own."""
        ((pid,),) = self.fetch("SELECT pg_backend_pid()")
        return bool(self.connection.connection.info.backend_pid != pid)

    def _set(self, values: dict[str, str]) -> None:
        if values:
            self.fetch(
                "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS t (name, value)",
                [list(values), list(values.values())],
            )

    # A sample

    def scratch_name(self, model: type[Model]) -> str:
        # Two of the same name wait for each other's end, which is soon.
        name = short_name(split_identifier(model._meta.db_table)[1], suffix="safemigrate_sample")
        return self._qualified(model, name)

    @contextmanager
    def scratch(
        self, model: type[Model], copy: Any, fields: Sequence[Any], samples: Sequence[Q]
    ) -> Iterator[None]:
        with self.rolled_back():
            # Who changes the table now may hold it for long: better no sample than to wait for it.
            self.execute("SET LOCAL lock_timeout = '3s'")
            self.execute(
                # A sequence of its own would be what the other table's rows have numbers from.
                f"CREATE TABLE {self._table(copy)} (LIKE {self._table(model)} INCLUDING ALL EXCLUDING IDENTITY)"
                + self._storage(model)
            )
            self.renew_columns(model, copy, fields)
            self.copy_rows(model, copy, fields, samples)
            yield

    def _storage(self, model: type[Model]) -> str:
        rows = self.fetch("SELECT reloptions FROM pg_class WHERE oid = to_regclass(%s)", [self._table(model)])
        options = rows[0][0] if rows else None
        return f" WITH ({', '.join(options)})" if options else ""

    # For this module

    def _table(self, model: type[Model]) -> str:
        return self.quote(model._meta.db_table)

    def _qualified(self, model: type[Model], name: str) -> str:
        namespace, _ = split_identifier(model._meta.db_table)
        return ".".join(self.quote(part) for part in (namespace, name) if part)

    def _short(
        self,
        model: type[Model],
        title: str,
        *statements: str,
        needed: Any = None,
        lock: Lock = EXCLUSIVE,
        others: Sequence[str] = (),
    ) -> Step:
        step = Step(title, statements, lock, tables=(self._table(model), *others))
        return step if needed is None else Step(title, statements, lock, tables=step.tables, needed=needed)

    def online(self, tables: tuple[str, ...], title: str, statement: str, *, needed: Any) -> Step:
        """Return a step that lets readers and writers pass, however long it takes."""
        return Step(title, (statement,), ONLINE, online=True, tables=tables, needed=needed)

    def _constraints(self, table: str, column: str, *, kind: str, valid: bool | None = None) -> list[str]:
        """Return the names of the constraints of a kind (as in pg_constraint) on exactly this column."""
        rows = self.fetch(
            "SELECT c.conname FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid "
            "WHERE c.conrelid = to_regclass(%s) AND a.attname = %s AND NOT a.attisdropped "
            "AND c.conkey = ARRAY[a.attnum] AND c.contype = %s AND (%s::boolean IS NULL OR c.convalidated = %s)",
            [table, column, kind, valid, valid],
        )
        return [name for (name,) in rows]

    def _default_name(self, model: type[Model], field: AnyField, label: str) -> str:
        """Return the name that the server itself would give to a constraint of this column."""
        table = split_identifier(model._meta.db_table)[1]
        labels = chain([label], (f"{label}{number}" for number in count(1)))
        names = (object_name(table, field.column, each) for each in labels)
        return next(name for name in names if not self._is_taken(model, field.column, name))

    def _is_taken(self, model: type[Model], column: str, name: str) -> bool:
        rows = self.fetch(
            "SELECT 1 FROM pg_constraint c JOIN pg_class t ON t.oid = to_regclass(%s) "
            # Not what this very table gave to its partitions, or to tables that inherit from it.
            "WHERE c.conname = %s AND c.connamespace = t.relnamespace AND c.coninhcount = 0 "
            "AND NOT (c.conrelid = t.oid AND EXISTS "
            "(SELECT FROM pg_attribute WHERE attrelid = t.oid AND attname = %s AND c.conkey = ARRAY[attnum]))",
            [self._table(model), name, column],
        )
        return bool(rows)


def _limits(kind: str) -> list[str]:
    return [limit.replace(" ", "").lower() for limit in re.findall(r"\(([^)]*)\)", kind)]


def object_name(table: str, column: str, label: str) -> str:
    """Return table_column_label, cut to 63 bytes as makeObjectName in the server's indexcmds.c does it."""
    first, second = table.encode(), column.encode()
    room = 63 - len(label.encode()) - 2
    while len(first) + len(second) > room:
        first, second = (first[:-1], second) if len(first) > len(second) else (first, second[:-1])
    return "_".join([first.decode(errors="ignore"), second.decode(errors="ignore"), label])
