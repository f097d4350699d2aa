"""What can be wrong with a Backfill class, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django import forms
from django.apps import apps
from django.core.exceptions import EmptyResultSet, FieldDoesNotExist, FieldError, ValidationError
from django.db import connections
from django.db.models import Model, Q, QuerySet
from django.db.models.sql import UpdateQuery

from safemigrate.backfills.backfill import Backfill
from safemigrate.conf import EXECUTORS
from safemigrate.exceptions import InvalidSetting
from safemigrate.formatting import nearest
from safemigrate.throttles import imported

#: What does the work of a class, of which one alone may be there.
ONE_OF = {"values", "row", "batch", "delete"}
#: The same in words; one of them has to be there.
WAYS = "values, row() with fields, batch() or delete"


def problems(cls: type[Backfill]) -> list[str]:
    """Return in words what is wrong with the class, each beginning with its name. Asks no database."""
    return [f"{cls.label()}: {text}" for look in LOOKS for text in look(cls)]


def _of_model(cls: type[Backfill]) -> Iterator[str]:
    model = cls.model
    if model is None:
        if not cls.has("queryset"):
            yield 'it has no model. Name the one whose rows are to be done: model = Order, or "shop.Order".'
    elif isinstance(model, str):
        try:
            apps.get_model(model)
        except (LookupError, ValueError):
            known = [each._meta.label for each in apps.get_models()]
            yield f"there is no model {model!r}.{nearest(model, known)} Name it as app.Model."
    elif not (isinstance(model, type) and issubclass(model, Model)):
        yield f"model is {model!r}, which is no model: give the class, or its label as text."
    elif model._meta.abstract:
        yield f"{model.__name__} is abstract, so it has no table. Name a model that inherits from it."


def _of_ways(cls: type[Backfill]) -> Iterator[str]:
    ways = {
        "values": cls.values is not None,
        "row()": cls.has("row"),
        "batch()": cls.has("batch"),
        "delete": cls.delete is not False,
    }
    given = [name for name, is_there in ways.items() if is_there]
    if not given:
        yield f"it does not say what is to be done to the rows. Give it one of {WAYS}."
    elif len(given) > 1:
        yield f"it has {' and '.join(given)}, of which one alone can be. Make two backfills of it."
    if cls.delete not in (False, True, "raw"):
        yield f'delete is {cls.delete!r}: give True, or "raw" to leave out signals and cascades.'
    elif cls.delete and cls.where is None and not cls.has("queryset"):
        yield "it would delete every row of the table. Say which ones: where = Q(...), or queryset()."


def _of_methods(cls: type[Backfill]) -> Iterator[str]:
    forms_of = {
        "row": "row(self, instance)",
        "batch": "batch(self, rows)",
        "queryset": "queryset(self)",
        "before": "before(self)",
        "after": "after(self)",
    }
    for name, form in forms_of.items():
        if cls.has(name) and (why := _wrong_function(getattr(cls, name), form.count(",") + 1)):
            yield f"{name} {why}; it is to be {form}. What it needs besides is in self.cleaned_data and self.using."


def _wrong_function(function: Any, arguments: int) -> str:
    if not inspect.isfunction(function):
        return "is no method"
    if inspect.iscoroutinefunction(function):
        return "is async, and a batch is a transaction of one connection"
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return f"takes ({', '.join(inspect.signature(function).parameters)})"
    return ""


def _of_fields(cls: type[Backfill]) -> Iterator[str]:
    if isinstance(cls.fields, str):
        yield f"fields is a text: give a list, fields = [{cls.fields!r}]."
    elif cls.values is not None and not (isinstance(cls.values, Mapping) and cls.values):
        yield f"values is {cls.values!r}: give a dict of field and value, or expression."
    elif cls.has("row") and not cls.fields:
        yield 'row() has no fields to write: name them, fields = ["total"]. For effects of its own there is batch().'
    elif cls.fields and not cls.has("row"):
        yield "fields are those that row() writes, and there is no row()."
    elif (model := _model_of(cls)) is not None:
        for name in [*(cls.values or ()), *cls.fields]:
            if why := _not_written(model, name):
                yield f"{name} {why}"


def _not_written(model: type[Model], name: str) -> str:
    known = [field.name for field in model._meta.concrete_fields]
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return f"is no field of {model._meta.label}.{nearest(name, known)}"
    if not getattr(field, "concrete", False) or field.many_to_many:
        return f"of {model._meta.label} has no column. Change the rows of the other model instead."
    if getattr(field, "primary_key", False):
        return "is the primary key, by which the rows are gone through; it cannot be written."
    if getattr(field, "generated", False):
        return "is computed by the database; it cannot be written."
    if field.model._meta.concrete_model is not model._meta.concrete_model:
        return f"stands in the table of {field.model._meta.label}. Make a backfill of that model."
    return ""


def _of_names(cls: type[Backfill]) -> Iterator[str]:
    """An attribute that is misspelt would be left out of account, and each row of the table be done."""
    known = [name for name in vars(Backfill) if not name.startswith("_")]
    given = {
        name
        for base in cls.__mro__
        if issubclass(base, Backfill) and base is not Backfill
        for name in vars(base)
    }
    free = [name for name in known if name not in given and (name not in ONE_OF or not given & ONE_OF)]
    for name in sorted(given.difference(known)):
        if not name.startswith("_") and (hint := nearest(name, free)):
            yield f"it has no attribute {name}.{hint}"


def _of_condition(cls: type[Backfill]) -> Iterator[str]:
    where, model = cls.where, _model_of(cls)
    if where is None:
        return
    if not isinstance(where, Q):
        yield f"where is {where!r}: give a Q, as in where = Q(total=None)."
    elif not where:
        yield "where is an empty Q(), which every row fulfils. Leave it out, and each row is done once."
    elif cls.has("queryset"):
        yield "it has where and queryset(). Put the condition into the query, or leave queryset() out."
    elif model is not None:
        yield from _asked(lambda: str(QuerySet(model).filter(where).query), "where", model)


def _of_values(cls: type[Backfill]) -> Iterator[str]:
    model, values = _model_of(cls), cls.values
    if model is None or not isinstance(values, Mapping) or any(_not_written(model, name) for name in values):
        return
    for name, value in values.items():
        if callable(value) and not hasattr(value, "resolve_expression"):
            yield f"values gives a function for {name}: give an expression, or write row(), a function of one row."
    yield from _asked(lambda: _update(model, values), "values", model)


def _asked(make: Callable[[], object], what: str, model: type[Model]) -> Iterator[str]:
    try:
        make()
    except EmptyResultSet:
        yield f"{what} is a condition that no row can fulfil."
    except FieldError as error:
        said = str(error).rstrip(".")
        yield f"{what} cannot be asked of {model._meta.label}: {said}. Another table is read by a Subquery."
    except (ValueError, TypeError, ValidationError, AttributeError) as error:
        yield f"{what} cannot be asked of {model._meta.label}: {' '.join(str(error).split())}"


def _update(model: type[Model], values: Mapping[str, Any]) -> None:
    query: Any = QuerySet(model).query.chain(UpdateQuery)
    query.add_update_values(dict(values))
    query.get_compiler(using="default").as_sql()


def _model_of(cls: type[Backfill]) -> type[Model] | None:
    """Return the model, None where it is another fault that there is none, or where a query alone says it."""
    try:
        found = apps.get_model(cls.model) if isinstance(cls.model, str) else cls.model
    except (LookupError, ValueError):
        return None
    return (
        found if isinstance(found, type) and issubclass(found, Model) and not found._meta.abstract else None
    )


def _of_form(cls: type[Backfill]) -> Iterator[str]:
    if cls.form is not None and not (isinstance(cls.form, type) and issubclass(cls.form, forms.BaseForm)):
        yield f"form is {cls.form!r}: give a class that inherits from django.forms.Form."
        return
    known = cls.form.base_fields if cls.form else {}
    for name, field in known.items():
        if isinstance(field, forms.FileField):
            yield f"{name} of the form is a file. A run keeps its parameters as JSON: give a path or an address."
    if isinstance(cls.sensitive, str):
        yield f"sensitive is a text: give a list, sensitive = [{cls.sensitive!r}]."
        return
    for name in cls.sensitive:
        if name not in known:
            yield f"sensitive names {name}, which no form of it has.{nearest(name, known)}"


def _of_numbers(cls: type[Backfill]) -> Iterator[str]:
    for name, least in (("batch_size", 1), ("max_bad_rows", 0)):
        value = getattr(cls, name)
        if value is not None and (type(value) is not int or value < least):
            yield f"{name} is {value!r}: give a whole number from {least} on, or leave it out for the setting's."


def _of_places(cls: type[Backfill]) -> Iterator[str]:
    if isinstance(cls.databases, str) or not cls.databases:
        yield f"databases is {cls.databases!r}: give a list of aliases."
        return
    for alias in cls.databases:
        if alias not in connections:
            yield f"databases names {alias}, which DATABASES does not have.{nearest(alias, connections)}"
    if cls.executor and cls.executor not in EXECUTORS:
        hint = nearest(str(cls.executor), EXECUTORS)
        yield f"executor is {cls.executor!r}: give one of {', '.join(EXECUTORS)}.{hint}"


def _of_throttles(cls: type[Backfill]) -> Iterator[str]:
    if isinstance(cls.throttles, str):
        yield f"throttles is a text: give a list, throttles = [{cls.throttles!r}]."
        return
    for path in cls.throttles or ():
        try:
            imported(path)
        except (InvalidSetting, AttributeError, TypeError) as error:
            yield f"throttles: {str(error).removeprefix('SAFEMIGRATE_THROTTLES names ')}"


def _of_errors(cls: type[Backfill]) -> Iterator[str]:
    errors = cls.retry_on if isinstance(cls.retry_on, tuple) else (cls.retry_on,)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in errors):
        yield f"retry_on is {cls.retry_on!r}: give a tuple of exceptions, as in (TimeoutError,)."
    elif not isinstance(cls.retry_on, tuple):
        yield f"retry_on is one exception: give a tuple, ({errors[0].__name__},)."


def _of_permission(cls: type[Backfill]) -> Iterator[str]:
    if cls.permission() and cls.permission().count(".") != 1:
        yield f"Meta.permission is {cls.permission()!r}: give app.codename, as in shop.delete_event."


LOOKS = (
    *(_of_names, _of_model, _of_ways, _of_methods, _of_fields, _of_condition, _of_values),
    *(_of_form, _of_numbers, _of_places, _of_throttles, _of_errors, _of_permission),
)
