"""From fields and their populate to the migrations that add them, in order; no file is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.writer import MigrationWriter
from django.db.models import NOT_PROVIDED

from safemigrate import populate as kinds
from safemigrate.exceptions import InvalidPopulate
from safemigrate.expressions import Source, check_constant, double_quoted
from safemigrate.pending import Addition
from safemigrate.targets import Target

Dependency = tuple[str, str]


@dataclass(frozen=True)
class Call:
    """One operation as it is written: its name and the source of each argument."""

    name: str
    arguments: Mapping[str, Source]


@dataclass(frozen=True)
class Phase:
    """One migration to be written."""

    app_label: str
    name: str
    dependencies: tuple[Dependency, ...]
    operations: tuple[Call, ...]
    note: str = ""


def plan(
    populates: Mapping[Target, Source],
    addition: Addition,
    leaf: str,
    *,
    phases: int = 1,
    name: str | None = None,
    batch_size: int | None = None,
) -> list[Phase]:
    """Return the one or three migrations that add the targets, all of one app, after the migration `leaf`."""
    app_label = next(iter(populates)).app_label
    title = name or addition.name
    number = (MigrationAutodetector.parse_number(leaf) or 0) + 1
    if phases == 1:
        calls = [_add_required(target, source, batch_size) for target, source in populates.items()]
        return [Phase(app_label, f"{number:04}_{title}", addition.dependencies, tuple(calls))]
    planned: list[Phase] = []
    for position, (ending, note, calls) in enumerate(_three(populates, batch_size)):
        dependencies = ((app_label, planned[-1].name),) if planned else addition.dependencies
        full_name = f"{number + position:04}_{title}_{ending}"
        planned.append(Phase(app_label, full_name, dependencies, tuple(calls), note))
    return planned


def from_default(field: models.Field[Any, Any]) -> tuple[Source, str] | None:
    """Return what the field's own default makes for old rows and how to say so, or None without a default.

    Raises InvalidPopulate for a default that cannot serve.
    """
    if field.default is not NOT_PROVIDED:
        return _from_python(field)
    default = getattr(field, "db_default", NOT_PROVIDED)
    if default is not NOT_PROVIDED:
        source = _value(default, field)
        return source, f"its db_default, {source.code}, in every old row"
    return None


def serialize(value: Any) -> Source:
    """Return the source of a value as makemigrations would write it.

    Raises ValueError for what cannot be written, such as a lambda.
    """
    code, imports = MigrationWriter.serialize(value)
    return Source(double_quoted(code), frozenset(imports))


def _from_python(field: models.Field[Any, Any]) -> tuple[Source, str]:
    if not callable(field.default):
        source = _value(field.default, field)
        return source, f"its default, {source.code}, in every old row"
    try:
        kinds.resolve(field.default)
        source = serialize(field.default)
    except (ValueError, InvalidPopulate) as error:
        reason = str(error).splitlines()[0]
        raise InvalidPopulate(
            f"The default of {field.name} cannot be written into a migration: {reason}\n"
            "Write it as a function with a name, at the top level of a module, or give --populate."
        ) from error
    return source, f"its default, {source.code}, called once for each old row"


def _value(value: Any, field: models.Field[Any, Any]) -> Source:
    if hasattr(value, "resolve_expression"):
        return serialize(value)
    check_constant(value, field)
    source = serialize(value)
    if kinds.is_dotted_path(value):
        # A bare text of this form would be imported.
        return Source(f"models.Value({source.code})", source.imports | {"from django.db import models"})
    return source


def _call(name: str, target: Target, **arguments: Source | None) -> Call:
    always = {"model_name": serialize(target.model_name), "name": serialize(target.name)}
    given = {key: source for key, source in arguments.items() if source is not None}
    return Call(name, {**always, **given})


def _field(target: Target) -> Source:
    try:
        return serialize(target.field)
    except ValueError as error:
        raise InvalidPopulate(
            f"{target.label} cannot be written into a migration: {str(error).splitlines()[0]}"
        ) from error


def _batch_size(batch_size: int | None) -> Source | None:
    return serialize(batch_size) if batch_size else None


def _add_required(target: Target, populate: Source, batch_size: int | None) -> Call:
    size = _batch_size(batch_size)
    return _call("AddRequiredField", target, field=_field(target), populate=populate, batch_size=size)


def _three(populates: Mapping[Target, Source], batch_size: int | None) -> list[tuple[str, str, list[Call]]]:
    size = _batch_size(batch_size)
    return [
        (
            "add",
            "Deploy 1 of 3: migrate this before the new code runs anywhere.",
            [_call("AddNullableField", target, field=_field(target)) for target in populates],
        ),
        (
            "fill",
            "Deploy 2 of 3: migrate this at any time after the first and before the third.",
            [
                _call("Populate", target, populate=source, batch_size=size)
                for target, source in populates.items()
            ],
        ),
        (
            "require",
            "Deploy 3 of 3: migrate this once the new code runs everywhere.",
            [_call("SetNotNull", target, field=_field(target)) for target in populates],
        ),
    ]
