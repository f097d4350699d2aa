"""Running a step: a table lock is asked for shortly and again, never waited for."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from django.db import DatabaseError, Error

from safemigrate.backends import Database
from safemigrate.conf import get
from safemigrate.exceptions import LockNotAcquired, TableCopyNeeded
from safemigrate.schema.steps import COPY_CURE, Blocked, Step

logger = logging.getLogger("safemigrate")


def run(database: Database, steps: Sequence[Step]) -> None:
    """Run the steps that are still needed, in order.

    Each one looks first, so that running them again after a crash carries on. A lock is waited for
    SAFEMIGRATE_LOCK_TIMEOUT seconds at a time, SAFEMIGRATE_LOCK_TRIES times, with a pause at random between
    two tries in which everybody else passes. Raises LockNotAcquired, which names the blockers, and
    TableCopyNeeded.
    """
    for step in steps:
        if step.needed():
            _run(database, step)
        if step.verify:
            # Also where the step was done before: the look at the data may be what was missed.
            step.verify()


def _run(database: Database, step: Step) -> None:
    logger.debug("%s", step.title, extra={"alias": database.connection.alias})
    try:
        _with_short_lock(database, step)
        if step.online:
            database.run_online(step.statements)
    except DatabaseError as error:
        if database.is_copy_refused(error):
            raise TableCopyNeeded(_copy_message(step, error)) from error
        if step.needed():
            raise
        # "Exists already": another process did it between the look and the statement.
        logger.info("%s: done by another process", step.title, extra={"alias": database.connection.alias})
    finally:
        with suppress(Error):  # The connection may be what was lost.
            database.execute(*step.cleanup)


def _with_short_lock(database: Database, step: Step) -> None:
    """Try and try again inside one preparation, so that what gave way does not come back between two tries."""
    tries = _Tries(database, step)

    def prepare_and_attempt() -> None:
        with database.prepared(step.tables):
            for statements in _together(database, step):
                attempt = partial(database.attempt, statements, get("SAFEMIGRATE_LOCK_TIMEOUT"))
                tries.take(attempt, step.lock.blocks)

    tries.take(prepare_and_attempt, "nobody")


def _together(database: Database, step: Step) -> list[tuple[str, ...]]:
    """Return the statements that are tried together: what cannot be rolled back is not to be run again."""
    if step.online:
        # It only proves that the lock can be had: the statements wait for theirs as long as it takes.
        return []
    return [step.statements] if database.can_roll_back else [(statement,) for statement in step.statements]


class _Tries:
    """The tries of one step, all of them counted, whichever of its locks was not to be had."""

    def __init__(self, database: Database, step: Step) -> None:
        self.database, self.step = database, step
        self.left = get("SAFEMIGRATE_LOCK_TRIES")
        self.started = time.monotonic()
        self.blocking: list[str] = []

    def take(self, order: Callable[[], None], blocks: Blocked) -> None:
        """Give the order until it gets its lock, which `blocks` these; raise after the last try."""
        while True:
            began = time.monotonic()
            try:
                return order()
            except DatabaseError as error:
                if not self.database.is_lock_timeout(error):
                    raise
                self._failed(error, blocks, time.monotonic() - began)

    def _failed(self, error: DatabaseError, blocks: Blocked, waited: float) -> None:
        """Count a try that got no lock, note who held it, and pause; raise when it was the last."""
        self.left -= 1
        self.blocking = self.database.blockers(self.step.tables, blocks) or self.blocking
        if self.left <= 0:
            raise LockNotAcquired(self._message(waited)) from error
        extra = {"alias": self.database.connection.alias, "blocking": self.blocking}
        logger.info("%s: waiting for the lock; blocked by: %s", self.step.title, self._who(), extra=extra)
        pause = get("SAFEMIGRATE_LOCK_PAUSE")
        time.sleep(random.uniform(pause, 2 * pause))

    def _who(self) -> str:
        return "; ".join(self.blocking) or "unknown, gone before it could be named"

    def _message(self, waited: float) -> str:
        tables = ", ".join(self.step.tables) or "the table"
        return (
            f"To {self.step.title}, a lock on {tables} was asked for "
            f"{get('SAFEMIGRATE_LOCK_TRIES')} times in {time.monotonic() - self.started:.0f} s, "
            f"the last time for {waited * 1000:.0f} ms, and never given. "
            f"Blocked by: {self._who()}. Nothing was changed by this step: end what blocks it, "
            "or wait for it, and run migrate again; it carries on from here."
        )


def _copy_message(step: Step, error: DatabaseError) -> str:
    return (
        f"The server cannot {step.title} without copying the table, which blocks all writers while it runs. "
        f"It says: {error}. {COPY_CURE}"
    )
