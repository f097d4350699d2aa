"""What models.py has and the migrations have not, as Django's autodetector sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.apps import apps
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.db import models
from django.db.migrations import AddField, AlterField, AlterModelOptions, Migration
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.questioner import MigrationQuestioner
from django.db.migrations.state import ProjectState

from safemigrate.exceptions import OtherChanges, PlanningError
from safemigrate.generator.targets import RequiredField
from safemigrate.operations import AddNullableField, SetNotNull, Whole
from safemigrate.schema import fields

#: The options of a Meta that Django itself knows.
DJANGOS_OWN = {
    *AlterModelOptions.ALTER_OPTION_KEYS,
    *("abstract", "app_label", "bases", "constraints", "db_table", "db_table_comment", "db_tablespace"),
    *("index_together", "indexes", "order_with_respect_to", "proxy", "swappable", "unique_together"),
}


@dataclass(frozen=True)
class Addition:
    """What makemigrations would say of the fields of one app: the migration's name and dependencies.

    `nullable` are those that are there already, as null=True; the others are added.
    """

    name: str
    dependencies: tuple[tuple[str, str], ...]
    nullable: tuple[RequiredField, ...] = ()


class Migrations:
    """The migrations on disk, set against models.py."""

    def __init__(self) -> None:
        self.loader = MigrationLoader(None, ignore_no_migrations=True)
        self.state: ProjectState = self.loader.project_state()

    def written(self, target: RequiredField) -> str | None:
        """Return the first migration of ours that adds the target, or makes it required, if there is one.

        One that a later AlterField has made nullable again is to be made required anew.
        """
        found: str | None = None
        for name, operation in self._operations_on(target) if self.has(target) else ():
            if _is_ours(operation, target):
                found = found or name
            elif _alters(operation, target) and operation.field.null:
                found = None
        return found

    def _operations_on(self, target: RequiredField) -> Iterator[tuple[str, Any]]:
        """Return the operations of the target's app, each with its migration's name, in order."""
        for (app_label, name), migration in sorted(self.loader.disk_migrations.items()):
            if app_label == target.app_label:
                yield from ((str(name), operation) for operation in migration.operations)

    def has(self, target: RequiredField) -> bool:
        return self._field(target) is not None

    def is_nullable(self, target: RequiredField) -> bool:
        """Is it a field that is there already, as null=True, and not a new one?"""
        field = self._field(target)
        return field is not None and bool(field.null)

    def _field(self, target: RequiredField) -> models.Field[Any, Any] | None:
        model = self.state.models.get((target.app_label, target.model_name))
        return model.fields.get(target.name) if model else None

    def check_unchanged(self, target: RequiredField) -> None:
        """Raise PlanningError when models.py has changed the field since its migration was written."""
        changes = [op.describe() for op in self._operations(target.app_label) if _alters(op, target)]
        if changes:
            raise PlanningError(
                f"{target.label} has changed in models.py since {target.app_label}.{self.written(target)} "
                f"was written ({', '.join(changes)}). Remove that migration, if it was applied nowhere, "
                f"or run: python manage.py makemigrations {target.app_label}"
            )

    def check(self, targets: Sequence[RequiredField]) -> None:
        """Raise PlanningError unless each target is a new or a nullable field of a model that the migrations know."""
        for app_label in dict.fromkeys(target.app_label for target in targets):
            self._check_leaves(app_label)
        for target in targets:
            self._check_model(target)
            self._check_new(target)

    def check_alone(self, targets: Sequence[RequiredField]) -> None:
        """Raise OtherChanges, which lists them, when the apps of the targets have further changes."""
        labels = dict.fromkeys(target.app_label for target in targets)
        others = [
            f"  {app_label}: {operation.describe()}"
            for app_label in labels
            for operation in self._operations(app_label)
            if not any(
                _adds(operation, target) or _alters(operation, target)
                for target in targets
                if target.app_label == app_label
            )
        ]
        if others:
            self._refuse_others_of_it(targets)
            raise OtherChanges(
                "models.py has other changes that are not in the migrations yet:\n"
                + "\n".join(others)
                + "\nThey would be missing from this migration. Add --only-this-field to write this field now, "
                f"and run makemigrations {' '.join(labels)} for them afterwards; or run it first, with the new field "
                "taken out of models.py for that."
            )

    def _refuse_others_of_it(self, targets: Sequence[RequiredField]) -> None:
        """Raise PlanningError where the new field brings others along, as that of a history does."""
        names = {target.name for target in targets}
        brought = [
            f"{app_label}.{apps.get_model(app_label, operation.model_name).__name__}.{operation.name}"
            for app_label in dict.fromkeys(target.app_label for target in targets)
            for operation in self._operations(app_label)
            if isinstance(operation, AddField)
            and operation.name in names
            and not operation.field.null
            and not any(_adds(operation, target) for target in targets)
        ]
        if brought:
            labels = " ".join([*(target.label for target in targets), *brought])
            raise PlanningError(
                f"models.py has the new field in {', '.join(brought)} too, where old rows need a value as well. Add "
                f"both in one migration:\n    python manage.py add_required_field {labels}"
            )

    def addition(self, targets: Sequence[RequiredField]) -> Addition:
        """Return the name and dependencies of a migration that adds the targets, all of one app."""
        state = self.state.clone()
        for target in targets:
            field = self._models.models[target.app_label, target.model_name].fields[target.name]
            model = state.models[target.app_label, target.model_name]
            model.fields[target.name] = field
            self._check_related(target)
        self._take_options_of_others(state)
        migrations = self._detect(state, targets[0].app_label)
        dependencies = dict.fromkeys(
            dependency for migration in migrations for dependency in migration.dependencies
        )
        written = {(migration.app_label, migration.name) for migration in migrations}
        name = migrations[0].suggest_name()
        nullable = tuple(filter(self.is_nullable, targets))
        if [*nullable] == [*targets] and len(nullable) == 1:
            name = f"{targets[0].model_name}_{targets[0].name.lower()}_required"
        return Addition(name, tuple(d for d in dependencies if d not in written), nullable)

    def _take_options_of_others(self, state: ProjectState) -> None:
        """Take what other packages keep in a Meta from models.py: in a migration it may be of another kind."""
        for key, model in state.models.items():
            declared = self._models.models.get(key)
            options = declared.options if declared else {}
            model.options |= {name: value for name, value in options.items() if name not in DJANGOS_OWN}

    def leaf(self, app_label: str) -> str:
        return str(self.loader.graph.leaf_nodes(app_label)[0][1])

    @cached_property
    def _models(self) -> ProjectState:
        return ProjectState.from_apps(apps)

    @cached_property
    def _autodetector(self) -> type[MigrationAutodetector]:
        # A project may bring its own, by a makemigrations command of its own.
        command: Any = get_commands()["makemigrations"]
        if not isinstance(command, BaseCommand):
            command = load_command_class(command, "makemigrations")
        return getattr(command, "autodetector", MigrationAutodetector)

    def _detect(self, state: ProjectState, app_label: str) -> list[Migration]:
        # This questioner never asks, and answers no.
        detector = self._autodetector(self.state, state, MigrationQuestioner())
        changes = detector.changes(self.loader.graph, trim_to_apps={app_label}, convert_apps={app_label})
        return list(changes.get(app_label, []))

    def _operations(self, app_label: str) -> Iterable[Operation]:
        for migration in self._detect(self._models, app_label):
            yield from migration.operations

    def _check_leaves(self, app_label: str) -> None:
        conflict = self.loader.detect_conflicts().get(app_label)
        if conflict:
            raise PlanningError(
                f"{app_label} has conflicting migrations, each the last: {', '.join(sorted(conflict))}.\n"
                f"Run: python manage.py makemigrations --merge {app_label}"
            )
        if app_label in self.loader.migrated_apps and not self.loader.graph.leaf_nodes(app_label):
            raise PlanningError(
                f"{app_label} has no migrations yet, so there is no table with old rows.\n"
                f"Run: python manage.py makemigrations {app_label}"
            )

    def _check_model(self, target: RequiredField) -> None:
        if (target.app_label, target.model_name) not in self.state.models:
            raise PlanningError(
                f"{target.model._meta.label} is not in the migrations of {target.app_label} yet, so its "
                f"table has no old rows.\nRun: python manage.py makemigrations {target.app_label}"
            )

    def _how_to_apply(self, app_label: str, name: str) -> str:
        operations = self.loader.disk_migrations[app_label, name].operations
        if not any(isinstance(operation, Whole) for operation in operations):
            return "It is the first of three, one for each deployment: the first line of each file says when."
        return f"Run: python manage.py migrate {app_label}"

    def _check_new(self, target: RequiredField) -> None:
        if not self.has(target):
            return
        ours = self.written(target)
        if ours:
            raise PlanningError(
                f"{target.label} is already in the migrations, by {target.app_label}.{ours}. There is "
                f"nothing to write.\n{self._how_to_apply(target.app_label, ours)}"
            )
        if self.is_nullable(target):
            self._check_same(target)
            return
        name = self._required_by(target)
        by = f", by {target.app_label}.{name}" if name else ""
        again = (
            "\nIf that one is applied nowhere yet, delete the file (or this operation in it), and type this again. "
            "Where it is applied, the old rows have a value already."
        )
        raise PlanningError(
            f"{target.label} is already in the migrations{by}, as a required field, so there is nothing to write."
            + (again if name else "")
        )

    def _check_same(self, target: RequiredField) -> None:
        """Raise PlanningError where models.py has changed more of a nullable field than may change here."""
        before: Any = self._field(target)
        after = self._models.models[target.app_label, target.model_name].fields[target.name]
        if others := fields.differences(before, after):
            raise PlanningError(
                f"{target.label} is null=True in the migrations, and models.py changes more of its column than that: "
                f"{', '.join(others)}. Make that change first: put null=True back in models.py, run\n"
                f"    python manage.py makemigrations {target.app_label}\n"
                "then take null=True out, and type this again."
            )

    def _required_by(self, target: RequiredField) -> str | None:
        """Return the last migration that adds or alters the target."""
        names = [
            name
            for name, operation in self._operations_on(target)
            if _adds(operation, target) or _alters(operation, target)
        ]
        return names[-1] if names else None

    def _check_related(self, target: RequiredField) -> None:
        related: Any = target.field.related_model
        if related and (related._meta.app_label, related._meta.model_name) not in self.state.models:
            if related._meta.app_label in self.loader.unmigrated_apps:
                return
            label = related._meta.label
            raise PlanningError(
                f"{target.label} points to {label}, which is not in the migrations yet.\n"
                f"Run: python manage.py makemigrations {related._meta.app_label}"
            )


def _adds(operation: Operation, target: RequiredField) -> bool:
    return (
        isinstance(operation, AddField)
        and operation.model_name_lower == target.model_name
        and operation.name_lower == target.name.lower()
    )


def _alters(operation: Operation, target: RequiredField) -> bool:
    return (
        isinstance(operation, AlterField)
        and operation.model_name_lower == target.model_name
        and operation.name_lower == target.name.lower()
    )


def _is_ours(operation: Operation, target: RequiredField) -> bool:
    return (
        isinstance(operation, Whole | AddNullableField | SetNotNull)
        and operation.model_name.lower() == target.model_name
        and operation.name.lower() == target.name.lower()
    )
