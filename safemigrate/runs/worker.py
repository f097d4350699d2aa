"""A worker takes one range after another for some seconds, saves, and has itself enqueued again."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from django.db import Error
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from safemigrate import signals
from safemigrate.conf import get
from safemigrate.engine.batches import Batches, Range
from safemigrate.engine.engine import Filling
from safemigrate.engine.keys import key_from_json
from safemigrate.exceptions import (
    LeaseLost,
    LimitReached,
    NotEnqueued,
    NothingToRun,
    RunCancelled,
    RunPaused,
    TooManyRetries,
)
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.populate.sources import AsWritten, resolve
from safemigrate.runs import chain, leases, lookup, scheduler, store
from safemigrate.runs.closing import CLEAN, attempts_exhausted, fail, succeed, too_many
from safemigrate.runs.heartbeat import BEAT
from safemigrate.runs.holding import Holding
from safemigrate.runs.recorder import storable
from safemigrate.runs.status import Status

logger = logging.getLogger("safemigrate")

#: The seconds after which a task comes again that a throttle held, or that needs newer code than its worker has.
LATER = 15.0
#: The longest pause between two tries while the database is away, in seconds.
LONGEST = 60.0


@dataclass(frozen=True)
class Again:
    """The task is to be enqueued again, `seconds` from now; `tries` counts those that a database error ended."""

    seconds: float = 0.0
    tries: int = 0


def work(key: int, tries: int = 0) -> None:
    """Do one task for the run of that number.

    While the broker takes no messages it is not given back: this process goes on itself.
    """
    worker = Worker(key)
    while again := worker.work(tries):
        tries = again.tries
        try:
            worker.enqueue(again)
        except NotEnqueued as error:
            logger.warning("%s This worker goes on with run %s itself.", error, key)
            time.sleep(min(again.seconds, leases.LOOK_AGAIN))
        else:
            return


class Worker:
    """One process's work on a run, for the seconds that a task may take."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.run: BackfillRun | None = None

    def work(self, tries: int) -> Again | None:
        """Work until the time is over; return when to go on, None when there is nothing more to do."""
        try:
            return self._work()
        except Error as error:
            store.drop_lost_connection()
            if tries >= get("SAFEMIGRATE_TASK_RETRIES"):
                raise
            logger.warning(
                "run %s: the database failed, the task is put off: %s", self.key, str(error).strip()
            )
            return Again(min(2.0**tries, LONGEST) * random.uniform(0.5, 1.0), tries + 1)

    def enqueue(self, again: Again) -> None:
        if self.run is None:
            raise NotEnqueued("The database has not said yet by which queue the run is worked on.")
        scheduler.enqueue(self.run, again.seconds, again.tries)

    def _work(self) -> Again | None:
        run = store.records().filter(pk=self.key).first()
        if run is None or not run.is_shared:
            logger.info("run %s is not for the workers of a queue any more; the task ends", self.key)
            return None
        self.run = run
        if run.status == Status.SUCCEEDED and run.next_run is not None:
            chain.go_on(run)
        if scheduler.finalize(run) or run.status not in (Status.QUEUED, Status.RUNNING):
            return None
        early = (run.not_before - timezone.now()).total_seconds() if run.not_before else 0.0
        return Again(early) if early > 0 else self._begin(run)

    def _begin(self, run: BackfillRun) -> Again | None:
        job = self._job(run)
        if job is None:
            return Again(LATER)
        self.run = run = _started(run)
        try:
            job.check_column()
            job.validate()
            source = resolve(job.operation.populate, job.operation.names)
            assert not isinstance(source, AsWritten), "dispatch.begin refuses these"
            options = run.options
            size = options["batch_size"] or job.operation.batch_size
            filling = Filling(job.target, source, size, workers=1, throttles=options["throttles"])
            if run.batch_size and not size:  # What the worker before had learnt: a row may take long.
                filling.state.batch_size = min(run.batch_size, filling.state.batch_size)
            return self._ranges(run, filling, time.monotonic() + options["seconds"])
        except Error:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the run shall show it
            fail(run, error)
            return None

    def _job(self, run: BackfillRun) -> lookup.Job | None:
        """Return the fill in the code of this worker, None where that is older, or newer, than the run."""
        first = run.field_names.partition("+")[0]
        label, found = f"{run.app_label}.{run.model_name}.{first}", None
        try:
            found = lookup.find(label, run.alias)
        except (NothingToRun, LookupError, ConnectionDoesNotExist) as error:
            logger.debug("%s", error)
        if found is not None and found.migration == run.migration:
            return found
        text = f"the code of worker {name()} has no {run.migration}: restart it with the code of this run"
        store.records().filter(pk=run.pk, token=run.token).update(waiting_for=text[:500])
        logger.warning("run %s (%s): %s. The task is put back, nothing is lost.", run.pk, run, text)
        return None

    def _ranges(self, run: BackfillRun, filling: Filling, until: float) -> Again | None:
        while time.monotonic() < until:
            part = leases.take(run, filling.batches, name())
            if part is None:
                return _one_too_many(run)
            if isinstance(part, leases.Wait):
                return Again(part.seconds)
            if leases.has_exhausted_attempts(part):
                fail(run, attempts_exhausted(part))
                return None
            if part.was_left:
                self._replace(run)
            more, again = self._fill(run, filling, part, until)
            if not more:
                return again
        return Again()

    def _replace(self, run: BackfillRun) -> None:
        """Enqueue a task in place of that of a worker which died: its message died with it, on most queues."""
        try:
            scheduler.enqueue(run)
        except NotEnqueued as error:
            logger.warning("%s", error)

    def _fill(
        self, run: BackfillRun, filling: Filling, part: BackfillRange, until: float
    ) -> tuple[bool, Again | None]:
        """Fill a range; return whether this worker goes on with the next, and if not, how it does."""
        holding = Holding(run, part, filling.target, until)
        try:
            if part.is_the_end:
                filling.run_end(holding)
            else:
                filling.run_range(_range(part, filling.batches), holding)
        except LimitReached:
            leases.release(part)
            return False, self._held_up(run) if holding.is_held_up else Again()
        except (RunPaused, RunCancelled):
            leases.release(part)
            scheduler.finalize(store.find(run.pk))
            return False, None
        except LeaseLost as lost:
            logger.warning("%s", lost)
            return True, None
        except (TooManyRetries, Error) as error:
            if isinstance(error, Error) and not filling.database.is_transient(error):
                leases.release(part)
                fail(run, error)
                return False, None
            logger.warning("run %s, range %s is put off: %s", run.pk, part.number, str(error).strip())
            store.drop_lost_connection()
            leases.postpone(part, storable(str(error)))
            return True, None
        except BaseException:
            leases.release(part)
            raise
        return self._ended(run, part, holding)

    @staticmethod
    def _held_up(run: BackfillRun) -> Again:
        """Keep the run until the task comes again: it does not hang, it waits."""
        until = timezone.now() + timedelta(seconds=LATER) + store.lease()
        store.records().filter(pk=run.pk, token=run.token).update(lease_until=until)
        return Again(LATER)

    def _ended(self, run: BackfillRun, part: BackfillRange, holding: Holding) -> tuple[bool, Again | None]:
        if part.is_the_end:
            closed = succeed(run, part)
            return not closed, Again() if closed and run.next_run is not None else None
        if not leases.end(part):
            return True, None
        if holding.bad and (error := too_many(run)):
            raise error
        return True, None


