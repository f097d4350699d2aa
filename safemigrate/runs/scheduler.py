"""A run is given to the workers of a queue, and enqueued again where no worker holds it.

A queue is never trusted: a message only says which run. What is to be done stands in the run and its ranges,
so a message that is lost costs time, and one that comes twice costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connections, transaction
from django.db.models import F
from django.utils import timezone

from safemigrate import backfills, signals
from safemigrate.backends import for_connection
from safemigrate.conf import get
from safemigrate.engine import context
from safemigrate.engine.batch_runner import may_share
from safemigrate.engine.batches import Batches
from safemigrate.engine.keys import key_to_json
from safemigrate.exceptions import AlreadyRunning, NotEnqueued, NothingToRun, RunPaused
from safemigrate.executors import named
from safemigrate.models import BackfillRun
from safemigrate.populate.sources import AsWritten, fingerprint
from safemigrate.retry import doubled
from safemigrate.runs import leases, store
from safemigrate.runs.lookup import Job, find
from safemigrate.runs.status import OVER, Status
from safemigrate.runs.summary import moment
from safemigrate.throttles import Throttles

logger = logging.getLogger("safemigrate")

WORK = "safemigrate.tasks.work"
#: The longest that `requeue` waits before it enqueues once more what no worker took, in seconds.
PATIENCE = 3600.0
#: How often a run of a queue is enqueued without a worker that takes it, before that is said.
IN_VAIN = 3
#: The longest that a message waits at once, in seconds: it comes again, early, and waits again. Celery's workers keep
#: those that wait, and a broker takes what is kept for long for lost, and delivers it once more.
HOP = 120.0
FINALIZED = {Status.PAUSING: Status.PAUSED, Status.CANCELLING: Status.CANCELLED}

NextRun = dict[str, Any] | None


def options_of(**given: Any) -> dict[str, Any]:
    """Return how a run is to be worked on: what was given for it, and the settings for the rest."""
    standing = {
        "queue": get("SAFEMIGRATE_QUEUE"),
        "workers": get("SAFEMIGRATE_QUEUE_WORKERS"),
        "seconds": get("SAFEMIGRATE_TASK_SECONDS"),
        "throttles": None,
        "rows_per_second": get("SAFEMIGRATE_ROWS_PER_SECOND"),
        "batch_size": None,
    }
    return standing | {name: value for name, value in given.items() if value is not None}


def begin(
    job: Job,
    executor: str,
    options: dict[str, Any],
    *,
    not_before: datetime | None = None,
    next_run: NextRun = None,
    person: str = "",
) -> BackfillRun | None:
    """Open the run of a fill, and enqueue a task for each worker that may take part; None where nothing is NULL.

    Locks nothing, and cuts one range; reads the table up to the first row to fill. Run again it goes on with the
    same run.
    Raises AlreadyRunning, RunPaused, and NotEnqueued, after which the run waits for `backfill requeue`.
    """
    if options["throttles"] is None:
        own = get("SAFEMIGRATE_THROTTLES") if job.throttles is None else job.throttles
        options = options | {"throttles": list(own)}
    _refuse(job, executor, options)
    target = job.target
    batches = target.batches
    if not batches.any_left():
        store.close(target)
        return None
    wanted = options.get("wanted", options["workers"])  # A chain goes on to other databases.
    options = options | {"workers": _workers(job, wanted), "wanted": wanted}
    run = _queued(job, batches, executor, options, not_before, next_run, person)
    if not run.events.using(store.database()).exists():
        store.note(run, str(run.status), run.started_by)
    wait = max((not_before - timezone.now()).total_seconds(), 0.0) if not_before else 0.0
    enqueue_workers(run, wait)
    return run


def _refuse(job: Job, executor: str, options: dict[str, Any]) -> None:
    """Raise what a worker would find out only later."""
    named(executor).check(options["queue"])
    Throttles(job.model, job.alias, options["throttles"])
    if not named(executor).is_apart:
        raise NotEnqueued(
            f"The executor {executor} is set up to do its tasks at once, in the process that enqueues them (as tests "
            "like it). To fill in this process: --executor inline."
        )
    source = job.source
    if isinstance(source, AsWritten):
        raise NothingToRun(
            f"{job.label} is filled by {source.title}, in one go: there are no parts that workers could share. Fill "
            "it with --executor inline, or write the populate as an expression or as a function of one row."
        )
    if reason := store.unreadable():
        raise NothingToRun(f"Workers share a run through its record. {reason}")


def _workers(job: Job, wanted: int) -> int:
    """Return how many may work at once: one, where a batch depends on the one before."""
    source = job.source
    assert not isinstance(source, AsWritten), "these were refused"
    database = for_connection(connections[job.alias])
    if wanted == 1 or may_share(source, job.target, database):
        return wanted
    logger.info("%s on %s: one worker at a time, as its batches depend on each other", job.label, job.alias)
    return 1


def _queued(
    job: Job,
    batches: Batches,
    executor: str,
    options: dict[str, Any],
    not_before: datetime | None,
    next_run: NextRun,
    person: str,
) -> BackfillRun:
    details = _details(job, batches, executor, person) | {"options": options, "not_before": not_before}
    run = store.queue(job.target, details | ({"next_run": next_run} if next_run is not None else {}))
    if leases.of(run).exists():
        leases.reopen(run)
    else:
        leases.cut_first(run, batches)
    return run


def _details(job: Job, batches: Batches, executor: str, person: str) -> dict[str, Any]:
    database = for_connection(connections[job.alias])
    return {
        "migration": job.migration,
        "populate": job.title,
        "fingerprint": fingerprint(job.source, job.target.where),
        "parameters": dict(job.target.parameters),
        "executor": executor,
        "started_by": person or context.current.person or store.person(),
        "rows_total": database.estimated_rows(job.model),
        "total_is_exact": False,
        "last_key": key_to_json(batches.last()),
        "host": "",
        "process": None,
        "machine": "",
        "enqueue_attempts": 0,
    }


def hand_over(label: str, alias: str) -> str:
    """Give the workers what is too much for `migrate`, where the project says so; return that in words."""
    executor = get("SAFEMIGRATE_EXECUTOR")
    if not get("SAFEMIGRATE_MIGRATE_ENQUEUES") or executor == "inline":
        return ""
    try:
        run = begin(find(label, alias), executor, options_of())
    except AlreadyRunning as error:
        return str(error)
    return f"They are given to the workers of a queue: run {run.pk} of {executor}." if run else ""


def enqueue(run: BackfillRun, seconds: float = 0.0, tries: int = 0) -> None:
    """Enqueue one task for the run, `seconds` from now at the earliest. Raises NotEnqueued."""
    queue, wait = run.options["queue"], min(seconds, HOP)
    named(run.executor).enqueue(WORK, run.pk, tries, queue=queue, seconds=wait)


def enqueue_workers(run: BackfillRun, seconds: float = 0.0) -> None:
    """Enqueue a task for each worker that is missing. Raises NotEnqueued, which says how to go on."""
    enqueued_at = {
        "enqueued_at": timezone.now() + timedelta(seconds=seconds),
        "enqueue_attempts": F("enqueue_attempts") + 1,
    }
    store.records().filter(pk=run.pk).update(**enqueued_at)
    missing = run.options["workers"] - leases.held(leases.of(run)).count()
    try:
        for _ in range(missing):
            enqueue(run, seconds)
    except NotEnqueued as error:
        store.records().filter(pk=run.pk).update(enqueued_at=None, enqueue_attempts=run.enqueue_attempts)
        raise NotEnqueued(
            f"{error} Run {run.pk} ({run}) is kept, and waits. "
            "When the cause is gone: python manage.py backfill requeue"
        ) from error


def change(key: int, who: str, **wanted: int | None) -> BackfillRun:
    """Change how a run is worked on, as `store.change`; where it gets more workers, tasks are enqueued for them."""
    run = store.change(key, who, **wanted)
    if "workers" in wanted and run.status in (Status.QUEUED, Status.RUNNING):
        enqueue_workers(run)
    return run


def enqueue_queued(sender: Any, run: BackfillRun, **kwargs: Any) -> None:
    """Enqueue a run that a person let go on, in the admin or by a command."""
    if run.is_shared:  # A worker is often quicker than the transaction of a request.
        transaction.on_commit(partial(_enqueue_workers, run), using=store.database())


def _enqueue_workers(run: BackfillRun) -> None:
    try:
        if run.status == Status.QUEUED:  # Else its workers have not even seen that it was to pause.
            leases.reopen(run)
        enqueue_workers(run)
    except NotEnqueued as error:
        store.note(run, str(error))
        logger.error("%s", error)


def finalize(run: BackfillRun) -> bool:
    """Let a run that was asked to pause or to end do so, once no worker holds a part of it."""
    to = FINALIZED.get(Status(run.status))
    if to is None or leases.held(leases.of(run)).exists():
        return False
    if not store.move(run, to, "", lease_until=None, waiting_for=""):
        return False
    store.send_signal(signals.run_stopped, store.find(run.pk))
    return True


def requeue() -> list[str]:
    """Enqueue what no worker holds, send run_stalled of what was left by its process; return in words what was done.

    Whatever was lost: a broker's messages, all workers at once. What is enqueued and not taken is enqueued
    again after a lease, then after two, four, ... up to an hour. To be run every minute or so; harmless twice.
    """
    return list(_requeued())


def _requeued() -> Iterator[str]:
    _note_stalled()
    open_ = store.records().exclude(executor="inline").exclude(status__in=OVER)
    for run in open_.order_by("pk"):
        if run.is_held():
            continue
        if run.status in FINALIZED:
            if finalize(run):
                yield f"Run {run.pk} ({run}) is {store.find(run.pk).get_status_display()}."
        elif run.status in (Status.QUEUED, Status.RUNNING) and _is_due(run):
            yield _reenqueued(run)
    for run in store.records().filter(status=Status.SUCCEEDED, next_run__isnull=False).order_by("pk"):
        if not run.is_held() and _is_due(run):
            yield _reenqueued(run)


def _note_stalled() -> None:
    """Send the signal of runs that their process has left, once for each time."""
    for run in store.records().exclude(status__in=OVER).order_by("pk"):
        # Between two tasks no worker holds a run that is shared: it is left once it was enqueued in vain.
        if not run.is_stalled() or (run.is_shared and run.enqueue_attempts < IN_VAIN):
            continue
        text = f"no sign of life since {moment(run.heartbeat)}"
        if not run.events.using(store.database()).filter(text=text).exists():
            store.note(run, text)
            store.send_signal(signals.run_stalled, run)


def _is_due(run: BackfillRun) -> bool:
    now = timezone.now()
    if run.not_before is not None and now < run.not_before + store.lease():
        return False
    wait = doubled(run.enqueue_attempts, store.lease().total_seconds() / 2, PATIENCE)
    return run.enqueued_at is None or now >= run.enqueued_at + timedelta(seconds=wait)


def _reenqueued(run: BackfillRun) -> str:
    try:
        enqueue_workers(run)
    except NotEnqueued as error:
        return str(error)
    return f"Run {run.pk} ({run}): no worker holds it; enqueued in {run.options['queue']} again."


# Started by a clock, or by a person in the admin


def executor_of(label: str) -> str:
    """Return by whose workers a backfill is done."""
    return backfills.find(label).executor or str(get("SAFEMIGRATE_EXECUTOR"))


def start(label: str, parameters: Mapping[str, Any]) -> None:
    """Start a backfill on all aliases of its own; where one is at work, that one goes on.

    Inline it is done when this returns. Raises what keeps it from being started.
    """
    for alias in backfills.find(label).databases:
        try:
            start_on(label, parameters, alias)
        except (AlreadyRunning, RunPaused) as reason:
            logger.info("%s", reason)


def start_on(label: str, parameters: Mapping[str, Any], alias: str, person: str = "") -> BackfillRun | None:
    """Start it on one alias, in the name of a person; return its run, None where nothing is to be done, or inline.

    Raises AlreadyRunning, RunPaused, NotEnqueued, and what is wrong with the class or its parameters.
    """
    job, executor = find(label, alias, parameters), executor_of(label)
    job.check_column()
    if executor == "inline":
        job.run()
        return None
    job.validate()
    return begin(job, executor, options_of(), person=person)
