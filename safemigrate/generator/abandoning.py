"""An attempt that is given up: what it left of a field on a database, and the steps that undo it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db import Error, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState
from django.db.models import Field, Model

from safemigrate.backends import Database, for_connection
from safemigrate.exceptions import AlreadyRunning, InvalidField, PlanningError
from safemigrate.generator import targets
from safemigrate.runs import store
from safemigrate.schema import guards, runner
from safemigrate.schema.change import FieldStep
from safemigrate.schema.fields import model_in, notes
from safemigrate.schema.steps import Step
from safemigrate.types import field_of


@dataclass(frozen=True)
class Attempt:
    """A field that was to be added, or to be made required, on one database."""

    model: type[Model]
    name: str
    alias: str

    @property
    def app_label(self) -> str:
        return str(self.model._meta.app_label)

    @property
    def label(self) -> str:
        return f"{self.model._meta.label}.{self.name}"

    def left(self) -> list[Step]:
        """Return the steps that undo what is left of it; each is needed.

        Raises PlanningError where a migration that is applied has made the field required, or where there is nothing
        but to end it.
        """
        try:
            if not self._database.has_table(self.model):
                return []
            return [step for step in self._steps() if step.needed()]
        except Error as error:
            raise PlanningError(
                f"{self.alias} could not be looked at: {str(error).strip()}. Nothing was changed. Name the databases "
                "that answer, by --database."
            ) from error

    def undo(self, steps: Sequence[Step]) -> list[int]:
        """Run the steps, under the short locks of any others, and cancel the field's open runs; return their numbers.

        Raises AlreadyRunning while a process is at the field.
        """
        with self._alone():
            runner.run(self._database, steps)
            return self._cancelled()

    def files(self) -> list[str]:
        """Return the migrations on disk that are not applied and do something to the field."""
        executor = MigrationExecutor(connections[self.alias])
        return [
            f"{app_label}.{name}"
            for (app_label, name), migration in sorted(executor.loader.disk_migrations.items())
            if app_label == self.app_label
            and (app_label, name) not in executor.loader.applied_migrations
            and any(_is_on(operation, self) for operation in migration.operations)
        ]

    @property
    def _database(self) -> Database:
        return for_connection(connections[self.alias])

    def _steps(self) -> list[Step]:
        executor = MigrationExecutor(connections[self.alias])
        applied: ProjectState = executor._create_project_state(with_applied_migrations=True)  # type: ignore[attr-defined]
        before, final = _field(applied, self), self._final(executor)
        if before is None:
            return self._never_added(final)
        if not before.null:
            raise PlanningError(
                f"{self.label} on {self.alias} is required by a migration that is applied: nothing is to be given up. "
                f"To go back: python manage.py migrate {self.app_label} and the name of the migration before it."
            )
        return self._never_required(applied, before, final)

    def _never_added(self, final: ProjectState) -> list[Step]:
        database, model = self._database, model_in(final, self.app_label, self._model_name, self._database)
        field = field_of(model, self.name)
        column = database.column(model, field.column)
        if column is not None and not column.nullable:
            raise PlanningError(
                f"{self.label} on {self.alias}: the column is required already, and only the rest is to be done. Run "
                "migrate: it finds what is done, and records it. After that, migrate to the migration before it."
            )
        return [
            *guards.down(database, model, field),
            *database.require(model, model, field).accept_nulls,
            *database.drop_column(model, field),
        ]

    def _never_required(
        self, applied: ProjectState, before: Field[Any, Any], final: ProjectState
    ) -> list[Step]:
        database = self._database
        model = model_in(final, self.app_label, self._model_name, database)
        old = model_in(applied, self.app_label, self._model_name, database)
        field, column = field_of(model, self.name), field_of(old, self.name)
        is_new = notes(before).is_new
        # A guard that an applied migration has created is that one's.
        guard = [] if notes(before).guard else guards.down(database, old, column, is_known=not is_new)
        return [
            *guard,
            *database.require(model, model, field).accept_nulls,
            *database.release(model, old, database.bare(column) if is_new else column),
        ]

    def _final(self, executor: MigrationExecutor) -> ProjectState:
        """Return a state that has the field: that of all migrations, or else of models.py."""
        for state in (executor.loader.project_state(), ProjectState.from_apps(apps)):
            if _field(state, self) is not None:
                return state
        raise InvalidField(
            f"Neither models.py nor the migrations have {self.label}, so what it left cannot be known. Put the field "
            "back into models.py, and type this again; then take it out."
        )

    @property
    def _model_name(self) -> str:
        return str(self.model._meta.model_name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        name = self.label.lower()
        if not self._database.lock_name(name):
            raise AlreadyRunning(
                f"Another process is at {self.label} on {self.alias} at this moment: stop it first."
            )
        try:
            yield
        finally:
            self._database.unlock_name(name)

    def _cancelled(self) -> list[int]:
        if not store.is_kept():
            return []
        runs = store.records().filter(
            app_label=self.app_label,
            model_name__iexact=self._model_name,
            open_key__isnull=False,
            **store.where(self.alias),
        )
        mine = [run for run in runs if self.name in run.field_names.split("+")]
        return [store.cancel(run.pk, store.person()).pk for run in mine]


def attempts(labels: Sequence[str], aliases: Sequence[str]) -> list[Attempt]:
    """Return what is to be looked at: each field on each database, or on all that the routers allow its model on."""
    found = [targets.model_and_name(label) for label in labels]
    return [
        Attempt(model, name, alias)
        for model, name in found
        for alias in aliases or connections
        if router.allow_migrate_model(alias, model)
    ]


def _field(state: ProjectState, attempt: Attempt) -> Field[Any, Any] | None:
    model = state.models.get((attempt.app_label, attempt._model_name))
    return model.fields.get(attempt.name) if model else None


def _is_on(operation: Any, attempt: Attempt) -> bool:
    return isinstance(operation, FieldStep) and operation.is_on(attempt._model_name, [attempt.name])
