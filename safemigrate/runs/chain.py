"""What is done after a run that succeeded: the next database, then a proof, then `migrate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.core.management import call_command
from django.db import Error, connections
from django.db.models import F, Q
from django.utils import timezone

from safemigrate import signals
from safemigrate.backends import for_connection
from safemigrate.exceptions import AlreadyRunning, NotEnqueued, NullsRemain, SafemigrateError
from safemigrate.models import BackfillRun, open_key
from safemigrate.runs import lookup, scheduler, store
from safemigrate.runs.heartbeat import Heartbeat

logger = logging.getLogger("safemigrate")


def links(aliases: list[str], number: int, *, migrate: bool) -> dict[str, Any]:
    """Return what is to be done after the run of the alias of that number, as it is kept with that run."""
    return {"next": aliases[number + 1 :], "all": aliases, "migrate": migrate}


def go_on(run: BackfillRun) -> None:
    """Take the next step, under a lease on the run, so that one worker alone does. What fails stops the rest."""
    if not _taken(run):
        return
    heartbeat = Heartbeat(f"safemigrate chain {run.pk}", lambda: _beat(run))
    heartbeat.start()
    try:
        _step(run)
    except Exception as error:
        if isinstance(error, Error) and for_connection(connections[run.alias]).is_transient(error):
            raise  # The database is away: a later task, or `backfill requeue`, goes on.
        _stop(run, error)
    else:
        _mine(run).update(next_run=None)
    finally:
        heartbeat.stop()
        _mine(run).update(lease_until=None)


def _mine(run: BackfillRun) -> Any:
    return store.records().filter(pk=run.pk, token=run.token)


def _taken(run: BackfillRun) -> bool:
    free = Q(lease_until=None) | Q(lease_until__lte=timezone.now())
    taken = {"lease_until": timezone.now() + store.lease(), "token": F("token") + 1}
    if not _mine(run).filter(free, next_run__isnull=False).update(**taken):
        return False
    run.token += 1
    return True


def _beat(run: BackfillRun) -> float:
    _mine(run).update(lease_until=timezone.now() + store.lease())
    return 0.0


def _step(run: BackfillRun) -> None:
    next_run: dict[str, Any] = run.next_run or {}
    for number, alias in enumerate(next_run["next"]):
        rest = next_run | {"next": next_run["next"][number + 1 :]}
        job = lookup.find(run.job_label, alias, run.parameters)
        try:
            begun = scheduler.begin(job, run.executor, run.options, next_run=rest)
        except (AlreadyRunning, NotEnqueued) as error:
            if not _follows(job):
                raise
            store.note(run, f"next: {alias}: {error}")  # It goes on from there by itself.
            return
        if begun is not None:
            store.note(run, f"next: {alias}, run {begun.pk}")
            return
    finish(
        run.job_label, next_run["all"], migrate=next_run["migrate"], report=lambda text: store.note(run, text)
    )


def _follows(job: lookup.Job) -> bool:
    """Is the next run begun, as a link of the chain: by a worker that died then, or while the broker is away?"""
    key = open_key(job.label, job.alias)
    return store.records().filter(open_key=key, next_run__isnull=False).exists()


def finish(label: str, aliases: Sequence[str], *, migrate: bool, report: Any) -> None:
    """Prove that no row is NULL on any of the databases; then, if asked, migrate each to where it is required.

    Raises NullsRemain, and whatever `migrate` raises.
    """
    if lookup.is_backfill(label):
        report(f"done on {', '.join(aliases)}")
        return
    left = {alias: lookup.find(label, alias).rows_left() for alias in aliases}
    if any(left.values()):
        found = ", ".join(f"{rows:,} on {alias}" for alias, rows in left.items() if rows)
        raise NullsRemain(f"{label} has rows without a value by now: {found}. Fill them, then migrate.")
    report(f"verified: every row has a value on {', '.join(aliases)}")
    if not migrate:
        return
    for alias in aliases:
        app_label, name = lookup.requiring(label, alias)
        call_command("migrate", app_label, name, database=alias, interactive=False, verbosity=0)
        report(f"migrated {alias} to {app_label}.{name}")


def _stop(run: BackfillRun, error: Exception) -> None:
    text = str(error) if isinstance(error, SafemigrateError) else f"{type(error).__name__}: {error}"
    waiting = run.next_run["next"] if run.next_run else []
    rest = f" Not begun: {', '.join(waiting)}." if waiting else ""
    text = f"The chain stopped after this run: {text}{rest}"
    if not _mine(run).update(next_run=None, error=text):
        return  # Another worker took the step first.
    stopped = store.find(run.pk)
    store.note(stopped, text.splitlines()[0])
    logger.error("run %s (%s): %s", run.pk, run, text)
    store.send_signal(signals.run_failed, stopped, error=error)
