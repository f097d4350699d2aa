"""What the workers of a queue are asked to do. Celery finds this module by itself."""

from __future__ import annotations

from typing import Any

from safemigrate.executors import background
from safemigrate.runs import scheduler, worker


@background
def work(run: int, tries: int = 0) -> None:
    """Work on the run for SAFEMIGRATE_TASK_SECONDS at the most, save, and enqueue the same again if there is more.

    Delivered twice it does nothing twice: whatever it does, it holds a lease on it.
    """
    worker.work(run, tries)


@background
def run_backfill(label: str, parameters: dict[str, Any] | None = None) -> None:
    """Start a backfill of an app, "shop.PurgeEvents", on each of its databases: for a clock.

    By the workers of its executor, or of SAFEMIGRATE_EXECUTOR; inline it is done when this returns. Where a run of it
    is at work already, or paused, nothing is started. Raises what else keeps it from being started.
    """
    scheduler.start(label, parameters or {})


@background
def requeue() -> None:
    """Enqueue what no worker holds: see `backfill requeue`. For a clock: Celery's beat, cron, a scheduler."""
    scheduler.requeue()
