"""The questions asked of a database and the orders given to it, with the answers that are safe for any."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db import DatabaseError, DataError, IntegrityError, NotSupportedError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.db.transaction import atomic

from safemigrate.exceptions import OrphanRows
from safemigrate.schema import fields
from safemigrate.schema.steps import Blocked, Lock, Obstacle, Requirement, Step
from safemigrate.types import AnyField, field_of

Result = TypeVar("Result")

COPY = Lock("the table, exclusively", "everyone", "while it is copied")


@dataclass(frozen=True)
class Column:
    """A column as it is in the table now."""

    nullable: bool
    has_default: bool = False


@dataclass(frozen=True)
class Check:
    """A CHECK of the table that is not ours, and the columns that it reads, which stand in it unqualified."""

    name: str
    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Helper:
    """A trigger, constraint or index that is ours, and the statement that drops it."""

    table: str
    kind: str
    name: str
    drop: str


class Database:
    """One connection's database. Subclasses answer for theirs; this one knows what Django knows."""

    #: The lock for a change of the table that takes an instant.
    alter = Lock("the table, exclusively", "everyone")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection: Any = connection  # Each vendor's has attributes of its own.

    # Questions

    def has_table(self, model: type[Model]) -> bool:
        return model._meta.db_table in self.connection.introspection.table_names()

    def column(self, model: type[Model], column: str) -> Column | None:
        """Return the column as it is, or None where the table has none of that name."""
        with self.connection.cursor() as cursor:
            table = model._meta.db_table
            for info in self.connection.introspection.get_table_description(cursor, table):
                if info.name == column:
                    return Column(bool(info.null_ok), info.default is not None)
        return None

    def other_type(self, model: type[Model], field: AnyField) -> str | None:
        """Return the type of the field's column where it is there with another type than the field's."""
        return None

    def refused_by_type(self, field: AnyField, value: Any) -> str:
        """Return why the column's type takes no such value, which would fail in each row; "" where it takes it."""
        return ""

    def checks(self, model: type[Model], column: str) -> list[Check]:
        """Return the CHECKs of the table that read this column."""
        return []

    def refused_by_check(self, field: AnyField, value: Any) -> str:
        """Return which CHECK of this column alone refuses the value in each row; "" where none does."""
        column = self.quote(field.column)
        for check in self.checks(field.model, field.column):
            if check.columns != (field.column,):
                continue
            condition = check.sql.replace("%", "%%")
            try:
                with atomic(self.connection.alias):
                    sql = f"SELECT {condition} FROM (SELECT {self._typed(field)} AS {column}) AS safemigrate_row"
                    ((holds,),) = self.fetch(sql, [value])
            except DatabaseError:  # A value alone may not do for it.
                continue
            if holds is not None and not holds:
                return f"the constraint {check.name} of the table refuses it"
        return ""

    def _typed(self, field: AnyField) -> str:
        """Return the place of a parameter that has the type of the field's column."""
        return f"CAST(%s AS {field.db_type(self.connection)})"

    def unique_index(self, model: type[Model], column: str) -> str | None:
        """Return the name of an index that lets no second row have the same value of this column, alone or not."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_constraints(cursor, model._meta.db_table)
        return next(
            (name for name, each in found.items() if each["unique"] and column in each["columns"]), None
        )

    def estimated_rows(self, model: type[Model]) -> int:
        """Return about how many rows the table has, as cheaply as the database can say."""
        return int(QuerySet(model, using=self.connection.alias).count())

    def is_lock_timeout(self, error: BaseException) -> bool:
        """Was a lock not to be had in time?"""
        return False

    def is_skip_failed(self, error: BaseException) -> bool:
        """Did a SELECT that skips locked rows fail on one of them, by a fault of the server's?"""
        return False

    def is_row_locked(self, error: BaseException) -> bool:
        """Did a statement give up because another session holds a lock on what it was to write?"""
        return False

    def is_fault_of_a_row(self, error: BaseException) -> bool:
        """Is it one row's value, or a trigger that refuses it, because of which all rows of a statement failed?"""
        return isinstance(error, DataError | IntegrityError)

    def is_cancelled(self, error: BaseException) -> bool:
        """Did a limit of this user's for the time of a statement end it?"""
        return False

    def is_transient(self, error: BaseException) -> bool:
        """Is it likely to pass when the same is tried again: a deadlock, a lost connection?"""
        return isinstance(error, OperationalError)

    def is_null_refused(self, error: BaseException) -> bool:
        """Did NOT NULL fail because a NULL is there?"""
        return isinstance(error, IntegrityError)

    def is_copy_refused(self, error: BaseException) -> bool:
        """Did the server say that it can do this only by copying the table?"""
        return False

    def is_denied(self, error: BaseException) -> bool:
        """Does the user of this connection lack a privilege?"""
        return False

    def blockers(self, tables: Sequence[str], blocks: Blocked = "everyone") -> list[str]:
        """Return who holds a lock on the tables that one which `blocks` these has to wait for.

        One line each, as far as the database shows them.
        """
        return []

    def same_text(self, value: str) -> str:
        """Return a text that is equal for two values which a unique index here may hold to be equal."""
        return value

    def orphans(self, model: type[Model], field: AnyField) -> QuerySet[Any]:
        """Return the rows that refer by the foreign key `field` to rows that are not there."""
        alias = self.connection.alias
        parents: QuerySet[Any] = QuerySet(field.remote_field.model, using=alias)
        parent = parents.filter(**{field.target_field.attname: OuterRef(field.attname)})
        rows: QuerySet[Any] = QuerySet(model, using=alias)
        return rows.filter(~Exists(parent), **{f"{field.attname}__isnull": False})

    def refuse_orphans(self, model: type[Model], field: AnyField) -> None:
        """Raise OrphanRows when rows refer by the foreign key `field` to rows that are not there."""
        alias = self.connection.alias
        orphans = self.orphans(model, field)
        some = orphans.order_by("pk").values_list("pk", field.attname)[:10]
        examples = self.patiently(lambda: list(some))
        if not examples:
            return
        listed = "\n".join(f"  {key}: {value!r}" for key, value in examples)
        raise OrphanRows(
            f"{self.patiently(orphans.count):,} rows of {model._meta.label} on {alias} have a {field.name} that is no "
            f"row of {field.remote_field.model._meta.label}, so no foreign key was made. The first {len(examples)}, by "
            f"primary key:\n{listed}\nCorrect these rows and run migrate again: it carries on from here."
        )

    #: Does `add_column` give new rows the default of the database's own (db_default) already?
    gives_defaults_early = False

    #: May several connections write at the same time?
    writes_at_once = False

    #: May the values of an UPDATE be read from other rows of the same table?
    reads_what_it_updates = True

    #: Does a statement lock rows that it only reads on its way to those that it writes?
    locks_what_it_reads = False

    #: Does a write guard fill a row before the database looks whether the column is NULL in it?
    guards_before_not_null = True

    #: Is a text refused that is longer than its column, or a number that is larger?
    limits_values = True

    #: Does the server know which expressions have the same value for all rows of a statement?
    knows_constants = False

    #: Can a column be added with one value for all rows, of which none is written?
    adds_constants = False

    #: Is the proof that nothing is NULL but a reading of the table, which ends at the first NULL?
    proves_by_reading = False

    #: Can `add_required` compute the value of the rows that are there?
    fills_at_once = False

    def session(self, model: type[Model]) -> tuple[Any, ...]:
        """Return what decides which rows a statement on the model's table means, on this very connection."""
        return (str(self.connection.settings_dict["NAME"]),)

    def drop_if_lost(self) -> None:
        """Close the connection where it is lost, so that the next statement makes a new one."""
        connection = self.connection
        if (
            connection.connection is not None
            and not connection.in_atomic_block
            and not connection.is_usable()
        ):
            connection.close()

    @property
    def can_roll_back(self) -> bool:
        """Is a statement that changes a table undone with its transaction?"""
        return bool(self.connection.features.can_rollback_ddl)

    def obstacles(self, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
        """Return what the server would refuse on the way to this field, as the model has it in the end."""
        yield from ()

    # The steps

    def add_column(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that add the field's bare, nullable column."""
        statements = self.sql(lambda editor: editor.add_field(model, self.bare(field)))
        return [
            Step(
                f"add the column {field.column}, nullable",
                statements,
                self.alter,
                tables=(self.quote(model._meta.db_table),),
                needed=lambda: self.column(model, field.column) is None,
            )
        ]

    def drop_column(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that drop the field's column, with its index and constraints."""
        return [
            Step(
                f"drop the column {field.column}",
                self.sql(lambda editor: editor.remove_field(model, field)),
                COPY,
                tables=self.tables(model, field),
                needed=lambda: self.column(model, field.column) is not None,
            )
        ]

    def in_table(self, model: type[Model], column: str, field: AnyField) -> AnyField:
        """Return a column's field without the index, uniqueness or foreign key that the table does not have of it.

        Where a field was changed between two of our operations, the migrations do not say any more what is to be made.
        """
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_constraints(cursor, model._meta.db_table).values()
        own = [each for each in found if each["columns"] == [column]]
        clone: Any = copy.copy(field)
        clone.__dict__.pop("unique", None)
        clone._unique = field.unique and any(each["unique"] for each in own)
        clone.db_index = field.db_index and any(each["index"] or each["unique"] for each in own)
        if clone.remote_field:
            clone.db_constraint = field.db_constraint and any(each["foreign_key"] for each in own)
        return clone  # type: ignore[no-any-return]

    def index_early(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that index a still empty column that is to be unique, to look values up by."""
        return list(self.require(model, model, field).before)

    def require(self, from_model: type[Model], model: type[Model], field: AnyField) -> Requirement:
        """Return the steps that make the filled column required, indexed, unique and referring.

        `from_model` has the column as it is, `model` as it shall be; `field` is that of `model`, but for the index,
        uniqueness, foreign key and check that the column has already.
        """
        old, final = self.bare(field_of(from_model, field.name)), field_of(model, field.name)
        alter = Step(
            f"make {field.column} required, with its index and constraints",
            self.sql(lambda editor: editor.alter_field(from_model, old, fields.required(final))),
            COPY,
            tables=self.tables(model, field),
            needed=lambda: self._is_nullable(model, field),
        )
        return Requirement(enforce=[alter])

    def release(self, from_model: type[Model], model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that take `require` back; `from_model` has the field as it was required.

        `field` is as the column shall be: nullable, and with those of its index and constraints that it keeps.
        """
        old = fields.required(field_of(from_model, field.name))
        alter = Step(
            f"let {field.column} be NULL again, without its index and constraints",
            self.sql(lambda editor: editor.alter_field(from_model, old, fields.nullable(field))),
            COPY,
            tables=self.tables(model, field),
            needed=lambda: not self._is_nullable(model, field),
        )
        return [alter]

    def add_required(
        self, from_model: type[Model], model: type[Model], field: AnyField, value: str = "NULL"
    ) -> Step | None:
        """Return the one step that adds the column as it shall be in the end, None where there is none.

        `from_model` has no such field. It is for a table without rows, and fails where one has come in; where
        the database fills at once, for any: `value` is the SQL of each row's value, over the columns of the table.
        """
        return None

    def add_constant(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], *, ask: bool = True
    ) -> Step | None:
        """Return the step that adds the column, NOT NULL, with one value for all rows, of which it writes none.

        `defaults` are forms of that value in SQL. The server is asked on an empty table which of them it takes so,
        unless `ask` is False; None where it would have to write the rows.
        """
        return None

    def add_common(
        self, model: type[Model], field: AnyField, defaults: Sequence[str], comment: str, *, ask: bool = True
    ) -> list[Step]:
        """Return the steps that add the column, nullable, with one value for the rows that are there, and a comment.

        None of them is written. Rows that come in from then on are NULL. `defaults` and `ask` as in `add_constant`;
        no step where the server would have to write the rows.
        """
        return []

    def comment(self, model: type[Model], field: AnyField) -> str:
        """Return the comment of the field's column, "" where it has none."""
        return ""

    def drop_comment(self, model: type[Model], field: AnyField) -> list[Step]:
        """Return the steps that take that comment away, where `require` does not."""
        return []

    def helpers(self) -> list[Helper]:
        """Return the triggers, constraints and indexes that are ours by their names, in all tables that are visible."""
        return []

    def helper_names(self, model: type[Model], field: AnyField) -> set[str]:
        """Return what the helpers of a field are called, beside its guard's triggers."""
        return set()

    def tables(self, model: type[Model], field: AnyField) -> tuple[str, ...]:
        """Return the model's table, and the one that the field's foreign key refers to, quoted."""
        models = [model, field.remote_field.model] if field.remote_field and field.db_constraint else [model]
        return tuple(dict.fromkeys(self.quote(each._meta.db_table) for each in models))

    def is_required(self, model: type[Model], field: AnyField) -> bool:
        """Is NOT NULL in force already, and proven?"""
        return not self._is_nullable(model, field)

    def _is_nullable(self, model: type[Model], field: AnyField) -> bool:
        column = self.column(model, field.column)
        return column is None or column.nullable

    def has_unique_key(self, model: type[Model]) -> bool:
        """Does the table hold no two rows with the same primary key of the model?"""
        key = {field.column for field in key_columns(model)}
        return any(columns and key.issuperset(columns) for columns in self._unique_columns(model))

    def _unique_columns(self, model: type[Model]) -> list[list[str]]:
        """Return the columns of each unique index of the table."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_constraints(cursor, model._meta.db_table)
        return [each["columns"] for each in found.values() if each["primary_key"] or each["unique"]]

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Do around a backfill what makes the server refuse a value that does not fit, on each new connection too."""
        yield

    @contextmanager
    def writing(self, rows: QuerySet[Any]) -> Iterator[None]:
        """Do around the statement that writes these rows, and commit at the end.

        What another session has locked is waited for SAFEMIGRATE_LOCK_TIMEOUT seconds at most, or not at all: those
        who wait for the rows that are locked in here wait as long.
        """
        with self.transaction():
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do a batch in a transaction, which reads before it writes."""
        with atomic(self.connection.alias):
            yield

    def repeated_columns(self, model: type[Model], names: Sequence[str]) -> list[str]:
        """Return columns that an UPDATE of these fields should set to themselves, because it is faster so."""
        return []

    #: Does a column round what is written to it, to its number of decimals?
    rounds = True

    def differs(self, field: AnyField, column: str, value: str) -> str:
        """Return the condition that a column holds another value, NULL distinguished from a value, and `a` from `A`."""
        return f"({column} IS DISTINCT FROM {value})"

    def patiently(self, look: Callable[[], Result]) -> Result:
        """Return what `look` reads of the whole table, also where this user's statements may not take that long."""
        try:
            return look()
        except DatabaseError as error:
            if self.connection.in_atomic_block or not self.is_cancelled(error):
                raise
        with self.unlimited():
            return look()

    @contextmanager
    def impatient(self, model: type[Model]) -> Iterator[None]:
        """Run with looks at the model's table that wait no longer than a second or so for a lock."""
        yield

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Run without the limits for the time of a statement."""
        yield

    # How a step is run

    def lock_name(self, name: str) -> bool:
        """Take a lock that only safemigrate knows of; return False where another process has it.

        It is held until `unlock_name`, or the end of the connection. A database without such locks gives it to all.
        """
        return True

    def unlock_name(self, name: str) -> None: ...

    @contextmanager
    def prepared(self, tables: Sequence[str]) -> Iterator[None]:
        """Do around all tries of a step what makes waiting for its lock harmless to others."""
        yield

    def lock_wait(self, timeout: float) -> float:
        """Return the seconds that a try waits for a lock here, where `timeout` were asked for."""
        return timeout

    def attempt(self, statements: Sequence[str], timeout: float) -> None:
        """Run the statements once, waiting at most about `timeout` seconds for any lock."""
        self.execute(*statements)

    def run_online(self, statements: Sequence[str]) -> None:
        """Run statements that block no other session and may take long, each by itself."""
        self.execute(*statements)

    # A sample

    def scratch_name(self, model: type[Model]) -> str:
        """Return the name (as of db_table) of a table beside the model's, for a sample of its rows."""
        return short_name(model._meta.db_table, suffix="safemigrate_sample", limit=60)

    def scratch(
        self, model: type[Model], copy: Any, fields: Sequence[Any], samples: Sequence[Q]
    ) -> AbstractContextManager[None]:
        """Run with the rows that `samples` choose in the table of the model `copy`, which no other session sees.

        It has the indexes of the model's own table, on which no more is held than a reader holds; the
        columns of `fields` are made anew. What is done in the meantime is undone at the end, and so is the table.
        """
        raise NotSupportedError(
            f"a table that no other session sees is not made on {self.connection.display_name}"
        )

    def copy_rows(self, model: type[Model], copy: Any, fields: Sequence[Any], samples: Sequence[Q]) -> None:
        """Insert the rows that `samples` choose into the table of `copy`, but for the columns of `fields`."""
        columns = ", ".join(map(self.quote, self._stored_columns(model, fields)))
        source, target = (self.quote(each._meta.db_table) for each in (model, copy))
        for sample in samples:
            query = QuerySet(model, using=self.connection.alias).filter(sample).query
            where, params = query.get_compiler(connection=self.connection).compile(query.where)
            sql = f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source} WHERE {where}"
            with self.connection.cursor() as cursor:
                cursor.execute(sql, params)

    def _stored_columns(self, model: type[Model], fields: Sequence[Any]) -> list[str]:
        computed = {f.column for f in model._meta.local_concrete_fields if getattr(f, "generated", False)}
        without = computed | {field.column for field in fields}
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {self.quote(model._meta.db_table)} WHERE 1 = 0")
            return [column[0] for column in cursor.description if column[0] not in without]

    def renew_columns(self, model: type[Model], copy: Any, fields: Sequence[Any]) -> None:
        """Give the table of `copy`, made like the model's, bare columns for `fields`."""
        for field in fields:
            if self.column(model, field.column) is not None:
                table, column = self.quote(copy._meta.db_table), self.quote(field.column)
                self.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
            self.execute(*self._adding(copy, self.bare(field)))

    def _adding(self, model: type[Model], field: AnyField) -> tuple[str, ...]:
        return self.sql(lambda editor: editor.add_field(model, field))

    @contextmanager
    def rolled_back(self) -> Iterator[None]:
        """Undo at the end what was done within."""
        with atomic(self.connection.alias):
            yield
            self.connection.set_rollback(True)

    # For the subclasses

    def constant_column(
        self, model: type[Model], field: AnyField, default: str, *, null: bool = False
    ) -> tuple[str, ...]:
        """Return the statements that add the column, NOT NULL unless `null`, with this default."""
        column = self.bare(field)
        column.null = null
        definition, _ = self.editor().column_sql(model, column)
        add, *more = self._adding(model, column)
        return add.replace(definition, f"{definition} DEFAULT {default}", 1), *more

    def bare(self, field: AnyField) -> Any:
        """Return the field as the column is while it is filled."""
        return fields.bare(field)

    def quote(self, name: str) -> str:
        return str(self.connection.ops.quote_name(name))

    def execute(self, *statements: str) -> None:
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def fetch(self, sql: str, params: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows; without parameters a percent sign in the SQL is itself."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def with_values(self, sql: str, params: Sequence[Any]) -> str:
        """Return the SQL with its parameters written in, for what cannot have any: DDL, and what is shown."""
        self.connection.ensure_connection()
        return sql % tuple(map(self.editor().quote_value, params))

    def editor(self) -> Any:
        """Return a schema editor that writes SQL down and runs none."""
        self.connection.ensure_connection()
        editor = self.connection.SchemaEditorClass(self.connection, collect_sql=True, atomic=False)
        editor.deferred_sql = []
        return editor

    def sql(self, order: Callable[[Any], None]) -> tuple[str, ...]:
        """Return the statements that Django's schema editor would run for `order`, deferred ones last."""
        editor = self.editor()
        order(editor)
        for statement in editor.deferred_sql:
            editor.execute(statement, None)
        return tuple(text.rstrip().rstrip(";") for text in editor.collected_sql if text.strip(" ;"))


def key_columns(model: type[Model]) -> list[Any]:
    """Return the fields whose columns are the primary key."""
    return list(getattr(model._meta, "pk_fields", None) or [model._meta.pk])


def short_name(*parts: str, suffix: str, limit: int = 63) -> str:
    """Return a deterministic name of at most `limit` bytes: the parts and the suffix, hashed when too long.

    Two underscores keep the parts apart: a_b with c is not a with b_c, and a database has one such name.
    """
    name = f"{'__'.join(parts)}_{suffix}"
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    room = limit - len(suffix) - len(digest) - 2
    kept = "__".join(parts).encode()[:room].decode(errors="ignore")
    return f"{kept}_{digest}_{suffix}"


def error_code(error: BaseException) -> Any:
    """Return the code that the driver gave an error: an SQLSTATE, or the server's number."""
    cause: Any = error.__cause__ or error
    first = cause.args[0] if isinstance(error, DatabaseError) and cause.args else None
    if isinstance(first, int):
        # A driver of MySQL, which may give an SQLSTATE too: one that many errors share.
        return first
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or first
