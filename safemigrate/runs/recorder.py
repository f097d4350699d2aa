"""The observer that records a run while it is at work."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TextIO, cast

from django.db import Error
from django.dispatch import Signal
from django.utils import timezone

from safemigrate import signals
from safemigrate.engine import context
from safemigrate.engine.batches import Batches, Range, Target, keys_of
from safemigrate.engine.engine import Run
from safemigrate.engine.keys import key_from_json, key_to_json
from safemigrate.exceptions import LeaseLost, RunCancelled
from safemigrate.models import BackfillRun
from safemigrate.runs import store
from safemigrate.runs.heartbeat import BEAT, Heartbeat
from safemigrate.runs.processes import machine
from safemigrate.runs.status import OVER, Status
from safemigrate.runs.store import lease, move, note, records, warn_once

logger = logging.getLogger("safemigrate")

#: The record is read no more often than this, in seconds, be the batches as small as they may.
LOOK = 0.05
SAMPLES = 240
#: The rows of a range that is counted at once, and the characters of a line that are kept.
COUNTED = 50_000
WIDTH = 1_000


class Recorder:
    """An observer that records the run in the database named by SAFEMIGRATE_RUNS_DATABASE.

    Writes about once a second. Where the table is not there, or the database fails, it says so once and the
    fill goes on without.
    """

    def __init__(self) -> None:
        self.recording: Recording | None = None

    def start(self, run: Run) -> None:
        if run.target is not None and store.is_kept():
            self.recording = self._begin(run, run.target)

    @staticmethod
    def _begin(run: Run, target: Target) -> Recording | None:
        try:
            return Recording(run, target, store.claim(target, details(run, target)))
        except Error as error:
            store.drop_lost_connection()
            warn_once(f"{target.label} is not recorded: {str(error).strip()}. The fill goes on without.")
            return None

    def advance(self, run: Run) -> None:
        if self.recording:
            self.recording.advance()

    def hold(self, run: Run) -> str | None:
        return self.recording.paused or None if self.recording else None

    def end(self, run: Run, error: BaseException | None) -> None:
        if self.recording:
            self.recording.end(error)


class Recording:
    """One process's work on a run."""

    def __init__(self, run: Run, target: Target, record: BackfillRun) -> None:
        self.run, self.record, self.token = run, record, record.token
        self.done, self.worked = self.record.rows_done, self.record.seconds_running
        self.waited, self.samples = self.record.seconds_waiting, list(self.record.samples) or [[0.0, 0]]
        run.resume_after = key_from_json(target.model, self.record.cursor)
        self.paused, self.batches = "", 0
        self.looked = self.written = self.silent_until = time.monotonic()
        self.output = Output(run.output)
        self.lines = Lines(record, self.output.add)
        logger.addFilter(self.lines)
        self.heartbeat = RunHeartbeat(self.record, run, target)
        logger.info(
            "%s: run %s, attempt %s", self.record, self.record.pk, self.record.attempts, extra=self._extra()
        )
        self._send(signals.run_started)
        store.working.add(self.record.pk)
        self.heartbeat.start()

    def advance(self) -> None:
        now = time.monotonic()
        if now - self.looked >= LOOK and now >= self.silent_until:
            self.looked = now
            self._safely(self._look)
        if now - self.written >= BEAT and now >= self.silent_until:
            self.written = now
            self._safely(self._write)
        if self.run.batches > self.batches:
            self.batches = self.run.batches
            self._send(signals.batch_done, rows=self.run.filled, seconds=self.run.took)

    def end(self, error: BaseException | None) -> None:
        self.heartbeat.stop()
        self.output.close()
        logger.removeFilter(self.lines)
        store.working.discard(self.record.pk)
        if not isinstance(error, LeaseLost):
            self._safely(lambda: self._end(error))

    def _look(self) -> None:
        """Obey what was asked of the run meanwhile."""
        found = records().filter(pk=self.record.pk).values_list("token", "status").first()
        if found is None or found[0] != self.token or found[1] in OVER:
            raise LeaseLost(self._lost(found))
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

    def _lost(self, found: Any) -> str:
        if found is None:
            return (
                f"{self.record}: run {self.record.pk} was deleted, so nobody can see or control this process any "
                "more. It ends; what was filled stays filled, and the same command goes on."
            )
        return (
            f"{self.record}: run {self.record.pk} was taken from this process, because it gave no sign of life for "
            "too long (SAFEMIGRATE_LEASE_SECONDS). It ends; no row was filled twice."
        )

    def _write(self) -> None:
        now = timezone.now()
        held = records().filter(pk=self.record.pk, token=self.token)
        if not held.update(**self._progress(), heartbeat=now, lease_until=now + lease()):
            raise LeaseLost(self._lost(records().filter(pk=self.record.pk).first()))

    def _progress(self) -> dict[str, Any]:
        run, done = self.run, self.done + self.run.rows
        working = self.worked + run.working
        self.samples = thinned([*self.samples, [round(working, 2), done]])
        progress = {
            "cursor": key_to_json(run.resume_after if run.cursor is None else run.cursor),
            "rows_done": done,
            "rows_total": max(self.done + run.total if self.heartbeat.counted else run.total, done),
            "total_is_exact": self.heartbeat.counted,
            "batch_size": run.batch_size,
            "bad_rows": [[key_to_json(row.key), storable(row.reason)] for row in run.bad],
            "samples": self.samples,
            "seconds_running": working,
            "seconds_waiting": self.waited + run.waited,
            "waiting_for": run.waiting[:500],
            "output": storable(self.output.text),
        }
        for name, value in progress.items():
            setattr(self.record, name, value)
        return progress

    def _end(self, error: BaseException | None) -> None:
        status = outcome(error)
        text = "" if error is None or status == Status.STOPPED else str(error)
        trace = "".join(traceback.format_exception(error)) if error and status == Status.FAILED else ""
        ended = {"lease_until": None, "finished": timezone.now()}
        told = {"error": storable(text), "traceback": storable(trace), "waiting_for": ""}
        changes = self._progress() | ended | told
        if status == Status.SUCCEEDED:
            changes |= {"rows_total": changes["rows_done"], "total_is_exact": True}
        record = self._held()
        while record and not move(record, end_of(record.status, status), "", **changes):
            record = self._held()  # A request came in the last moment.
        if record:
            self._report_end(records().get(pk=record.pk), text, error)

    def _held(self) -> BackfillRun | None:
        return records().filter(pk=self.record.pk, token=self.token).first()

    def _report_end(self, record: BackfillRun, text: str, error: BaseException | None) -> None:
        self.record, status = record, record.status
        if text:
            note(self.record, storable(text).splitlines()[0])
        logger.info("%s: run %s %s", self.record, self.record.pk, status, extra=self._extra())
        self._send(ENDINGS[status], **({"error": error} if status == Status.FAILED else {}))

    def _extra(self) -> dict[str, Any]:
        return {
            "run": self.record.pk,
            "label": self.record.label,
            "alias": self.record.alias,
            "status": str(self.record.status),
            "rows": self.record.rows_done,
            "rows_total": self.record.rows_total,
            "seconds": round(self.record.seconds_running, 3),
        }

    def _send(self, signal: Signal, **arguments: Any) -> None:
        store.send_signal(signal, self.record, **arguments)

    def _safely(self, do: Callable[[], None]) -> None:
        """Do it, or say once that the run is not recorded for the moment: it is no reason to stop the fill."""
        began = time.monotonic()
        try:
            do()
        except Error as error:
            store.drop_lost_connection()
            # A server that is gone may be slow to say so: it shall not slow the fill down.
            ended = time.monotonic()
            self.silent_until = ended + max(BEAT, 9 * (ended - began))
            warn_once(
                f"{self.record} is not recorded for the moment: {str(error).strip()}. The fill goes on."
            )


