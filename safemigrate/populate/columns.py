"""Whether a path such as "page__site" can be read by an UPDATE of the model's table."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.models.constants import LOOKUP_SEP

from safemigrate.formatting import nearest


def _names(model: type[models.Model]) -> list[str]:
    return [field.name for field in model._meta.get_fields()]


def _label(model: type[models.Model]) -> str:
    return str(model._meta.label)


def _get(model: type[models.Model], name: str) -> Any:
    if name == "pk":
        return model._meta.pk
    try:
        return model._meta.get_field(name)
    except FieldDoesNotExist:
        return None


def column_problem(path: str, model: type[models.Model], new: models.Field[Any, Any]) -> str | None:
    first, _, rest = path.partition(LOOKUP_SEP)
    field = _get(model, first)
    if field is None:
        return f"{_label(model)} has no field {first}.{nearest(first, _names(model))}"
    if field == new:
        return f"{first} is the field that is to be filled: it has no value yet."
    if not getattr(field, "concrete", False):
        return (
            f"{first} is not a column of {_label(model)}: count or look it up with a function, or FromApps."
        )
    if field.is_relation and rest and not _stays(field, first, rest):
        return f'{path} is in another table, which an UPDATE cannot join: use FromRelated("{path}").'
    return None


def _stays(relation: Any, first: str, rest: str) -> bool:
    """Say whether the path ends in the relation's own column, by a lookup or by the key it points to."""
    name = rest.partition(LOOKUP_SEP)[0]
    targets = {field.name for field in relation.foreign_related_fields}
    return first == relation.attname or name in {"pk", *targets, *relation.get_lookups()}


def related_problem(path: str, model: type[models.Model]) -> str | None:
    *relations, last = path.split(LOOKUP_SEP)
    for name in relations:
        relation = _get(model, name)
        if relation is None:
            return f"{_label(model)} has no field {name}.{nearest(name, _names(model))}"
        if not (relation.concrete and (relation.many_to_one or relation.one_to_one)):
            return f"{_label(model)}.{name} does not lead to one row, so there is no value to copy."
        model = relation.related_model
    if not relations:
        return f'FromRelated("{path}") names no relation: write "relation__field", or F("{path}").'
    if _get(model, last) is None:
        return f"{_label(model)} has no field {last}.{nearest(last, _names(model))}"
    return None
