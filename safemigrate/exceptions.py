"""Every error of safemigrate. Each message says what is wrong, why it matters, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import NotSupportedError


class SafemigrateError(CommandError):
    """The root of them all. A command, `migrate` too, prints its message alone; --traceback shows the rest."""


class InvalidSetting(SafemigrateError, ImproperlyConfigured):
    """A SAFEMIGRATE_... setting has a value that cannot be meant."""


class InvalidPopulate(SafemigrateError, ValueError):
    """The populate argument is none of the kinds that exist."""


class InvalidExpression(InvalidPopulate):
    """The text of --populate is not Python that may stand in a migration."""


class InvalidField(SafemigrateError, ValueError):
    """The field is not one that can be added to old rows and made required."""


class InTransaction(SafemigrateError, NotSupportedError):
    """The migration runs in one transaction: its locks would be held until the end."""


class LockNotAcquired(SafemigrateError):
    """A short table lock was not to be had within the tries allowed; nothing was changed by this step."""


class StepRefused(SafemigrateError):
    """The server refuses a statement, or would refuse one of a later step; the message says what is left."""


class TableCopyNeeded(StepRefused):
    """The server could only do the step by copying the table under a lock."""


class NullsRemain(SafemigrateError):
    """The column still has NULLs, so NOT NULL was not set."""


class NoGuard(SafemigrateError):
    """The database cannot fill new rows by itself with this populate; the message says why."""


class DuplicateValues(SafemigrateError):
    """The column is to be unique, and is not; no constraint was created."""


class OrphanRows(SafemigrateError):
    """Some rows refer to a row that is not there, so there is no foreign key yet."""


class TooManyRetries(SafemigrateError):
    """A batch failed again and again with errors that usually pass."""


class NotVisible(SafemigrateError):
    """The server does not show this user how loaded it is, or a replica does not answer."""


class TryAgain(SafemigrateError):
    """A row met an error that passes, as `retry_on` of its backfill says: its batch is tried again."""


class PlanningError(SafemigrateError):
    """The migrations and models.py do not allow to add this field now."""


class OtherChanges(PlanningError):
    """The app has more changes than the field that was named."""


class NotWritable(SafemigrateError):
    """The migrations cannot be written where they belong."""


class AlreadyRunning(SafemigrateError):
    """Another process holds the run of this field on this alias."""


class RunPaused(SafemigrateError):
    """A person paused the run; a person has to resume it."""


class RunCancelled(SafemigrateError):
    """A person cancelled the run while it was at work; what was filled stays filled."""


class LeaseLost(SafemigrateError):
    """Another process took the run over, because this one gave no sign of life."""


class IllegalMove(SafemigrateError):
    """A run cannot come from the state it is in into the one asked for."""


class TooManyRows(SafemigrateError):
    """More rows than SAFEMIGRATE_MAX_ROWS_IN_MIGRATE are to be filled; it is to be done outside `migrate`."""


class NotEnqueued(SafemigrateError):
    """A queue did not take a task: its broker is away, or it is not set up; nothing was sent."""


class NothingToRun(SafemigrateError):
    """There is no such run, or no fill of such a field."""


class InvalidBackfill(SafemigrateError, ValueError):
    """A Backfill class is none that could be run; the message says what is wrong with each of its attributes."""


class InvalidParameters(SafemigrateError, ValueError):
    """The parameters of a backfill are not what its form takes."""


class NotFinished(SafemigrateError):
    """A migration waits for a backfill that has not ended on this database."""


class InvalidAlias(SafemigrateError):
    """An alias that is not in DATABASES, or that the router keeps the model away from."""


class UnknownSchema(SafemigrateError):
    """No tenant has that schema, or there are no tenants (django-tenants)."""


@dataclass(frozen=True)
class BadRow:
    """A row that got no value, and why."""

    key: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class BadRows(NullsRemain):
    """Some rows got no value; all others did, and keep it."""

    def __init__(self, message: str, *, count: int, examples: Sequence[BadRow]) -> None:
        super().__init__(message)
        self.count = count
        self.examples = list(examples)


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM came: the running batch was committed, then the process left. Run it again to go on."""


class LimitReached(SystemExit):
    """A limit of time or rows, which is no failure: `backfill run` ends cleanly, and goes on next time."""
