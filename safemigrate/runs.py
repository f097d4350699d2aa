"""The runs as they are recorded: found, steered by people, and taken by the one process that works.

The rows that are NULL decide what is to be done, never a record: it shows a run, lets people steer it, keeps
two processes off the same field, and saves the time to find where the last one stopped.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db import Error, connections
from django.db.models import F, QuerySet
from django.utils import timezone

from safemigrate.batches import Target
from safemigrate.conf import get
from safemigrate.exceptions import AlreadyRunning, IllegalMove, NothingToRun, RunPaused
from safemigrate.models import BackfillEvent, BackfillRun, open_key
from safemigrate.statuses import OVER, Status, sources

logger = logging.getLogger("safemigrate")


def database() -> str:
    """Return the alias that the runs are kept on."""
    return str(get("SAFEMIGRATE_RUNS_DATABASE"))


def records() -> QuerySet[BackfillRun]:
    """Return all runs, newest first."""
    return BackfillRun._default_manager.using(database())


def find(key: int) -> BackfillRun:
    """Return the run of that number. Raises NothingToRun."""
    found = records().filter(pk=key).first()
    if found is None:
        raise NothingToRun(f"There is no run {key}. To see them: python manage.py backfill list")
    return found


# Steering: what a person asks of a run


def pause(key: int, who: str) -> BackfillRun:
    """Ask the run to pause after its batch. Raises IllegalMove."""
    return _steer(key, who, lambda record: Status.PAUSING if record.is_held() else Status.PAUSED)


def resume(key: int, who: str) -> BackfillRun:
    """Let a paused run go on: the process that waits, or else the next one that is started."""
    waits = (Status.PAUSING, Status.PAUSED)
    return _steer(
        key,
        who,
        lambda record: Status.RUNNING if record.is_held() else Status.QUEUED,
        only_from=waits,
    )


def cancel(key: int, who: str) -> BackfillRun:
    """End the run for good, after its batch. What is filled stays filled."""
    return _steer(key, who, lambda record: Status.CANCELLING if record.is_held() else Status.CANCELLED)


def retry(key: int, who: str) -> BackfillRun:
    """Let the next process that is started take the run: it failed, was stopped, or its process is gone."""
    return _steer(
        key,
        who,
        lambda record: Status.QUEUED,
        only_from=(Status.FAILED, Status.STOPPED, Status.RUNNING),
        unless_held=True,
    )


def _steer(
    key: int,
    who: str,
    target: Callable[[BackfillRun], str],
    *,
    only_from: Sequence[str] = tuple(Status),
    unless_held: bool = False,
) -> BackfillRun:
    for _ in range(10):
        record = find(key)
        to = target(record)
        held = unless_held and record.is_held()
        if held or record.status not in only_from or record.status not in sources(to):
            raise IllegalMove(_illegal(record, to, held=held))
        if move(record, to, who):
            return records().get(pk=key)
    raise IllegalMove(f"Run {key} is moved by somebody else at this moment. Look at it, and try again.")


def _illegal(record: BackfillRun, to: str, *, held: bool) -> str:
    if held:
        return (
            f"Run {record.pk} ({record}) is at work: process {record.process} on {record.host}. "
            "Pause or cancel it instead."
        )
    return f"Run {record.pk} ({record}) is {record.status}, so it cannot become {Status(to).value}."


def move(record: BackfillRun, to: str, who: str, **changes: Any) -> bool:
    """Move the run from the state in which it was read; return False where somebody was quicker."""
    if to in OVER:
        changes |= {"open_key": None, "finished": timezone.now()}
    unchanged = records().filter(pk=record.pk, status=record.status, token=record.token)
    if not unchanged.update(status=to, **changes):
        return False
    note(record, f"{record.status} → {to}", who)
    return True


def note(record: BackfillRun, text: str, who: str = "") -> None:
    """Write an event of the run down."""
    BackfillEvent._base_manager.using(database()).create(run_id=record.pk, text=text, who=who)


# Holding: what the process that works does


def claim(target: Target, details: dict[str, Any]) -> BackfillRun:
    """Take the open run of the field on its alias, or a new one; its token grows by one.

    Raises AlreadyRunning while another process holds it, and RunPaused where a person paused it.
    """
    for _ in range(10):
        record = _open(target)
        if record.status == Status.CANCELLING and not record.is_held():
            move(record, Status.CANCELLED, "")
            continue
        _refuse(record)
        if move(record, Status.RUNNING, details["started_by"], **_taken(record), **details):
            return records().get(pk=record.pk)
    raise AlreadyRunning(
        f"{target.label} on {target.alias} is being taken by another process at this moment."
    )


def lease() -> timedelta:
    return timedelta(seconds=get("SAFEMIGRATE_LEASE_SECONDS"))


def _open(target: Target) -> BackfillRun:
    meta = target.model._meta
    names = {
        "app_label": meta.app_label,
        "model_name": meta.object_name,
        "field_names": "+".join(target.names),
        "alias": target.alias,
    }
    record, _ = records().get_or_create(open_key=open_key(target.label, target.alias), defaults=names)
    return record


def _taken(record: BackfillRun) -> dict[str, Any]:
    now = timezone.now()
    return {
        "token": F("token") + 1,
        "attempts": F("attempts") + 1,
        "lease_until": now + lease(),
        "heartbeat": now,
        "started": record.started or now,
        "finished": None,
        "error": "",
        "traceback": "",
        "waiting_for": "",
    }


def _refuse(record: BackfillRun) -> None:
    if record.is_held():
        raise AlreadyRunning(
            f"{record} is being filled already: run {record.pk}, by process {record.process} on {record.host}, "
            f"started by {record.started_by or 'somebody'}; {record.rows_done:,} rows so far."
        )
    if record.status in (Status.PAUSED, Status.PAUSING):
        raise RunPaused(
            f"{record} is paused (run {record.pk}), so it was not started. "
            f"To go on: python manage.py backfill resume {record.pk}"
        )


def is_kept() -> bool:
    """Can runs be recorded: is their table there?"""
    try:
        connection = connections[database()]
        kept = BackfillRun._meta.db_table in connection.introspection.table_names()
    except Error as error:
        say_once(f"Runs are not recorded: {str(error).strip()}. The fill goes on without.")
        return False
    if not kept:
        say_once(
            f"Runs are not recorded: {database()} has no table for them yet. The fill goes on without. "
            f"To have it: python manage.py migrate safemigrate --database {database()}"
        )
    return kept


_said: set[str] = set()


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def person() -> str:
    """Return the name of the user of the operating system, as far as it is known."""
    with suppress(Exception):
        return getpass.getuser()[:150]
    return ""
