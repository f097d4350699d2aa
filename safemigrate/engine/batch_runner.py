"""What is done to one batch: an UPDATE between two keys, or rows read, computed and written back."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, cast
from uuid import UUID, uuid4

from django.core.exceptions import FieldError
from django.db import DatabaseError, Error, ProgrammingError, connections
from django.db.models import F, Model, QuerySet, UUIDField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Coalesce
from django.db.models.sql import UpdateQuery

from safemigrate.backends import Database, Write, for_connection, get_backend, has_own_sql
from safemigrate.engine.batches import Batches, Range, Target, keys_of, locked
from safemigrate.engine.uniqueness import Deduplicator
from safemigrate.exceptions import BadRow, InvalidPopulate, SafemigrateError
from safemigrate.populate.sources import ByFunction, InBatches, InDatabase, InPython, LeftAsItIs, read_first
from safemigrate.types import AnyField, field_of

Result = tuple[int, list[BadRow]]
Work = Callable[[Batches, Range], Result]


def work_for(target: Target, source: InBatches, database: Database) -> Work:
    """Return what is to be called with each batch."""
    if isinstance(source, ByFunction):
        return DoneByFunction(source, target, database)
    if isinstance(source, InPython):
        source = _by_the_server(source, target, database) or source
    if isinstance(source, InDatabase):
        computed = ComputedInDatabase(source, target)
        # Of a query that joins other tables such a database would have all keys, to make an UPDATE of it.
        if database.reads_what_it_updates or not (target.chosen is not None or computed.reads_its_table()):
            return computed
        source = read_first(source, partial(_typed, target.model))
    return ComputedInPython(source, target, database)


def _typed(model: type[Model], name: str, value: Any) -> Any:
    """Return an expression that is read as a date or time: MySQL has the values of a CASE as texts."""
    field = field_of(model, name)
    is_one = field.get_internal_type() in {"DateField", "DateTimeField", "TimeField"}
    return Cast(value, field) if is_one and hasattr(value, "resolve_expression") else value


def rewrites(target: Target) -> bool:
    """Is a column written that has a value, which must not change between its reading and its writing?"""
    return set(target.names) != set(target.kept)


def may_share(source: InBatches, target: Target, database: Database) -> bool:
    """May several connections fill at once: does no batch depend on the one before it?"""
    if not database.writes_at_once:
        return False
    # The rows of a Backfill are locked from their reading to their writing.
    return (
        not isinstance(source, InPython) or bool(target.backfill) or not (rewrites(target) or source.unique)
    )


def _by_the_server(source: InPython, target: Target, database: Database) -> InDatabase | None:
    """Return the UPDATE that makes what uuid.uuid4 would make, where the server can: no row has to come here."""
    field = field_of(target.model, target.names[0])
    kind: type = type(field)
    makes = get_backend(database.connection).guards.random_uuid
    sql = makes(field) if source.function is uuid4 and kind is UUIDField else None
    if sql is None:
        return None
    made = RawSQL(sql, [], output_field=field)  # noqa: S611  the SQL is the database module's own
    return InDatabase({field.name: made}, source.title)


class ComputedInDatabase:
    """One UPDATE with the expressions, where a mark is still NULL."""

    def __init__(self, source: InDatabase, target: Target) -> None:
        self.source, self.target, self.model = source, target, target.model

    def __call__(self, batches: Batches, batch: Range) -> Result:
        rows, repeated = batches.todo.filter(batch.condition), self.repeated
        with for_connection(connections[batches.alias]).writing(rows):
            return rows.update(**self._values(), **repeated), []

    @cached_property
    def repeated(self) -> dict[str, F]:
        """The fields that are set to themselves, because it is faster so; none that puts SQL of its own around it."""
        database = for_connection(connections[self.target.alias])
        columns = database.repeated_columns(self.model, self.target.names)
        known = self.model._meta.local_concrete_fields if columns else ()
        fields = [cast("AnyField", field) for field in known if field.column in columns]
        return {field.name: F(field.name) for field in fields if not has_own_sql(field)}

    def statement(self, batches: Batches) -> tuple[str, tuple[Any, ...]]:
        """Return the UPDATE as it is run, but for the bounds of the keys, with its parameters.

        Raises InvalidPopulate where the expression is none that an UPDATE of this model can have.
        """
        query: Any = batches.todo.query.chain(UpdateQuery)
        try:
            query.add_update_values(self._values())
            sql, params = query.get_compiler(using=batches.alias).as_sql()
        except FieldError as error:
            raise InvalidPopulate(
                f"{self.source.title} cannot fill {', '.join(self.target.names)} of {self.model._meta.label} in an "
                f"UPDATE: {str(error).rstrip('.')}. A column of a related row, or of a parent model, is copied by "
                f'FromRelated("{self._inherited() or "relation__field"}"), or read by a function of one row.'
            ) from error
        return sql, tuple(params)

    def _inherited(self) -> str:
        """Return the way from the model to the first column of a parent model that the expressions name, or ""."""
        parts = [
            part
            for value in self.source.values.values()
            for part in getattr(value, "flatten", lambda v=value: [v])()
        ]
        names = [str(getattr(part, "name", "")) for part in parts if isinstance(part, F)]
        ways = {
            field.name: f"{link.name}__{field.name}"
            for parent, link in self.model._meta.parents.items()
            for field in parent._meta.fields
            if link is not None
        }
        return next((ways[name] for name in names if name in ways), "")

    def reads_its_table(self) -> bool:
        """Does a subquery read other rows of the table?"""
        batches = self.target.batches
        table = connections[batches.alias].ops.quote_name(self.model._meta.db_table)
        # EXTRACT(HOUR FROM table.column) reads none.
        return re.search(rf" FROM {re.escape(table)}(?!\.)", self.statement(batches)[0]) is not None

    def _values(self) -> dict[str, Any]:
        kept = self.target.kept
        values = self.source.assignments(self.model, self.target.apps)
        if len(values) > 1:
            values.update({name: self._or_own(name, values[name]) for name in kept})
        # MySQL reads a column as it was just assigned: those that are rewritten come last.
        return dict(sorted(values.items(), key=lambda item: item[0] not in kept))

    def _or_own(self, name: str, value: Any) -> Any:
        field = field_of(self.model, name)
        # A bare text would be taken for the name of a column.
        given = value if hasattr(value, "resolve_expression") else Value(value, output_field=field)
        return Coalesce(F(name), given, output_field=field)


class DoneByFunction:
    """The rows of a batch given to a function, in one transaction. All of them are good, or one at least is bad."""

    def __init__(self, source: ByFunction, target: Target, database: Database) -> None:
        self.source, self.target = source, target
        self.may_be_shared = may_share(source, target, database)
        # A query that joins other tables may have a row more than once; and some databases refuse to write to a
        # table that the condition reads too.
        self.by_key = target.chosen is not None or not database.reads_what_it_updates

    def __call__(self, batches: Batches, batch: Range) -> Result:
        rows = batches.todo.filter(batch.condition)
        with for_connection(connections[batches.alias]).writing(rows):
            if self.source.is_statement and not self.by_key:
                return self.source.function(rows), []
            # What decides on a row stays as it was when it was read, until the function has done its work on it.
            keys = batches.keys(batch, lock=not self.target.is_cursor)
            if keys:
                given = batches.rows.filter(pk__in=keys) if self.by_key else rows
                with one_is_bad():
                    self.source.function(given.order_by("pk"))
        return len(keys), []


class LeftRow(BadRow):
    """A row that is no fault: the function left it as it is."""


@dataclass(frozen=True)
class Made:
    """What Python made of a batch: keys, a column of values for each field, and the rows without a value."""

    keys: Sequence[Any]
    columns: Sequence[Sequence[Any]]
    bad: list[BadRow]


class ComputedInPython:
    """Rows read between the two keys, values computed and adapted as `save()` does it, and written back."""

    def __init__(self, source: InPython, target: Target, database: Database) -> None:
        self.source, self.target, self.database = source, target, database
        self.fields = [field_of(target.model, name) for name in target.names]
        self.prepared = source.prepare(target.apps, target.alias) if source.prepare else None
        self.unique = self._deduplicator()
        # Django's own `pk` looks the field up in each row.
        # NULL is no value for a field that is to be required; another function may write it.
        self.known = PLAIN | {type(None)} if target.backfill or target.leaves_null else PLAIN
        self.key = attrgetter(target.model._meta.pk.attname or "pk")
        self.write = get_backend(database.connection).writer(target)

    def _deduplicator(self) -> Deduplicator | None:
        if self.source.unique is None:
            return None
        rows = self.target.batches.rows
        return Deduplicator(rows, self.fields[0], self.source.unique, self.database.same_text)

    @property
    def rewrites(self) -> bool:
        return rewrites(self.target)

    @property
    def may_be_shared(self) -> bool:
        """May several connections do batches at once?"""
        return may_share(self.source, self.target, self.database)

    @property
    def may_be_apart(self) -> bool:
        """May a batch be read before the one before it is written, and written on another connection?"""
        return not self.rewrites and self.may_be_shared

    def __call__(self, batches: Batches, batch: Range) -> Result:
        if not self.rewrites:
            return self._fill(batches, batch)
        with for_connection(connections[batches.alias]).writing(batches.todo.filter(batch.condition)):
            return self._fill(batches, batch, lock=True)

    def _fill(self, batches: Batches, batch: Range, *, lock: bool = False) -> Result:
        made = self.made(batches, batch, lock=lock)
        return written(self.write, made), made.bad

    def made(self, batches: Batches, batch: Range, *, lock: bool = False) -> Made:
        """Read and compute a batch, and write nothing yet."""
        rows = batches.todo.filter(batch.condition).order_by("pk")
        if lock:
            rows = locked(rows, no_key=True)
        with one_is_bad():
            read = keys_of(rows) if self.source.keys_only else self._read(rows)
            if batches.chosen is not None:
                read = list({self.key(row): row for row in read}.values())
            computed = self.source.compute(read, self.prepared) if read else []
        keys = read if self.source.keys_only else list(map(self.key, read))
        return self._sorted(keys, computed)

    def _read(self, rows: QuerySet[Any]) -> list[Any]:
        # The garbage collector would go through the rows again and again, all of which are still needed.
        collects = gc.isenabled()
        gc.disable()
        try:
            return list(self.source.read(rows, self.target.apps))
        finally:
            if collects:
                gc.enable()

    def _sorted(self, keys: Sequence[Any], results: Sequence[Any]) -> Made:
        """Part the rows that have values, adapted for the database, from those that have none."""
        good: list[Any] = []
        rows: list[Any] = []
        bad: list[BadRow] = []
        ready = self._plain if self.unique else self._adapted
        for key, result in zip(keys, results, strict=True):
            try:
                rows.append(ready(result))
                good.append(key)
            except DatabaseError:
                raise
            except LeftAsItIs:
                bad.append(LeftRow(key, "left as it is"))
            except Exception as error:  # noqa: BLE001 - whatever a value or a field makes of it, it is one bad row
                bad.append(BadRow(key, reason(error)))
        if self.unique:
            rows = [self._adapted([value]) for value in self.unique.unique([value for (value,) in rows])]
        return Made(good, list(zip(*rows, strict=True)), bad)

    def _values(self, result: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        if self.target.leaves_null and all(value is None for value in result):
            raise LeftAsItIs
        return result

    def _adapted(self, result: Any) -> list[Any]:
        values = self._values(result)
        connection, known = self.database.connection, self.known
        return [
            field.get_db_prep_save(value if type(value) in known else plain(field, value), connection)
            for field, value in zip(self.fields, values)  # noqa: B905  a check for each row would cost too much
        ]

    def _plain(self, result: Any) -> list[Any]:
        return [plain(field, value) for field, value in zip(self.fields, self._values(result), strict=True)]


def written(write: Write, made: Made) -> int:
    with one_is_bad():
        try:
            return write(made.keys, made.columns) if made.keys else 0
        except ProgrammingError as error:
            raise BatchFailed(reason(error)) from error


@contextmanager
def one_is_bad() -> Iterator[None]:
    """Turn what is no error of the database into BatchFailed: at least one row, or its value, is at fault.

    It may be a row that the model cannot read, the function, or the driver's own word on a value: a NUL, half a
    character, a number that is too large, NaN.
    """
    try:
        yield
    except (Error, SafemigrateError, BatchFailed):
        raise
    except Exception as error:
        raise BatchFailed(reason(error)) from error


#: Values that are what they are, recognized by their type.
PLAIN = {bool, int, float, str, bytes, date, datetime, time, timedelta, Decimal, UUID}


def plain(field: AnyField, value: Any) -> Any:
    """Return what of a function's result is to be stored. Raises NoValue."""
    if value is None:
        raise NoValue("the function returned None")
    if isinstance(value, Model):
        return getattr(value, field.target_field.attname if field.remote_field else "pk")
    if hasattr(value, "resolve_expression"):
        raise NoValue("the function returned an expression; give the expression itself as populate")
    return value


class NoValue(ValueError):
    """The function gave nothing that can be written."""


class BatchFailed(Exception):
    """A function of many rows raised: one of them at least is bad."""


def reason(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NoValue | BatchFailed):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
