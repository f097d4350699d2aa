"""A full table in a throw-away app, and migrations run on it: what the tests of the operations build on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import connections, migrations, models
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import QuerySet

from safemigrate.backends import for_connection

APP = "boxes"
START = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
MONTH = timedelta(days=30)


def question(
    *, key: Any = None, fields: Sequence[tuple[str, Any]] = (), **options: Any
) -> migrations.CreateModel:
    """A model like the tutorial's Question, before it has to expire."""
    key = key or ("id", models.BigAutoField(primary_key=True))
    plain = [("question_text", models.CharField(max_length=200)), ("pub_date", models.DateTimeField())]
    return migrations.CreateModel("Question", [key, *plain, *fields], options)


class MigrationSandbox:
    """An app on one database, with its state; `run` does what `migrate` does with one non-atomic migration."""

    def __init__(self, alias: str, *models_: Operation) -> None:
        self.alias = alias
        self.state = ProjectState()
        self.run(*(models_ or (question(),)))

    @property
    def connection(self) -> Any:
        return connections[self.alias]

    def after(self, *operations: Operation) -> ProjectState:
        state = self.state.clone()
        for operation in operations:
            operation.state_forwards(APP, state)
        return state

    def run(self, *operations: Operation, atomic: bool = False) -> None:
        """Run the operations; the state moves on only when all of them have ended well."""
        migration = self._migration(operations, atomic)
        with self.connection.schema_editor(atomic=atomic) as editor:
            state = migration.apply(self.state.clone(), editor)
        self.state = state

    def undo(self, *operations: Operation, before: ProjectState) -> None:
        migration = self._migration(operations, False)
        with self.connection.schema_editor(atomic=False) as editor:
            migration.unapply(before.clone(), editor)
        self.state = before

    def sql(self, *operations: Operation) -> str:
        with self.connection.schema_editor(atomic=False, collect_sql=True) as editor:
            self._migration(operations, False).apply(self.state.clone(), editor, collect_sql=True)
        return "\n".join(editor.collected_sql)

    @staticmethod
    def _migration(operations: Sequence[Operation], atomic: bool) -> migrations.Migration:
        migration = migrations.Migration("0002_test", APP)
        migration.operations, migration.atomic = list(operations), atomic
        return migration

    def model(self, name: str = "Question") -> Any:
        return self.state.apps.get_model(APP, name)

    def rows(self, name: str = "Question") -> QuerySet[Any]:
        return QuerySet(self.model(name), using=self.alias).order_by("pk")

    def fill(self, number: int = 10, name: str = "Question", **values: Any) -> None:
        """Insert rows whose values are given, or made from their number by a function."""
        model = self.model(name)

        def made(n: int) -> Any:
            given = {"question_text": f"Question {n}?", "pub_date": START + timedelta(hours=n)} | values
            return model(**{key: value(n) if callable(value) else value for key, value in given.items()})

        self.rows(name).bulk_create([made(n) for n in range(1, number + 1)])

    def column(self, name: str, model: str = "Question", state: ProjectState | None = None) -> Any:
        found = (state or self.state).apps.get_model(APP, model)
        return for_connection(self.connection).column(found, name)

    def values(self, name: str, model: str = "Question") -> list[Any]:
        return list(self.rows(model).values_list(name, flat=True))

    def schema(self, model: str = "Question") -> dict[str, Any]:
        """The table as the database describes it: columns, whether they may be NULL, constraints, indexes."""
        table = self.model(model)._meta.db_table
        introspection = self.connection.introspection
        with self.connection.cursor() as cursor:
            columns = {c.name: bool(c.null_ok) for c in introspection.get_table_description(cursor, table)}
            constraints = introspection.get_constraints(cursor, table)
        kept = ("columns", "primary_key", "unique", "foreign_key", "check", "index", "type", "orders")
        return {
            "columns": columns,
            "constraints": sorted(
                str((name if not name.startswith("__") else "", {key: c.get(key) for key in kept}))
                for name, c in constraints.items()
            ),
            "not_validated": self._not_validated(table),
        }

    def _not_validated(self, table: str) -> list[Any]:
        if self.connection.vendor != "postgresql":
            return []
        return for_connection(self.connection).fetch(
            "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(%s) AND NOT convalidated",
            [self.connection.ops.quote_name(table)],
        )


#: Statements that change nothing that outlives the session.
READS = ("SELECT", "SHOW", "SET ", "EXPLAIN", "PRAGMA", "(SELECT")


class Statements:
    """Counts a connection's statements, writes them down, and may fail at one of them as a crash would."""

    class Crash(BaseException):
        pass

    def __init__(self, stop_at: int | None = None) -> None:
        self.texts: list[str] = []
        self.stop_at = stop_at

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.texts.append(sql)
        if self.stop_at is not None and len(self.texts) > self.stop_at:
            raise self.Crash(sql)
        return execute(sql, params, many, context)

    @property
    def stops(self) -> list[int]:
        """Return where a crash leaves the database otherwise than one before it: at first, and after each change."""
        changes = [at for at, text in enumerate(self.texts, 1) if not text.startswith(READS)]
        return [0, *(at for at in changes if at < len(self.texts))]

    def like(self, *beginnings: str) -> list[str]:
        return [text for text in self.texts if text.startswith(beginnings)]


def month_later(rows: Iterable[Any]) -> bool:
    return all(row.expires_date == row.pub_date + MONTH for row in rows)
