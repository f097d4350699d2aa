"""The fast path: the column added, filled and required in one step, where that blocks others only briefly."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from django.core.exceptions import FieldError
from django.db import DatabaseError
from django.db.models import UUIDField, Value

from safemigrate import conf
from safemigrate.backends import Database, get_backend
from safemigrate.engine import engine
from safemigrate.engine.batches import Target
from safemigrate.exceptions import NoGuard
from safemigrate.populate.sources import InDatabase, InPython, Source, fingerprint, resolve
from safemigrate.schema import runner
from safemigrate.schema.steps import Step
from safemigrate.types import field_of

logger = logging.getLogger("safemigrate")

#: The rows for which the values are computed once, to know the time that they take.
SAMPLE = 1_000
#: What the values may take of the time under the lock, in seconds: a batch's, or about what a copied row takes.
ALL_ROWS, ONE_ROW = 0.1, 1e-6


class Refused(SystemExit):
    """The one step was refused: the run stops, which is no failure, and goes on step by step."""


@dataclass(frozen=True)
class Shortcut:
    """One field's fast path on one database. `before` is the model without the field."""

    database: Database
    before: Any
    target: Target
    populate: Any
    batch_size: int | None

    def take(self, *, full: bool) -> bool:
        """Go it where it can be gone; return whether the column is there, filled and required.

        Where the database refuses, for a row without a value or one that came in, it has changed nothing that
        the steps cannot go on from. Raises LockNotAcquired, AlreadyRunning and RunPaused.
        """
        if self._is_there():
            return False
        if not full:
            return self._run(self._step())
        return self._fill() if self._may_fill() else False

    @property
    def field(self) -> Any:
        return field_of(self.target.model, self.target.names[0])

    def _is_there(self) -> bool:
        return self.database.column(self.before, self.field.column) is not None

    def _step(self, *value: str) -> Step | None:
        return self.database.add_required(self.before, self.target.model, self.field, *value)

    def _run(self, step: Step | None) -> bool:
        try:
            runner.run(self.database, [step] if step else [])
        except DatabaseError as error:
            logger.info(
                "%s goes step by step, because one was refused: %s", self.target.label, str(error).strip()
            )
            return False
        return step is not None

    # With one value for all rows

    def add_constant(self) -> bool:
        """Add the column with one value for all rows, of which none is written; return whether it was done."""
        return self._run(self.constant_step())

    def constant_step(self, *, ask: bool = True) -> Step | None:
        """Return the step of `add_constant`, None where rows have to be written, or it might not be right for them.

        `ask` as in `Database.add_constant`; where it is False the table is not looked at either.
        """
        if self.field.unique or (ask and self._is_there()):
            return None
        source = resolve(self.populate, self.target.names)
        value = self._sql(source) if self._may_be_constant(source) else None
        backend = get_backend(self.database.connection)
        if value is None or backend.guards.read(self.target.model, value) or not self._may_stay(value):
            return None
        if ask and not self._refers(value):
            return None
        defaults = backend.guards.defaults(self.field, value)
        return self.database.add_constant(self.target.model, self.field, defaults, ask=ask)

    def _may_be_constant(self, source: Source) -> bool:
        if not isinstance(source, InDatabase):
            return False
        (value,) = source.assignments(self.target.model, self.target.apps).values()
        return (
            self.database.knows_constants
            or isinstance(value, Value)
            or not hasattr(value, "resolve_expression")
        )

    def _may_stay(self, value: str) -> bool:
        """Is it the default that new rows have in the end, where the field has one of the database's own?"""
        if not self.field.has_db_default():
            return True
        return self._sql(InDatabase({self.field.name: self.field.db_default}, "its db_default")) == value

    def _refers(self, value: str) -> bool:
        """Is there a row that the value refers to, if it is that of a foreign key?"""
        if not (self.field.remote_field and self.field.db_constraint):
            return True
        parent, key = self.field.remote_field.model._meta.db_table, self.field.target_field.column
        quote = self.database.quote
        return bool(self.database.fetch(f"SELECT 1 FROM {quote(parent)} WHERE {quote(key)} = {value}"))

    # With rows

    def _may_fill(self) -> bool:
        """Not where the size of a batch, or a throttle, is set: then batches are wanted."""
        paced = ("SAFEMIGRATE_BATCH_SIZE", "SAFEMIGRATE_THROTTLES", "SAFEMIGRATE_ROWS_PER_SECOND")
        fixed = self.batch_size or any(map(conf.get, paced))
        return self.database.fills_at_once and not fixed

    def _fill(self) -> bool:
        source = resolve(self.populate, self.target.names)
        value = self._sql(source)
        rows = self.database.estimated_rows(self.before)
        most = conf.get("SAFEMIGRATE_MAX_ROWS_IN_MIGRATE")
        too_many = most is not None and rows > most
        if value is None or too_many or not self._is_quick(value, rows):
            return False
        return self._recorded(self._step(value), rows, source)

    def _sql(self, source: Source) -> str | None:
        """Return the SQL of the field's value, None where the database does not compute it."""
        kind: type = type(self.field)
        if isinstance(source, InPython) and source.function is uuid4 and kind is UUIDField:
            return get_backend(self.database.connection).guards.random_uuid(self.field)
        if not isinstance(source, InDatabase):
            return None
        (value,) = source.assignments(self.target.model, self.target.apps).values()
        try:
            return get_backend(self.database.connection).guards.sql(self.target.model, self.field, value)
        except (FieldError, NoGuard):
            return None

    def _is_quick(self, value: str, rows: int) -> bool:
        """Compute the values of some rows; is none of them NULL, and would all take no longer than they may?"""
        table = self.database.quote(self.before._meta.db_table)
        some = f"SELECT count(*), count({value}) FROM (SELECT * FROM {table} LIMIT {SAMPLE}) AS {table}"
        started = time.perf_counter()
        try:
            ((read, computed),) = self.database.fetch(some)
        except DatabaseError:
            return False
        took = (time.perf_counter() - started) * rows / read if read else 0.0
        return bool(read == computed and took <= max(ALL_ROWS, ONE_ROW * rows))

    def _recorded(self, step: Step | None, rows: int, source: Source) -> bool:
        run = engine.Run(self.target.label, self.target.alias, rows, target=self.target, title=source.title)
        run.fingerprint = fingerprint(source)
        observer = engine.new_observer()
        observer.start(run)
        try:
            if not self._run(step):
                raise Refused
            run.rows = run.filled = run.batch_size = rows
            run.batches, run.took = 1, run.seconds
            observer.advance(run)
        except BaseException as error:
            observer.end(run, error)
            if isinstance(error, Refused):
                return False
            raise
        observer.end(run, None)
        return True
