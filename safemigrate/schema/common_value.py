"""A column added with the value that most rows get: only the other rows are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError
from django.db import connections
from django.db.models import Case, F, IntegerField, Model, Q, Value, When
from django.db.models.expressions import CombinedExpression
from django.db.models.lookups import Exact

from safemigrate.backends import Database, for_connection, get_backend
from safemigrate.engine.batches import Batches
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import InvalidPopulate, NoGuard
from safemigrate.populate.sources import InDatabase, is_dotted_path, resolve
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField, field_of

#: The columns for which this is done, and of which type a value must be, to stand in the table as it is written here.
#: Of any other, a date for a moment for example, the server makes what Python would not, and no row would be found.
EXACT: dict[str, type] = {
    "BooleanField": bool,
    **dict.fromkeys(("CharField", "SlugField", "TextField"), str),
    "DateField": date,
    "DateTimeField": datetime,
    "DecimalField": Decimal,
    "FloatField": float,
    "UUIDField": UUID,
    **dict.fromkeys(("IntegerField", "BigIntegerField", "SmallIntegerField"), int),
    **dict.fromkeys(("PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"), int),
}

#: How the comment of such a column begins, as long as rows may hold the common value for which it is not right.
BEGUN = "safemigrate: added with one value for all rows"


@dataclass(frozen=True)
class CommonValue:
    """The default of a `Case(When(condition, then=value), ..., default=value)` over the columns of one row.

    The column is added with it, which writes no row. It stays nullable until the rows of the other branches are
    written: those that still hold the common value are what is left to do. No code knows the column in that time.
    """

    model: type[Model]
    field: AnyField
    case: Case

    @classmethod
    def of(cls, database: Database, model: type[Model], name: str, populate: Any) -> CommonValue | None:
        """Return that of a populate on a database, None where each row has to be written."""
        # What a path leads to is not imported for a table without rows.
        if is_dotted_path(populate) and not Batches(model, database.connection.alias).rows.exists():
            return None
        source = resolve(populate, [name])
        given = source.values.get(name) if isinstance(source, InDatabase) else None
        found = cls(model, field_of(model, name), given) if type(given) is Case else None
        return found if found and found._is_simple() and found._is_comparable(database) else None

    @property
    def _values(self) -> list[Any]:
        return [value.value for value in (self.case.default, *(each.result for each in self.case.cases))]

    def _is_simple(self) -> bool:
        """Is each value a constant, each condition about columns and constants, and the common value not NULL?"""
        branches: list[When] = self.case.cases
        plain = all(
            type(value) is Value for value in (self.case.default, *(each.result for each in branches))
        )
        return (
            plain
            and self.case.default.value is not None
            and all(_reads_columns_only(each.condition) for each in branches)
        )

    def _is_comparable(self, database: Database) -> bool:
        field: Any = self.field
        if field.get_internal_type() not in EXACT or field.remote_field or field.unique:
            return False
        # Both stand where the mark of this would be.
        if field.has_db_default() or field.db_comment:
            return False
        try:
            get_backend(database.connection).guards.sql(self.model, field, self.case)
            # NULL is a value that a branch may have: its rows are bad ones.
            given = [value for value in self._values if value is not None]
            return database.adds_constants and all(map(self._is_exact, given))
        except (FieldError, NoGuard, ValueError, TypeError, ArithmeticError):
            return False

    def _is_exact(self, value: Any) -> bool:
        """Does the column hold this value just so, neither converted nor rounded nor cut?"""
        field: Any = self.field
        if type(value) is not EXACT[field.get_internal_type()]:
            return False
        if isinstance(value, Decimal):
            return bool(value.is_finite() and round(value, field.decimal_places) == value)
        return not isinstance(value, str) or field.max_length is None or len(value) <= field.max_length

    def _prepared(self, value: Any, database: Database) -> Any:
        return self.field.get_db_prep_save(value.value, database.connection)

    def rows_left(self, database: Database) -> Q:
        """Return the condition of the rows that hold the common value and are to hold another one."""
        common = self._prepared(self.case.default, database)
        numbers = [
            When(branch.condition, then=Value(int(self._prepared(branch.result, database) != common)))
            for branch in self.case.cases
        ]
        another = Case(*numbers, default=Value(0), output_field=IntegerField())
        # Asked first, as it is the cheaper one.
        return ~Q(Differs(self.field, self.case.default.value)) & Q(Exact(another, Value(1)))

    def steps(self, database: Database, *, ask: bool) -> list[Step]:
        """Return the steps that add the column, nullable, and marked by a comment; none where rows would be written."""
        guards = get_backend(database.connection).guards
        value = guards.sql(self.model, self.field, Value(self.case.default.value))
        return database.add_common(
            self.model, self.field, guards.defaults(self.field, value), self.comment, ask=ask
        )

    @property
    def comment(self) -> str:
        return f"{BEGUN} [{hashlib.sha256(repr(self.case).encode()).hexdigest()[:12]}]"


def _reads_columns_only(condition: Any) -> bool:
    if not isinstance(condition, Q):
        return False
    return all(_is_plain(child) for child in _leaves(condition))


def _leaves(condition: Q) -> Iterator[Any]:
    for child in condition.children:
        yield from _leaves(child) if isinstance(child, Q) else [child]


def _is_plain(child: Any) -> bool:
    if not isinstance(child, tuple):
        return False  # An expression: it may read another table, or give another answer at each look.
    given = child[1]
    if isinstance(given, set | frozenset):
        return False  # Its order, and so the fingerprint, is another one in each process.
    each = given if isinstance(given, list | tuple) else [given]
    return all(map(_is_of_columns, each))


def _is_of_columns(value: Any) -> bool:
    if isinstance(value, CombinedExpression):
        return _is_of_columns(value.lhs) and _is_of_columns(value.rhs)
    return isinstance(value, F | Value) or not hasattr(value, "resolve_expression")


def rows_left(model: type[Model], name: str, alias: str, populate: Any) -> Q:
    """Return the condition of the rows that hold the common value and are to get another one; empty without one.

    Raises InvalidPopulate where the column was begun with the common value of another populate: rows may hold that
    value which should have got another one, and nothing would show which.
    """
    database = for_connection(connections[alias])
    common = CommonValue.of(database, model, name, populate)
    if not is_begun(database, model, name) or database.is_required(model, field_of(model, name)):
        return common.rows_left(database) if common else Q()
    if common and common.comment == database.comment(model, common.field):
        return common.rows_left(database)
    label = f"{model._meta.label}.{name}"
    raise InvalidPopulate(
        f"{label} on {alias}: a run that was stopped added the column with the value that most "
        "rows get, and did not come to all of the others. The populate has been changed since, so it cannot be seen "
        "any more which rows these are. Put the populate back as it was, and run migrate again; or begin anew: "
        f"python manage.py add_required_field {label} --abandon"
    )


def is_begun(database: Database, model: type[Model], name: str) -> bool:
    return database.comment(model, field_of(model, name)).startswith(BEGUN)
