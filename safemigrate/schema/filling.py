"""Populate: old rows get their value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.core.exceptions import FieldError
from django.db import connections
from django.db.migrations.operations.base import OperationCategory
from django.db.migrations.operations.special import RunPython
from django.db.migrations.state import ProjectState, StateApps
from django.db.models import Model, Q

from safemigrate.backends import for_connection
from safemigrate.engine import context, engine
from safemigrate.engine.batches import Batches, Target
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import InvalidPopulate
from safemigrate.populate.sources import (
    AsWritten,
    InDatabase,
    InPython,
    Source,
    check,
    fingerprint,
    resolve,
)
from safemigrate.schema import fields, proofs
from safemigrate.schema.change import Change, FieldStep, public
from safemigrate.schema.plan import Fill, Plan, write_down
from safemigrate.types import field_of


@public
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
        check_batch_size(batch_size)
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

    def refuse_values(self, change: Change) -> None:
        """Raise InvalidPopulate for values that can be seen not to be the rows', before a statement is run."""
        source = resolve(self.populate, self.names)
        proofs.refuse_missing(self._target_of(change), source)
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
        proofs.refuse_missing(target, source)
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
        by = title_of(self.populate, self.names)
        back = f"; backwards by {title_of(self.reverse, self.names)}" if self.reverse is not None else ""
        return f"Populate {', '.join(self.names)} of {self.model_name} by {by}{where}{back}"


def check_batch_size(batch_size: Any) -> None:
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InvalidPopulate(
            f"batch_size must be a number of rows, at least 1, or None; not {batch_size!r}."
        )


def title_of(populate: Any, names: Sequence[str]) -> str:
    return populate if isinstance(populate, str) and "." in populate else resolve(populate, names).title
