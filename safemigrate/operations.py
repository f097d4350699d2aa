"""The migration operations: the steps from a full table to one more required column.

All of them look at the database before they act, so that a migration that was stopped at any statement
carries on when it is run again. They need `atomic = False` on the migration.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from django.core.exceptions import FieldError
from django.db import DatabaseError, connections
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.operations.fields import AddField, AlterField, FieldOperation, RemoveField
from django.db.migrations.operations.special import RunPython
from django.db.migrations.state import ProjectState, StateApps
from django.db.models import Field, Model, Q

from safemigrate.backends import for_connection
from safemigrate.engine import context, engine
from safemigrate.engine.batches import Batches, Target, null_in
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import InvalidField, InvalidPopulate, NoGuard, NotFinished
from safemigrate.populate.sources import (
    AsWritten,
    InDatabase,
    InPython,
    Source,
    check,
    fingerprint,
    is_dotted_path,
    resolve,
)
from safemigrate.schema import common_value, fields, guards, preflight, proofs
from safemigrate.schema.change import Change, FieldStep
from safemigrate.schema.common_value import CommonValue
from safemigrate.schema.fast_path import Shortcut
from safemigrate.schema.not_null import Requiring
from safemigrate.schema.plan import Fill, Plan, write_down
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField, field_of

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
        _refuse_obstacles(change.within(final), self)

    def forwards(self, change: Change) -> None:
        model = change.after(self.model_name)
        proofs.refuse_other_type(change.database, model, field_of(model, self.name))
        super().forwards(change)

    def backwards(self, change: Change) -> None:
        _drop_column(self, change)

    def describe(self) -> str:
        return f"Add the nullable column of field {self.name} to {self.model_name}"

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return _reduce_added(self, operation, app_label)


def _refuse_obstacles(change: Change, step: FieldStep, work: AnyField | None = None) -> None:
    """Raise for what the server will refuse on the way to the final field, or to what `work` says of it."""
    model = change.after(step.model_name)
    preflight.refuse(change.database, model, work or field_of(model, step.name))


def _drop_column(self: FieldStep, change: Change) -> None:
    self.refuse_transaction(change)
    model = change.before(self.model_name)
    change.run(change.database.drop_column(model, field_of(model, self.name)))


def _reduce_added(self: Any, operation: Operation, app_label: str) -> Any:
    """Reduce as AddField does where the field goes again; never fold a later AlterField into the fill."""
    if isinstance(operation, RemoveField) and self.is_same_field_operation(operation):
        return []
    return FieldOperation.reduce(self, operation, app_label)


class Populate(FieldStep):
    """Give old rows their value: one field, or several in one pass.

    `name` is a field, or a list of fields with `populate` a dict by field or a row function that returns a
    dict. A row is to be filled while one of the named nullable fields is NULL in it; named fields that are
    not nullable are rewritten along with them. With `where`, a Q over the model's own columns, it is the rows
    that fulfil it, all of whose named fields are rewritten: each write repeats the condition, it is done when no
    row fulfils it, and a row that still does after it was written is a bad row. Runs in committed batches that
    lock only the rows they write. Run again, it does what is left.

    With `nulls="leave"` the field stays nullable: a row whose value is None stays NULL, and is no bad row. It is done
    after one pass, which is remembered with the run; without the runs' table each call is one pass. Backwards it does
    nothing, or what `reverse` says, in the same forms, to every row: a function of a row that returns None leaves
    the row as it is, `Value(None)` sets NULL.
    """

    reduces_to_sql = True
    reversible = True
    category = OperationCategory.PYTHON
    arguments = ("model_name", "name", "populate")
    options = {"where": None, "nulls": None, "reverse": None, "batch_size": None, "elidable": False}
    fragment = "fill"

    def __init__(
        self,
        model_name: str,
        name: str | Sequence[str],
        populate: Any,
        *,
        where: Q | None = None,
        nulls: str | None = None,
        reverse: Any = None,
        batch_size: int | None = None,
        elidable: bool = False,
    ) -> None:
        self.model_name, self.where, self.nulls, self.reverse = model_name, where, nulls, reverse
        self.name = name if isinstance(name, str) else list(name)  # type: ignore[assignment]
        self.populate, self.batch_size = populate, batch_size
        self.elidable = elidable  # type: ignore[misc]
        check(populate, self.names)
        _check_batch_size(batch_size)
        if where is not None and not (isinstance(where, Q) and where):
            raise InvalidPopulate(
                f"Populate of {model_name}: where must be a condition, as Q(votes=0), not {where!r}. Leave it out to "
                "fill the rows that are NULL."
            )
        if nulls not in (None, "leave") or (nulls and where is not None):
            raise InvalidPopulate(
                f"Populate of {model_name}: nulls is {nulls!r}, and where {where}. nulls can be 'leave', for a field "
                "that stays nullable, and only without a where: its rows are those that are NULL."
            )
        if reverse is not None:
            self._check_reverse()

    def _check_reverse(self) -> None:
        check(self.reverse, self.names)
        if getattr(self.reverse, "unique", None):
            raise InvalidPopulate(
                f"Populate of {self.model_name}: reverse cannot be unique=Suffix(...): rows that have a value would be "
                "given another one. Give what each row had before."
            )

    def with_batch_size(self, batch_size: int) -> Populate:
        """Return the same operation with another size of its batches."""
        return type(self)(
            self.model_name,
            self.name,
            self.populate,
            where=self.where,
            nulls=self.nulls,
            batch_size=batch_size,
        )

    @property
    def names(self) -> list[str]:
        return [self.name] if isinstance(self.name, str) else list(self.name)

    def fills(self, model_name: str, name: str) -> bool:
        return self.is_on(model_name, [name])

    def filling(self, app_label: str, state: ProjectState) -> Populate:
        """Return the operation that fills in a state, which is moved on to where it does so."""
        return self

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Leave the model as it is; note with its fields how they are filled, for a later SetNotNull."""
        model = state.models[app_label, self.model_name.lower()]
        for name in self.names:
            if name not in model.fields:
                raise InvalidPopulate(f"Populate: {app_label}.{self.model_name} has no field {name!r}.")
        null_fields = [name for name in self.names if model.fields[name].null]
        if self.nulls and not null_fields:
            raise InvalidPopulate(
                f"Populate: {app_label}.{self.model_name}.{'+'.join(self.names)} is not nullable, so nulls='leave' has "
                "no row to leave. Take it out."
            )
        if self.where is not None or self.nulls:
            return  # It says nothing of the rows that are NULL, or may leave them.
        for name in self.names:
            field = model.fields[name]
            model.fields[name] = fields.noted(field, field, populate=(self, null_fields))

    def is_needed(self, change: Change) -> bool:
        target = self._target_of(change)
        if not target.is_marked:
            proofs.refuse_unmarked(target)
        # On the empty table of a squashed migration, which makes the column required at once, there is nothing to do.
        return target.is_marked

    def plan(self, change: Change) -> Plan:
        target = self._target_of(change)
        return [Fill(target, resolve(self.populate, self.names))] if target.is_marked else []

    def forwards(self, change: Change) -> None:
        target = self._target_of(change)
        # What a path leads to is not imported for a table without rows.
        if self.nulls and (not target.batches.any_left() or self._is_passed(target)):
            return
        proofs.refuse_many(target)
        self.fill(change)

    def validate(self, app_label: str, alias: str, state: ProjectState) -> None:
        """Raise InvalidPopulate for what can be seen to fail before a statement is run."""
        model = fields.model_in(state, app_label, self.model_name, for_connection(connections[alias]))
        target = self.target(model, alias, state.apps)
        source = resolve(self.populate, self.names)
        proofs.refuse_condition(target)
        proofs.refuse_constants(target, source)
        if isinstance(source, InPython) and source.unique:
            proofs.refuse_not_unique(target)
        try:
            Fill(target, source).statement()
        except FieldError as error:
            raise InvalidPopulate(
                f"{target.label} on {alias} cannot be filled by {source.title}: {error}. Correct the populate of this "
                "migration."
            ) from error

    def refuse_repeated_keys(self, change: Change) -> None:
        source = resolve(self.populate, self.names)
        if isinstance(source, InPython):
            engine.refuse_repeated_keys(self._target_of(change), source)

    def fill(self, change: Change, once: Sequence[str] | None = None, *, at_once: bool = False) -> None:
        """Fill all rows that still need it, or raise BadRows. Imports a dotted path only for that.

        `once`, where the fill was done before and only late rows are left, names the fields that were NULL
        then. A function of (apps, schema_editor) is not run another time for them. `at_once` as in `engine.fill`.
        """
        target = self._target_of(change, once or ())
        proofs.refuse_condition(target)
        batches = target.batches
        if not batches.any_left() or self._is_passed(target):
            return
        self.validate(change.app_label, target.alias, change.to_state)
        source = resolve(self.populate, self.names)
        if isinstance(source, AsWritten):
            if once is None and change.editor is not None:
                with change.database.filling():
                    RunPython(source.function).database_forwards(
                        change.app_label, change.editor, change.from_state, change.to_state
                    )
            if not self.nulls:
                proofs.refuse_left(target, source.title)
            return
        if isinstance(source, InPython) and source.unique:
            self._index_early(change, target.model)
        engine.fill(target, source, batch_size=self.batch_size, at_once=at_once)

    def _is_passed(self, target: Target) -> bool:
        """Was the one pass made, of a fill that leaves rows NULL?"""
        if self.nulls is None:
            return False
        found = fingerprint(resolve(self.populate, self.names))
        migration = context.migration_of(target.model, self.names)
        return context.is_passed(target.label, target.alias, fingerprint=found, migration=migration)

    def _index_early(self, change: Change, model: type[Model]) -> None:
        change.run(change.database.index_early(model, field_of(model, self.names[0])))

    def target(self, model: type[Model], alias: str, apps: StateApps, once: Sequence[str] = ()) -> Target:
        null_fields = [name for name in self.names if field_of(model, name).null]
        leaves = self.nulls is not None
        return Target(
            model,
            self.names,
            null_fields,
            alias,
            apps,
            once,
            self.where,
            is_cursor=leaves,
            leaves_null=leaves,
        )

    def backwards(self, change: Change) -> None:
        """Do what `reverse` says to every row, each once; of an expression, only to those that have another value."""
        back = replace(change, from_state=change.to_state, to_state=change.from_state)
        if self.reverse is not None:
            self._go_back(change, back)
        if (self.nulls or self.reverse is not None) and not change.collects_sql:
            # The newest run says no more that the pass was made: it was the way back itself, or was undone by it.
            context.note_reversed(self._target_of(back))

    def _go_back(self, change: Change, back: Change) -> None:
        self.refuse_transaction(change)
        if change.editor is None or not Batches(back.after(self.model_name), change.alias).rows.exists():
            return
        source = resolve(self.reverse, self.names)
        if isinstance(source, AsWritten):
            with change.database.filling():
                RunPython(source.function, source.function).database_backwards(
                    change.app_label, change.editor, change.from_state, change.to_state
                )
            return
        Populate(self.model_name, self.name, self.reverse).validate(
            change.app_label, change.alias, back.to_state
        )
        target = self._reversed(back, source)
        if change.collects_sql:
            write_down(change.editor, [Fill(target, source)])
        else:
            engine.fill(target, source, batch_size=self.batch_size)

    def _reversed(self, change: Change, source: Source) -> Target:
        """Return all rows as the target of the way back; of those that the database computes, the ones that differ."""
        model, where = change.after(self.model_name), None
        if isinstance(source, InDatabase):
            values = source.assignments(model, change.to_state.apps)
            where = Q(
                *(Q(Differs(field_of(model, name), value)) for name, value in values.items()), _connector=Q.OR
            )
        return Target(
            model,
            self.names,
            [],
            change.alias,
            change.to_state.apps,
            where=where,
            is_cursor=True,
            leaves_null=True,
        )

    def _target_of(self, change: Change, once: Sequence[str] = ()) -> Target:
        return self.target(change.after(self.model_name), change.alias, change.to_state.apps, once)

    def references_model(self, name: str, app_label: str) -> bool:
        return True  # The populate may read any model.

    def describe(self) -> str:
        where = f" where {self.where}" if self.where is not None else ""
        by = _title(self.populate, self.names)
        back = f"; backwards by {_title(self.reverse, self.names)}" if self.reverse is not None else ""
        return f"Populate {', '.join(self.names)} of {self.model_name} by {by}{where}{back}"


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
        _refuse_obstacles(change, self, self._work(change))

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


