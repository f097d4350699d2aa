"""The observers that record a run while it is at work: one of a whole run, one of a range that a worker holds."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.db import Error, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from safemigrate import conf, signals
from safemigrate.engine import context
from safemigrate.engine.batches import Range, Target, keys_of
from safemigrate.engine.engine import AlreadySaved, Run
from safemigrate.engine.keys import key_from_json, key_to_json
from safemigrate.exceptions import (
    AlreadyRunning,
    BadRow,
    LeaseLost,
    LimitReached,
    NothingToRun,
    RunCancelled,
    RunPaused,
)
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import endings, leases, store
from safemigrate.runs.endings import storable, stored
from safemigrate.runs.heartbeat import BEAT, Heartbeat, machine
from safemigrate.runs.output import Lines, Output
from safemigrate.runs.status import OVER, Status
from safemigrate.runs.store import lease, move, records, warn_once

logger = logging.getLogger("safemigrate")

#: The record is read no more often than this, in seconds, be the batches as small as they may.
LOOK = 0.05
SAMPLES = 240
#: The rows of a range that is counted at once.
COUNTED = 50_000
#: The seconds of waiting for a throttle after which a worker releases its range and goes.
PATIENCE = 3.0


class HeldUp(LimitReached):
    """A throttle holds a worker for long: it releases its range, and a task comes again later."""


class Recorder(ABC):
    """Reads before a batch what was asked of the run, and saves about once a second how far it is.

    A lease, which a thread renews, keeps other processes off. Raises LeaseLost where another one has it.
    """

    record: BackfillRun
    state: Run
    heartbeat: Heartbeat

    def __init__(self) -> None:
        self.batches = 0
        self.looked = self.written = self.silent_until = time.monotonic()

    def start(self, state: Run) -> None:
        self.state = state
        options = self.record.options
        self._obey_changes(options, options["workers"] if self.record.is_shared else 1)
        self.heartbeat.start()

    def advance(self, state: Run) -> None:
        now = time.monotonic()
        if now - self.looked >= LOOK and now >= self.silent_until:
            self.looked = now
            self._safely(self._look)
        if now - self.written >= BEAT and now >= self.silent_until:
            self.written = now
            self._safely(self._write)
        if state.batches > self.batches:
            self.batches = state.batches
            store.send_signal(signals.batch_done, self.record, rows=state.filled, seconds=state.took)

    def hold(self, state: Run) -> str | None:
        return None

    @abstractmethod
    def end(self, state: Run, error: BaseException | None) -> None: ...

    @abstractmethod
    def _look(self) -> None:
        """Obey what was asked of the run. Raises RunCancelled, RunPaused and LeaseLost."""

    @abstractmethod
    def _write(self) -> None:
        """Save how far the run is, and renew the lease. Raises LeaseLost."""

    @abstractmethod
    def _failed(self, error: Error, seconds: float) -> None:
        """See to an error of the record's database, which came after so many seconds."""

    def _obey_changes(self, options: Mapping[str, Any], workers: int = 1) -> None:
        """Take on what a person has set for the run; of what workers share, each has its part."""
        own = options.get("set", {})
        self.state.fixed_size = own.get("batch_size")
        most = own.get(
            "rows_per_second", options.get("rows_per_second") or conf.get("SAFEMIGRATE_ROWS_PER_SECOND")
        )
        self.state.rows_per_second = max(most // workers, 1) if most else None

    def _safely(self, do: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            do()
        except Error as error:
            store.drop_lost_connection()
            self._failed(error, time.monotonic() - began)

    def _open(self) -> QuerySet[BackfillRun]:
        """Return the run as long as it is this process's; nothing otherwise."""
        return records().filter(pk=self.record.pk, token=self.record.token)


class RunRecorder(Recorder):
    """Records a run that one process works on.

    Where the table is not there, or its database fails, a warning says so once, and the backfill goes on.
    """

    is_recorded = False

    def start(self, state: Run) -> None:
        if state.target is None:
            return
        needed = state.target.is_cursor and not state.target.is_marked
        if needed and (reason := store.unreadable()):
            raise NothingToRun(
                f"{state.target.label} does each row once, and only its run knows which are done. {reason}"
            )
        if not store.is_kept():
            return
        if state.target.is_cursor:
            _refuse_shared(state.target)
        try:
            self.record = self._claimed(state, state.target)
        except Error as error:
            store.drop_lost_connection()
            if needed:
                raise
            warn_once(
                f"{state.target.label} is not recorded: {str(error).strip()}. The fill goes on without."
            )
        else:
            self._begin(state, state.target)

    @staticmethod
    def _claimed(state: Run, target: Target) -> BackfillRun:
        """Take the run; where a `migrate` before this one was killed, once its lease has ended."""
        until = time.monotonic() + conf.get("SAFEMIGRATE_WAIT_SECONDS")
        while True:
            try:
                return store.claim(target, details(state, target))
            except AlreadyRunning:
                may_wait = context.current.in_migrate and time.monotonic() < until
                if not may_wait or store.is_renewed(target, 3 * BEAT):
                    raise

    def _begin(self, state: Run, target: Target) -> None:
        record, self.is_recorded, self.paused = self.record, True, ""
        self.done, self.worked, self.waited = record.rows_done, record.seconds_running, record.seconds_waiting
        state.before = record.rows_done
        self.samples = list(record.samples) or [[0.0, 0]]
        state.resume_after = key_from_json(target.model, record.cursor)
        if target.is_cursor:
            state.bad = kept(target, record.bad_rows)
            state.last = self._last_of(target)
        self.output = Output(state.output)
        self.lines = Lines(record, self.output.add)
        logger.addFilter(self.lines)
        self.heartbeat = self.count = RunHeartbeat(record, state, target)
        logger.info(
            "%s: run %s, attempt %s", record, record.pk, record.attempts, extra=endings.fields(record)
        )
        store.send_signal(signals.run_started, record)
        store.working.add(record.pk)
        super().start(state)

    def _last_of(self, target: Target) -> Any:
        """Return the largest key that is the run's, as it was when it began: rows that come in later are not."""
        if self.record.last_key is None:
            self.record.last_key = key_to_json(target.batches.last())
            self._open().update(last_key=self.record.last_key)
        return key_from_json(target.model, self.record.last_key)

    def advance(self, state: Run) -> None:
        if self.is_recorded:
            super().advance(state)

    def save(self, state: Run, cursor: Any, rows: int, bad: Sequence[BadRow]) -> None:
        if not self.is_recorded:
            return
        before = self.done + state.rows
        changes = {"rows_done": before + rows, "bad_rows": stored(bad)}
        changes |= {} if cursor is None else {"cursor": key_to_json(cursor)}
        with store.reconnecting():
            if not self._open().filter(rows_done=before).update(**changes):
                found = self._open().first()
                _refuse_unless_saved(found, changes, lambda: self._lost(found))

    def hold(self, state: Run) -> str | None:
        return self.paused or None if self.is_recorded else None

    def end(self, state: Run, error: BaseException | None) -> None:
        if not self.is_recorded:
            return
        self.heartbeat.stop()
        self.output.close()
        logger.removeFilter(self.lines)
        store.working.discard(self.record.pk)
        if not isinstance(error, LeaseLost):
            self._safely(lambda: endings.end(self.record, error, **self._progress()))

    def _look(self) -> None:
        found = records().filter(pk=self.record.pk).values_list("token", "status", "options").first()
        if found is None or found[0] != self.record.token or found[1] in OVER:
            raise self._lost(found)
        self._obey_changes(found[2])
        self.record.status = found[1]
        if self.record.status == Status.CANCELLING:
            raise RunCancelled(
                f"{self.record} was cancelled (run {self.record.pk}). What was filled stays filled."
            )
        if self.record.status == Status.PAUSING and move(self.record, Status.PAUSED, ""):
            self.record.status = Status.PAUSED
        if self.record.status != Status.PAUSED:
            self.paused = ""
        elif not self.paused:
            self.paused = self._who_paused()

    def _who_paused(self) -> str:
        event = self.record.events.using(store.database()).filter(who__gt="").last()
        by = f" by {event.who}" if event else ""
        return f"run {self.record.pk} was paused{by}; to go on: python manage.py backfill resume {self.record.pk}"

    def _lost(self, found: Any) -> LeaseLost:
        if found is None:
            return LeaseLost(
                f"{self.record}: run {self.record.pk} was deleted, so this process can no longer be seen or "
                "controlled. It ends; what was filled stays filled, and the same command goes on."
            )
        return LeaseLost(
            f"{self.record}: run {self.record.pk} was taken from this process, because it gave no sign of life for "
            "too long (SAFEMIGRATE_LEASE_SECONDS). It ends; no row was filled twice."
        )

    def _write(self) -> None:
        now = timezone.now()
        if not self._open().update(**self._progress(), heartbeat=now, lease_until=now + lease()):
            raise self._lost(records().filter(pk=self.record.pk).first())

    def _progress(self) -> dict[str, Any]:
        state, done = self.state, self.done + self.state.rows
        working = self.worked + state.working
        self.samples = thinned([*self.samples, [round(working, 2), done]])
        progress = {
            "cursor": key_to_json(state.resume_after if state.cursor is None else state.cursor),
            "rows_done": done,
            "rows_total": max(self.done + state.total if self.count.counted else state.total, done),
            "total_is_exact": self.count.counted,
            "batch_size": state.batch_size,
            "bad_rows": stored(state.bad),
            "samples": self.samples,
            "seconds_running": working,
            "seconds_waiting": self.waited + state.waited,
            "waiting_for": state.waiting[:500],
            "output": storable(self.output.text),
        }
        for name, value in progress.items():
            setattr(self.record, name, value)
        return without_saved(progress, self.record)

    def _failed(self, error: Error, seconds: float) -> None:
        # A server that is gone may be slow to say so: it shall not slow the backfill down.
        self.silent_until = time.monotonic() + max(BEAT, 9 * seconds)
        warn_once(f"{self.record} is not recorded for the moment: {str(error).strip()}. The fill goes on.")


class RangeRecorder(Recorder):
    """Records a range of a shared run, which one of its workers holds.

    Ends the range by raising: LimitReached when the time is over, HeldUp when a throttle holds it for long;
    RunPaused and RunCancelled as a user asks; LeaseLost when another worker has it, or the record was out of
    reach for the length of a lease. A record that fails for a moment stops nothing.
    """

    def __init__(self, run: BackfillRun, part: BackfillRange, target: Target, until: float) -> None:
        super().__init__()
        self.record, self.part, self.target, self.until = run, part, target, until
        self.owners: dict[
            str, int
        ] = {}  # at the end of a run with a cursor, the ranges of the rows to come back to
        self.rows, self.seconds = 0, 0.0  # of this worker's, as far as they are written
        self.began = (part.rows_done, part.seconds)
        self.reached, self.waited = time.monotonic(), 0.0
        self.heartbeat = Heartbeat(f"safemigrate range {part.pk}", self._beat)

    def start(self, state: Run) -> None:
        state.total = self.part.size
        state.resume_after = key_from_json(self.target.model, self.part.cursor)
        if self.target.is_cursor:
            state.bad = self._passed_over()
        super().start(state)

    def _passed_over(self) -> list[BadRow]:
        """Return the rows that the range, or at the end the whole run, has to come back to."""
        if not self.part.is_the_end:
            return kept(self.target, self.part.bad_rows)
        parts = (
            leases.of(self.record)
            .filter(last__isnull=False)
            .values_list("number", "bad_rows")
            .order_by("number")
        )
        self.owners = {json.dumps(key): number for number, rows in parts for key, _reason in rows}
        return kept(self.target, [row for _number, rows in parts for row in rows])

    def save(self, state: Run, cursor: Any, rows: int, bad: Sequence[BadRow]) -> None:
        before = self.began[0] + state.rows
        changes: dict[str, Any] = {"rows_done": before + rows}
        changes |= {} if self.part.is_the_end else {"bad_rows": stored(bad)}
        changes |= {} if cursor is None else {"cursor": key_to_json(cursor)}
        with store.reconnecting():
            if not leases.owned(self.part).filter(rows_done=before).update(**changes):
                found = leases.owned(self.part).first()
                _refuse_unless_saved(found, changes, lambda: self._lost("another worker has it"))
            if self.part.is_the_end:
                self._save_of_ranges(stored(bad))

    def _save_of_ranges(self, bad: list[list[Any]]) -> None:
        """Save with each range the bad rows that are its own."""
        for number in set(self.owners.values()):
            of_range = [row for row in bad if self.owners[json.dumps(row[0])] == number]
            leases.of(self.record).filter(number=number).update(bad_rows=of_range)

    def advance(self, state: Run) -> None:
        now = time.monotonic()
        super().advance(state)
        # The end fills something or finds out what cannot be filled: else the next task would begin like this one.
        if now >= self.until and not (self.part.is_the_end and state.cursor is None and not state.rows):
            raise LimitReached("the time of the task is over")
        if not state.waiting:
            self.waited = state.waited
        elif state.waited - self.waited >= PATIENCE:
            raise HeldUp(f"waiting: {state.waiting}")

    def end(self, state: Run, error: BaseException | None) -> None:
        self.heartbeat.stop()
        if not isinstance(error, LeaseLost):
            self._safely(self._write)

    def _look(self) -> None:
        found = records().filter(pk=self.record.pk).values_list("token", "status", "options").first()
        self.reached = time.monotonic()
        if found is None or found[0] != self.record.token:
            raise self._lost("the run was taken away, or deleted")
        self._obey_changes(found[2], found[2]["workers"])
        status = found[1]
        if status in (Status.PAUSING, Status.PAUSED):
            raise RunPaused(f"Run {self.record.pk} is paused.")
        if status in (Status.CANCELLING, Status.CANCELLED):
            raise RunCancelled(f"Run {self.record.pk} is cancelled.")
        if status != Status.RUNNING:
            raise self._lost(f"the run is {status}")

    def _lost(self, why: str) -> LeaseLost:
        return LeaseLost(f"run {self.record.pk}, range {self.part.number}: {why}. No row was filled twice.")

    def _beat(self) -> float:
        until = timezone.now() + lease()
        if leases.owned(self.part).update(lease_until=until):
            self._open().update(lease_until=until, heartbeat=timezone.now())
        return 0.0

    def _write(self) -> None:
        """Save where the range and the run are; both or nothing."""
        now, state = timezone.now(), self.state
        rows, seconds = state.rows - self.rows, state.working - self.seconds
        with transaction.atomic(using=store.database()):
            self._open().update(
                rows_done=F("rows_done") + rows,
                seconds_running=F("seconds_running") + seconds,
                batch_size=state.batch_size,
                heartbeat=now,
                lease_until=now + lease(),
                waiting_for=state.waiting[:500],
            )
            if not leases.owned(self.part).update(**self._progress(), lease_until=now + lease()):
                raise self._lost("its lease had ended, and another worker has it")
            self._sample()
        self.rows, self.seconds = self.rows + rows, self.seconds + seconds
        self.reached = time.monotonic()

    def _progress(self) -> dict[str, Any]:
        state = self.state
        rows, seconds = self.began
        progress = {
            "rows_done": rows + state.rows,
            "seconds": seconds + state.working,
            "bad_rows": stored(state.bad),
        }
        if state.cursor is not None:
            progress["cursor"] = key_to_json(state.cursor)
        progress = without_saved(progress, self.record)
        # It got somewhere: what killed the workers before is behind it.
        return progress | ({"attempts": 1} if state.rows > self.rows else {})

    def _sample(self) -> None:
        """Keep how many rows all workers together had done by now, in seconds since the run began."""
        found = self._open().values_list("samples", "rows_done", "rows_total", "started").first()
        if found is None:
            return
        samples, done, total, started = found
        at = (timezone.now() - started).total_seconds() if started else 0.0
        if not samples or at - samples[-1][0] >= BEAT:
            new = thinned([*(samples or [[0.0, 0]]), [round(at, 2), done]])
            self._open().update(samples=new, rows_total=max(total, done))

    def _failed(self, error: Error, seconds: float) -> None:
        if time.monotonic() - self.reached > lease().total_seconds():
            raise self._lost(f"its record was out of reach: {str(error).strip()}") from error


class RunHeartbeat(Heartbeat):
    """Renews the lease every second, on a connection of its own, whatever the batch is doing.

    Its first deed is to count the rows that are to be filled: range after range, so that the count keeps
    neither the lease nor the end of the run waiting.
    """

    def __init__(self, record: BackfillRun, run: Run, target: Target) -> None:
        super().__init__(f"safemigrate run {record.pk}", self._beat)
        self.record, self.fill = record, run
        self.batches = target.batches
        self.counting = self._counting()
        self.counted = False

    def _beat(self) -> float:
        now = timezone.now()
        held = records().filter(pk=self.record.pk, token=self.record.token)
        held.update(heartbeat=now, lease_until=now + lease())
        return self._count()

    def _count(self) -> float:
        """Count on for a part of the time to the next beat; return the seconds it took."""
        began = time.monotonic()
        with suppress(Error):
            for _ in self.counting:
                if self.ended.is_set() or time.monotonic() - began >= BEAT / 2:
                    break
        return time.monotonic() - began

    def _counting(self) -> Iterator[None]:
        """Count first what the fill has not come to, and faster than it comes there; then what it left out."""
        place, done, left = self._place(), self.fill.rows, 0
        for batch in self._ranges(place):
            left += self.batches.todo.filter(batch.condition).count()
            yield
        self.fill.total, self.fill.is_counted, self.counted = done + left, True, True

    def _place(self) -> Any:
        is_cursor = self.record.is_cursor and self.fill.cursor is None
        return self.fill.resume_after if is_cursor else self.fill.cursor

    def _ranges(self, place: Any) -> Iterator[Range]:
        first = next(iter(keys_of(self.batches.rows.order_by("pk")[:1])), None)
        last = self.batches.last()
        if first is None:
            return
        parts = [(first, last, True)] if place is None else [(place, last, False), (first, place, True)]
        if place is not None and self.record.is_cursor:  # What it has passed is done.
            del parts[1]
        for after, end, inclusive in parts:
            batch = self.batches.next(after, end, COUNTED, inclusive=inclusive)
            while batch is not None:
                yield batch
                batch = self.batches.next(batch.last, end, COUNTED)


def _refuse_shared(target: Target) -> None:
    """Raise NothingToRun where workers share the run already."""
    record = store.open_run(target.label, target.alias)
    if record is not None and leases.of(record).exists():
        raise NothingToRun(
            f"{record}: run {record.pk} is shared by the workers of a queue, and each knows only its own part of it. "
            f"It goes on with them: {record.command}"
        )


def _refuse_unless_saved(found: Any, changes: dict[str, Any], lost: Callable[[], LeaseLost]) -> None:
    """Raise AlreadySaved where the record stands as an earlier try has saved it; LeaseLost where it does not."""
    if found is not None and all(getattr(found, name) == value for name, value in changes.items()):
        raise AlreadySaved
    raise lost()


def without_saved(progress: dict[str, Any], record: BackfillRun) -> dict[str, Any]:
    """Return the progress without what is saved in the transaction of each batch, and must not fall behind it."""
    saved = {"cursor", "rows_done", "bad_rows"} if record.is_cursor else set()
    return {name: value for name, value in progress.items() if name not in saved}


def kept(target: Target, rows: list[Any]) -> list[BadRow]:
    """Return the bad rows that `endings.stored` made of them."""
    return [BadRow(key_from_json(target.model, key), reason) for key, reason in rows]


def details(run: Run, target: Target) -> dict[str, Any]:
    """Return what a record says of the process that takes it."""
    return {
        "migration": context.migration_of(target.model, target.names),
        "populate": run.title,
        "fingerprint": run.fingerprint,
        "parameters": dict(target.parameters),
        "executor": context.current.executor,
        "host": socket.gethostname()[:255],
        "process": os.getpid(),
        "machine": machine(),
        "started_by": context.current.person or store.person(),
        "batch_size": run.batch_size,
    }


def thinned(samples: list[list[float]]) -> list[list[float]]:
    """Return the samples, every second one left out where there are too many: a run of days fits in too."""
    return samples if len(samples) <= SAMPLES else [*samples[:-1:2], samples[-1]]
