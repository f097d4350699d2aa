"""The observer of a worker that fills one range of a shared run, under a lease."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.db import Error, transaction
from django.db.models import F
from django.utils import timezone

from safemigrate import signals
from safemigrate.engine.batches import Target
from safemigrate.engine.engine import Run
from safemigrate.engine.keys import key_from_json, key_to_json
from safemigrate.exceptions import LeaseLost, LimitReached, RunCancelled, RunPaused
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import leases, store
from safemigrate.runs.heartbeat import BEAT, Heartbeat
from safemigrate.runs.recorder import LOOK, storable, thinned
from safemigrate.runs.status import Status
from safemigrate.runs.store import lease

#: The seconds of waiting for a throttle after which the range is given back, and the worker with it.
PATIENCE = 3.0


class Holding:
    """Saves cursor and rows about once a second, and the lease by a thread; looks at the run before each batch.

    Ends the range by raising: LimitReached when the time is over, or a throttle holds it for long; RunPaused
    and RunCancelled as a person asks; LeaseLost when another worker has it, or the record was out of reach
    for the length of a lease. A record that fails for a moment stops nothing.
    """

    def __init__(self, run: BackfillRun, part: BackfillRange, target: Target, until: float) -> None:
        self.run, self.part, self.target, self.until = run, part, target, until
        self.rows, self.seconds = 0, 0.0  # of this worker's, as far as they are written
        self.batches = 0
        self.looked = self.written = self.seen = time.monotonic()
        self.began = (part.rows_done, part.seconds)
        self.is_held_up, self.bad, self.waited = False, False, 0.0
        self.heartbeat = Heartbeat(f"safemigrate range {part.pk}", self._beat)

    def start(self, state: Run) -> None:
        self.state = state
        state.total = self.part.size
        state.resume_after = key_from_json(self.target.model, self.part.cursor)
        self.heartbeat.start()

    def advance(self, state: Run) -> None:
        now = time.monotonic()
        if now - self.looked >= LOOK:
            self.looked = now
            self._safely(self._look)
        if now - self.written >= BEAT:
            self.written = now
            self._safely(self._write)
        self._report()
        self._obey(now)

    def hold(self, state: Run) -> str | None:
        return None

    def end(self, state: Run, error: BaseException | None) -> None:
        self.heartbeat.stop()
        self.bad = bool(state.bad)
        if not isinstance(error, LeaseLost):
            self._safely(self._write)

    def _report(self) -> None:
        if self.state.batches > self.batches:
            self.batches = self.state.batches
            store.send_signal(signals.batch_done, self.run, rows=self.state.filled, seconds=self.state.took)

    def _obey(self, now: float) -> None:
        # The end fills something or finds out what cannot be filled: else the next task would begin like this one.
        if now >= self.until and not (
            self.part.is_the_end and self.state.cursor is None and not self.state.rows
        ):
            raise LimitReached("the time of the task is over")
        if not self.state.waiting:
            self.waited = self.state.waited
        elif self.state.waited - self.waited >= PATIENCE:
            self.is_held_up = True
            raise LimitReached(f"waiting: {self.state.waiting}")

    def _look(self) -> None:
        """Obey what was asked of the run meanwhile."""
        found = store.records().filter(pk=self.run.pk).values_list("token", "status").first()
        if found is None or found[0] != self.run.token:
            raise self._lost("the run was taken away, or deleted")
        status = found[1]
        if status in (Status.PAUSING, Status.PAUSED):
            raise RunPaused(f"Run {self.run.pk} is paused.")
        if status in (Status.CANCELLING, Status.CANCELLED):
            raise RunCancelled(f"Run {self.run.pk} is cancelled.")
        if status != Status.RUNNING:
            raise self._lost(f"the run is {status}")

    def _lost(self, why: str) -> LeaseLost:
        return LeaseLost(f"run {self.run.pk}, range {self.part.number}: {why}. No row was filled twice.")

    def _beat(self) -> float:
        until = timezone.now() + lease()
        if leases.owned(self.part).update(lease_until=until):
            self._open().update(lease_until=until, heartbeat=timezone.now())
        return 0.0

    def _open(self) -> Any:
        return store.records().filter(pk=self.run.pk, token=self.run.token)

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

    def _progress(self) -> dict[str, Any]:
        state = self.state
        rows, seconds = self.began
        progress = {
            "rows_done": rows + state.rows,
            "seconds": seconds + state.working,
            "bad_rows": [[key_to_json(row.key), storable(row.reason)] for row in state.bad],
        }
        if state.cursor is not None:
            progress["cursor"] = key_to_json(state.cursor)
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

    def _safely(self, do: Callable[[], None]) -> None:
        try:
            do()
            self.seen = time.monotonic()
        except Error as error:
            store.drop_lost_connection()
            if time.monotonic() - self.seen > lease().total_seconds():
                raise self._lost(f"its record was out of reach: {str(error).strip()}") from error
