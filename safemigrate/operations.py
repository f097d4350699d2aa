"""The migration operations: the steps from a full table to one more required column.

All of them look at the database before they act, so that a migration that was stopped at any statement
carries on when it is run again. They need `atomic = False` on the migration.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.operations.fields import AddField, AlterField, FieldOperation, RemoveField
from django.db.migrations.operations.special import RunPython

from safemigrate import conf
from safemigrate.backends import Database, for_connection
from safemigrate.engine import context, engine
from safemigrate.engine.batches import Batches, Target
from safemigrate.exceptions import InTransaction, InvalidField, InvalidPopulate, NoGuard, TooManyRows
from safemigrate.populate.sources import AsWritten, InPython, Source, check, is_dotted_path, resolve
from safemigrate.schema import fields, guards, runner
from safemigrate.schema.fast_path import Shortcut
from safemigrate.schema.not_null import Requiring
from safemigrate.schema.plan import Fill, write_down
from safemigrate.schema.proofs import refuse_nulls
from safemigrate.schema.steps import Step

__all__ = ["AddNullableField", "AddRequiredField", "GuardWrites", "Populate", "SetNotNull", "UnguardWrites"]

logger = logging.getLogger("safemigrate")


class _FieldStep:
    """What the operations on one field have in common."""

    atomic = False
    name: str
    model_name: str
    field: Any

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        """Return what is done forwards, in order, without doing any of it."""
        raise NotImplementedError

    def _database(self, schema_editor: Any, operation: str) -> Database:
        if schema_editor.connection.in_atomic_block and not schema_editor.collect_sql:
            raise InTransaction(
                f"{operation} on {self.model_name}.{self.name} cannot run inside a transaction: every lock that "
                "it takes would be held until the end, and its batches would commit nothing before it. Add this "
                "line to the Migration class:\n\n    atomic = False\n"
            )
        return for_connection(schema_editor.connection)

    @staticmethod
    def _run(database: Database, schema_editor: Any, plan: Sequence[Any]) -> None:
        if schema_editor.collect_sql:
            write_down(schema_editor, plan)
        else:
            runner.run(database, plan)

    def _label(self, app_label: str) -> str:
        return f"{app_label}.{self.model_name}.{self.name}"


class AddNullableField(_FieldStep, AddField):
    """Add the column of a field that is to be required later: nullable, and nothing but a column.

    `field` is the final field as models.py has it; in the migration state it is null=True until SetNotNull.
    Takes the table's exclusive lock briefly, at any size of table (SQLite: the one writer's); waits
    for it only briefly at a time. Run again, it does nothing where the column is there. A `db_default` is
    set for the rows that come in from now on (on SQLite only by SetNotNull); old rows stay NULL. Backwards
    it drops the column.
    """

    def __init__(self, model_name: str, name: str, field: Any) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)

    def state_forwards(self, app_label: str, state: Any) -> None:
        field = self.field.clone()
        field.null = True
        state.add_field(app_label, self.model_name_lower, self.name, field, True)

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            database = self._database(schema_editor, type(self).__name__)
            if not schema_editor.collect_sql:
                self._refuse_other_type(database, model, model._meta.get_field(self.name))
            self._run(database, schema_editor, self.plan(app_label, database, from_state, to_state))

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        model = to_state.apps.get_model(app_label, self.model_name)
        return [*database.add_column(model, model._meta.get_field(self.name))]

    @staticmethod
    def _refuse_other_type(database: Database, model: Any, field: Any) -> None:
        """Carry on with the column of a run that was stopped, but not with one of another field."""
        found = database.other_type(model, field)
        if found:
            raise InvalidField(
                f"{model._meta.label}.{field.name} on {database.connection.alias}: the table has a column "
                f"{field.column} already, of type {found}, but the field needs {field.db_type(database.connection)}. "
                "It may be left from a migration that was changed after it had begun. Drop the column, or name the "
                "field otherwise, and run migrate again."
            )

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            database = self._database(schema_editor, type(self).__name__)
            field = model._meta.get_field(self.name)
            self._run(database, schema_editor, database.drop_column(model, field))

    def describe(self) -> str:
        return f"Add the nullable column of field {self.name} to {self.model_name}"

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.model_name_lower}_{self.name_lower}_add"

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return _reduce_added(self, operation, app_label)


def _reduce_added(self: Any, operation: Operation, app_label: str) -> Any:
    """Reduce as AddField does where the field goes again; never fold a later AlterField into the fill."""
    if isinstance(operation, RemoveField) and self.is_same_field_operation(operation):
        return []
    return FieldOperation.reduce(self, operation, app_label)


class Populate(_FieldStep, Operation):
    """Give old rows their value: one field, or several in one pass.

    `name` is a field, or a list of fields with `populate` a dict by field or a row function that returns a
    dict. A row is to be filled while one of the named nullable fields is NULL in it; named fields that are
    not nullable are rewritten along with them. Runs in committed batches that lock only the rows they
    write. Run again, it does what is left. Backwards it does nothing: what was filled stays.
    """

    reduces_to_sql = True
    reversible = True
    category = OperationCategory.PYTHON

    def __init__(
        self,
        model_name: str,
        name: str | Sequence[str],
        populate: Any,
        *,
        batch_size: int | None = None,
        elidable: bool = False,
    ) -> None:
        self.model_name = model_name
        self.name = name if isinstance(name, str) else list(name)  # type: ignore[assignment]
        self.populate, self.batch_size = populate, batch_size
        self.elidable = elidable  # type: ignore[misc]
        check(populate, self.names)
        _check_batch_size(batch_size)

    @property
    def names(self) -> list[str]:
        return [self.name] if isinstance(self.name, str) else list(self.name)

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        kwargs = {"model_name": self.model_name, "name": self.name, "populate": self.populate}
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        if self.elidable:
            kwargs["elidable"] = True
        return type(self).__name__, [], kwargs

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the model as it is; note with its fields how they are filled, for a later SetNotNull."""
        model = state.models[app_label, self.model_name.lower()]
        for name in self.names:
            if name not in model.fields:
                raise InvalidPopulate(f"Populate: {app_label}.{self.model_name} has no field {name!r}.")
        null_fields = [name for name in self.names if model.fields[name].null]
        for name in self.names:
            field = model.fields[name]
            model.fields[name] = fields.noted(field, field, populate=(self, null_fields))

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        target = self.target(model, schema_editor.connection.alias, to_state.apps)
        if not target.null_fields:
            return  # A squashed migration made the table with the column required: nothing is NULL.
        database = self._database(schema_editor, type(self).__name__)
        if schema_editor.collect_sql:
            write_down(schema_editor, self.plan(app_label, database, from_state, to_state))
            return
        self._refuse_many(target)
        self.fill(app_label, schema_editor, database, from_state, to_state)

    @staticmethod
    def _refuse_many(target: Target) -> None:
        """Leave to `backfill run` what the project says is too much for `migrate`."""
        most = conf.get("SAFEMIGRATE_MAX_ROWS_IN_MIGRATE")
        if most is None:
            return
        rows = Batches(target.model, target.alias, target.null_fields).todo.count()
        if rows <= most:
            return
        label = f"{target.model._meta.label}.{target.names[0]}"
        too_many = (
            f"{rows:,} rows of {target.label} on {target.alias} are to be filled, more than `migrate` may fill here "
            f"(SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = {most:,})."
        )
        if handed_over := context.hand_over(label, target.alias):
            raise TooManyRows(f"{too_many} {handed_over} When it has succeeded, run migrate again.")
        raise TooManyRows(
            f"{too_many} Fill them outside, while the site runs:\n"
            f"    python manage.py backfill run {label} --database {target.alias}\n"
            "Then run migrate again: it finds nothing left to fill, and goes on."
        )

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        model = to_state.apps.get_model(app_label, self.model_name)
        target = self.target(model, database.connection.alias, to_state.apps)
        return [Fill(target, resolve(self.populate, self.names))] if target.null_fields else []

    def validate(self, app_label: str, alias: str, state: Any) -> None:
        """Raise InvalidPopulate for what can be seen to fail before a statement is run."""
        target = self.target(state.apps.get_model(app_label, self.model_name), alias, state.apps)
        Fill(target, resolve(self.populate, self.names)).statement()

    def fill(
        self,
        app_label: str,
        schema_editor: Any,
        database: Database,
        from_state: Any,
        to_state: Any,
        once: Sequence[str] | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Fill all rows that still need it, or raise BadRows. Imports a dotted path only for that.

        `once`, where the fill was done before and only late rows are left, names the fields that were NULL
        then. A function of (apps, schema_editor) is not run another time for them. `at_once` as in `engine.fill`.
        """
        model = to_state.apps.get_model(app_label, self.model_name)
        target = self.target(model, schema_editor.connection.alias, to_state.apps, once or ())
        batches = Batches(model, target.alias, target.null_fields)
        if not batches.any_left():
            return
        self.validate(app_label, target.alias, to_state)
        source = resolve(self.populate, self.names)
        if isinstance(source, AsWritten):
            if once is None:
                RunPython(source.function).database_forwards(app_label, schema_editor, from_state, to_state)
            refuse_nulls(batches, target.label, source.title)
            return
        if isinstance(source, InPython) and source.unique:
            self._index_early(database, schema_editor, model)
        engine.fill(target, source, batch_size=self.batch_size, at_once=at_once)

    def _index_early(self, database: Database, schema_editor: Any, model: Any) -> None:
        field = model._meta.get_field(self.names[0])
        if not field.unique:
            raise InvalidPopulate(
                f"unique=Suffix(...) makes the values of {model._meta.label}.{field.name} unique, but the field "
                "is not unique=True, so nothing would keep them so. Make it unique=True, or leave unique out."
            )
        self._run(database, schema_editor, database.index_early(model, field))

    def target(self, model: Any, alias: str, apps: Any, once: Sequence[str] = ()) -> Target:
        null_fields = [name for name in self.names if model._meta.get_field(name).null]
        return Target(model, self.names, null_fields, alias, apps, once)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        pass

    def references_model(self, name: str, app_label: str) -> bool:
        return True  # The populate may read any model.

    def describe(self) -> str:
        return f"Populate {', '.join(self.names)} of {self.model_name} by {_told(self.populate, self.names)}"

    @property
    def migration_name_fragment(self) -> str:
        return "_".join([self.model_name.lower(), *map(str.lower, self.names), "fill"])


class SetNotNull(_FieldStep, AlterField):
    """Make a filled column required, with the index, uniqueness and foreign key of the final field.

    Fills what came in as NULL since, where a Populate of the field stands before it; proves that
    nothing is NULL; sets NOT NULL. On PostgreSQL every exclusive lock is held briefly and the table
    is read while writers pass; on MySQL and MariaDB the table is rebuilt online; SQLite copies it in one
    transaction. Raises NullsRemain (or BadRows) and DuplicateValues before anything was made required.
    Run again, it carries on. Backwards the column is nullable and bare again.
    """

    def __init__(self, model_name: str, name: str, field: Any) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)

    def state_forwards(self, app_label: str, state: Any) -> None:
        self._refuse_other_changes(app_label, state)
        before = state.models[app_label, self.model_name_lower].fields[self.name]
        super().state_forwards(app_label, state)
        model = state.models[app_label, self.model_name_lower]
        model.fields[self.name] = fields.noted(model.fields[self.name], before, populate=None)

    def _refuse_other_changes(self, app_label: str, state: Any) -> None:
        before = state.models[app_label, self.model_name_lower].fields.get(self.name)
        if before is None:
            raise InvalidField(f"SetNotNull: {app_label}.{self.model_name} has no field {self.name!r} yet.")
        differences = fields.differences(before, self.field)
        if differences:
            raise InvalidField(
                f"SetNotNull only makes {app_label}.{self.model_name}.{self.name} required, but the field differs "
                f"from the one that was added in: {', '.join(differences)}. Make that change in a migration of "
                "its own, by migrations.AlterField."
            )

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        from_model = from_state.apps.get_model(app_label, self.model_name)
        if not from_model._meta.get_field(self.name).null:
            return  # A squashed migration made the table with the column required.
        database = self._database(schema_editor, type(self).__name__)
        field = model._meta.get_field(self.name)
        if schema_editor.collect_sql:
            write_down(schema_editor, self.plan(app_label, database, from_state, to_state))
            return
        noted = self._populate(app_label, from_state)

        def catch_up(*, at_once: bool = False) -> None:
            if noted is None:
                refuse_nulls(
                    Batches(from_model, database.connection.alias, [self.name]), self._label(app_label)
                )
            else:
                populate, once = noted
                populate.fill(
                    app_label, schema_editor, database, from_state, from_state, once, at_once=at_once
                )

        Requiring(database, from_model, model, field, catch_up).run()

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        from_model = from_state.apps.get_model(app_label, self.model_name)
        model = to_state.apps.get_model(app_label, self.model_name)
        return [*database.require(from_model, model, model._meta.get_field(self.name)).in_order()]

    def _populate(self, app_label: str, state: Any) -> tuple[Populate, list[str]] | None:
        field = state.models[app_label, self.model_name_lower].fields[self.name]
        noted = getattr(field, "safemigrate_populate", None)
        if noted is None or not isinstance(noted[0].name, str):
            return noted
        populate, null_fields = noted
        # The field, or its model, may have got another name since.
        renamed = Populate(self.model_name, self.name, populate.populate, batch_size=populate.batch_size)
        return renamed, [self.name] * len(null_fields)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            database = self._database(schema_editor, type(self).__name__)
            from_model = from_state.apps.get_model(app_label, self.model_name)
            field = model._meta.get_field(self.name)
            self._run(database, schema_editor, database.release(from_model, model, field))

    def describe(self) -> str:
        return f"Make field {self.name} of {self.model_name} required (NOT NULL)"

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.model_name_lower}_{self.name_lower}_require"

    def reduce(self, operation: Operation, app_label: str) -> Any:
        if isinstance(operation, RemoveField) and self.is_same_field_operation(operation):
            return [operation]
        return FieldOperation.reduce(self, operation, app_label)


class GuardWrites(_FieldStep, Operation):
    """Let the database fill the field in rows that come in without it, from old code above all.

    A constant and uuid.uuid4 become the column's DEFAULT, an expression two triggers (PostgreSQL: one) that
    run where the field is NULL, with the value that Populate gives the same row. A row for which the
    expression fails comes in as NULL. Takes short locks only; writers wait for that instant. Run again it
    replaces a guard that is different. Where a database cannot, it says so in one warning and goes on.
    Backwards the guard is gone.
    """

    reversible = True
    elidable = True  # A squashed migration fills tables in one go.
    category = OperationCategory.SQL

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

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        kwargs = {"model_name": self.model_name, "name": self.name, "populate": self.populate}
        return type(self).__name__, [], kwargs

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the model as it is; note with the field how it is guarded, to put it up again backwards."""
        _note_guard(state, app_label, self.model_name, self.name, self.populate)

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            database = self._database(schema_editor, type(self).__name__)
            self.refuse_python(resolve(self.populate, [self.name]))
            self.create(app_label, schema_editor, database, to_state)

    def create(
        self,
        app_label: str,
        schema_editor: Any,
        database: Database,
        state: Any,
        *,
        level: int = logging.WARNING,
    ) -> None:
        """Put the guard up, or say at this level of the log why this database cannot."""
        try:
            self._run(database, schema_editor, self._steps(app_label, database, state))
        except (NoGuard, DatabaseError) as error:
            if isinstance(error, DatabaseError) and not database.is_denied(error):
                raise
            logger.log(level, "%s", self._without(app_label, database, error))

    def _without(self, app_label: str, database: Database, error: Exception) -> str:
        return (
            f"{self._label(app_label)} on {database.connection.alias} is not guarded: {error}. Rows that come in "
            "without it are filled at the end."
        )

    def _steps(self, app_label: str, database: Database, state: Any) -> list[Step]:
        model = state.apps.get_model(app_label, self.model_name)
        Populate(self.model_name, self.name, self.populate).validate(
            app_label, database.connection.alias, state
        )
        source = resolve(self.populate, [self.name])
        return guards.up(database, model, model._meta.get_field(self.name), source, state.apps)

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        try:
            return [*self._steps(app_label, database, to_state)]
        except NoGuard:
            return []

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        UnguardWrites(self.model_name, self.name).drop(app_label, schema_editor, from_state)

    def references_model(self, name: str, app_label: str) -> bool:
        return True  # The populate may read any model.

    def describe(self) -> str:
        return f"Guard {self.name} of {self.model_name}: the database fills it in new rows"

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.model_name.lower()}_{self.name.lower()}_guard"