def _one_too_many(run: BackfillRun) -> Again | None:
    """End, unless all who hold a range are dead: nobody else might be there when their leases end."""
    before = store.find(run.pk)
    if scheduler.finalize(before) or before.token != run.token or not _waits_for(before):
        return None
    time.sleep(3 * BEAT)
    after = store.find(run.pk)
    until = after.lease_until
    if until is None or not _waits_for(after) or until != before.lease_until:
        return None
    return Again(max((until - timezone.now()).total_seconds(), 0.0))


def _waits_for(run: BackfillRun) -> bool:
    return run.status == Status.RUNNING and run.lease_until is not None


def _range(part: BackfillRange, batches: Batches) -> Range:
    first, last = (key_from_json(batches.model, key) for key in (part.first, part.last))
    return Range(first, last, part.after, part.size)


def name() -> str:
    """Return who this worker is: host, process, and the thread where it is not the main one."""
    thread = threading.current_thread()
    which = "" if thread is threading.main_thread() else f" {thread.name}"
    return f"{socket.gethostname()}:{os.getpid()}{which}"[:255]


def _started(run: BackfillRun) -> BackfillRun:
    """Move a run that waits into work; one of the workers does, the first."""
    now = timezone.now()
    if run.status == Status.QUEUED:
        changes = {"attempts": run.attempts + 1, "started": run.started or now, "heartbeat": now}
        changes |= {"lease_until": now + store.lease(), "waiting_for": "", "finished": None} | CLEAN
        moved = store.move(run, Status.RUNNING, run.started_by, **changes)
        run = store.find(run.pk)
        if moved:
            logger.info("%s: run %s begins, by the workers of %s", run, run.pk, run.executor)
            store.send_signal(signals.run_started, run)
    return run
