"""The operations on a column alone: added nullable, and made required at the end."""

from __future__ import annotations

from typing import Any, cast

from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.fields import AddField, AlterField, FieldOperation, RemoveField
from django.db.migrations.state import ProjectState
from django.db.models import Field

from safemigrate.engine.batches import Target
from safemigrate.exceptions import InvalidField
from safemigrate.schema import fields, preflight, proofs
from safemigrate.schema.change import Change, FieldStep, public
from safemigrate.schema.filling import Populate
from safemigrate.schema.not_null import Requiring
from safemigrate.schema.plan import Plan
from safemigrate.types import AnyField, field_of


@public
class AddNullableField(FieldStep, AddField):
    """Add the column of a field that is to be required later: nullable, and nothing but a column.

    `field` is the final field as models.py has it; in the migration state it is null=True until SetNotNull.
    Takes the table's exclusive lock briefly, at any size of table (SQLite: the one writer's); waits
    for it only briefly at a time. Run again, it does nothing where the column is there. A `db_default` is
    set for the rows that come in from now on (on SQLite only by SetNotNull); old rows stay NULL. Backwards
    it drops the column.
    """

    fragment = "add"

    def __init__(self, model_name: str, name: str, field: Field[Any, Any]) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        field = fields.noted(self.field, self.field, is_new=True)
        field.null = True
        state.add_field(app_label, self.model_name_lower, self.name, field, True)

    def plan(self, change: Change) -> Plan:
        model = change.after(self.model_name)
        return change.database.add_column(model, field_of(model, self.name))

    def look(self, change: Change) -> None:
        final = change.from_state.clone()
        final.add_field(change.app_label, self.model_name_lower, self.name, self.field, True)
        refuse_obstacles(change.within(final), self)

    def forwards(self, change: Change) -> None:
        model = change.after(self.model_name)
        field = field_of(model, self.name)
        preflight.refuse(change.database, model, field, preflight.left(change.database, model, field))
        super().forwards(change)

    def backwards(self, change: Change) -> None:
        drop_column(self, change)

    def describe(self) -> str:
        return f"Add the nullable column of field {self.name} to {self.model_name}"

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return reduce_added(self, operation, app_label)