class UnguardWrites(_FieldStep, Operation):
    """Take the write guard of a field away: its triggers, and its DEFAULT unless that is a db_default.

    Takes the table's exclusive lock briefly. Does nothing where there is no guard. Backwards the
    guard is put up again.
    """

    reversible = True
    # Not elidable: an AddRequiredField(keep_guard=True) that is squashed puts the guard up.
    category = OperationCategory.SQL

    def __init__(self, model_name: str, name: str) -> None:
        self.model_name, self.name = model_name, name

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [], {"model_name": self.model_name, "name": self.name}

    def state_forwards(self, app_label: str, state: Any) -> None:
        _note_guard(state, app_label, self.model_name, self.name, None)

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self.drop(app_label, schema_editor, to_state)

    def drop(self, app_label: str, schema_editor: Any, state: Any) -> None:
        model = state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            database = for_connection(schema_editor.connection)
            steps = self.plan(app_label, database, state, state)
            if schema_editor.collect_sql or any(step.needed() for step in steps):
                # A squashed migration that makes the table has nothing to take away, and may be atomic.
                self._database(schema_editor, type(self).__name__)
                self._run(database, schema_editor, steps)

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Any]:
        model = to_state.apps.get_model(app_label, self.model_name)
        return [*guards.down(database, model, model._meta.get_field(self.name))]

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        field = to_state.models[app_label, self.model_name.lower()].fields[self.name]
        populate = getattr(field, "safemigrate_guard", None)
        if populate is not None:
            guard = GuardWrites(self.model_name, self.name, populate)
            guard.database_forwards(app_label, schema_editor, from_state, to_state)

    def references_model(self, name: str, app_label: str) -> bool:
        return True

    def describe(self) -> str:
        return f"Take the guard of {self.name} of {self.model_name} away"

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.model_name.lower()}_{self.name.lower()}_unguard"


