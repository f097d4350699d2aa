"""W009: what an attempt left in a database that no migration file knows of any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.checks import Warning as Caution
from django.core.exceptions import FieldDoesNotExist
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState

from safemigrate.backends import Database, for_connection, get_backend
from safemigrate.formatting import page
from safemigrate.runs import store
from safemigrate.schema.change import FieldStep
from safemigrate.schema.fields import model_in, notes
from safemigrate.types import field_of

DOCS = page("reference/checks")


def leftovers(alias: str) -> Iterator[Caution]:
    """Yield a warning for each guard, helper and column of ours on the database that no migration file accounts for.

    Reads the catalogue, and the records of runs. A default that guards a column is like any other, and not seen.
    """
    database = for_connection(connections[alias])
    if found := database.helpers():
        files = Files(alias)
        expected = files.helpers()
        for helper in found:
            if helper.name not in expected:
                yield _caution(
                    alias,
                    f"{helper.kind} {helper.name} of the table {helper.table}",
                    "It goes on filling, or refusing, what the site writes",
                    files.label_of(helper.name),
                    helper.drop,
                )
    yield from _columns(database, alias)


def _columns(database: Database, alias: str) -> Iterator[Caution]:
    """Look for the columns of fields that a run has filled, and that are no fields any more."""
    gone = [
        (app_label, model_name, name)
        for app_label, model_name, names in store.filled_on(alias)
        for name in names.split("+")
        if not _is_in_models(app_label, model_name, name)
    ]
    state = MigrationExecutor(connections[alias]).loader.project_state() if gone else ProjectState()
    for app_label, model_name, name in gone:
        known = state.models.get((app_label, model_name.lower()))
        if known is None or name in known.fields:
            continue
        model = model_in(state, app_label, model_name, database)
        for column in (name, f"{name}_id"):
            if column not in _columns_of(model) and database.column(model, column) is not None:
                quote = database.quote
                yield _caution(
                    alias,
                    f"the column {column} of the table {model._meta.db_table}",
                    "A fill of the field was recorded, and neither models.py nor a migration has it",
                    f"{app_label}.{model_name}.{name}",
                    f"ALTER TABLE {quote(model._meta.db_table)} DROP COLUMN {quote(column)};",
                )


def _columns_of(model: Any) -> set[str]:
    return {field.column for field in model._meta.local_concrete_fields}


def _is_in_models(app_label: str, model_name: str, name: str) -> bool:
    try:
        apps.get_model(app_label, model_name)._meta.get_field(name)
    except (LookupError, FieldDoesNotExist):
        return False
    return True


def _caution(alias: str, what: str, why: str, label: str, drop: str) -> Caution:
    undo = f"To undo it: {drop}"
    if label:
        undo = (
            f"Is the field in models.py, as it was to be: python manage.py add_required_field {label} --abandon "
            f"--database {alias}. Or: {drop}"
        )
    return Caution(
        f"On {alias} there is {what}, left by an attempt that no migration file knows of any more. {why}.",
        hint=f"{undo}\n\tSee {DOCS}",
        obj=alias,
        id="safemigrate.W009",
    )


class Files:
    """What the migration files, applied or not, make of the fields."""

    def __init__(self, alias: str) -> None:
        executor = MigrationExecutor(connections[alias])
        self.database = for_connection(connections[alias])
        self.loader = executor.loader
        self.applied: ProjectState = executor._create_project_state(with_applied_migrations=True)  # type: ignore[attr-defined]
        self.final: ProjectState = executor.loader.project_state()

    def helpers(self) -> set[str]:
        """Return the names of what may be there: of attempts that are not applied, and of guards that are kept."""
        wanted = set(self._unapplied())
        for (app_label, model_name), model in self.applied.models.items():
            wanted |= {
                (app_label, model_name, name) for name, field in model.fields.items() if notes(field).guard
            }
        return {helper for key in wanted for helper in self._names(*key)}

    def label_of(self, name: str) -> str:
        """Return the field whose helper is called so, "" where no migration has it."""
        for (app_label, model_name), model in self.final.models.items():
            for field in model.fields:
                if name in self._names(app_label, model_name, field):
                    return f"{app_label}.{model.name}.{field}"
        return ""

    def _unapplied(self) -> Iterator[tuple[str, str, str]]:
        for key, migration in self.loader.disk_migrations.items():
            if key not in self.loader.applied_migrations:
                for operation in migration.operations:
                    if isinstance(operation, FieldStep):
                        for name in operation.names:
                            yield migration.app_label, operation.model_name.lower(), name

    def _names(self, app_label: str, model_name: str, name: str) -> set[str]:
        for state in (self.final, self.applied):
            model = state.models.get((app_label, model_name))
            if model is not None and name in model.fields:
                made = model_in(state, app_label, model_name, self.database)
                field = field_of(made, name)
                if getattr(field, "column", None) is None:
                    return set()
                guards = get_backend(self.database.connection).guards
                return guards.names(made, field) | self.database.helper_names(made, field)
        return set()
