"""Making a filled column required, while rows may still come in as NULL."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.db import DatabaseError, Error
from django.db.models import Model

from safemigrate.backends import Database
from safemigrate.exceptions import SafemigrateError, TooManyRetries
from safemigrate.schema import runner
from safemigrate.schema.proofs import refuse_duplicates
from safemigrate.schema.steps import Requirement
from safemigrate.types import AnyField, field_of

logger = logging.getLogger("safemigrate")

# How often NOT NULL is tried anew where rows came in as NULL between the last look and the lock.
TRIES = 10


class Requiring:
    """The column's last steps.

    `catch_up` fills what is NULL, or raises; with `at_once` it waits for no throttle, because writers wait for it.
    """

    def __init__(
        self,
        database: Database,
        from_model: type[Model],
        model: type[Model],
        field: AnyField,
        catch_up: Callable[..., None],
    ) -> None:
        self.database, self.from_model, self.model = database, from_model, model
        self.field, self.catch_up = field, catch_up

    def run(self) -> None:
        if self.database.is_required(self.model, self.field):
            # A run that ended after NOT NULL has only what follows it to do.
            runner.run(self.database, self._steps().in_order())
            return
        steps = self._steps()
        # A run that was killed may have left NULLs rejected.
        runner.run(self.database, steps.accept_nulls)
        self.catch_up()
        self._prove()
        runner.run(self.database, steps.before)
        for tries_left in reversed(range(TRIES)):
            if self._enforce(last=not tries_left):
                break
        runner.run(self.database, steps.after)

    def _steps(self) -> Requirement:
        # Made anew for each part: they depend on what the table is by then.
        return self.database.require(self.from_model, self.model, self.field)

    def _prove(self) -> None:
        if self.field.unique:
            refuse_duplicates(self.from_model, self.database.connection.alias, self.field)
        if self.field.remote_field and self.field.db_constraint:
            self.database.refuse_orphans(self.from_model, field_of(self.from_model, self.field.name))

    def _enforce(self, *, last: bool) -> bool:
        """Set NOT NULL; return False where a row came in as NULL in the last moment."""
        try:
            steps = self._steps()
            self._reject_nulls(steps)
            if not self._is_proven(steps):
                self.catch_up(at_once=True)
                runner.run(self.database, steps.enforce)
        except BaseException as error:
            self._accept_nulls()
            if last or not self._may_pass(error):
                raise
            self.catch_up()
            return False
        return True

    def _is_proven(self, steps: Requirement) -> bool:
        """Set NOT NULL without another look before it, where the proof costs no more; False where a row is NULL."""
        if not self.database.proves_by_reading:
            return False
        try:
            runner.run(self.database, steps.enforce)
        except DatabaseError as error:
            if not self.database.is_null_refused(error):
                raise
            return False
        return True

    def _may_pass(self, error: BaseException) -> bool:
        """Did a row come in as NULL, or is one locked by another session?"""
        if isinstance(error, TooManyRetries):
            return True
        return isinstance(error, DatabaseError) and self.database.is_null_refused(error)

    def _reject_nulls(self, steps: Requirement) -> None:
        """Let no new NULL in, if we may: it only makes the end come sooner."""
        try:
            runner.run(self.database, steps.reject_nulls)
        except DatabaseError as error:
            if not self.database.is_denied(error):
                raise
            logger.info("new rows without a value are not kept out: %s", error)

    def _accept_nulls(self) -> None:
        """Let old code insert again, as long as the column is not required; never hide why it is not."""
        try:
            runner.run(self.database, self._steps().accept_nulls)
        except (SafemigrateError, Error):
            logger.exception(
                "%s: new rows without a value are refused until migrate is run again", self.field
            )
