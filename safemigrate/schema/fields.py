"""The column as each step wants it: bare while it is filled, without Python defaults when it is required."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

from django.db import models
from django.db.migrations.state import ProjectState
from django.db.models import NOT_PROVIDED
from django.db.models.expressions import BaseExpression
from django.db.models.fields.related import ForeignObject

from safemigrate.exceptions import InvalidField
from safemigrate.types import AnyField


@dataclass(frozen=True)
class Notes:
    """What operations leave on a field of the migration state for later ones; no migration file and no model has it.

    `populate` is the Populate that fills it, with the names of those of its fields that were nullable then;
    `guard` is the populate of its write guard. `is_new` says that AddNullableField has added it, so that the table
    has nothing but its column, and no older code knows it; `before` is the field as the table has it, where an
    operation has the final one in its state already. `is_known` says that code knew the column when it was guarded:
    that may write NULL by name, against which no DEFAULT helps.
    """

    populate: tuple[Any, list[str]] | None = None
    guard: Any = None
    is_new: bool = False
    before: models.Field[Any, Any] | None = None
    is_known: bool = False


def notes(field: models.Field[Any, Any]) -> Notes:
    found: Notes = getattr(field, "safemigrate_notes", Notes())
    return found


def check(field: models.Field[Any, Any], name: str) -> None:
    """Raise InvalidField unless `field` can be added to old rows and then be made required."""
    reason = _refusal(field)
    if reason:
        raise InvalidField(f"{name} ({type(field).__name__}) cannot be added by safemigrate: {reason}")


def _refusal(field: Any) -> str | None:
    if not isinstance(field, models.Field):
        return "`field` must be a model field, such as models.DateTimeField()."
    if field.many_to_many:
        return "a many-to-many field is a table of its own, not a column. Use migrations.AddField."
    if field.primary_key:
        return "a primary key cannot be filled afterwards. Change the key in a migration of your own."
    if getattr(field, "generated", False):
        return "the database computes a generated field itself. Use migrations.AddField."
    if field.null:
        return (
            "it is null=True, so old rows need no value. Remove null=True to make it required, "
            "or use migrations.AddField."
        )
    if isinstance(field, ForeignObject) and not isinstance(field, models.ForeignKey):
        return "it has no column of its own."
    return None


def model_in(state: ProjectState, app_label: str, name: str, database: Any) -> type[models.Model]:
    """Return a model as the migrations have it, and as the table is.

    The class of a field, such as one of money, may give its model a second field: that one may have no column
    yet, and in the migrations be nullable while the class makes it required.
    """
    model: type[models.Model] = state.apps.get_model(app_label, name)
    known = state.models[app_label, name.lower()].fields
    for field in list(model._meta.local_concrete_fields):
        if field.name in known:
            field.null = known[field.name].null
        elif (
            field.column
            and not isinstance(field, models.OrderWrt)
            and not database.column(model, field.column)
        ):
            # Two fields are equal by where they stand in the class, which the second one borrows from its neighbour.
            model._meta.local_fields[:] = [each for each in model._meta.local_fields if each is not field]
            model._meta._expire_cache()  # type: ignore[attr-defined]
    return model


def _copy(field: models.Field[Any, Any]) -> Any:
    clone: Any = copy.copy(field)
    # What was computed from the attributes that are about to change.
    for cached in ("_get_default", "_db_default_expression", "unique", "validators", "error_messages"):
        clone.__dict__.pop(cached, None)
    clone.default = NOT_PROVIDED
    # Django would put '' or the present time into rows that are still NULL, and so hide them.
    clone.blank = False
    for name in ("auto_now", "auto_now_add"):
        if hasattr(clone, name):
            setattr(clone, name, False)
    return clone


def required(field: models.Field[Any, Any]) -> Any:
    """Return a copy of a model's field as its final column is, without any default that Python gives."""
    return _copy(field)


def nullable(field: models.Field[Any, Any]) -> Any:
    """Return a copy that is null=True, else as the final column is."""
    clone = _copy(field)
    clone.null = True
    return clone


def bare(field: models.Field[Any, Any], *, null: bool = True) -> Any:
    """Return a copy that is nothing but a column: no default, index, uniqueness or foreign key."""
    clone = nullable(field)
    clone.null = null
    clone.db_default = NOT_PROVIDED
    clone.db_index = False
    clone._unique = False
    if clone.remote_field:
        clone.db_constraint = False
    return clone


def with_default(field: models.Field[Any, Any]) -> Any:
    """Return a bare copy that keeps the default which the database gives (db_default)."""
    clone = bare(field)
    clone.db_default = field.db_default
    return clone


def gained(field: AnyField, before: AnyField) -> AnyField:
    """Return a copy of a field without the index, uniqueness, foreign key and check that `before` has in the table."""
    clone: Any = copy.copy(field)
    clone.__dict__.pop("unique", None)
    if before.unique:
        clone._unique = False
    if before.db_index:
        clone.db_index = False
    if clone.remote_field and getattr(before, "db_constraint", False):
        clone.db_constraint = False
    clone.db_check = lambda connection: None if before.db_check(connection) else field.db_check(connection)
    return cast("AnyField", clone)


#: What is Python's alone: the column is the same without it.
PYTHON_ONLY = {*models.Field.non_db_attrs, "auto_now", "auto_now_add", "default"} - {"db_column"}
#: What SetNotNull makes where the column lacked it.
MADE = ("unique", "db_index", "db_constraint")


def differences(before: Any, after: Any) -> list[str]:
    """Return in which arguments the columns of two fields differ, beside null and what SetNotNull makes."""
    old_path, _, old = before.deconstruct()[1:]
    new_path, _, new = after.deconstruct()[1:]
    names = [] if old_path == new_path else ["type"]
    names += sorted(
        name
        for name in {*old, *new} - {"null"} - PYTHON_ONLY
        if not _same(old.get(name, _same), new.get(name, _same))
        and not (name in MADE and getattr(after, name, False) and not getattr(before, name, False))
    )
    return names


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, BaseExpression) or isinstance(other, BaseExpression):
        return repr(one) == repr(other)
    if isinstance(one, models.Field) and isinstance(other, models.Field):  # The field inside an ArrayField.
        return not differences(one, other)
    return (
        bool(one == other)
        or (isinstance(one, str) and isinstance(other, str) and one.lower() == other.lower() and "." in one)
        or (
            hasattr(one, "deconstruct")
            and hasattr(other, "deconstruct")
            and one.deconstruct() == other.deconstruct()
        )
    )


def noted(field: models.Field[Any, Any], like: models.Field[Any, Any], **changes: Any) -> Any:
    """Return a copy of a state's field that bears the notes of `like`, with these changes."""
    clone: Any = field.clone()
    clone.safemigrate_notes = replace(notes(like), **changes)
    return clone
