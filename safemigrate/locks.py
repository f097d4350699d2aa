"""Running a step: a table lock is asked for shortly and again, never waited for."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress

from django.db import DatabaseError, Error

from safemigrate.conf import get
from safemigrate.databases import Database
from safemigrate.exceptions import LockNotAcquired, TableCopyNeeded
from safemigrate.steps import Step

logger = logging.getLogger("safemigrate")


def run(database: Database, steps: Sequence[Step]) -> None:
    """Run the steps that are still needed, in order.

    Each one looks first, so that running them again after a crash carries on. A step that is not online
    waits for its lock SAFEMIGRATE_LOCK_TIMEOUT seconds at a time, SAFEMIGRATE_LOCK_TRIES times, with a
    pause at random between two tries in which everybody else passes. Raises LockNotAcquired, which names
    who was in the way, and TableCopyNeeded.
    """
    for step in steps:
        if step.needed():
            _run(database, step)
        if step.verify:
            # Also where the step was done before: the look at the data may be what was missed.
            step.verify()


def _run(database: Database, step: Step) -> None:
    logger.debug("%s", step.title)
    try:
        if step.online:
            database.run_online(step.statements)
        else:
            _with_short_lock(database, step)
    except DatabaseError as error:
        if database.is_copy_refused(error):
            raise TableCopyNeeded(_copy_message(step, error)) from error
        raise
    finally:
        with suppress(Error):  # The connection may be what was lost.
            database.execute(*step.cleanup)


def _with_short_lock(database: Database, step: Step) -> None:
    tries = _Tries(database, step)
    while True:
        try:
            with database.prepared(step.tables):
                _attempt(database, step, tries)
                return
        except DatabaseError as error:
            if not database.is_lock_timeout(error):
                raise
            tries.failed(error)


def _attempt(database: Database, step: Step, tries: _Tries) -> None:
    """Try and try again inside one preparation, so that what gave way does not come back meanwhile.

    What cannot be rolled back is not run again: each statement is then tried by itself.
    """
    together = database.can_roll_back
    for statements in [step.statements] if together else [(statement,) for statement in step.statements]:
        while True:
            try:
                database.attempt(statements, get("SAFEMIGRATE_LOCK_TIMEOUT"))
                break
            except DatabaseError as error:
                if not database.is_lock_timeout(error):
                    raise
                tries.failed(error)


class _Tries:
    def __init__(self, database: Database, step: Step) -> None:
        self.database, self.step = database, step
        self.left = get("SAFEMIGRATE_LOCK_TRIES")
        self.started = time.monotonic()
        self.in_the_way: list[str] = []

    def failed(self, error: DatabaseError) -> None:
        """Count a try that got no lock, note who held it, and pause; raise when it was the last."""
        self.left -= 1
        self.in_the_way = self.database.blockers(self.step.tables) or self.in_the_way
        if self.left <= 0:
            raise LockNotAcquired(self._message()) from error
        logger.info("%s: waiting for the lock; in the way: %s", self.step.title, self._who())
        pause = get("SAFEMIGRATE_LOCK_PAUSE")
        time.sleep(random.uniform(pause, 2 * pause))

    def _wait(self) -> float:
        return self.database.lock_wait(get("SAFEMIGRATE_LOCK_TIMEOUT"))

    def _who(self) -> str:
        return "; ".join(self.in_the_way) or "unknown, gone before it could be named"

    def _message(self) -> str:
        tables = ", ".join(self.step.tables) or "the table"
        return (
            f"To {self.step.title}, a lock on {tables} was asked for "
            f"{get('SAFEMIGRATE_LOCK_TRIES')} times in {time.monotonic() - self.started:.0f} s "
            f"and never given within {self._wait() * 1000:.0f} ms. "
            f"In the way: {self._who()}. Nothing was changed by this step: end what is in the way, "
            "or wait for it, and run migrate again; it carries on from here."
        )


def _copy_message(step: Step, error: DatabaseError) -> str:
    return (
        f"The server cannot {step.title} without copying the table, which blocks all writers meanwhile. "
        f"It says: {error}. In a maintenance window, set SAFEMIGRATE_ALLOW_TABLE_COPY = True and run "
        "migrate again; or use a tool that copies in the background (gh-ost, pt-online-schema-change)."
    )
