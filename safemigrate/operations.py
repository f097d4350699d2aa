"""The migration operations: the road from a full table to one more required column.

All of them look at the database before they act, so that a migration that was stopped at any statement
carries on when it is run again. They need `atomic = False` on the migration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DatabaseError, Error
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.operations.fields import AddField, AlterField, FieldOperation, RemoveField
from django.db.migrations.operations.special import RunPython
from django.db.models import Count, Field
from django.db.models.expressions import BaseExpression

from safemigrate import backfill, fields, locks
from safemigrate.batches import Batches, Target
from safemigrate.databases import Database, for_connection
from safemigrate.exceptions import (
    BadRows,
    DuplicateValues,
    InTransaction,
    InvalidField,
    InvalidPopulate,
    NullsRemain,
    SafemigrateError,
)
from safemigrate.populate import AsWritten, InDatabase, InPython, Source, check, resolve
from safemigrate.steps import Requirement, Step
from safemigrate.work import ComputedInDatabase

__all__ = ["AddNullableField", "AddRequiredField", "Populate", "SetNotNull"]

logger = logging.getLogger("safemigrate")

# How often NOT NULL is tried anew where rows came in as NULL between the last look and the lock.
SETTLE_TRIES = 10
EXAMPLES = 10


class _FieldStep:
    """What the operations on one field have in common."""

    atomic = False
    name: str
    model_name: str
    field: Any

    def _database(self, schema_editor: Any, operation: str) -> Database:
        if schema_editor.connection.in_atomic_block and not schema_editor.collect_sql:
            raise InTransaction(
                f"{operation} on {self.model_name}.{self.name} cannot run inside a transaction: every lock that "
                "it takes would be held until the end, and its batches would commit nothing before it. Add this "
                "line to the Migration class:\n\n    atomic = False\n"
            )
        return for_connection(schema_editor.connection)

    def _run(self, database: Database, schema_editor: Any, steps: Sequence[Step]) -> None:
        if not schema_editor.collect_sql:
            locks.run(database, steps)
            return
        for step in steps:
            _comment(schema_editor, f"{step.title} ({step.lock})")
            schema_editor.collected_sql.extend(f"{sql};" for sql in (*step.statements, *step.cleanup))


def _comment(schema_editor: Any, text: str) -> None:
    schema_editor.collected_sql.extend(f"-- {line}" for line in text.splitlines())


class AddNullableField(_FieldStep, AddField):
    """Add the column of a field that is to be required later: nullable, and nothing but a column.

    `field` is the final field as models.py has it; in the migration state it is null=True until SetNotNull.
    Takes the table's exclusive lock for an instant, at any size of table (SQLite: the one writer's); waits
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
            field = model._meta.get_field(self.name)
            if not schema_editor.collect_sql:
                self._refuse_other_type(database, model, field)
            self._run(database, schema_editor, database.add_column(model, field))

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
        marks = [name for name in self.names if model.fields[name].null]
        for name in self.names:
            noted = model.fields[name].clone()
            noted.safemigrate_populate = (self, marks)
            model.fields[name] = noted

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        target = self._target(model, schema_editor.connection.alias, to_state.apps)
        if not target.marks:
            return  # A squashed migration made the table with the column required: nothing is NULL.
        database = self._database(schema_editor, type(self).__name__)
        if schema_editor.collect_sql:
            _comment_populate(schema_editor, target, resolve(self.populate, self.names))
            return
        self.fill(app_label, schema_editor, database, from_state, to_state)

    def rehearse(self, app_label: str, alias: str, state: Any) -> None:
        """Raise InvalidPopulate for what can be seen to fail before a statement is run."""
        source = resolve(self.populate, self.names)
        if isinstance(source, InDatabase):
            _statement(
                self._target(state.apps.get_model(app_label, self.model_name), alias, state.apps), source
            )

    def fill(
        self,
        app_label: str,
        schema_editor: Any,
        database: Database,
        from_state: Any,
        to_state: Any,
        once: Sequence[str] | None = None,
    ) -> None:
        """Fill all rows that still need it, or raise BadRows. Imports a dotted path only for that.

        `once`, where the fill was done before and only late rows are left, names the fields that were NULL
        then. A function of (apps, schema_editor) is not run another time for them.
        """
        model = to_state.apps.get_model(app_label, self.model_name)
        target = self._target(model, schema_editor.connection.alias, to_state.apps, once or ())
        batches = Batches(model, target.alias, target.marks)
        if not batches.any_left():
            return
        self.rehearse(app_label, target.alias, to_state)
        source = resolve(self.populate, self.names)
        if isinstance(source, AsWritten):
            if once is None:
                RunPython(source.function).database_forwards(app_label, schema_editor, from_state, to_state)
            _refuse_nulls(batches, target.label, source.title)
            return
        if isinstance(source, InPython) and source.unique:
            self._index_early(database, schema_editor, model)
        backfill.fill(target, source, batch_size=self.batch_size)

    def _index_early(self, database: Database, schema_editor: Any, model: Any) -> None:
        field = model._meta.get_field(self.names[0])
        if not field.unique:
            raise InvalidPopulate(
                f"unique=Suffix(...) makes the values of {model._meta.label}.{field.name} unique, but the field "
                "is not unique=True, so nothing would keep them so. Make it unique=True, or leave unique out."
            )
        self._run(database, schema_editor, database.index_early(model, field))

    def _target(self, model: Any, alias: str, apps: Any, once: Sequence[str] = ()) -> Target:
        marks = [name for name in self.names if model._meta.get_field(name).null]
        return Target(model, self.names, marks, alias, apps, once)

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

    Fills what came in as NULL meanwhile, where a Populate of the field stands before it; proves that
    nothing is NULL; sets NOT NULL. On PostgreSQL every exclusive lock is held for an instant and the table
    is read while writers pass; on MySQL and MariaDB the table is rebuilt online; SQLite copies it in one
    transaction. Raises NullsRemain (or BadRows) and DuplicateValues before anything was made required.
    Run again, it carries on. Backwards the column is nullable and bare again.
    """

    def __init__(self, model_name: str, name: str, field: Any) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)

    def state_forwards(self, app_label: str, state: Any) -> None:
        self._refuse_other_changes(app_label, state)
        super().state_forwards(app_label, state)

    def _refuse_other_changes(self, app_label: str, state: Any) -> None:
        before = state.models[app_label, self.model_name_lower].fields.get(self.name)
        if before is None:
            raise InvalidField(f"SetNotNull: {app_label}.{self.model_name} has no field {self.name!r} yet.")
        differences = _differences(before, self.field)
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
            self._run(database, schema_editor, database.require(from_model, model, field).in_order())
            return
        noted = self._populate(app_label, from_state)

        def catch_up() -> None:
            if noted is None:
                _refuse_nulls(
                    Batches(from_model, database.connection.alias, [self.name]), self._label(app_label)
                )
            else:
                populate, once = noted
                populate.fill(app_label, schema_editor, database, from_state, from_state, once)

        self._require(database, from_model, model, field, catch_up)

    def _require(self, database: Database, from_model: Any, model: Any, field: Any, catch_up: Any) -> None:
        def steps() -> Requirement:
            # Made anew each time: they depend on what the table is by then.
            return database.require(from_model, model, field)

        if database.is_required(model, field):
            # A run that ended after NOT NULL has only what follows it to do.
            locks.run(database, steps().in_order())
            return
        # A run that was killed may have left the door shut.
        locks.run(database, steps().reopen)
        catch_up()
        if field.unique:
            _refuse_duplicates(from_model, database, field)
        if field.remote_field and field.db_constraint:
            database.refuse_orphans(from_model, from_model._meta.get_field(field.name))
        locks.run(database, steps().before)
        for tries_left in reversed(range(SETTLE_TRIES)):
            try:
                locks.run(database, steps().close)
                catch_up()
                locks.run(database, steps().settle)
                break
            except BaseException as error:
                self._reopen(database, steps, field)
                if (
                    not tries_left
                    or not isinstance(error, DatabaseError)
                    or not database.is_null_refused(error)
                ):
                    raise
        locks.run(database, steps().after)

    @staticmethod
    def _reopen(database: Database, steps: Callable[[], Requirement], field: Any) -> None:
        """Let old code insert again, as long as the column is not required; never hide why it is not."""
        try:
            locks.run(database, steps().reopen)
        except (SafemigrateError, Error):
            logger.exception("%s: new rows without a value are refused until migrate is run again", field)

    def _populate(self, app_label: str, state: Any) -> tuple[Populate, list[str]] | None:
        field = state.models[app_label, self.model_name_lower].fields[self.name]
        return getattr(field, "safemigrate_populate", None)

    def _label(self, app_label: str) -> str:
        return f"{app_label}.{self.model_name}.{self.name}"

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


class AddRequiredField(_FieldStep, AddField):
    """Add a required field to a table that may be full: AddNullableField, Populate, SetNotNull in one.

    Run again after it was stopped at any statement, it carries on and ends the same. Its reverse is one
    DROP COLUMN. For locks and errors see the three steps.
    """

    def __init__(
        self, model_name: str, name: str, field: Any, populate: Any, *, batch_size: int | None = None
    ) -> None:
        fields.check(field, f"{model_name}.{name}")
        super().__init__(model_name, name, field)
        self.populate, self.batch_size = populate, batch_size
        check(populate, [name])
        _check_batch_size(batch_size)

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        name, args, kwargs = super().deconstruct()
        kwargs["populate"] = self.populate
        if self.batch_size is not None:
            kwargs["batch_size"] = self.batch_size
        return name, list(args), kwargs

    def steps(self) -> list[Any]:
        """Return the operations that this one runs, in order."""
        return [
            AddNullableField(self.model_name, self.name, self.field),
            Populate(self.model_name, self.name, self.populate, batch_size=self.batch_size),
            SetNotNull(self.model_name, self.name, self.field),
        ]

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        self._database(schema_editor, type(self).__name__)
        add, populate, require = self.steps()
        states = [from_state]
        for step in (add, populate, require):
            states.append(states[-1].clone())
            step.state_forwards(app_label, states[-1])
        alias = schema_editor.connection.alias
        from_model = from_state.apps.get_model(app_label, self.model_name)
        if not schema_editor.collect_sql and Batches(from_model, alias, []).rows.exists():
            populate.rehearse(app_label, alias, states[1])
        for number, step in enumerate((add, populate, require)):
            step.database_forwards(app_label, schema_editor, states[number], states[number + 1])

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        AddNullableField.database_backwards(self, app_label, schema_editor, from_state, to_state)  # type: ignore[arg-type]

    def describe(self) -> str:
        return (
            f"Add required field {self.name} to {self.model_name}, old rows filled by "
            f"{_told(self.populate, [self.name])}"
        )

    def reduce(self, operation: Operation, app_label: str) -> Any:
        return _reduce_added(self, operation, app_label)


def _refuse_nulls(batches: Batches, label: str, source: str = "") -> None:
    if not batches.any_left():
        return
    keys = ", ".join(map(str, batches.stragglers(EXAMPLES)))
    filled_by = f" after {source}" if source else ""
    cure = (
        "Correct the function, or those rows, and run migrate again."
        if source
        else "No Populate of this field stands before SetNotNull in the migrations: add one, or fill these rows "
        "yourself, and run migrate again."
    )
    message = (
        f"{batches.todo.count():,} rows of {label} on {batches.alias} are still NULL{filled_by}, so the column was "
        f"not made required. The first keys: {keys}. {cure}"
    )
    raise BadRows(message, count=batches.todo.count(), examples=[]) if source else NullsRemain(message)


def _refuse_duplicates(model: Any, database: Database, field: Any) -> None:
    rows = Batches(model, database.connection.alias, [field.name]).rows
    rows = rows.filter(**{f"{field.attname}__isnull": False})
    repeated = rows.values(field.attname).annotate(safemigrate_rows=Count("*")).filter(safemigrate_rows__gt=1)
    examples = list(repeated.order_by("-safemigrate_rows", field.attname)[:EXAMPLES])
    if not examples:
        return
    listed = "\n".join(f"  {row[field.attname]!r} in {row['safemigrate_rows']:,} rows" for row in examples)
    raise DuplicateValues(
        f"{repeated.count():,} values of {model._meta.label}.{field.name} on {database.connection.alias} stand in "
        f"more than one row, but the field is to be unique; no constraint was created. For example:\n{listed}\n"
        'Correct these rows, or set all back to NULL and populate by PerRow(..., unique=Suffix("-")), and run '
        "migrate again: it carries on from here."
    )


def _differences(before: Any, after: Any) -> list[str]:
    """Return in which arguments two fields differ, beside null."""
    old_path, _, old = before.deconstruct()[1:]
    new_path, _, new = after.deconstruct()[1:]
    names = [] if old_path == new_path else ["type"]
    names += sorted(
        name for name in {*old, *new} - {"null"} if not _same(old.get(name, _same), new.get(name, _same))
    )
    return names


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, BaseExpression) or isinstance(other, BaseExpression):
        return repr(one) == repr(other)
    if isinstance(one, Field) and isinstance(other, Field):  # The field inside an ArrayField.
        return not _differences(one, other)
    return (
        bool(one == other)
        or (isinstance(one, str) and isinstance(other, str) and one.lower() == other.lower() and "." in one)
        or (
            hasattr(one, "deconstruct")
            and hasattr(other, "deconstruct")
            and one.deconstruct() == other.deconstruct()
        )
    )


def _check_batch_size(batch_size: Any) -> None:
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InvalidPopulate(
            f"batch_size must be a number of rows, at least 1, or None; not {batch_size!r}."
        )


def _told(populate: Any, names: Sequence[str]) -> str:
    return populate if isinstance(populate, str) and "." in populate else resolve(populate, names).title


def _comment_populate(schema_editor: Any, target: Target, source: Source) -> None:
    names = ", ".join(target.names)
    _comment(schema_editor, f"fill {names} by {source.title}: committed range after range of primary keys,")
    _comment(schema_editor, "each of which locks only the rows that it writes")
    if isinstance(source, InDatabase):
        sql, params = _statement(target, source)
        schema_editor.connection.ensure_connection()
        text = sql % tuple(map(schema_editor.quote_value, params))
        _comment(schema_editor, f"{text} AND <the primary key is in the range>;")
    else:
        _comment(schema_editor, f"Python computes the values for {target.label}: no SQL can be shown")


def _statement(target: Target, source: InDatabase) -> tuple[str, tuple[Any, ...]]:
    return ComputedInDatabase(source, target).statement(Batches(target.model, target.alias, target.marks))
