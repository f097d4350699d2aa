"""A field that has a column, as a type: Django's own says of each field that it may have none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, Model

if TYPE_CHECKING:

    class AnyField(Field[Any, Any]):
        column: str
        db_index: bool
        db_constraint: bool
        remote_field: Any
        target_field: AnyField

        def db_type(self, connection: BaseDatabaseWrapper) -> str: ...
else:
    AnyField = Field


def field_of(model: type[Model], name: str) -> AnyField:
    """Return the field of that name, which has a column."""
    return cast("AnyField", model._meta.get_field(name))


#: Fields whose column holds text.
TEXTS = {"CharField", "TextField", "SlugField", "FileField", "FilePathField", "URLField", "EmailField"}


def is_text(field: AnyField) -> bool:
    return field.get_internal_type() in TEXTS