class GuardWrites(FieldStep):
    """Let the database fill the field in rows that come in without it, from old code above all.

    A constant and uuid.uuid4 become the column's DEFAULT, an expression two triggers (PostgreSQL: one) that
    run where the field is NULL, with the value that Populate gives the same row. A nullable field that
    AddNullableField has not added is known to older code, which may write NULL into it: there it is triggers
    always. A row for which the expression fails comes in as NULL. Takes short locks only; writers wait for
    that instant. Run again it replaces a guard that is different. Where a database cannot, it says so in one
    warning and goes on. Backwards the guard is gone.
    """

    reversible = True
    elidable = True  # A squashed migration fills tables in one go.
    category = OperationCategory.SQL
    arguments = ("model_name", "name", "populate")
    fragment = "guard"

    def __init__(self, model_name: str, name: str, populate: Any) -> None:
        self.model_name, self.name, self.populate = model_name, name, populate
        check(populate, [name])
        if not is_dotted_path(populate):
            self.refuse_python(resolve(populate, [name]))

    def refuse_python(self, source: Source) -> None:
        if reason := guards.why_not(source):
            raise InvalidPopulate(
                f"GuardWrites on {self.model_name}.{self.name}: {reason}. Leave the operation out: SetNotNull "
                "fills the rows that came in as NULL. Or populate by an expression."
            )

    def refuse_missing(self, change: Change) -> None:
        """Raise NoGuard where this database cannot have the guard, while there is nothing to undo yet."""
        try:
            self._steps(change)
        except NoGuard as error:
            if change.database.guards_before_not_null:
                raise NoGuard(
                    f"{self.label(change.app_label)} on {change.alias} cannot be guarded, and so not keep its guard: "
                    f"{error}. Nothing was changed. Once the column is required, code that does not know it could not "
                    "insert. Leave keep_guard out, and deploy the new code first; or populate by something that the "
                    "database can compute in a new row."
                ) from error

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Leave the model as it is; note with the field how it is guarded, to create the guard again backwards."""
        _note_guard(state, app_label, self.model_name, self.name, self.populate)

    def plan(self, change: Change) -> Plan:
        try:
            return self._steps(change)
        except NoGuard:
            return []

    def forwards(self, change: Change) -> None:
        self.refuse_python(resolve(self.populate, [self.name]))
        self.create(change)

    def create(self, change: Change, *, level: int = logging.WARNING) -> None:
        """Create the guard, or log at this level why this database cannot have it."""
        try:
            change.run(self._steps(change))
        except (NoGuard, DatabaseError) as error:
            if isinstance(error, DatabaseError) and not change.database.is_denied(error):
                raise
            logger.log(
                level,
                "%s on %s is not guarded: %s. Rows that come in without it are filled at the end.",
                self.label(change.app_label),
                change.alias,
                error,
            )

    def _steps(self, change: Change) -> list[Step]:
        model = change.after(self.model_name)
        Populate(self.model_name, self.name, self.populate).validate(
            change.app_label, change.alias, change.to_state
        )
        source = resolve(self.populate, [self.name])
        known = _noted(change.to_state, change.app_label, self).is_known
        field = field_of(model, self.name)
        return guards.up(change.database, model, field, source, change.to_state.apps, is_known=known)

    def backwards(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.from_state))

    def references_model(self, name: str, app_label: str) -> bool:
        return True  # The populate may read any model.

    def describe(self) -> str:
        return f"Guard {self.name} of {self.model_name}: the database fills it in new rows"


class UnguardWrites(FieldStep):
    """Take the write guard of a field away: its triggers, and its DEFAULT unless that is a db_default.

    Takes the table's exclusive lock briefly. Does nothing where there is no guard. Backwards the
    guard is put up again.
    """

    reversible = True
    # Not elidable: an AddRequiredField(keep_guard=True) that is squashed creates the guard.
    category = OperationCategory.SQL
    arguments = ("model_name", "name")
    fragment = "unguard"

    def __init__(self, model_name: str, name: str) -> None:
        self.model_name, self.name = model_name, name

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        _note_guard(state, app_label, self.model_name, self.name, None)

    def is_needed(self, change: Change) -> bool:
        # A squashed migration that makes the table has no guard to drop, and may be atomic.
        return change.collects_sql or any(step.needed() for step in self.plan(change))

    def plan(self, change: Change) -> list[Step]:
        model = change.after(self.model_name)
        known = _noted(change.from_state, change.app_label, self).is_known
        return guards.down(change.database, model, field_of(model, self.name), is_known=known)

    def backwards(self, change: Change) -> None:
        populate = _noted(change.to_state, change.app_label, self).guard
        if populate is not None:
            GuardWrites(self.model_name, self.name, populate).apply(change)

    def references_model(self, name: str, app_label: str) -> bool:
        return True

    def describe(self) -> str:
        return f"Take the guard of {self.name} of {self.model_name} away"


class Whole(FieldStep):
    """What makes a field required in one operation: its steps, run one after another.

    Each looks first whether it is still needed, so that one that was stopped at any statement carries on.
    """

    field: Field[Any, Any]
    populate: Any
    batch_size: int | None
    keep_guard: bool
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
            *([GuardWrites(self.model_name, self.name, self.populate)] if guarded else []),
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
        full = Batches(change.before(self.model_name), change.alias).rows.exists()
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
                step.refuse_repeated_keys(stage)
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


class AddRequiredField(Whole, AddField):
    """Add a required field to a table that may be full: AddNullableField, Populate, SetNotNull in one.

    While it runs the field is guarded, where the populate can be said in SQL (GuardWrites): rows that old
    code inserts in that time have their value. With `keep_guard` they go on having it afterwards, until an
    UnguardWrites in a later migration; on SQLite, whose triggers run too late for that, it cannot be kept.
    On an empty table it is all one step; on SQLite it is so too where the copy that NOT NULL needs can compute
    the values in about the time of the copying. Run again after it was stopped at any statement, it carries
    on and ends the same. Its reverse is one DROP COLUMN. For locks and errors see the three steps.
    """

    arguments = ("model_name", "name", "field", "populate")
    options = {"batch_size": None, "keep_guard": False}

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
        _check_batch_size(batch_size)
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
            _note_guard(state, app_label, self.model_name, self.name, self.populate)

    def steps(self) -> list[FieldStep]:
        return [self._add(), *super().steps()]

    def look(self, change: Change) -> None:
        _refuse_obstacles(change, self)

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
        if full:
            common_value.refuse_other(
                change.database, change.after(self.model_name), self.name, self.populate
            )
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
        _drop_column(self, change)

    def describe(self) -> str:
        return (
            f"Add required field {self.name} to {self.model_name}, old rows filled by "
            f"{_title(self.populate, [self.name])}"
        )

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return _reduce_added(self, operation, app_label)


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
        _check_batch_size(batch_size)
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
        _note_guard(state, app_label, self.model_name, self.name, guard, is_known=True)

    def _stages(self, change: Change) -> list[tuple[FieldStep, Change]]:
        begun = change.from_state.clone()
        self.begin(change.app_label, begun)
        return super()._stages(replace(change, from_state=begun))

    def backwards(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.from_state))
        super().backwards(change)

    def describe(self) -> str:
        by = f", NULL filled by {_title(self.populate, [self.name])}" if self.populate is not None else ""
        return f"Make field {self.name} of {self.model_name} required (NOT NULL){by}"


class RequireBackfill(Operation):
    """Go on only where a backfill has ended: of a field, "polls.Question.expires_date", or a class, "shop.PurgeEvents".

    A gate between a backfill that runs outside `migrate` and a schema change that needs it. Of a field, every row has
    its value: the table is read up to the first row that is NULL. Of a class, a run of it has succeeded on this
    database, or it has no row to do. Changes nothing, backwards too. Raises NotFinished, with what to type.
    """

    reduces_to_sql = False
    reversible = True
    elidable = True  # On the empty tables of a squashed migration there is nothing to wait for.
    category = OperationCategory.PYTHON

    def __init__(self, label: str) -> None:
        parts = str(label).split(".")
        if len(parts) not in (2, 3) or not all(part.isidentifier() for part in parts):
            raise InvalidField(
                f"RequireBackfill({label!r}): name the field as app.Model.field, as in polls.Question.expires_date, or "
                "the backfill as app.Class."
            )
        self.label = label
        self.field_app, self.model_name, self.name = [*parts, ""][:3]

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.label], {}

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
        if context.is_backfill_done(self.label, alias):
            return
        raise NotFinished(
            f"{self.label} has not succeeded on {alias} yet, and this migration of {app_label} needs it. Nothing was "
            f"changed. Type:\n    python manage.py backfill run {self.label} --database {alias}\n"
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


def _note_guard(
    state: ProjectState,
    app_label: str,
    model_name: str,
    name: str,
    populate: Any,
    *,
    is_known: bool = False,
) -> None:
    model = state.models[app_label, model_name.lower()]
    if name not in model.fields:
        raise InvalidPopulate(f"{app_label}.{model_name} has no field {name!r} to guard.")
    field = model.fields[name]
    known = is_known or fields.notes(field).is_known or (field.null and not fields.notes(field).is_new)
    model.fields[name] = fields.noted(field, field, guard=populate, is_known=known)


def _noted(state: ProjectState, app_label: str, step: FieldStep) -> fields.Notes:
    return fields.notes(state.models[app_label, step.model_name.lower()].fields[step.name])


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InvalidPopulate(
            f"batch_size must be a number of rows, at least 1, or None; not {batch_size!r}."
        )


def _title(populate: Any, names: Sequence[str]) -> str:
    return populate if isinstance(populate, str) and "." in populate else resolve(populate, names).title
