"""What is done to one batch: an UPDATE between two keys, or rows read, computed and written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from django.core.exceptions import FieldError
from django.db import DatabaseError, Error, connections
from django.db.models import F, Model, UUIDField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce
from django.db.models.sql import UpdateQuery
from django.db.transaction import atomic

from safemigrate import guards
from safemigrate.batches import Batches, Range, Target, keys_of
from safemigrate.databases import Database
from safemigrate.exceptions import BadRow, InvalidPopulate, SafemigrateError
from safemigrate.populate import InDatabase, InPython
from safemigrate.uniqueness import Deduplicator

Result = tuple[int, list[BadRow]]
Work = Callable[[Batches, Range], Result]


def work_for(target: Target, source: InDatabase | InPython, database: Database) -> Work:
    """Return what is to be called with each batch."""
    if isinstance(source, InPython):
        source = _by_the_server(source, target, database) or source
    if isinstance(source, InDatabase):
        return ComputedInDatabase(source, target)
    return ComputedInPython(source, target, database)


def _by_the_server(source: InPython, target: Target, database: Database) -> InDatabase | None:
    """Return the UPDATE that makes what uuid.uuid4 would make, where the server can: no row has to come here."""
    field = target.model._meta.get_field(target.names[0])
    sql = (
        guards.random_uuid(database, field) if source.function is uuid4 and type(field) is UUIDField else None
    )
    if sql is None:
        return None
    made = RawSQL(sql, [], output_field=field)  # noqa: S611  the SQL is the database module's own
    return InDatabase({field.name: made}, source.title)


class ComputedInDatabase:
    """One UPDATE with the expressions, where a mark is still NULL."""

    def __init__(self, source: InDatabase, target: Target) -> None:
        self.source, self.target, self.model = source, target, target.model

    def __call__(self, batches: Batches, batch: Range) -> Result:
        return batches.todo.filter(batch.condition).update(**self._values()), []

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
                f"UPDATE: {error}. A column of a related row, or of a parent model, is copied by "
                'FromRelated("relation__field"), or read by a function of one row.'
            ) from error
        return sql, tuple(params)

    def _values(self) -> dict[str, Any]:
        kept = self.target.kept
        values = self.source.assignments(self.model, self.target.apps)
        if len(values) > 1:
            values.update({name: self._or_own(name, values[name]) for name in kept})
        # MySQL reads a column as it was just assigned: those that are rewritten come last.
        return dict(sorted(values.items(), key=lambda item: item[0] not in kept))

    def _or_own(self, name: str, value: Any) -> Any:
        field = self.model._meta.get_field(name)
        # A bare text would be taken for the name of a column.
        given = value if hasattr(value, "resolve_expression") else Value(value, output_field=field)
        return Coalesce(F(name), given, output_field=field)


class ComputedInPython:
    """Rows read between the two keys, values computed and adapted as `save()` does it, and written back."""

    def __init__(self, source: InPython, target: Target, database: Database) -> None:
        self.source, self.target, self.database = source, target, database
        self.fields = [target.model._meta.get_field(name) for name in target.names]
        self.prepared = source.prepare(target.apps, target.alias) if source.prepare else None
        self.unique = self._deduplicator()

    def _deduplicator(self) -> Deduplicator | None:
        if self.source.unique is None:
            return None
        rows = Batches(self.target.model, self.target.alias, self.target.marks).rows
        return Deduplicator(rows, self.fields[0], self.source.unique, self.database.same_text)

    def __call__(self, batches: Batches, batch: Range) -> Result:
        if set(self.target.names) == set(self.target.kept):
            return self._fill(batches, batch)
        # A column that is rewritten must not change between its reading and its writing.
        with atomic(batches.alias):
            return self._fill(batches, batch, lock=True)

    def _fill(self, batches: Batches, batch: Range, *, lock: bool = False) -> Result:
        rows = batches.todo.filter(batch.condition).order_by("pk")
        features = connections[batches.alias].features
        if lock and features.has_select_for_update:
            rows = rows.select_for_update(of=("self",) if features.has_select_for_update_of else ())
        read = keys_of(rows) if self.source.keys_only else list(self.source.read(rows, self.target.apps))
        results = self._computed(read)
        keys = read if self.source.keys_only else [row.pk for row in read]
        good, bad = self._sort(keys, results)
        return self._write(good) if good else 0, bad

    def _write(self, rows: Sequence[Any]) -> int:
        target = self.target
        return self.database.write(target.model, target.names, target.marks, target.kept, rows)

    def _computed(self, rows: Sequence[Any]) -> list[Any]:
        try:
            return self.source.compute(rows, self.prepared) if rows else []
        except (Error, SafemigrateError):
            raise
        except Exception as error:
            raise BatchFailed(reason(error)) from error

    def _sort(self, keys: Sequence[Any], results: Sequence[Any]) -> tuple[list[Any], list[BadRow]]:
        """Return the rows to write, values adapted for the database, and those that have no value."""
        good, bad = [], []
        for key, result in zip(keys, results, strict=True):
            try:
                values = self._values(result)
                good.append((key, *(values if self.unique else self._adapted(values))))
            except DatabaseError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a value or a field makes of it, it is one bad row
                bad.append(BadRow(key, reason(error)))
        if self.unique:
            unique = self.unique.unique([value for _, value in good])
            good = [(key, *self._adapted([value])) for (key, _), value in zip(good, unique, strict=True)]
        return good, bad

    def _values(self, result: Any) -> list[Any]:
        if isinstance(result, Exception):
            raise result
        return [self._value(field, result[field.name]) for field in self.fields]

    @staticmethod
    def _value(field: Any, value: Any) -> Any:
        if value is None:
            raise NoValue("the function returned None")
        if isinstance(value, Model):
            return getattr(value, field.target_field.attname if field.remote_field else "pk")
        if hasattr(value, "resolve_expression"):
            raise NoValue("the function returned an expression; give the expression itself as populate")
        return value

    def _adapted(self, values: Sequence[Any]) -> list[Any]:
        connection = self.database.connection
        return [
            field.get_db_prep_save(value, connection)
            for field, value in zip(self.fields, values, strict=True)
        ]


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
