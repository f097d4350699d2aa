"""From fields and their populate to the migrations that add them, in order; no file is touched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.writer import MigrationWriter
from django.db.models import NOT_PROVIDED

from safemigrate.exceptions import InvalidPopulate
from safemigrate.generator import integrations
from safemigrate.generator.autodetector import Addition
from safemigrate.generator.integrations import When
from safemigrate.generator.targets import RequiredField
from safemigrate.populate import sources as kinds
from safemigrate.populate.expressions import Snippet, check_constant, double_quoted

Dependency = tuple[str, str]


@dataclass(frozen=True)
class Call:
    """One operation as it is written: its name, the source of each argument, and where it is imported from."""

    name: str
    arguments: Mapping[str, Snippet]
    module: str = "safemigrate.operations"


@dataclass(frozen=True)
class Phase:
    """One migration to be written.

    `note` says when to deploy it and `effect` what it does to running code, where there are three;
    `attributes` are further lines of the class.
    """

    app_label: str
    name: str
    dependencies: tuple[Dependency, ...]
    operations: tuple[Call, ...]
    note: str = ""
    effect: str = ""
    attributes: tuple[Snippet, ...] = ()


@dataclass(frozen=True)
class _Part:
    """One of the three: what its name ends in, and what distinguishes it."""

    ending: str
    when: When
    note: str
    effect: str
    calls: list[Call]


def phases_for(
    populates: Mapping[RequiredField, Snippet],
    addition: Addition,
    leaf: str,
    *,
    phases: int = 1,
    name: str | None = None,
    batch_size: int | None = None,
    guarded: Collection[RequiredField] = (),
    keep_guard: bool = False,
) -> list[Phase]:
    """Return the one or more migrations that make the targets required, all of one app, after the migration `leaf`.

    `guarded` are those that a write guard can fill in new rows; with one phase the operation sees to that itself.
    """
    app_label = next(iter(populates)).app_label
    title = name or addition.name
    number = (MigrationAutodetector.parse_number(leaf) or 0) + 1
    if phases == 1:
        calls = [
            _whole(target, source, batch_size, keep_guard, is_new=target not in addition.nullable)
            for target, source in populates.items()
        ]
        calls += _exemptions()
        # The new code needs the column, so it comes first, though old code may not outlive it.
        attributes = integrations.attributes(When.BEFORE)
        full_name = f"{number:04}_{title}"
        return [Phase(app_label, full_name, addition.dependencies, tuple(calls), attributes=attributes)]
    planned: list[Phase] = []
    # A nullable field that no guard can fill has nothing to be done before the fill.
    parts = [part for part in _three(populates, batch_size, addition.nullable, guarded) if part.calls]
    for position, part in enumerate(parts):
        dependencies = ((app_label, planned[-1].name),) if planned else addition.dependencies
        full_name = f"{number + position:04}_{title}_{part.ending}"
        attributes = integrations.attributes(part.when)
        note = f"Deploy {position + 1} of {len(parts)}: {part.note}"
        planned.append(
            Phase(app_label, full_name, dependencies, tuple(part.calls), note, part.effect, attributes)
        )
    return planned


def has_db_default(field: models.Field[Any, Any]) -> bool:
    """Return whether the database itself gives new rows a value."""
    return getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED


def from_default(field: models.Field[Any, Any]) -> tuple[Snippet, str] | None:
    """Return what the field's own default makes for old rows and how to say so, or None without a default.

    Raises InvalidPopulate for a default that cannot serve.
    """
    if field.default is not NOT_PROVIDED:
        return _from_python(field)
    if has_db_default(field):
        source = _value(field.db_default, field)
        return source, f"its db_default, {source.code}, in every old row"
    return None


def serialize(value: Any) -> Snippet:
    """Return the source of a value as makemigrations would write it.

    Raises ValueError for what cannot be written, such as a lambda.
    """
    code, imports = MigrationWriter.serialize(value)
    return Snippet(double_quoted(code), frozenset(imports))


def _from_python(field: models.Field[Any, Any]) -> tuple[Snippet, str]:
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


def _value(value: Any, field: models.Field[Any, Any]) -> Snippet:
    if hasattr(value, "resolve_expression"):
        return serialize(value)
    check_constant(value, field)
    source = serialize(value)
    if kinds.is_dotted_path(value):
        # A bare text of this form would be imported.
        return Snippet(f"models.Value({source.code})", source.imports | {"from django.db import models"})
    return source


def _call(name: str, target: RequiredField, **arguments: Snippet | None) -> Call:
    always = {"model_name": serialize(target.model_name), "name": serialize(target.name)}
    given = {key: source for key, source in arguments.items() if source is not None}
    return Call(name, {**always, **given})


def _field(target: RequiredField) -> Snippet:
    try:
        return serialize(target.field)
    except ValueError as error:
        raise InvalidPopulate(
            f"{target.label} cannot be written into a migration: {str(error).splitlines()[0]}"
        ) from error


def _batch_size(batch_size: int | None) -> Snippet | None:
    return serialize(batch_size) if batch_size else None


def _whole(
    target: RequiredField, populate: Snippet, batch_size: int | None, keep_guard: bool, *, is_new: bool
) -> Call:
    return _call(
        "AddRequiredField" if is_new else "RequireField",
        target,
        field=_field(target),
        populate=populate,
        batch_size=_batch_size(batch_size),
        keep_guard=serialize(True) if keep_guard else None,
    )


def _exemptions() -> list[Call]:
    return [Call(name, {}, module) for module, name in integrations.exemptions()]


def _three(
    populates: Mapping[RequiredField, Snippet],
    batch_size: int | None,
    nullable: Collection[RequiredField],
    guarded: Collection[RequiredField],
) -> list[_Part]:
    guards = [target for target in populates if target in guarded]
    new = [target for target in populates if target not in nullable]
    old_rows, late_rows = _effects(populates, nullable, guarded)
    return [
        _Part(
            "add" if new else "guard",
            When.BEFORE,
            "migrate this before the new code runs anywhere.",
            old_rows,
            [_call("AddNullableField", target, field=_field(target)) for target in new]
            + [_call("GuardWrites", target, populate=populates[target]) for target in guards],
        ),
        _Part(
            "fill",
            When.EITHER,
            "migrate this at any time after the first; run again, it does no harm."
            if new or guards
            else "migrate this at any time; run again, it does no harm.",
            "Rows that were there before the first get their value, in committed batches."
            if new or guards
            else "Rows that are NULL get their value, in committed batches.",
            [
                _call("Populate", target, populate=source, batch_size=_batch_size(batch_size))
                for target, source in populates.items()
            ],
        ),
        _Part(
            "require",
            When.AFTER,
            "migrate this when no old code is left running.",
            late_rows,
            # The guards go last: a column that cannot be made required yet keeps its own.
            [_call("SetNotNull", target, field=_field(target)) for target in populates]
            + [_call("UnguardWrites", target) for target in guards]
            + _exemptions(),
        ),
    ]


def _effects(
    targets: Iterable[RequiredField], nullable: Collection[RequiredField], guarded: Collection[RequiredField]
) -> tuple[str, str]:
    """Return what the first and the last mean for what is written by code that does not know that it is required."""
    bare = [target for target in targets if target in nullable or not has_db_default(target.field)]
    if not bare:
        return "Old and new code both work: rows that old code inserts get the db_default.", ""
    fails = (
        "From then on a write of NULL fails."
        if nullable
        else "From then on an insert without the field fails."
    )
    if all(target in guarded for target in bare):
        what = "replaces NULL that old code writes" if nullable else "fills the rows that old code inserts"
        return f"Old and new code both work: the database {what}.", fails
    left = "NULL that old code writes stays" if nullable else "rows that old code inserts stay NULL"
    last = "last" if nullable else "third"
    return f"Old and new code both work; {left} until the {last}.", f"It fills what is still NULL. {fails}"
