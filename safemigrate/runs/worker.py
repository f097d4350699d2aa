"""A worker takes one range after another for some seconds, saves, and has itself enqueued again."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import NoReturn

from django.db import Error
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from safemigrate import signals
from safemigrate.conf import get
from safemigrate.connections import in_schema
from safemigrate.engine.batches import Batches, Range
from safemigrate.engine.engine import Filling
from safemigrate.engine.keys import key_from_json
from safemigrate.exceptions import (
    InvalidBackfill,
    InvalidParameters,
    LeaseLost,
    LimitReached,
    NotEnqueued,
    NothingToRun,
    RunCancelled,
    RunPaused,
    TooManyRetries,
)
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.populate.sources import AsWritten
from safemigrate.retry import backoff
from safemigrate.runs import chain, endings, leases, lookup, scheduler, store
from safemigrate.runs.endings import CLEAN, storable
from safemigrate.runs.heartbeat import BEAT
from safemigrate.runs.lookup import Job
from safemigrate.runs.recorder import HeldUp, RangeRecorder
from safemigrate.runs.status import Status

logger = logging.getLogger("safemigrate")

#: The seconds after which a task comes again that a throttle held, or that needs newer code than its worker has.
LATER = 15.0
#: The longest pause between two tries while the database is away, in seconds.
LONGEST = 60.0


class Again(Exception):
    """The task is over, and is to be enqueued again, `seconds` from now; `tries` counts those that an error ended."""

    def __init__(self, seconds: float = 0.0, tries: int = 0) -> None:
        super().__init__(seconds, tries)
        self.seconds, self.tries = seconds, tries


class Over(Exception):
    """The task is over, and none is to follow."""


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
            self._work()
        except Again as again:
            return again
        except Over:
            return None
        except Error as error:
            store.drop_lost_connection()
            if tries >= get("SAFEMIGRATE_TASK_RETRIES"):
                raise
            logger.warning(
                "run %s: the database failed, the task is put off: %s", self.key, str(error).strip()
            )
            return Again(backoff(tries, 1.0, LONGEST), tries + 1)
        return Again()

    def enqueue(self, again: Again) -> None:
        if self.run is None:
            raise NotEnqueued("The database has not said yet by which queue the run is worked on.")
        scheduler.enqueue(self.run, again.seconds, again.tries)

    def _work(self) -> None:
        """Fill ranges until the time is over. Raises Over, Again, and errors of the runs' database."""
        run = self._found()
        with in_schema(run.schema):
            self._work_on(run)

    def _work_on(self, run: BackfillRun) -> None:
        try:
            job = self._job(run)
        except (
            InvalidBackfill,
            InvalidParameters,
        ) as error:  # As newer code has the class, the run cannot be.
            endings.end(_started(run), error)
            raise Over from error
        self.run = run = _started(run)
        try:
            self._fill(run, *_filling(run, job), job)
        except (Error, Again, Over):
            raise
        except Exception as error:
            endings.end(run, error)  # Whatever it is, the run shall show it.
            raise Over from error

    def _found(self) -> BackfillRun:
        """Return the run if it is to be worked on now."""
        run = store.records().filter(pk=self.key).first()
        if run is None or not run.is_shared:
            logger.info("run %s is not for the workers of a queue any more; the task ends", self.key)
            raise Over
        self.run = run
        if run.status == Status.SUCCEEDED and run.next_run is not None:
            with in_schema(run.schema):
                chain.go_on(run)
        if scheduler.finalize(run) or run.status not in (Status.QUEUED, Status.RUNNING):
            raise Over
        if run.not_before is not None and run.not_before > timezone.now():
            raise Again((run.not_before - timezone.now()).total_seconds())
        return run

    @staticmethod
    def _job(run: BackfillRun) -> Job:
        """Return the backfill in the code of this worker. Raises Again where that is older, or newer, than the run."""
        try:
            found = lookup.find(run.job_label, run.alias, run.parameters)
            if found.migration == run.migration:
                return found
        except (NothingToRun, LookupError, ConnectionDoesNotExist) as error:
            logger.debug("%s", error)
        text = f"the code of worker {name()} has no {run.migration or run.label}: restart it with the code of this run"
        store.records().filter(pk=run.pk, token=run.token).update(waiting_for=text[:500])
        logger.warning("run %s (%s): %s. The task is put back, nothing is lost.", run.pk, run, text)
        raise Again(LATER)

    def _fill(self, run: BackfillRun, filling: Filling, until: float, job: Job) -> None:
        """Fill one range at least, however short the time: else no task would get anywhere."""
        is_ready = False
        while True:
            try:
                part = leases.take(run, filling.batches, name())
            except leases.Wait as wait:
                raise Again(wait.seconds) from None
            except leases.NotNeeded:
                _leave(run)
            if error := leases.attempts_exhausted(part):
                raise error
            if part.was_left:
                self._replace(run)
            if not is_ready:
                job.before()
                is_ready = True
            self._fill_range(run, filling, part, until, job)
            if time.monotonic() >= until:
                return

    @staticmethod
    def _replace(run: BackfillRun) -> None:
        """Enqueue a task in place of that of a worker which died: its message died with it, on most queues."""
        try:
            scheduler.enqueue(run)
        except NotEnqueued as error:
            logger.warning("%s", error)

    def _fill_range(
        self, run: BackfillRun, filling: Filling, part: BackfillRange, until: float, job: Job
    ) -> None:
        """Fill a range; return where the next one may follow."""
        recorder = RangeRecorder(run, part, filling.target, until)
        try:
            if part.is_the_end:
                filling.run_end(recorder)
            else:
                filling.run_range(_range(part, filling.batches), recorder)
        except (LimitReached, RunPaused, RunCancelled) as stop:
            leases.release(part)
            raise _stopped(run, stop) from None
        except LeaseLost as lost:
            logger.warning("%s", lost)
        except (TooManyRetries, Error) as error:
            _failed(run, filling, part, error)
        except BaseException:
            leases.release(part)
            raise
        else:
            _ended(run, part, filling, job)