@public
class SetNotNull(FieldStep, AlterField):
    """Make a filled column required, with the index, uniqueness and foreign key of the final field.

    Fills what came in as NULL since, where a Populate of the field stands before it; proves that
    nothing is NULL; sets NOT NULL. On PostgreSQL every exclusive lock is held briefly and the table
    is read while writers pass; on MySQL and MariaDB the table is rebuilt online; SQLite copies it in one
    transaction. Raises NullsRemain (or BadRows) and DuplicateValues before anything was made required.
    Run again, it carries on. Backwards the column is nullable again, and as it was.
    """

    fragment = "require"

    def __init__(self, model_name: str, name: str, field: Field[Any, Any]) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)

    def requires(self, model_name: str, name: str) -> bool:
        return self.is_on(model_name, [name])

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        self._refuse_other_changes(app_label, state)
        before = state.models[app_label, self.model_name_lower].fields[self.name]
        super().state_forwards(app_label, state)
        model = state.models[app_label, self.model_name_lower]
        model.fields[self.name] = fields.noted(
            model.fields[self.name], before, populate=None, is_new=False, before=None
        )

    def _refuse_other_changes(self, app_label: str, state: ProjectState) -> None:
        before = state.models[app_label, self.model_name_lower].fields.get(self.name)
        if before is None:
            raise InvalidField(
                f"{type(self).__name__}: {app_label}.{self.model_name} has no field {self.name!r} yet."
            )
        differences = fields.differences(before, self.field)
        if differences:
            raise InvalidField(
                f"{type(self).__name__} only makes {app_label}.{self.model_name}.{self.name} required, but the field "
                f"differs from the one in the migrations before it in: {', '.join(differences)}. Make that change in a "
                "migration of its own first, by migrations.AlterField."
            )

    def is_needed(self, change: Change) -> bool:
        field = field_of(change.before(self.model_name), self.name)
        # A squashed migration made the table with the column required. That it did the database has to say.
        return field.null or not (change.collects_sql or change.database.is_required(field.model, field))

    def plan(self, change: Change) -> Plan:
        model = change.after(self.model_name)
        return change.database.require(change.before(self.model_name), model, self._work(change)).in_order()

    def look(self, change: Change) -> None:
        refuse_obstacles(change, self, self._work(change))

    def _work(self, change: Change) -> AnyField:
        """Return the final field without what the column has already, by the migrations and in the table."""
        model = change.after(self.model_name)
        final, now = field_of(model, self.name), self._in_table(change, change.from_state)
        if not change.collects_sql:
            now = change.database.in_table(model, final.column, now)
        return fields.gained(final, now)

    def _in_table(self, change: Change, state: ProjectState) -> AnyField:
        """Return the nullable field of a state as the table has it."""
        noted = fields.notes(state.models[change.app_label, self.model_name_lower].fields[self.name])
        field = field_of(change.within(state).after(self.model_name), self.name)
        return cast("AnyField", change.database.bare(field) if noted.is_new else noted.before or field)

    def forwards(self, change: Change) -> None:
        before, model = change.before(self.model_name), change.after(self.model_name)
        noted = self._populate(change.app_label, change.from_state)

        def catch_up(*, at_once: bool = False) -> None:
            if noted is None:
                proofs.refuse_left(
                    Target(before, [self.name], [self.name], change.alias, change.from_state.apps)
                )
            else:
                populate, once = noted
                populate.fill(change.within(change.from_state), once, at_once=at_once)

        Requiring(change.database, before, model, self._work(change), catch_up).run()
        proofs.confirm_required(change.database, model, field_of(model, self.name))

    def _populate(self, app_label: str, state: ProjectState) -> tuple[Populate, list[str]] | None:
        noted = fields.notes(state.models[app_label, self.model_name_lower].fields[self.name]).populate
        if noted is None or not isinstance(noted[0].name, str):
            return noted
        populate, null_fields = noted
        # The field, or its model, may have got another name since.
        renamed = type(populate)(
            self.model_name, self.name, populate.populate, batch_size=populate.batch_size
        )
        return renamed, [self.name] * len(null_fields)

    def backwards(self, change: Change) -> None:
        self.refuse_transaction(change)
        before, model = change.before(self.model_name), change.after(self.model_name)
        field = self._in_table(change, change.to_state)
        change.run(change.database.release(before, model, field))

    def describe(self) -> str:
        return f"Make field {self.name} of {self.model_name} required (NOT NULL)"

    def reduce(self, operation: Operation, app_label: str) -> Any:
        if isinstance(operation, RemoveField) and self.is_same_field_operation(operation):
            return [operation]
        return FieldOperation.reduce(self, operation, app_label)


def refuse_obstacles(change: Change, step: FieldStep, work: AnyField | None = None) -> None:
    """Raise for what the server will refuse on the way to the final field, or to what `work` says of it."""
    model = change.after(step.model_name)
    field = work or field_of(model, step.name)
    found = preflight.obstacles(change.database, model, field)
    if found and work is None:  # What another attempt left may be the very reason.
        found = [*preflight.left(change.database, model, field), *found]
    preflight.refuse(change.database, model, field, found)


def drop_column(self: FieldStep, change: Change) -> None:
    self.refuse_transaction(change)
    model = change.before(self.model_name)
    change.run(change.database.drop_column(model, field_of(model, self.name)))


def reduce_added(self: Any, operation: Operation, app_label: str) -> Any:
    """Reduce as AddField does where the field goes again; never fold a later AlterField into the fill."""
    if isinstance(operation, RemoveField) and self.is_same_field_operation(operation):
        return []
    return FieldOperation.reduce(self, operation, app_label)
