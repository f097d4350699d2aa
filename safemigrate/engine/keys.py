"""Primary keys as they are kept: as JSON."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model


def key_to_json(key: Any) -> Any:
    """Return a primary key as JSON has it: numbers as they are, all else as text; a composite one as a list."""
    if isinstance(key, tuple | list):
        return [key_to_json(part) for part in key]
    if isinstance(key, bytes | memoryview):
        return b64encode(key).decode()  # as BinaryField reads it
    return key if key is None or isinstance(key, int) else str(key)


def key_from_json(model: type[Model], value: Any) -> Any:
    """Return the key of the model that `key_to_json` wrote."""
    if value is None:
        return None
    fields = getattr(model._meta, "pk_fields", None) or [model._meta.pk]
    values = value if isinstance(value, list) else [value]
    try:
        parts = [field.to_python(part) for field, part in zip(fields, values, strict=True)]
    except (ValidationError, ValueError):
        return None  # The table has another primary key by now: the search for the first row finds the place.
    return tuple(parts) if len(fields) > 1 else parts[0]