def _stopped(run: BackfillRun, stop: BaseException) -> Again | Over:
    if isinstance(stop, HeldUp):  # The run is kept until the task comes again: it is not stalled, it waits.
        until = timezone.now() + timedelta(seconds=LATER) + store.lease()
        store.records().filter(pk=run.pk, token=run.token).update(lease_until=until)
        return Again(LATER)
    if isinstance(stop, LimitReached):
        return Again()
    scheduler.finalize(store.find(run.pk))
    return Over()


def _failed(run: BackfillRun, filling: Filling, part: BackfillRange, error: Exception) -> None:
    """Postpone the range after an error that passes; end the run after another one."""
    if isinstance(error, Error) and not filling.database.is_transient(error):
        leases.release(part)
        endings.end(run, error)
        raise Over from error
    logger.warning("run %s, range %s is put off: %s", run.pk, part.number, str(error).strip())
    store.drop_lost_connection()
    leases.postpone(part, storable(str(error)))


def _filling(run: BackfillRun, job: Job) -> tuple[Filling, float]:
    """Return what fills the ranges of the run, and until when on the monotonic clock."""
    job.check_column()
    if not (run.backfill and run.rows_done):  # Of a class it tries some rows, which is done once.
        job.validate()
    source = job.source
    assert not isinstance(source, AsWritten), "scheduler.begin refuses these"
    options = run.options
    size = options["batch_size"] or job.batch_size
    filling = Filling(
        job.target, source, size, workers=1, throttles=options["throttles"], max_bad_rows=job.max_bad_rows
    )
    if run.batch_size and not size:  # What the worker before had learnt: a row may take long.
        filling.state.batch_size = min(run.batch_size, filling.state.batch_size)
    return filling, time.monotonic() + options["seconds"]


def _ended(run: BackfillRun, part: BackfillRange, filling: Filling, job: Job) -> None:
    if part.is_the_end:
        job.after()
        if endings.succeed(run, part):
            raise Over if run.next_run is None else Again
    elif leases.end(part) and filling.state.bad and (error := leases.too_many_bad_rows(run, filling.max_bad)):
        raise error


def _leave(run: BackfillRun) -> NoReturn:
    """Leave, unless all who hold a range are dead: no other worker might be there when their leases end."""
    before = store.find(run.pk)
    if scheduler.finalize(before) or before.token != run.token or not _waits_for(before):
        raise Over
    time.sleep(3 * BEAT)
    after = store.find(run.pk)
    until = after.lease_until
    if until is None or not _waits_for(after) or until != before.lease_until:
        raise Over
    raise Again(max((until - timezone.now()).total_seconds(), 0.0))


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
        moved = store.move(run, Status.RUNNING, name()[:150], **changes)
        run = store.find(run.pk)
        if moved:
            logger.info("%s: run %s begins, by the workers of %s", run, run.pk, run.executor)
            store.send_signal(signals.run_started, run)
    return run
