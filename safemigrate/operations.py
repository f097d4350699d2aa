"""The migration operations: what makes a column of a full table required, at once or in its steps.

The steps, and the gate, are written in `schema/`: columns, filling, guards, gate. All look at the database before
they act, so that a migration that was stopped at any statement carries on when it is run again. They need
`atomic = False` on the migration.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.db import DatabaseError
from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.fields import AddField
from django.db.migrations.state import ProjectState, StateApps
from django.db.models import Field, Model

from safemigrate.backends.base.guards import INSERT
from safemigrate.engine.batches import Target
from safemigrate.exceptions import InvalidPopulate
from safemigrate.populate.sources import check, is_dotted_path, resolve
from safemigrate.schema import common_value, fields, guards, proofs
from safemigrate.schema.change import Change, FieldStep
from safemigrate.schema.columns import (
    AddNullableField,
    SetNotNull,
    drop_column,
    reduce_added,
    refuse_obstacles,
)
from safemigrate.schema.common_value import CommonValue
from safemigrate.schema.fast_path import Shortcut
from safemigrate.schema.filling import Populate, check_batch_size, title_of
from safemigrate.schema.gate import RequireBackfill
from safemigrate.schema.guards import GuardWrites, UnguardWrites, note_guard
from safemigrate.schema.plan import Fill, Plan
from safemigrate.schema.steps import Step
from safemigrate.types import field_of

__all__ = [
    "AddNullableField",
    "AddRequiredField",
    "GuardWrites",
    "Populate",
    "RequireBackfill",
    "RequireField",
    "SetNotNull",
    "UnguardWrites",
]

logger = logging.getLogger("safemigrate")


class Whole(FieldStep):
    """What makes a field required in one operation: its steps, run one after another.

    Each looks first whether it is still needed, so that one that was stopped at any statement carries on.
    """

    field: Field[Any, Any]
    populate: Any
    batch_size: int | None
    keep_guard: bool
    guard: type[GuardWrites] = GuardWrites
    is_attempt = True
    #: What fails from NOT NULL on, where the guard cannot be kept.
    failing = "Inserts without the field"

    def fills(self, model_name: str, name: str) -> bool:
        return self.populate is not None and self.is_on(model_name, [name])

    def requires(self, model_name: str, name: str) -> bool:
        return self.is_on(model_name, [name])

    def filling(self, app_label: str, state: ProjectState) -> Populate:
        """Return the operation that fills in a state, which is moved on to where it does so."""
        self.begin(app_label, state)
        return self._fill()

    def _fill(self) -> Populate:
        return Populate(self.model_name, self.name, self.populate, batch_size=self.batch_size)

    def begin(self, app_label: str, state: ProjectState) -> None:
        """Move a state on to where it has the final field, but nullable."""
        raise NotImplementedError

    def steps(self) -> list[FieldStep]:
        """Return the operations that this one runs once the state has begun, in order."""
        fill: list[FieldStep] = []
        guarded = self.populate is not None
        if guarded:
            # What a path leads to is not imported for a table without rows.
            guarded = is_dotted_path(self.populate) or guards.why_not(resolve(self.populate)) is None
            fill = [self._fill()]
        return [
            *([self.guard(self.model_name, self.name, self.populate)] if guarded else []),
            *fill,
            SetNotNull(self.model_name, self.name, self.field),
            *([UnguardWrites(self.model_name, self.name)] if guarded and not self.keep_guard else []),
        ]

    def _stages(self, change: Change) -> list[tuple[FieldStep, Change]]:
        """Return each operation with its part of the change."""
        stages, before = [], change.from_state
        for step in self.steps():
            after = before.clone()
            step.state_forwards(change.app_label, after)
            stages.append((step, replace(change, from_state=before, to_state=after)))
            before = after
        return stages

    def plan(self, change: Change) -> Plan:
        return [part for step, stage in self._stages(change) for part in step.plan(stage)]

    def forwards(self, change: Change) -> None:
        full = self._is_full(change) if change.full is None else change.full
        if full:
            self._validate(self._stages(change))
        if not self.take_shortcut(change, full=full):
            self._walk(change, full)
        model = change.after(self.model_name)
        proofs.confirm_required(change.database, model, field_of(model, self.name))

    def take_shortcut(self, change: Change, *, full: bool) -> bool:
        """Do all of it at once, where that can be; return whether it was done."""
        return False

    def _walk(self, change: Change, full: bool) -> None:
        for step, stage in self._stages(change):
            if not isinstance(step, GuardWrites):
                step.apply(stage, looked=True)
            elif full or self.keep_guard:
                step.create(stage, level=logging.WARNING if self.keep_guard else logging.INFO)
        if self.keep_guard and not change.database.guards_before_not_null:
            self._give_up_guard(change)

    def _give_up_guard(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.to_state))
        if not self.field.has_db_default():
            logger.warning(
                "%s on %s: the guard could not be kept, because this database looks for NULL before a trigger "
                "runs. %s fail from now on.",
                self.label(change.app_label),
                change.alias,
                self.failing,
            )

    def _validate(self, stages: Sequence[tuple[FieldStep, Change]]) -> None:
        for step, stage in stages:
            if isinstance(step, Populate):
                step.validate(stage.app_label, stage.alias, stage.from_state)
                step.refuse_values(stage)
            elif isinstance(step, GuardWrites) and self.keep_guard:
                step.refuse_python(resolve(self.populate))
                step.refuse_missing(stage)


class _AddColumn(AddNullableField):
    """Add the column of an AddRequiredField: where most rows get one value, with that value."""

    def __init__(self, model_name: str, name: str, field: Field[Any, Any], populate: Any) -> None:
        super().__init__(model_name, name, field)
        self.populate = populate

    def plan(self, change: Change) -> Plan:
        return self._with_common(change) or super().plan(change)

    def _with_common(self, change: Change) -> list[Step]:
        model = change.after(self.model_name)
        asks = not change.collects_sql and not self._is_there(change)
        common = CommonValue.of(change.database, model, self.name, self.populate)
        return common.steps(change.database, ask=asks) if common else []

    def _is_there(self, change: Change) -> bool:
        model = change.after(self.model_name)
        return change.database.column(model, field_of(model, self.name).column) is not None

    def forwards(self, change: Change) -> None:
        try:
            super().forwards(change)
        except DatabaseError as error:
            if self._is_there(change):
                raise
            logger.info(
                "%s: each row is written, because it was refused to add the column with the value of most: %s",
                self.label(change.app_label),
                str(error).strip(),
            )
            change.run(super().plan(change))  # type: ignore[arg-type]


class _FillColumn(Populate):
    """Fill it: also the rows that hold the value of most, and are to get another one."""

    def target(self, model: type[Model], alias: str, apps: StateApps, once: Sequence[str] = ()) -> Target:
        mistaken = common_value.rows_left(model, self.name, alias, self.populate)
        return replace(super().target(model, alias, apps, once), mistaken=mistaken)


class _GuardInserts(GuardWrites):
    """Guard a column that no code knows: an UPDATE of old code does not touch it, and the fill comes to that row.

    So the fill's own UPDATEs need not pass a trigger.
    """

    events = INSERT


class AddRequiredField(Whole, AddField):
    """Add a required field to a table that may be full: AddNullableField, Populate, SetNotNull in one.

    While it runs the field is guarded, where the populate can be said in SQL (GuardWrites): rows that old
    code inserts in that time have their value. With `keep_guard` they go on having it afterwards, until an
    UnguardWrites in a later migration; on SQLite, whose triggers run too late for that, it cannot be kept.
    Where all rows get one value none is written, and where most do only the others (not on SQLite).
    On an empty table it is all one step; on SQLite it is so too where the copy that NOT NULL needs can compute
    the values in about the time of the copying. Run again after it was stopped at any statement, it carries
    on and ends the same. Its reverse is one DROP COLUMN. For locks and errors see the three steps.
    """

    arguments = ("model_name", "name", "field", "populate")
    options = {"batch_size": None, "keep_guard": False}
    guard = _GuardInserts

    def __init__(
        self,
        model_name: str,
        name: str,
        field: Field[Any, Any],
        populate: Any,
        *,
        batch_size: int | None = None,
        keep_guard: bool = False,
    ) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)
        self.populate, self.batch_size, self.keep_guard = populate, batch_size, keep_guard
        check(populate, [name])
        check_batch_size(batch_size)
        if keep_guard:
            GuardWrites(model_name, name, populate)  # Raises InvalidPopulate where no guard can be.

    def begin(self, app_label: str, state: ProjectState) -> None:
        self._add().state_forwards(app_label, state)

    def _add(self) -> AddNullableField:
        return _AddColumn(self.model_name, self.name, self.field, self.populate)

    def _fill(self) -> Populate:
        return _FillColumn(self.model_name, self.name, self.populate, batch_size=self.batch_size)

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        super().state_forwards(app_label, state)
        if self.keep_guard:
            note_guard(state, app_label, self.model_name, self.name, self.populate)

    def steps(self) -> list[FieldStep]:
        return [self._add(), *super().steps()]

    def look(self, change: Change) -> None:
        refuse_obstacles(change, self)

    def plan(self, change: Change) -> Plan:
        step = self._shortcut(change).constant_step(ask=not change.collects_sql)
        if step:
            return [step, *self._after_constant(change)]
        plan = super().plan(change)
        begun = any(isinstance(part, Fill) and part.target.mistaken for part in plan)
        return [*plan, *(self._drop_comment(change) if begun else [])]

    def forwards(self, change: Change) -> None:
        super().forwards(change)
        if common_value.is_begun(change.database, change.after(self.model_name), self.name):
            change.run(self._drop_comment(change))

    def _drop_comment(self, change: Change) -> Sequence[Step]:
        model = change.after(self.model_name)
        return change.database.drop_comment(model, field_of(model, self.name))

    def take_shortcut(self, change: Change, *, full: bool) -> bool:
        shortcut = self._shortcut(change)
        if not self.keep_guard and shortcut.take(full=full):
            return True
        if not (full and shortcut.add_constant()):
            return False
        change.run(self._after_constant(change))
        return True

    def _shortcut(self, change: Change) -> Shortcut:
        before, model = change.before(self.model_name), change.after(self.model_name)
        target = Target(model, [self.name], [self.name], change.alias, change.to_state.apps)
        return Shortcut(change.database, before, target, self.populate, self.batch_size)

    def _after_constant(self, change: Change) -> list[Step]:
        """Return what is left to do where the column was added with one value for all rows, NOT NULL."""
        model = change.after(self.model_name)
        field, database = field_of(model, self.name), change.database
        require = database.require(model, model, field)
        return [
            *require.before,
            *require.after,
            *([] if self.keep_guard else guards.drop_default(database, model, field)),
        ]

    def backwards(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.from_state))
        drop_column(self, change)

    def describe(self) -> str:
        return (
            f"Add required field {self.name} to {self.model_name}, old rows filled by "
            f"{title_of(self.populate, [self.name])}"
        )

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return reduce_added(self, operation, app_label)


class RequireField(Whole, SetNotNull):
    """Make a field required that is there as null=True: GuardWrites, Populate and SetNotNull in one.

    `field` is the final field. Beside null, what is Python's alone may change with it (default, blank, choices,
    validators), and an index, unique=True or a foreign key may come with it; any other change of the column is
    refused. Without a `populate` it only proves and requires, and raises NullsRemain where a row is NULL.
    While it runs the field is guarded by triggers, where the populate can be said in SQL: older code knows the
    column, and may write NULL into it. With `keep_guard` they stay until an UnguardWrites in a later migration;
    not on SQLite, which looks for NULL before a trigger runs. Run again, it carries on. Backwards the column is
    nullable again and the values stay. For locks and errors see the three steps.
    """

    options = {"populate": None, "batch_size": None, "keep_guard": False}
    failing = "Writes of NULL"

    def __init__(
        self,
        model_name: str,
        name: str,
        field: Field[Any, Any],
        populate: Any = None,
        *,
        batch_size: int | None = None,
        keep_guard: bool = False,
    ) -> None:
        super().__init__(model_name, name, field)
        self.populate, self.batch_size, self.keep_guard = populate, batch_size, keep_guard
        check_batch_size(batch_size)
        if populate is not None:
            check(populate, [name])
        elif keep_guard:
            raise InvalidPopulate(
                f"RequireField on {model_name}.{name}: keep_guard needs a populate, which says what the guard gives."
            )
        if keep_guard:
            GuardWrites(model_name, name, populate)  # Raises InvalidPopulate where no guard can be.

    def begin(self, app_label: str, state: ProjectState) -> None:
        self._refuse_other_changes(app_label, state)
        before = state.models[app_label, self.model_name_lower].fields[self.name]
        nullable = self.field.clone()
        nullable.null = True
        state.alter_field(app_label, self.model_name_lower, self.name, nullable, True)
        noted = fields.noted(nullable, before, populate=None, before=before)
        state.models[app_label, self.model_name_lower].fields[self.name] = noted

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        super().state_forwards(app_label, state)
        guard = self.populate if self.keep_guard else None
        note_guard(state, app_label, self.model_name, self.name, guard, is_known=True)

    def _stages(self, change: Change) -> list[tuple[FieldStep, Change]]:
        begun = change.from_state.clone()
        self.begin(change.app_label, begun)
        return super()._stages(replace(change, from_state=begun))

    def backwards(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.from_state))
        super().backwards(change)

    def describe(self) -> str:
        by = f", NULL filled by {title_of(self.populate, [self.name])}" if self.populate is not None else ""
        return f"Make field {self.name} of {self.model_name} required (NOT NULL){by}"
