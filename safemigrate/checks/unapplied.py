"""What `migrate` would do on one database: each operation not applied yet, with the project right before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.apps.registry import Apps
from django.db import DatabaseError, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import (
    AlterModelTable,
    CreateModel,
    Migration,
    RenameModel,
    SeparateDatabaseAndState,
)
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import Model, QuerySet
from django.db.transaction import atomic

Key = tuple[str, str]


class Tables:
    """The tables that models to come have today, and which of them have rows."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.alias: str = connection.alias
        # Only of models that are made, or change their table, by what is not applied yet; None: not there yet.
        self._today: dict[Key, str | None] = {}
        self._full: dict[str, bool] = {}

    def follow(self, app_label: str, operation: Operation, state: ProjectState) -> None:
        """Note what the operation does to a table; `state` is as before it."""
        if isinstance(operation, CreateModel):
            self._today[app_label, operation.name_lower] = None
        elif isinstance(operation, RenameModel):
            key = (app_label, operation.old_name_lower)
            self._today[app_label, operation.new_name_lower] = self._of(key, state)
            self._today.pop(key, None)
        elif isinstance(operation, AlterModelTable):
            key = (app_label, operation.name_lower)
            self._today[key] = self._of(key, state)

    def may_exist(self, key: Key) -> bool:
        return self._today.get(key, "") is not None

    def has_rows(self, key: Key, model: type[Model]) -> bool:
        table = self._today.get(key, str(model._meta.db_table))
        if table is None:
            return False
        if table not in self._full:
            self._full[table] = self._ask(table)
        return self._full[table]

    def _of(self, key: Key, state: ProjectState) -> str | None:
        if key in self._today:
            return self._today[key]
        return str(state.clone().apps.get_model(*key)._meta.db_table)

    def _ask(self, table: str) -> bool:
        meta = type("Meta", (), {"apps": Apps(), "app_label": "safemigrate", "db_table": table})
        model: type[Model] = type("Row", (models.Model,), {"__module__": __name__, "Meta": meta})
        try:
            with atomic(self.alias):
                return QuerySet(model, using=self.alias).exists()
        except DatabaseError:  # The history says that it is there, and it is not.
            return False


@dataclass(frozen=True)
class UnappliedOperation:
    """An operation about to be run. Ask it while it is at hand: `state` moves on with the next one."""

    migration: Migration
    operation: Any
    state: ProjectState
    tables: Tables

    @property
    def alias(self) -> str:
        return self.tables.alias

    @property
    def app_label(self) -> str:
        return str(self.migration.app_label)

    def model(self, name: str, app_label: str = "") -> Any:
        """Return the model as it is here, or None where there is none or the routers keep it away."""
        key = (app_label or self.app_label, name.lower())
        if key not in self.state.models:
            return None
        model = self.state.clone().apps.get_model(*key)
        return model if self.operation.allow_migrate_model(self.alias, model) else None

    def full_model(self, name: str, app_label: str = "") -> Any:
        """Return what `model` does, or None where its table has no rows or is only to be made."""
        key = (app_label or self.app_label, name.lower())
        model = self.model(name, app_label) if self.tables.may_exist(key) else None
        return model if model is not None and self.tables.has_rows(key, model) else None


class UnappliedOperations:
    """The migrations not applied on a connection. Iterating gives their operations in order.

    Looks into SeparateDatabaseAndState for what it does to the database. Afterwards `state` is the
    project with all migrations.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.executor = MigrationExecutor(connection)
        self.tables = Tables(connection)
        self.state = ProjectState(real_apps=self.executor.loader.unmigrated_apps)
        self.migrations = self._plan()

    def applied_apps(self) -> set[str]:
        """Return the apps that have an applied migration."""
        return {app_label for app_label, _ in self.executor.loader.applied_migrations}

    def __iter__(self) -> Iterator[UnappliedOperation]:
        unapplied = set(self.migrations)
        for migration in self._plan(clean_start=True):
            if migration in unapplied:
                yield from self._ahead(migration)
            else:
                self.state = migration.mutate_state(self.state, preserve=False)

    def _plan(self, *, clean_start: bool = False) -> list[Migration]:
        leaves = self.executor.loader.graph.leaf_nodes()
        return [migration for migration, _ in self.executor.migration_plan(leaves, clean_start=clean_start)]

    def _ahead(self, migration: Migration) -> Iterator[UnappliedOperation]:
        for operation in migration.operations:
            for part, state in parts(migration.app_label, operation, self.state):
                yield UnappliedOperation(migration, part, state, self.tables)
                self.tables.follow(migration.app_label, part, state)
            operation.state_forwards(migration.app_label, self.state)


def parts(
    app_label: str, operation: Operation, state: ProjectState
) -> Iterator[tuple[Operation, ProjectState]]:
    """Return what the operation does to the database, each part with the state before it."""
    if not isinstance(operation, SeparateDatabaseAndState):
        yield operation, state
        return
    state = state.clone()
    for part in operation.database_operations:
        yield from parts(app_label, part, state)
        part.state_forwards(app_label, state)
