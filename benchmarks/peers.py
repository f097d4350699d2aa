"""Ways of other packages, each as its manual shows it; imported where the package is installed alone."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.core.management import call_command
from django.db.migrations import AddField

from benchmarks.ways import MONTH, Table, Way, add_column, add_filled_column

#: What each needs among INSTALLED_APPS.
DEFERRED_MIGRATIONS = ("deferred_migrations",)
MAINTENANCE_TASKS = ("django.contrib.auth", "maintenance_tasks")


def after_migrate(prepare: Way) -> Way:
    """Return what makes the tables of the packages, then the column."""

    def act(table: Table) -> None:
        call_command("migrate", verbosity=0)
        prepare(table)

    return act


# django-pg-migration-tools


def migration_tools(table: Table) -> None:
    operations = import_module("django_pg_migration_tools.operations")
    table.apply(operations.SaferAlterFieldSetNotNull("question", table.value.name, table.value.field))


# django-deferred-migrations


def deferred_fill(fill_sql: str) -> Way:
    return lambda table: table.apply(_deferred().BackfillNotNull("question", table.value.name, fill_sql))


def deferred_not_null(table: Table) -> None:
    table.apply(_deferred().SetNotNull("question", table.value.name, table.value.field))


def deferred_operation(fill_sql: str) -> Way:
    """Return its recipe for a required column, up to the trigger that it drops after the deployment."""

    def act(table: Table) -> None:
        name, field = table.value.name, table.value.field
        nullable = field.clone()
        nullable.null = True
        operations = _deferred()
        table.apply(AddField("question", name, nullable), atomic=True)
        table.apply(operations.InstallNotNullFill("question", name, fill_sql), atomic=True)
        table.apply(operations.BackfillNotNull("question", name, fill_sql))
        table.apply(operations.SetNotNull("question", name, field))

    return act


def _deferred() -> Any:
    return import_module("deferred_migrations.operations")


# django-maintenance-tasks


def maintenance_task(table: Table) -> None:
    """Run a task of the first rows in this process, its batches as they come: 100 rows."""
    tasks, runner = import_module("maintenance_tasks"), import_module("maintenance_tasks.runner")
    rows = table.model._base_manager.order_by("pk")
    last = rows.values_list("pk", flat=True)[table.part - 1]

    class Fill(tasks.MaintenanceTask):  # type: ignore[misc, name-defined]
        def collection(self) -> Any:
            return rows.filter(pk__lte=last)

        def process(self, question: Any) -> None:
            question.expires_date = question.pub_date + MONTH
            question.save(update_fields=["expires_date"])

    runner.start(Fill.name)


add_column_beside, add_filled_column_beside = after_migrate(add_column), after_migrate(add_filled_column)
