"""What the operations have in common: a change of one field, forwards and backwards, on one database."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from django.db import Error
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import Model

from safemigrate.backends import Database, for_connection
from safemigrate.conf import get
from safemigrate.engine import context, progress
from safemigrate.engine.batches import Batches
from safemigrate.exceptions import (
    AlreadyRunning,
    DuplicateValues,
    InTransaction,
    InvalidPopulate,
    NullsRemain,
    OrphanRows,
    SafemigrateError,
    StepRefused,
)
from safemigrate.formatting import explained
from safemigrate.schema import runner
from safemigrate.schema.fields import model_in
from safemigrate.schema.plan import Plan, write_down
from safemigrate.schema.steps import Step


@dataclass(frozen=True)
class Change:
    """The way from one state of the migrations to another on a database.

    Without a schema editor it can be planned, not made.
    """

    app_label: str
    database: Database
    from_state: ProjectState
    to_state: ProjectState
    editor: BaseDatabaseSchemaEditor | None = None
    #: Has the table rows? None where it was not looked at.
    full: bool | None = None

    @property
    def alias(self) -> str:
        return str(self.database.connection.alias)

    @property
    def collects_sql(self) -> bool:
        """Is it `sqlmigrate` that asks, so that nothing is to be done?"""
        return self.editor is not None and self.editor.collect_sql

    def before(self, model_name: str) -> type[Model]:
        return model_in(self.from_state, self.app_label, model_name, self.database)

    def after(self, model_name: str) -> type[Model]:
        return model_in(self.to_state, self.app_label, model_name, self.database)

    def within(self, state: ProjectState) -> Change:
        """Return a change that begins and ends in this state."""
        return replace(self, from_state=state, to_state=state)

    def run(self, steps: Sequence[Step]) -> None:
        """Run the steps that are still needed, or write them down for `sqlmigrate`."""
        if self.editor is not None and self.editor.collect_sql:
            write_down(self.editor, steps)
        else:
            runner.run(self.database, steps)


AnOperation = TypeVar("AnOperation", bound=Operation)

#: What Django says of a model that is not there.
MISSING = re.compile(
    r"No installed app with label '(?P<label>\w+)'|App '(?P<app>\w+)' doesn't have a '\w+' model"
)

#: The seconds between two looks whether another process is done, and between two lines that show how far it is.
LOOK, FOLLOW = 0.5, 5.0


def public(operation: type[AnOperation]) -> type[AnOperation]:
    """Have migration files that Django writes import the operation from where users do."""
    operation.__module__ = "safemigrate.operations"
    return operation


class FieldStep(Operation):
    """An operation on one field: a subclass says what is to be done, this class when.

    It leaves the model to the routers, refuses a transaction, and prints its plan for `sqlmigrate`.
    """

    atomic = False
    name: str
    model_name: str

    #: The arguments that are written into a migration: those that always are, and the others by their defaults.
    arguments: ClassVar[tuple[str, ...]] = ("model_name", "name", "field")
    options: ClassVar[Mapping[str, Any]] = {}
    #: The end of the name of a migration that has this operation alone.
    fragment = ""
    #: Is it all of an attempt, which can be given up while it has not ended?
    is_attempt = False

    @property
    def names(self) -> list[str]:
        return [self.name]

    # What a subclass says

    def plan(self, change: Change) -> Plan:
        """Return what is done forwards, in order, without doing any of it."""
        raise NotImplementedError

    def is_needed(self, change: Change) -> bool:
        return True

    def look(self, change: Change) -> None:
        """Raise for what can be seen to fail before the first statement is run."""

    def forwards(self, change: Change) -> None:
        change.run([part for part in self.plan(change) if isinstance(part, Step)])

    def backwards(self, change: Change) -> None: ...

    def fills(self, model_name: str, name: str) -> bool:
        """Does it give the old rows of this field their value?"""
        return False

    def requires(self, model_name: str, name: str) -> bool:
        """Does it make this field required?"""
        return False

    # What Django asks

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        change = Change(
            app_label, for_connection(schema_editor.connection), from_state, to_state, schema_editor
        )
        with self._explained(change), self._alone(change) as full:
            self.apply(replace(change, full=full))

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        change = Change(
            app_label, for_connection(schema_editor.connection), from_state, to_state, schema_editor
        )
        if self._is_routed(change):
            with self._explained(change), self._alone(change):
                self.backwards(change)

    @contextmanager
    def _explained(self, change: Change) -> Iterator[None]:
        """Let an error be one of ours, and end with the address of its page."""
        try:
            with self._in_words(change):
                yield
        except SafemigrateError as error:
            error.args = (explained(error),)
            raise

    @contextmanager
    def _in_words(self, change: Change) -> Iterator[None]:
        """Raise StepRefused for what the database says: a fault of the data, the server or the populate."""
        try:
            yield
        except (NullsRemain, DuplicateValues, OrphanRows) as error:
            if self.is_attempt:
                label = f"{change.after(self.model_name)._meta.label}.{self.names[0]}"
                give_up = f"To give it up instead: python manage.py add_required_field {label} --abandon"
                error.args = (f"{error}\n{give_up}",)
            raise
        except SafemigrateError:
            raise
        except LookupError as error:
            # Only those of Django's registry of apps: a function of the project's may raise others.
            missing = MISSING.match(str(error)) if type(error) is LookupError else None
            if missing is None:
                raise
            raise InvalidPopulate(
                f"{self.label(change.app_label)} on {change.alias}: {error} at this point of the migrations: the "
                "populate reads an app that this migration does not depend on. Add the migration that makes what is "
                "read to its dependencies, as in: dependencies = [..., "
                f'("{missing["app"] or missing["label"]}", "0001_initial")]'
            ) from error
        except Error as error:
            raise StepRefused(
                f"{self.label(change.app_label)} on {change.alias}: the database says: {str(error).strip()}. What "
                "was done before this stays. See to the cause, and run migrate again: it carries on from here "
                "(--traceback shows where it was)."
            ) from error

    def _is_full(self, change: Change) -> bool:
        return Batches(change.before(self.model_name), change.alias).rows.exists()

    @contextmanager
    def _alone(self, change: Change) -> Iterator[bool | None]:
        """Wait for another process that is at the same field; what it has done is found done afterwards.

        Gives whether the table has rows, None where that was not asked. On an empty table each is done in a moment.
        Raises AlreadyRunning after SAFEMIGRATE_WAIT_SECONDS.
        """
        if change.collects_sql or change.database.connection.in_atomic_block or not self._is_routed(change):
            yield None
            return
        # SQLite's lock costs nothing.
        full = None if change.database.fills_at_once else self._is_full(change)
        if full is False:
            yield full
            return
        label = self.label(change.app_label)
        where = f"{label} on {change.alias}"
        locked = _wait_for_lock(change.database, where, label)
        try:
            full = self._is_full(change) if full is None else full
            if full:
                _wait_for_run(change.database, where, label)
            with context.changed(in_migrate=True):
                yield full
        finally:
            with suppress(Error):  # The connection may be what was lost, and the lock with it.
                if locked:
                    change.database.unlock_name(label.lower())

    def apply(self, change: Change, *, looked: bool = False) -> None:
        """Do it where it is needed; `looked` says that a larger operation has looked at it before."""
        if not self._is_routed(change) or not self.is_needed(change):
            return
        self.refuse_transaction(change)
        if change.collects_sql:
            write_down(change.editor, self.plan(change))
            return
        if not looked:
            self.look(change)
        self.forwards(change)

    def _is_routed(self, change: Change) -> bool:
        return bool(self.allow_migrate_model(change.alias, change.after(self.model_name)))

    def refuse_transaction(self, change: Change) -> None:
        if change.database.connection.in_atomic_block and not change.collects_sql:
            raise InTransaction(
                f"{type(self).__name__} on {self.model_name}.{self.name} cannot run inside a transaction: every "
                "lock that it takes would be held until the end, and its batches would commit nothing before it. "
                "Add this line to the Migration class:\n\n    atomic = False\n"
            )

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        kwargs = {name: getattr(self, name) for name in self.arguments}
        given = {name: getattr(self, name) for name in self.options}
        kwargs |= {name: value for name, value in given.items() if value != self.options[name]}
        return type(self).__name__, [], kwargs

    @property
    def migration_name_fragment(self) -> str:
        return "_".join(
            [self.model_name.lower(), *map(str.lower, self.names), *filter(None, [self.fragment])]
        )

    def is_on(self, model_name: str, names: Iterable[str]) -> bool:
        """Is it on one of these fields?"""
        return self.model_name.lower() == model_name.lower() and not set(names).isdisjoint(self.names)

    def label(self, app_label: str) -> str:
        return f"{app_label}.{self.model_name}.{'+'.join(self.names)}"


def _wait_for_lock(database: Database, where: str, label: str) -> bool:
    """Return whether the lock was had; False where the process that has it shows no sign of life at two looks.

    At one look it may be a third process, which has the lock from one that was killed, and does not yet have its run.
    """
    patience, was_stalled = _Patience(where), ""
    while not database.lock_name(label.lower()):
        if patience.is_to_report():
            far, is_stalled = context.progress_of(label, str(database.connection.alias))
            if is_stalled and far == was_stalled:
                progress.say(
                    f"The process that is at {where} shows no sign of life ({far}). This one goes on."
                )
                return False
            was_stalled = far if is_stalled else ""
            progress.say(f"Waiting for another process that is at {where}{far and f': {far}'}")
        patience.pause()
    return True


def _wait_for_run(database: Database, where: str, label: str) -> None:
    """Wait for a `backfill run` of the field, which has no lock: what it has filled is found done afterwards."""
    patience = _Patience(where)
    while far := context.filled_elsewhere(label, str(database.connection.alias)):
        if patience.is_to_report():
            progress.say(f"Waiting for another process that is at {where}: {far}")
        patience.pause()


class _Patience:
    """A wait for another process, which is reported now and then, and ends with AlreadyRunning."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.began, self.shown, self.most = time.monotonic(), -FOLLOW, get("SAFEMIGRATE_WAIT_SECONDS")

    def is_to_report(self) -> bool:
        """Is it time to report? Raises AlreadyRunning after SAFEMIGRATE_WAIT_SECONDS."""
        waited = time.monotonic() - self.began
        if waited >= self.most:
            raise AlreadyRunning(
                f"Another process is at {self.where}, and was not done within {self.most:,.0f} s "
                "(SAFEMIGRATE_WAIT_SECONDS). Nothing was changed by this one. When the other has ended, run migrate "
                "again."
            )
        if waited - self.shown < FOLLOW:
            return False
        self.shown = waited
        return True

    def pause(self) -> None:
        time.sleep(max(0.0, min(LOOK, self.began + self.most - time.monotonic())))