ENDINGS: dict[str, Signal] = {
    Status.SUCCEEDED: signals.run_finished,
    Status.FAILED: signals.run_failed,
    Status.STOPPED: signals.run_stopped,
    Status.PAUSED: signals.run_stopped,
    Status.CANCELLED: signals.run_stopped,
}


def outcome(error: BaseException | None) -> str:
    """Return the state that a run ends in after this error."""
    if error is None:
        return Status.SUCCEEDED
    if isinstance(error, RunCancelled):
        return Status.CANCELLED
    return (
        Status.STOPPED if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit) else Status.FAILED
    )


def end_of(asked: str, status: str) -> str:
    """Return the state that a run ends in, where it was stopped before it saw what was asked of it."""
    if status != Status.STOPPED:
        return status
    waits = {Status.PAUSING: Status.PAUSED, Status.PAUSED: Status.PAUSED, Status.CANCELLING: Status.CANCELLED}
    return waits.get(Status(asked), Status.STOPPED)


class RunHeartbeat(Heartbeat):
    """Moves the lease on every second, on a connection of its own, whatever the batch is doing.

    Its first deed is to count the rows that are to be filled: range after range, so that the count keeps
    neither the lease nor the end of the run waiting.
    """

    def __init__(self, record: BackfillRun, run: Run, target: Target) -> None:
        super().__init__(f"safemigrate run {record.pk}", self._beat)
        self.record, self.fill = record, run
        self.batches = Batches(target.model, target.alias, target.null_fields)
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
        place, done, left = self.fill.cursor, self.fill.rows, 0
        for batch in self._ranges(place):
            left += self.batches.todo.filter(batch.condition).count()
            yield
        self.fill.total, self.counted = done + left, True

    def _ranges(self, place: Any) -> Iterator[Range]:
        first = next(iter(keys_of(self.batches.rows.order_by("pk")[:1])), None)
        last = self.batches.last()
        if first is None:
            return
        parts = [(first, last, True)] if place is None else [(place, last, False), (first, place, True)]
        for after, end, inclusive in parts:
            batch = self.batches.next(after, end, COUNTED, inclusive=inclusive)
            while batch is not None:
                yield batch
                batch = self.batches.next(batch.last, end, COUNTED)


