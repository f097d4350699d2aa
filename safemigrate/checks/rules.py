"""System checks of the migrations that a database does not have yet: what would hurt its users, seen early."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.checks import Warning as Caution
from django.core.exceptions import FieldDoesNotExist
from django.db import connections, router
from django.db.migrations import (
    AddField,
    AlterField,
    Migration,
    RemoveField,
    RenameField,
    RenameModel,
    RunPython,
)
from django.db.migrations.writer import MigrationWriter
from django.db.models import NOT_PROVIDED, Field, Model

from safemigrate import conf
from safemigrate.backends import for_connection
from safemigrate.checks import loops
from safemigrate.checks.leftovers import leftovers
from safemigrate.checks.unapplied import UnappliedOperation, UnappliedOperations
from safemigrate.exceptions import InvalidField
from safemigrate.formatting import page
from safemigrate.operations import GuardWrites, Populate, UnguardWrites
from safemigrate.schema import fields
from safemigrate.schema.change import FieldStep
from safemigrate.types import AnyField

logger = logging.getLogger("safemigrate")

DOCS = page("reference/checks")
#: Folders of packages that were installed: the project does not edit the migrations in them.
INSTALLED = {"site-packages", "dist-packages"}

#: A field: its app, its model in small letters, its name.
Key = tuple[str, str, str]


def check_migrations(
    app_configs: Any = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[Caution]:
    """Return a warning for each trap in the project's migrations that are not applied on these databases.

    And for what is left on them of an attempt that no file knows. Reads only: the history, the catalogue, and one
    row of each table in question. Says nothing of a database, or a history, that cannot be read: `migrate` says that
    itself.
    """
    if not databases or not conf.get("SAFEMIGRATE_CHECKS"):
        return []
    labels = None if app_configs is None else {config.label for config in app_configs}
    found: list[Caution] = []
    for alias in databases:
        for caution in _of_database(alias, labels):
            if caution not in found:
                found.append(caution)
        if labels is None:
            found += _left_on(alias)
    return found


def _of_database(alias: str, labels: set[str] | None) -> list[Caution]:
    try:
        return list(_cautions(UnappliedOperations(connections[alias]), labels))
    except Exception:  # A check that crashes would keep people from migrating.
        logger.debug("The migrations of %s could not be checked", alias, exc_info=True)
        return []


def _left_on(alias: str) -> list[Caution]:
    try:
        return list(leftovers(alias))
    except Exception:
        logger.debug("What was left on %s could not be looked for", alias, exc_info=True)
        return []


def _cautions(unapplied: UnappliedOperations, labels: set[str] | None) -> Iterator[Caution]:
    checked = {
        m for m in unapplied.migrations if _is_editable(m) and (labels is None or m.app_label in labels)
    }
    if not checked:
        return
    ends = LooseEnds()
    for ahead in unapplied:
        ends.follow(ahead, checked=ahead.migration in checked)
        if ahead.migration in checked:
            yield from _looked_at(ahead, unapplied)
    yield from ends.left(unapplied)


def _is_editable(migration: Migration) -> bool:
    file = getattr(sys.modules.get(type(migration).__module__), "__file__", None)
    return file is not None and INSTALLED.isdisjoint(Path(file).parts)


def _looked_at(ahead: UnappliedOperation, unapplied: UnappliedOperations) -> Iterator[Caution]:
    operation = ahead.operation
    if isinstance(operation, FieldStep):
        yield from _in_transaction(ahead)
    elif isinstance(operation, AddField):
        yield from _same_for_all(ahead) if _repeats_unique(operation.field) else _one_off(ahead)
    elif isinstance(operation, AlterField):
        yield from _made_required(ahead)
    elif isinstance(operation, RunPython):
        yield from _row_by_row(ahead, unapplied)
    elif isinstance(operation, RemoveField):
        yield from _still_guarded(ahead, operation.name, "removed")
    elif isinstance(operation, RenameField):
        yield from _still_guarded(ahead, operation.old_name, "renamed")


def _caution(number: int, migration: Migration, text: str, hint: str) -> Caution:
    obj = f"{migration.app_label}.{migration.name}"
    return Caution(text, hint=f"{hint}\n\tSee {DOCS}", obj=obj, id=f"safemigrate.W{number:03}")


# A field added with one value for all rows


def _one_off(ahead: UnappliedOperation) -> Iterator[Caution]:
    field = ahead.operation.field
    if field.null or field.has_db_default() or not _is_fillable(field):
        return
    model = ahead.full_model(ahead.operation.model_name)
    if model is None:
        return
    value = _value(ahead.operation)
    fate = (
        f"they would all get {value}"
        if value
        else "they have no value for it, so the column is refused, or zeroed"
    )
    yield _caution(
        1,
        ahead.migration,
        f"{_label(ahead, model)} is required, and {_table(ahead, model)} has rows: {fate}. Code that does not "
        "know the field yet cannot insert rows from then on.",
        f"{_instead(ahead)}: python manage.py add_required_field {_label(ahead, model)}. Where one value is "
        "right for old rows and for those of old code, give the field a db_default instead.",
    )


def _value(operation: Any) -> str:
    field = operation.field
    if field.has_default():
        kind = "its default" if operation.preserve_default else "the one-off default"
        called = ", called once" if callable(field.default) else ""
        return f"{kind} {_written(field.default)}{called}"
    if getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False):
        return "the time of the migration"
    return "an empty text" if field.blank and field.empty_strings_allowed else ""


def _repeats_unique(field: Field[Any, Any]) -> bool:
    return bool(
        field.unique and callable(field.default) and not field.has_db_default() and field.has_default()
    )


def _same_for_all(ahead: UnappliedOperation) -> Iterator[Caution]:
    field = ahead.operation.field
    if not _is_fillable(field):
        return
    model = ahead.full_model(ahead.operation.model_name)
    if model is None:
        return
    label = _label(ahead, model)
    cure = (
        f"Take the default out of this operation, and fill the field in a migration after it with atomic = False: "
        f"{_populate_line(ahead)}"
        if field.null
        else f"{_instead(ahead)}: python manage.py add_required_field {label}"
    )
    yield _caution(
        2,
        ahead.migration,
        f"{label} is unique, and its default {_written(field.default)} is called once: all rows that "
        f"{_table(ahead, model)} has would get the same value.",
        f"{cure}, which calls it for each row.",
    )


def _populate_line(ahead: UnappliedOperation) -> str:
    operation = ahead.operation
    called = _written(operation.field.default)
    return f'Populate(model_name="{operation.model_name}", name="{operation.name}", populate={called})'


def _is_fillable(field: AnyField) -> bool:
    """Is it a column that could be filled, were it required?"""
    field = field.clone()
    field.null = False
    try:
        fields.check(field, "")
    except InvalidField:
        return False
    return True


def _instead(ahead: UnappliedOperation) -> str:
    alone = len(ahead.migration.operations) == 1
    what = "delete this migration" if alone else "take this operation out of the migration"
    return f"If it is applied nowhere yet, {what} and type"


# A nullable field made required by Django's own operation


def _made_required(ahead: UnappliedOperation) -> Iterator[Caution]:
    operation = ahead.operation
    before = _state_field(ahead, operation.model_name, operation.name)
    if before is None or not before.null or operation.field.null or not _is_fillable(operation.field):
        return
    model = ahead.full_model(operation.model_name)
    if model is None:
        return
    after = _kept(operation)
    others = ", ".join(fields.differences(before, after))
    alone = f"Alter the rest ({others}) by itself, then write" if others else "Write"
    value = _value(operation)
    filled = f"every NULL gets {value}, and " if value else ""
    yield _caution(
        6,
        ahead.migration,
        f"{_label(ahead, model)} becomes required, and {_table(ahead, model)} has rows: {filled}all "
        "are read or copied, under a lock that is waited for, and held, without a limit.",
        f"{alone} this instead, in a migration with atomic = False: {_require(operation, after)} from "
        "safemigrate.operations; or take this operation out of the migration, if that is applied nowhere yet, and "
        f"type: python manage.py add_required_field {_label(ahead, model)}",
    )


def _require(operation: Any, after: AnyField) -> str:
    default = operation.field.default
    value = "VALUE" if default is NOT_PROVIDED else _written(default, "VALUE")
    field = _written(after, f"models.{type(after).__name__}(...)")
    named = f'model_name="{operation.model_name}", name="{operation.name}"'
    return f"RequireField({named}, field={field}, populate={value})"


def _kept(operation: Any) -> Any:
    """Return the field as the migrations keep it: without a one-off default."""
    field = operation.field.clone()
    if not operation.preserve_default:
        field.default = NOT_PROVIDED
    return field


def _set_not_null(model_name: str, name: str, field: AnyField) -> str:
    written = _written(field, f"models.{type(field).__name__}(...)")
    return (
        f'SetNotNull(model_name="{model_name}", name="{name}", field={written}) from safemigrate.operations'
    )


# A function that writes row after row


def _row_by_row(ahead: UnappliedOperation, unapplied: UnappliedOperations) -> Iterator[Caution]:
    operation = ahead.operation
    if not _in_one_transaction(ahead) or not router.allow_migrate(
        ahead.alias, ahead.app_label, **operation.hints
    ):
        return
    loop = loops.find(operation.code)
    if loop is None or not _has_work(loop, ahead, unapplied):
        return
    inside = "" if loop.function == _name(operation.code) else f" of {loop.function}"
    yield _caution(
        3,
        ahead.migration,
        f"{_name(operation.code)} writes row after row in a loop{inside}, all in one transaction: the rows it "
        "has written, and the tables that the migration has altered, stay locked until the last one.",
        "If it fills a field, write Populate from safemigrate.operations instead, with a function that returns "
        "the value of one row, in a migration with atomic = False: each batch is committed. Otherwise give it a "
        "migration of its own with atomic = False, no RunPython(atomic=True), and commit batch by batch.",
    )


def _in_one_transaction(ahead: UnappliedOperation) -> bool:
    migration, own = ahead.migration, ahead.operation.atomic
    around = migration.atomic and for_connection(connections[ahead.alias]).can_roll_back
    return bool(around or own or (migration.atomic and own is None))


def _has_work(loop: loops.Loop, ahead: UnappliedOperation, unapplied: UnappliedOperations) -> bool:
    known = [
        (app_label, name)
        for app_label, name in sorted(loop.models)
        if (app_label, name) in ahead.state.models
    ]
    if not known:  # Which rows it writes cannot be seen: there may be some, if there are tables.
        return ahead.app_label in unapplied.applied_apps()
    return any(ahead.full_model(name, app_label) is not None for app_label, name in known)


# Our operations


def _in_transaction(ahead: UnappliedOperation) -> Iterator[Caution]:
    if not ahead.migration.atomic or ahead.model(ahead.operation.model_name) is None:
        return
    yield _caution(
        4,
        ahead.migration,
        "The operations of safemigrate are refused inside a transaction, and this migration is atomic: every lock "
        "would be held until the end.",
        "Add this line to the Migration class: atomic = False",
    )


def _still_guarded(ahead: UnappliedOperation, name: str, done: str) -> Iterator[Caution]:
    model_name = ahead.operation.model_name
    field = _state_field(ahead, model_name, name)
    if fields.notes(field).guard is None or ahead.model(model_name) is None:
        return
    yield _caution(
        8,
        ahead.migration,
        f"{ahead.app_label}.{model_name}.{name} is {done} while its write guard is up: the guard names the column, so "
        "that from then on each insert may fail, or the column cannot be dropped.",
        "Add this to a migration before it, with atomic = False: "
        f'UnguardWrites(model_name="{model_name}", name="{name}") from safemigrate.operations',
    )


class LooseEnds:
    """What was begun by our operations, and is still to be ended: fields filled, fields guarded."""

    def __init__(self) -> None:
        self.filled: dict[Key, UnappliedOperation] = {}
        self.guarded: dict[Key, UnappliedOperation] = {}

    def follow(self, ahead: UnappliedOperation, *, checked: bool) -> None:
        operation, app_label = ahead.operation, ahead.app_label
        if isinstance(operation, RenameModel):
            old, new = operation.old_name_lower, operation.new_name_lower
            self._rename(lambda key: (app_label, new, key[2]) if key[:2] == (app_label, old) else key)
        elif isinstance(operation, RenameField):
            old_key = (app_label, operation.model_name_lower, operation.old_name)
            self._rename(lambda key: (*key[:2], operation.new_name) if key == old_key else key)
        elif isinstance(operation, UnguardWrites):
            self.guarded.pop(_key(app_label, operation, operation.name), None)
        elif checked and isinstance(operation, Populate | GuardWrites):
            self._begin(ahead)

    def _begin(self, ahead: UnappliedOperation) -> None:
        operation = ahead.operation
        if ahead.model(operation.model_name) is None:
            return
        begun = self.filled if isinstance(operation, Populate) else self.guarded
        names = operation.names if isinstance(operation, Populate) else [operation.name]
        begun.update({_key(ahead.app_label, operation, name): ahead for name in names})

    def _rename(self, renamed: Callable[[Key], Key]) -> None:
        self.filled = {renamed(key): ahead for key, ahead in self.filled.items()}
        self.guarded = {renamed(key): ahead for key, ahead in self.guarded.items()}

    def left(self, unapplied: UnappliedOperations) -> Iterator[Caution]:
        """Return the warnings, once all migrations were followed."""
        for key, ahead in self.filled.items():
            field = _field_at_end(unapplied, key)
            if field is not None and field.null and _is_required(key):
                yield _never_required(key, ahead, unapplied)
        for key, ahead in self.guarded.items():
            field = _field_at_end(unapplied, key)
            if field is not None and not field.null:
                yield _guarded_for_ever(key, ahead, unapplied)


def _never_required(key: Key, ahead: UnappliedOperation, unapplied: UnappliedOperations) -> Caution:
    field = apps.get_model(*key[:2])._meta.get_field(key[2])
    return _caution(
        5,
        ahead.migration,
        f"{_path(key, unapplied)} is filled, and models.py says that it is required, but no migration makes it so: old "
        "code may go on inserting NULL.",
        f"Add this to the migration, or to one after it with atomic = False: {_set_not_null(key[1], key[2], field)}",
    )


def _guarded_for_ever(key: Key, ahead: UnappliedOperation, unapplied: UnappliedOperations) -> Caution:
    return _caution(
        7,
        ahead.migration,
        f"{_path(key, unapplied)} is guarded, and made required, but no migration takes the write guard away: the "
        "database would go on filling it for code that has forgotten it.",
        "Add this after SetNotNull, or to a migration for the time when all code knows the field, with "
        f'atomic = False: UnguardWrites(model_name="{key[1]}", name="{key[2]}") from safemigrate.operations',
    )


def _key(app_label: str, operation: Any, name: str) -> Key:
    return app_label, operation.model_name.lower(), name


def _field_at_end(unapplied: UnappliedOperations, key: Key) -> Any:
    model = unapplied.state.models.get(key[:2])
    return model.fields.get(key[2]) if model else None


def _is_required(key: Key) -> bool:
    try:
        return not apps.get_model(*key[:2])._meta.get_field(key[2]).null
    except (LookupError, FieldDoesNotExist):
        return False


# Words


def _label(ahead: UnappliedOperation, model: type[Model]) -> str:
    return f"{model._meta.label}.{ahead.operation.name}"


def _path(key: Key, unapplied: UnappliedOperations) -> str:
    return f"{key[0]}.{unapplied.state.models[key[:2]].name}.{key[2]}"


def _table(ahead: UnappliedOperation, model: type[Model]) -> str:
    return f"{model._meta.db_table} on {ahead.alias}"


def _written(value: Any, otherwise: str = "") -> str:
    """Return the value as a migration file has it, where it can stand in one."""
    try:
        return str(MigrationWriter.serialize(value)[0])
    except ValueError:
        return otherwise or _name(value)


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))


def _state_field(ahead: UnappliedOperation, model_name: str, name: str) -> Any:
    model = ahead.state.models.get((ahead.app_label, model_name.lower()))
    return model.fields.get(name) if model else None
