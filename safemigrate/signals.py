"""What a project may listen to. Each signal is sent with `run`, the BackfillRun as it is then.

A receiver that raises is logged, and does not stop the fill. Nothing is sent where runs are not recorded.
"""

from __future__ import annotations

from django.dispatch import Signal

#: A process has taken the run, for the first time or again.
run_started = Signal()
#: A batch is committed; also with `rows` and `seconds`, the batch's own.
batch_done = Signal()
#: No row is NULL any more.
run_finished = Signal()
#: An error ended it, or rows got no value; also with `error`, the exception.
run_failed = Signal()
#: Stopped by Ctrl-C, SIGTERM or a limit, or cancelled; the rest may be filled later.
run_stopped = Signal()

#: Its process gives no sign of life, as `backfill requeue` saw; once for each time.
run_stalled = Signal()
#: A run that no process holds was asked to go on: its workers may start.
run_queued = Signal()

__all__ = [
    "batch_done",
    "run_failed",
    "run_finished",
    "run_queued",
    "run_stalled",
    "run_started",
    "run_stopped",
]