class AddRequiredField(_FieldStep, AddField):
    """Add a required field to a table that may be full: AddNullableField, Populate, SetNotNull in one.

    While it runs the field is guarded, where the populate can be said in SQL (GuardWrites): rows that old
    code inserts in that time have their value. With `keep_guard` they go on having it afterwards, until an
    UnguardWrites in a later migration; on SQLite, whose triggers run too late for that, it cannot be kept.
    On an empty table it is all one step; on SQLite it is so too where the copy that NOT NULL needs can compute
    the values in about the time of the copying. Run again after it was stopped at any statement, it carries
    on and ends the same. Its reverse is one DROP COLUMN. For locks and errors see the three steps.
    """

    def __init__(
        self,
        model_name: str,
        name: str,
        field: Any,
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

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        name, args, kwargs = super().deconstruct()
        kwargs["populate"] = self.populate
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        if self.keep_guard:
            kwargs["keep_guard"] = True
        return name, list(args), kwargs

    def state_forwards(self, app_label: str, state: Any) -> None:
        super().state_forwards(app_label, state)
        if self.keep_guard:
            _note_guard(state, app_label, self.model_name, self.name, self.populate)

    def steps(self) -> list[Any]:
        """Return the operations that this one runs, in order."""
        # What a path leads to is not imported for a table without rows.
        guarded = is_dotted_path(self.populate) or guards.why_not(resolve(self.populate)) is None
        return [
            AddNullableField(self.model_name, self.name, self.field),
            *([GuardWrites(self.model_name, self.name, self.populate)] if guarded else []),
            Populate(self.model_name, self.name, self.populate, batch_size=self.batch_size),
            SetNotNull(self.model_name, self.name, self.field),
            *([UnguardWrites(self.model_name, self.name)] if guarded and not self.keep_guard else []),
        ]

    def _stages(self, app_label: str, from_state: Any) -> list[tuple[Any, Any, Any]]:
        """Return each operation with the states before and after it."""
        stages, before = [], from_state
        for step in self.steps():
            after = before.clone()
            step.state_forwards(app_label, after)
            stages.append((step, before, after))
            before = after
        return stages

    def plan(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> list[Step | Fill]:
        stages = self._stages(app_label, from_state)
        return [part for step, *states in stages for part in step.plan(app_label, database, *states)]

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        database = self._database(schema_editor, type(self).__name__)
        if schema_editor.collect_sql:
            write_down(schema_editor, self.plan(app_label, database, from_state, to_state))
        elif self.keep_guard or not self._shortcut(app_label, database, from_state, to_state).take():
            self._walk(app_label, schema_editor, database, from_state, to_state)

    def _shortcut(self, app_label: str, database: Database, from_state: Any, to_state: Any) -> Shortcut:
        before, model = (state.apps.get_model(app_label, self.model_name) for state in (from_state, to_state))
        target = Target(model, [self.name], [self.name], database.connection.alias, to_state.apps)
        return Shortcut(database, before, target, self.populate, self.batch_size)

    def _walk(
        self, app_label: str, schema_editor: Any, database: Database, from_state: Any, to_state: Any
    ) -> None:
        """Run the operations one after another; each looks first whether it is still needed."""
        alias, stages = database.connection.alias, self._stages(app_label, from_state)
        full = Batches(from_state.apps.get_model(app_label, self.model_name), alias, []).rows.exists()
        if full:
            self._validate(app_label, alias, stages)
        for step, before, after in stages:
            if not isinstance(step, GuardWrites):
                step.database_forwards(app_label, schema_editor, before, after)
            elif full or self.keep_guard:
                level = logging.WARNING if self.keep_guard else logging.INFO
                step.create(app_label, schema_editor, database, after, level=level)
        if self.keep_guard and not database.guards_before_not_null:
            self._give_up_guard(app_label, schema_editor, to_state)

    def _give_up_guard(self, app_label: str, schema_editor: Any, state: Any) -> None:
        UnguardWrites(self.model_name, self.name).drop(app_label, schema_editor, state)
        if not self.field.has_db_default():
            logger.warning(
                "%s on %s: the guard could not be kept, because this database looks for NULL before a trigger "
                "runs. Inserts without the field fail from now on.",
                self._label(app_label),
                schema_editor.connection.alias,
            )

    def _validate(self, app_label: str, alias: str, stages: Sequence[tuple[Any, Any, Any]]) -> None:
        for step, before, _ in stages:
            if isinstance(step, Populate):
                step.validate(app_label, alias, before)
            elif isinstance(step, GuardWrites) and self.keep_guard:
                step.refuse_python(resolve(self.populate))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        UnguardWrites(self.model_name, self.name).drop(app_label, schema_editor, from_state)
        AddNullableField.database_backwards(self, app_label, schema_editor, from_state, to_state)  # type: ignore[arg-type]

    def describe(self) -> str:
        return (
            f"Add required field {self.name} to {self.model_name}, old rows filled by "
            f"{_told(self.populate, [self.name])}"
        )

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return _reduce_added(self, operation, app_label)


def _note_guard(state: Any, app_label: str, model_name: str, name: str, populate: Any) -> None:
    model = state.models[app_label, model_name.lower()]
    if name not in model.fields:
        raise InvalidPopulate(f"{app_label}.{model_name} has no field {name!r} to guard.")
    model.fields[name] = fields.noted(model.fields[name], model.fields[name], guard=populate)


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InvalidPopulate(
            f"batch_size must be a number of rows, at least 1, or None; not {batch_size!r}."
        )


def _told(populate: Any, names: Sequence[str]) -> str:
    return populate if isinstance(populate, str) and "." in populate else resolve(populate, names).title
