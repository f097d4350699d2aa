"""The apps whose models a populate reads: a migration depends on them, or a new database has no such table yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from django.apps import apps
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model
from django.utils.module_loading import import_string

from safemigrate.checks.loops import models_named
from safemigrate.generator.planner import Phase
from safemigrate.populate import FromApps, FromRelated, PerRow
from safemigrate.populate.sources import is_dotted_path


def added(phase: Phase, migration: Migration, loader: MigrationLoader) -> Phase:
    """Return the phase with a dependency on the last migration of each other app that its populates are seen to read.

    Seen is what stands in the source of a function as get_model("app", "Model"), and the path of FromRelated.
    """
    known = {app_label for app_label, _ in phase.dependencies} | {phase.app_label}
    operations: Sequence[Any] = migration.operations
    read = {
        app_label
        for operation in operations
        if hasattr(operation, "populate")
        for app_label in _read_by(operation.populate, apps.get_model(phase.app_label, operation.model_name))
    }
    leaves = [loader.graph.leaf_nodes(label)[0] for label in sorted((read & loader.migrated_apps) - known)]
    return replace(phase, dependencies=(*phase.dependencies, *leaves))


def _read_by(populate: Any, model: type[Model]) -> Iterator[str]:
    if is_dotted_path(populate):
        populate = import_string(populate)
    if isinstance(populate, FromRelated):
        for name in populate.path.split("__")[:-1]:
            relation: Any = model._meta.get_field(name)
            model = relation.related_model
            yield model._meta.app_label
        return
    wrapped = isinstance(populate, FromApps | PerRow)
    for function in (populate.function, getattr(populate, "prepare", None)) if wrapped else (populate,):
        if callable(function):
            yield from (app_label for app_label, _ in models_named(function))
