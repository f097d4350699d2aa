"""A gate between a backfill outside `migrate` and a schema change that needs it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.state import ProjectState
from django.db.models import Model

from safemigrate.engine import context
from safemigrate.engine.batches import Batches, null_in
from safemigrate.exceptions import InvalidField, NotFinished
from safemigrate.schema.change import public
from safemigrate.types import field_of


@public
class RequireBackfill(Operation):
    """Go on only where a backfill has ended: of a field, "polls.Question.expires_date", or a class, "shop.PurgeEvents".

    A gate between a backfill that runs outside `migrate` and a schema change that needs it. Of a field, every row has
    its value: the table is read up to the first row that is NULL. Of a class, a run of it has succeeded on this
    database, with these `parameters` if any are given, or it has no row to do. Changes nothing, backwards too. Raises
    NotFinished, with what to type.
    """

    reduces_to_sql = False
    reversible = True
    elidable = True  # On the empty tables of a squashed migration there is nothing to wait for.
    category = OperationCategory.PYTHON

    def __init__(self, label: str, parameters: Mapping[str, Any] | None = None) -> None:
        parts = str(label).split(".")
        if len(parts) not in (2, 3) or not all(part.isidentifier() for part in parts):
            raise InvalidField(
                f"RequireBackfill({label!r}): name the field as app.Model.field, as in polls.Question.expires_date, or "
                "the backfill as app.Class."
            )
        self.label, self.parameters = label, dict(parameters or {})
        self.field_app, self.model_name, self.name = [*parts, ""][:3]
        if self.name and parameters:
            raise InvalidField(
                f"RequireBackfill({label!r}): parameters are those of a Backfill class, and a field has none."
            )

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.label], {"parameters": self.parameters} if self.parameters else {}

    def state_forwards(self, app_label: str, state: ProjectState) -> None: ...

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        alias = schema_editor.connection.alias
        if schema_editor.collect_sql:
            return
        if not self.name:
            self._look_at_class(app_label, alias)
            return
        model = self._model(from_state)
        if not self.allow_migrate_model(alias, model):
            return
        left = Batches(model, alias, null_in([self.name]))
        if field_of(model, self.name).null and left.any_left() and not self._is_passed(model, alias):
            raise NotFinished(
                f"{model._meta.label}.{self.name} on {alias}: {left.count():,} rows are still NULL, and this migration "
                f"of {app_label} needs them filled. Nothing was changed. Type:\n"
                f"    python manage.py backfill run {model._meta.label}.{self.name} --database {alias}\n"
                "Then run migrate again."
            )

    def _is_passed(self, model: type[Model], alias: str) -> bool:
        """Was the one pass made of a fill that leaves rows NULL?"""
        return context.is_passed(f"{model._meta.label}.{self.name}", alias)

    def _look_at_class(self, app_label: str, alias: str) -> None:
        if context.is_backfill_done(self.label, alias, self.parameters):
            return
        given = [f"{name}={value}" for name, value in self.parameters.items()]
        with_these = f" with {', '.join(given)}" if given else ""
        typed = "".join(f" --set {shlex.quote(each)}" for each in given)
        raise NotFinished(
            f"{self.label} has not succeeded on {alias} yet{with_these}, and this migration of {app_label} needs it. "
            f"Nothing was changed. Type:\n    python manage.py backfill run {self.label}{typed} --database {alias}\n"
            "Then run migrate again. If its work is done everywhere, this operation may be taken out of the migration."
        )

    def database_backwards(self, *args: Any) -> None: ...

    def _model(self, state: ProjectState) -> type[Model]:
        known = state.models.get((self.field_app, self.model_name.lower()))
        if known is None or self.name not in known.fields:
            raise InvalidField(
                f"RequireBackfill({self.label!r}): the migrations before it have no such field. Is it spelled so, "
                f"and does this migration depend on that of {self.field_app} which adds it?"
            )
        model: type[Model] = state.apps.get_model(self.field_app, self.model_name)
        return model

    def references_model(self, name: str, app_label: str) -> bool:
        return not self.name or (app_label, name.lower()) == (self.field_app, self.model_name.lower())

    def describe(self) -> str:
        if not self.name:
            return f"Wait until the backfill {self.label} has succeeded"
        return f"Wait until every row has a value in {self.label}"