class Output:
    """Stands in for sys.stdout while the run is at work, and keeps the last lines."""

    def __init__(self, lines: deque[str]) -> None:
        self.lines, self.part, self.stdout, self.is_closed = lines, "", sys.stdout, False
        sys.stdout = cast("TextIO", self)

    def close(self) -> None:
        self.is_closed = True
        # Those of two runs in two threads may end in any order.
        while isinstance(sys.stdout, Output) and sys.stdout.is_closed:
            sys.stdout = sys.stdout.stdout

    def add(self, text: str) -> None:
        self.lines.extend(line[:WIDTH] for line in text.splitlines() if line.strip())

    @property
    def text(self) -> str:
        return "\n".join(list(self.lines) + [self.part] * bool(self.part.strip()))

    def write(self, text: str) -> int:
        # A line comes in parts: print() writes each of its arguments by itself.
        whole, _, self.part = (self.part + text).rpartition("\n")
        self.add(whole)
        self.part = self.part[:WIDTH]
        return self.stdout.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stdout, name)


class Lines(logging.Filter):
    """Tells each line that the thread at work logs which run it belongs to, and keeps the warnings.

    No handler: where a project has none, one of ours would keep Python from showing warnings on standard error.
    """

    def __init__(self, run: BackfillRun, keep: Callable[[str], None]) -> None:
        super().__init__()
        self.named = {"run": run.pk, "label": run.label, "alias": run.alias}
        self.thread, self.keep = threading.get_ident(), keep

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self.thread:
            vars(record).update(self.named)
            if record.levelno >= logging.WARNING:
                self.keep(record.getMessage())
        return True


def details(run: Run, target: Target) -> dict[str, Any]:
    """Return what a record says of the process that takes it."""
    return {
        "migration": context.migration_of(target.model, target.names),
        "populate": run.title,
        "executor": context.current.executor,
        "host": socket.gethostname()[:255],
        "process": os.getpid(),
        "machine": machine(),
        "started_by": context.current.person or store.person(),
        "batch_size": run.batch_size,
    }


def storable(text: str) -> str:
    """Return the text without what a database may refuse: the null character, and half characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def thinned(samples: list[list[float]]) -> list[list[float]]:
    """Return the samples, every second one left out where there are too many: a run of days fits in too."""
    return samples if len(samples) <= SAMPLES else [*samples[:-1:2], samples[-1]]
