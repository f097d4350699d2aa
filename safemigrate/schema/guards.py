"""Write guards: what a row gets that is inserted without the field, by code that does not know it."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from django.db import DatabaseError
from django.db.migrations.operations.base import OperationCategory
from django.db.migrations.state import ProjectState
from django.db.models import Model, Value

from safemigrate.backends import Database, get_backend
from safemigrate.backends.base.guards import WRITES, Events
from safemigrate.exceptions import InvalidPopulate, NoGuard
from safemigrate.populate.sources import InDatabase, Source, check, is_dotted_path, resolve
from safemigrate.schema import fields
from safemigrate.schema.change import Change, FieldStep, public
from safemigrate.schema.filling import Populate
from safemigrate.schema.plan import Plan
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField, field_of

logger = logging.getLogger("safemigrate")


@public
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
    events: Events = WRITES

    def __init__(self, model_name: str, name: str, populate: Any) -> None:
        self.model_name, self.name, self.populate = model_name, name, populate
        check(populate, [name])
        if not is_dotted_path(populate):
            self.refuse_python(resolve(populate, [name]))

    def refuse_python(self, source: Source) -> None:
        if reason := why_not(source):
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
        note_guard(state, app_label, self.model_name, self.name, self.populate)

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
        return up(
            change.database, model, field, source, change.to_state.apps, is_known=known, events=self.events
        )

    def backwards(self, change: Change) -> None:
        UnguardWrites(self.model_name, self.name).apply(change.within(change.from_state))

    def references_model(self, name: str, app_label: str) -> bool:
        return True  # The populate may read any model.

    def describe(self) -> str:
        return f"Guard {self.name} of {self.model_name}: the database fills it in new rows"


@public
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
        note_guard(state, app_label, self.model_name, self.name, None)

    def is_needed(self, change: Change) -> bool:
        # A squashed migration that makes the table has no guard to drop, and may be atomic.
        return change.collects_sql or any(step.needed() for step in self.plan(change))

    def plan(self, change: Change) -> list[Step]:
        model = change.after(self.model_name)
        known = _noted(change.from_state, change.app_label, self).is_known
        return down(change.database, model, field_of(model, self.name), is_known=known)

    def backwards(self, change: Change) -> None:
        populate = _noted(change.to_state, change.app_label, self).guard
        if populate is not None:
            GuardWrites(self.model_name, self.name, populate).apply(change)

    def references_model(self, name: str, app_label: str) -> bool:
        return True

    def describe(self) -> str:
        return f"Take the guard of {self.name} of {self.model_name} away"


def note_guard(
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


def why_not(source: Source) -> str | None:
    """Return why no database could guard a field by this populate, None where most can."""
    if isinstance(source, InDatabase) or _is_random_uuid(source):
        return None
    return f"{source.title} is computed in Python, and a database cannot run that when old code inserts a row"


def up(
    database: Database,
    model: type[Model],
    field: AnyField,
    source: Source,
    apps: Any,
    *,
    is_known: bool = False,
    events: Events = WRITES,
) -> list[Step]:
    """Return the steps that guard the field: a default for a value or a uuid, triggers for an expression.

    Each takes a short lock. Run again they replace a guard that is different. A field with a default of the
    database's own (db_default) is guarded by that. Where the column `is_known` to older code, which may write NULL
    into it by name, it is triggers always. Raises NoGuard where this database cannot.
    """
    guards = get_backend(database.connection).guards
    reason = why_not(source)
    plain = not is_known and not guards.is_limited(model, field)
    constant = guards.constant if plain else guards.triggers
    if field.has_db_default() and not is_known:
        source = InDatabase({field.name: field.db_default}, "its db_default")
        if database.gives_defaults_early:
            return []
    elif reason:
        raise NoGuard(reason)
    elif _is_random_uuid(source):
        sql = guards.random_uuid(field)
        if sql is None:
            raise NoGuard(f"{database.connection.display_name} makes no uuid for a {type(field).__name__}")
        return constant(model, field, sql, events)
    (value,) = source.assignments(model, apps).values()  # type: ignore[union-attr]
    sql = guards.sql(model, field, value)
    if is_known:
        guards.refuse_unique(model, field)
        sql = guards.if_there(model, field, sql)
    reads_no_column = isinstance(value, Value) or not hasattr(value, "resolve_expression")
    expression = guards.triggers if is_known else guards.expression
    return (constant if reads_no_column else expression)(model, field, sql, events)


def down(database: Database, model: type[Model], field: AnyField, *, is_known: bool = False) -> list[Step]:
    """Return the steps that take any guard of the field away; nothing is done where there is none.

    A default of a column that `is_known` to older code is not the guard's, and stays.
    """
    triggers = get_backend(database.connection).guards.drop_triggers(model, field)
    return [*([] if is_known else drop_default(database, model, field)), *triggers]


def drop_default(database: Database, model: type[Model], field: AnyField) -> list[Step]:
    """Return the step that takes a default away which guards the field, unless it is a db_default."""
    return get_backend(database.connection).guards.drop_default(model, field)


def _is_random_uuid(source: Source) -> bool:
    return getattr(source, "function", None) is uuid.uuid4
