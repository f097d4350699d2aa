"""What the workers of a queue are asked to do. Celery finds this module by itself."""

from __future__ import annotations

from safemigrate.executors import background
from safemigrate.runs import scheduler, worker


@background
def work(run: int, tries: int = 0) -> None:
    """Work on the run for SAFEMIGRATE_TASK_SECONDS at the most, save, and enqueue the same again if there is more.

    Delivered twice it does nothing twice: whatever it does, it holds a lease on it.
    """
    worker.work(run, tries)


@background
def requeue() -> None:
    """Enqueue what no worker holds: see `backfill requeue`. For a clock: Celery's beat, cron, a scheduler."""
    scheduler.requeue()
