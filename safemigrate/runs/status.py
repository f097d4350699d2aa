"""The states of a run, and every legal move between them."""

from __future__ import annotations

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Status(TextChoices):
    QUEUED = "queued", _("queued")
    RUNNING = "running", _("running")
    PAUSING = "pausing", _("pausing")
    PAUSED = "paused", _("paused")
    CANCELLING = "cancelling", _("cancelling")
    CANCELLED = "cancelled", _("cancelled")
    STOPPED = "stopped", _("stopped")
    FAILED = "failed", _("failed")
    SUCCEEDED = "succeeded", _("succeeded")


MOVES: dict[str, frozenset[str]] = {
    Status.QUEUED: frozenset(
        {
            Status.RUNNING,  # a process takes it
            Status.PAUSED,  # paused by a user; no process holds it
            Status.CANCELLED,  # cancelled by a user, likewise
            Status.SUCCEEDED,  # the migration is applied: the rows got their values otherwise
        }
    ),
    Status.RUNNING: frozenset(
        {
            Status.RUNNING,  # another process takes it over: the lease of the first has ended
            Status.PAUSING,  # a user asks the process to pause
            Status.CANCELLING,  # a user asks the process to end for good
            Status.PAUSED,  # a user pauses a run whose process is gone
            Status.CANCELLED,  # a user cancels a run whose process is gone
            Status.QUEUED,  # a user retries a run whose process is gone
            Status.STOPPED,  # Ctrl-C, SIGTERM, or a limit of time or rows; it can go on later
            Status.FAILED,  # an error, or rows that got no value
            Status.SUCCEEDED,  # no row is NULL; or the process died after its last batch, and all is applied
        }
    ),
    Status.PAUSING: frozenset(
        {
            Status.PAUSED,  # the process has seen it, or is gone
            Status.RUNNING,  # resumed before the process saw it
            Status.QUEUED,  # resumed, and the process is gone
            Status.CANCELLING,  # a user cancels it instead
            Status.CANCELLED,  # likewise, and the process is gone
            Status.FAILED,  # the last batch failed
            Status.SUCCEEDED,  # the last batch was the last one
        }
    ),
    Status.PAUSED: frozenset(
        {
            Status.RUNNING,  # resumed; the process that waits goes on
            Status.PAUSED,  # the process that waits is stopped; the pause outlives it
            Status.QUEUED,  # resumed; no process waits, the next one takes it
            Status.CANCELLING,  # cancelled while a process waits
            Status.CANCELLED,  # cancelled, no process waits
            Status.FAILED,  # an error after the batch at which it paused, before it began to wait
            Status.SUCCEEDED,  # that batch was the last one; or the migration is applied
        }
    ),
    Status.CANCELLING: frozenset(
        {
            Status.CANCELLED,  # the process has seen it, was stopped first, or is gone
            Status.FAILED,  # the last batch failed
            Status.SUCCEEDED,  # the last batch was the last one
        }
    ),
    Status.STOPPED: frozenset(
        {
            Status.RUNNING,  # the same command is typed again, or cron does it
            Status.QUEUED,  # a user asks for another try
            Status.PAUSED,  # a user pauses it: it shall not start for now
            Status.CANCELLED,  # a user cancels it
            Status.SUCCEEDED,  # the migration is applied: the rows got their values otherwise
        }
    ),
    Status.FAILED: frozenset(
        {
            Status.RUNNING,  # tried again at once
            Status.QUEUED,  # a user asks for another try
            Status.CANCELLED,  # a user cancels it
            Status.SUCCEEDED,  # the migration is applied: the bad rows were corrected by hand
        }
    ),
    Status.CANCELLED: frozenset(),  # the next fill of the field is a new run
    Status.SUCCEEDED: frozenset(),  # likewise
}

#: A process works on it, or should.
HELD = frozenset({Status.RUNNING, Status.PAUSING, Status.PAUSED, Status.CANCELLING})
#: It is over; the next fill of the field is a new run.
OVER = frozenset({Status.CANCELLED, Status.SUCCEEDED})


def sources(target: str) -> list[str]:
    """Return the states from which a run may come into the state `target`."""
    return [status for status, targets in MOVES.items() if target in targets]


def end_of(asked: str, status: str) -> str:
    """Return the state that a run ends in, where it was stopped before it saw what was asked of it."""
    if status != Status.STOPPED:
        return status
    waits = {Status.PAUSING: Status.PAUSED, Status.PAUSED: Status.PAUSED, Status.CANCELLING: Status.CANCELLED}
    return waits.get(Status(asked), Status.STOPPED)
