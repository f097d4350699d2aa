"""The runs as they are recorded: found, controlled by users, and taken by the one process that works.

The rows that are NULL decide what is to be done, never a record: it shows a run, lets users control it, keeps
two processes off the same field, and saves the time to find where the last one stopped.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import Error, connections, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F, QuerySet
from django.dispatch import Signal
from django.utils import timezone

from safemigrate.conf import get
from safemigrate.connections import is_shared, schema_of
from safemigrate.exceptions import AlreadyRunning, IllegalMove, InvalidParameters, NothingToRun, RunPaused
from safemigrate.models import BackfillEvent, BackfillRun, open_key
from safemigrate.runs.heartbeat import machine
from safemigrate.runs.status import OVER, Status, sources
from safemigrate.signals import run_queued
from safemigrate.types import field_of

if TYPE_CHECKING:
    from safemigrate.engine.batches import Target

logger = logging.getLogger("safemigrate")


#: The runs that this process is at work on.
working: set[int] = set()


def database() -> str:
    """Return the alias that the runs are kept on."""
    return str(get("SAFEMIGRATE_RUNS_DATABASE"))


def records() -> QuerySet[BackfillRun]:
    """Return all runs, newest first."""
    return BackfillRun._default_manager.using(database())


def where(alias: str) -> dict[str, str]:
    """Return what the runs on a database have in common: with django-tenants, of the schema that the caller is in."""
    return {"alias": alias, "schema": schema_of(alias)}


def find(key: int) -> BackfillRun:
    """Return the run of that number. Raises NothingToRun."""
    found = records().filter(pk=key).first()
    if found is None:
        raise NothingToRun(f"There is no run {key}. To see them: python manage.py backfill list")
    return found


# Actions: what a user asks of a run


@dataclass(frozen=True)
class Control:
    """Where it leads: a run that a process holds (None: it is refused), and one that none holds."""

    held: str | None
    free: str
    only_from: frozenset[str] = frozenset(Status)

    def target(self, record: BackfillRun) -> str | None:
        """Return the state that the run would come into, None where that is no legal move now."""
        to = self.held if record.is_held() else self.free
        legal = to is not None and record.status in self.only_from and record.status in sources(to)
        return to if legal else None


ACTIONS = {
    "pause": Control(Status.PAUSING, Status.PAUSED, frozenset(Status) - {Status.PAUSED}),
    "resume": Control(Status.RUNNING, Status.QUEUED, frozenset({Status.PAUSING, Status.PAUSED})),
    "cancel": Control(Status.CANCELLING, Status.CANCELLED),
    "retry": Control(None, Status.QUEUED, frozenset({Status.FAILED, Status.STOPPED, Status.RUNNING})),
}


def pause(key: int, who: str) -> BackfillRun:
    """Ask the run to pause after its batch. Raises IllegalMove."""
    return _control(key, who, ACTIONS["pause"])


def resume(key: int, who: str) -> BackfillRun:
    """Let a paused run go on: the process that waits, or else the next one that is started."""
    return _control(key, who, ACTIONS["resume"])


def cancel(key: int, who: str) -> BackfillRun:
    """End the run for good, after its batch. What is filled stays filled."""
    return _control(key, who, ACTIONS["cancel"])


def retry(key: int, who: str) -> BackfillRun:
    """Let the next process that is started take the run: it failed, was stopped, or its process is gone."""
    return _control(key, who, ACTIONS["retry"])


def _control(key: int, who: str, action: Control) -> BackfillRun:
    for _ in range(10):
        record = find(key)
        to = action.target(record)
        if to is None:
            raise IllegalMove(_illegal(record, action))
        if move(record, to, who, **_taken_away(to)):
            moved = records().get(pk=key)
            if to in (Status.QUEUED, Status.RUNNING):
                send_signal(run_queued, moved)
            return moved
    raise IllegalMove(
        f"Run {key} is being moved by another process at this moment. Look at it, and try again."
    )


def change(key: int, who: str, **wanted: int | None) -> BackfillRun:
    """Change the batch size, the rows per second or the workers of a run; None takes a change back.

    Who works on it sees it within a batch; workers, with the next range. Raises IllegalMove.
    """
    with transaction.atomic(using=database()):
        run = records().select_for_update().filter(pk=key).first() or find(key)
        if run.is_over:
            raise IllegalMove(f"Run {run.pk} ({run}) is {run.status}: nothing works on it any more.")
        if "workers" in wanted and not (run.is_shared and wanted["workers"]):
            raise IllegalMove(
                f"Run {run.pk} ({run}) is worked on by one process. Several workers share a run of a queue: "
                "backfill run --executor."
            )
        options = dict(run.options)
        if "workers" in wanted:
            options |= {"workers": wanted["workers"], "wanted": wanted["workers"]}
        own = options.get("set", {}) | {name: value for name, value in wanted.items() if name != "workers"}
        options["set"] = {name: value for name, value in own.items() if value is not None}
        records().filter(pk=run.pk).update(options=options)
        note(
            run,
            ", ".join(f"{name.replace('_', ' ')}: {value or 'as before'}" for name, value in wanted.items()),
            who,
        )
    return find(key)


def _taken_away(to: str) -> dict[str, Any]:
    """Return what keeps a process that only seemed to be gone from going on when it goes on."""
    return {"token": F("token") + 1} if to in (Status.QUEUED, Status.CANCELLED) else {}


def _illegal(record: BackfillRun, action: Control) -> str:
    to = action.held if record.is_held() else action.free
    if to is None:
        return f"Run {record.pk} ({record}) is at work: {_holder(record)}. Pause or cancel it instead."
    return _no_such_move(record, to)


def _holder(record: BackfillRun) -> str:
    if record.is_shared:
        return f"the workers of {record.executor}"
    return f"process {record.process} on {record.host}"


def _no_such_move(record: BackfillRun, to: str) -> str:
    return f"Run {record.pk} ({record}) is {record.status}, so it cannot become {Status(to).value}."


def move(record: BackfillRun, to: str, who: str, **changes: Any) -> bool:
    """Move the run from the state in which it was read; return False where another process was quicker.

    Raises IllegalMove for what is not in the table of moves.
    """
    if record.status not in sources(to):
        raise IllegalMove(_no_such_move(record, to))
    if to in OVER:
        changes |= {"open_key": None, "finished": timezone.now()}
    unchanged = records().filter(pk=record.pk, status=record.status, token=record.token)
    with transaction.atomic(using=database()):  # A reader that sees the move sees also who made it.
        if not unchanged.update(status=to, **changes):
            return False
        note(record, f"{record.status} → {to}", who)
    return True


def send_signal(signal: Signal, record: BackfillRun, **arguments: Any) -> None:
    """Send a signal of the run. A receiver that raises is logged, and stops nothing."""
    for receiver, answer in signal.send_robust(BackfillRun, run=record, **arguments):
        if isinstance(answer, Exception):
            # Django has logged the traceback; this says which run it was.
            logger.error("%r, a receiver of a signal of %s, raised %r", receiver, record, answer)


def may(record: BackfillRun, to: str) -> bool:
    """Is it a legal move?"""
    return record.status in sources(to)


def note(record: BackfillRun, text: str, who: str = "") -> None:
    """Write an event of the run down."""
    BackfillEvent._base_manager.using(database()).create(run_id=record.pk, text=text, who=who)


# Holding: what the process that works does


def claim(target: Target, details: dict[str, Any]) -> BackfillRun:
    """Take the open run of the field on its alias, or a new one; its token grows by one.

    Raises AlreadyRunning while another process holds it, and RunPaused where a person paused it.
    """

    def take(record: BackfillRun) -> bool:
        moved = move(record, Status.RUNNING, details["started_by"], **_taken(record), **details)
        if moved:
            _warn_of_another_populate(record, target, details)
        return moved

    return _moved(target, take)


def is_renewed(target: Target, seconds: float) -> bool:
    """Watch the lease of a field's open run for so many seconds: does its process give signs of life?"""
    key = open_key(target.label, target.alias)

    def lease_until() -> Any:
        return records().filter(open_key=key).values_list("lease_until", flat=True).first()

    before = lease_until()
    time.sleep(seconds)
    return bool(lease_until() != before)


def queue(target: Target, details: dict[str, Any]) -> BackfillRun:
    """Let the open run of the field on its alias, or a new one, wait for the workers of a queue.

    Raises AlreadyRunning while it is held, and RunPaused where a person paused it.
    """
    changes = details | {"token": F("token") + 1, "lease_until": None, "error": "", "traceback": ""}
    changes |= {"finished": None, "waiting_for": ""}

    def enqueue(record: BackfillRun) -> bool:
        moved = _to_queue(record, changes)
        if moved:
            _warn_of_another_populate(record, target, details)
        return moved

    return _moved(target, enqueue)


def _warn_of_another_populate(record: BackfillRun, target: Target, details: dict[str, Any]) -> None:
    """Say so, in the log and in the run, where what is resumed was begun by code that gives other values."""
    if record.rows_done and record.parameters != details.get("parameters", record.parameters):
        text = f"The parameters of {record} are others now: {record.rows_done:,} rows were done with the first ones."
        note(record, text)
        logger.warning("%s", text, extra={"run": record.pk})
    before, now = record.fingerprint, details.get("fingerprint", "")
    version = before.partition(":")[0]
    if not (record.rows_done and before and now.startswith(f"{version}:") and before != now):
        return
    quote = connections[target.alias].ops.quote_name
    columns = ", ".join(f"{quote(field_of(target.model, name).column)} = NULL" for name in target.null_fields)
    was = (
        f"{record.populate!r}, is {details['populate']!r}"
        if record.populate != details["populate"]
        else "changed"
    )
    what = "code" if target.backfill else "populate"
    text = (
        f"The {what} of {record} is another one than when the run began (it was {was}): {record.rows_done:,} rows "
        "have their value by the first one and keep it, the others get theirs by this one. If the first values are "
        "right, nothing is to be done. If not, stop the run (Ctrl-C), and set them back"
        + (
            f", those that the site wrote too:\n    UPDATE {quote(target.model._meta.db_table)} SET {columns};\nThen"
            if columns
            else ". Then"
        )
        + " run the same command again."
    )
    note(record, text)
    logger.warning("%s", text, extra={"run": record.pk})


def _moved(target: Target, move_it: Callable[[BackfillRun], bool]) -> BackfillRun:
    """Move the open run of a field that no process holds, tried again where another one is quicker."""
    for _ in range(10):
        record = _open(target)
        if record.status == Status.CANCELLING and not record.is_held():
            move(record, Status.CANCELLED, "")
            continue
        _refuse(record)
        if record.is_cursor != target.is_cursor:
            # The way back of the migration, or the class before it was changed: where it is, is no place of this one.
            note(record, "given up: the rows are to be gone through in another way now")
            move(record, Status.CANCELLED, "")
            continue
        _refuse_other_parameters(record, target)
        if move_it(record):
            return records().get(pk=record.pk)
    raise AlreadyRunning(
        f"{target.label} on {target.alias} is being taken by another process at this moment."
    )


def _refuse_other_parameters(record: BackfillRun, target: Target) -> None:
    """Raise InvalidParameters where a run that does each row once would go on behind its cursor with other rows."""
    same = _as_text(record.parameters) == _as_text(target.parameters)
    if same or not (record.is_cursor and record.rows_done):
        return
    raise InvalidParameters(
        f"{record} has a run that is not over, with other parameters: run {record.pk}, {record.rows_done:,} rows done. "
        f"To go on with it:\n    {record.next_command}\nTo begin anew with yours, end it first:\n"
        f"    python manage.py backfill cancel {record.pk}"
    )


def _as_text(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters in one form, whether they were typed, or come from code or a record."""
    kept = json.loads(json.dumps(dict(parameters), cls=DjangoJSONEncoder))
    return {name: str(value) for name, value in kept.items()}


def _to_queue(record: BackfillRun, changes: dict[str, Any]) -> bool:
    if record.is_cursor and record.last_key is not None:  # Rows that came in since are not the run's.
        changes = changes | {"last_key": record.last_key}
    if record.status != Status.QUEUED:
        return move(record, Status.QUEUED, changes["started_by"], **changes)
    waiting = records().filter(pk=record.pk, status=record.status, token=record.token)
    return bool(waiting.update(**changes))


def close(target: Target) -> None:
    """Close the run of a fill that found nothing NULL, if it was left open: its process died after its last batch."""
    if not _has_table():
        return
    record = open_run(target.label, target.alias)
    if record and not record.is_held():
        _succeed(record)


def _succeed(record: BackfillRun) -> None:
    move(record, Status.SUCCEEDED, "", error="", traceback="", waiting_for="", lease_until=None)


def finalize(alias: str, migrations: Collection[str]) -> None:
    """Close the runs of these migrations that no process holds and that are applied: nothing is NULL any more.

    Their process died after its last batch, or the rows got their values otherwise: by the site, or by hand.
    """
    if not migrations or not _has_table():
        return
    open_ = records().filter(**where(alias), migration__in=migrations).exclude(status__in=OVER)
    applied = MigrationRecorder(connections[alias]).applied_migrations()
    for record in open_:
        if tuple(record.migration.split(".")) not in applied:
            continue
        if not record.is_held():
            _succeed(record)


def lease() -> timedelta:
    return timedelta(seconds=get("SAFEMIGRATE_LEASE_SECONDS"))


def _open(target: Target) -> BackfillRun:
    made = _names(target) | {"is_cursor": target.is_cursor}
    record, _ = records().get_or_create(open_key=open_key(target.label, target.alias), defaults=made)
    return record


def _names(target: Target) -> dict[str, Any]:
    """Return what a run is known by."""
    meta = target.model._meta
    return {
        "app_label": meta.app_label,
        "model_name": meta.object_name,
        "field_names": "+".join(target.names),
        "backfill": target.backfill,
        **where(target.alias),
    }


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
        "next_run": None,
    }


def is_taken(record: BackfillRun) -> bool:
    """Is a process at the run, as far as this one can see?"""
    return record.is_held() and not _is_left_over(record)


def _refuse(record: BackfillRun) -> None:
    if is_taken(record):
        raise AlreadyRunning(
            f"{record} is being filled already: run {record.pk}, by {_holder(record)}, "
            f"started by {record.started_by or 'an unknown user'}; {record.rows_done:,} rows so far."
        )
    if record.status in (Status.PAUSED, Status.PAUSING):
        raise RunPaused(
            f"{record} is paused (run {record.pk}), so it was not started. "
            f"To go on: python manage.py backfill resume {record.pk}"
        )


def _is_left_over(record: BackfillRun) -> bool:
    """Is it a run of this very process that it could not write the end of?"""
    here = record.process == os.getpid() and record.machine == machine() != ""
    return here and record.pk not in working


def unreadable() -> str:
    """Return why the runs cannot be read, and what to do about it; "" where they can."""
    alias = database()
    kept = f'The runs are kept in the database "{alias}" (SAFEMIGRATE_RUNS_DATABASE)'
    try:
        if not _has_table():
            schema = schema_of(alias)
            tenants = (
                f" (in the schema {schema}; --schemas all looks into those of the tenants)" if schema else ""
            )
            return (
                f"{kept}, which has no table for them yet{tenants}: python manage.py migrate safemigrate "
                f"--database {alias}"
            )
        records().exists()
    except Error as error:
        drop_lost_connection()
        said = " ".join(str(error).split())
        return (
            f"{kept}, which cannot be read: {said}. A field is filled without it. See whether its server is up, and "
            f"DATABASES is right; if a column is missing: python manage.py migrate safemigrate --database {alias}"
        )
    return ""


def open_run(label: str, alias: str) -> BackfillRun | None:
    """Return the run of that label on the alias that is not over, if there is one."""
    return records().filter(open_key=open_key(label, alias)).first()


def last_run(target: Target) -> BackfillRun | None:
    """Return the newest run of the target, as far as the runs can be read."""
    return _last(**_names(target))


def _last(**names: str) -> BackfillRun | None:
    try:
        return records().filter(**names).first() if _has_table() else None
    except Error:
        drop_lost_connection()
        return None


def filled_on(alias: str) -> list[tuple[str, str, str]]:
    """Return app, model and fields of each fill of a migration that was recorded on the alias."""
    if not _has_table():
        return []
    fills = records().filter(**where(alias), backfill="").order_by()
    return sorted(fills.values_list("app_label", "model_name", "field_names").distinct())


#: What is noted with a run whose migration was reversed afterwards.
REVERSED = "the migration was reversed"


def is_passed(label: str, alias: str, **same: str) -> bool:
    """Has the one pass of a fill that leaves rows NULL been made, and not been reversed since?

    `same` is what the run must have been, its fingerprint and migration. False where the runs cannot be read.
    """
    app_label, model_name, names = label.split(".")
    run = _last(
        app_label=app_label, model_name__iexact=model_name, field_names=names, backfill="", **where(alias)
    )
    if run is None or run.status != Status.SUCCEEDED or not run.is_cursor:
        return False
    is_same = all(getattr(run, name) == value for name, value in same.items())
    return is_same and not run.events.using(database()).filter(text=REVERSED).exists()


def reverse(target: Target) -> None:
    """Note that what the last run did was reversed with its migration, so that it is done anew."""
    run = last_run(target)
    if run is not None and run.status == Status.SUCCEEDED:
        note(run, REVERSED)


def succeeded(label: str, alias: str, parameters: Mapping[str, Any]) -> bool:
    """Has a run of that Backfill, with these parameters, succeeded on the alias, as far as the runs can be read?"""
    try:
        ended = records().filter(**where(alias), backfill=label, status=Status.SUCCEEDED)
        with_what = ended.values_list("parameters", flat=True) if _has_table() else []
        return any(_as_text(parameters).items() <= _as_text(given).items() for given in with_what)
    except Error:
        drop_lost_connection()
        return False


def is_kept() -> bool:
    """Can runs be recorded: is their table there?"""
    try:
        kept = _has_table()
    except Error as error:
        warn_once(f"Runs are not recorded: {str(error).strip()}. The fill goes on without.")
        return False
    if not kept:
        warn_once(
            f"Runs are not recorded: {database()} has no table for them yet. The fill goes on without. "
            f"To have it: python manage.py migrate safemigrate --database {database()}"
        )
    return kept


def _has_table() -> bool:
    table = BackfillRun._meta.db_table
    return table in connections[database()].introspection.table_names() or is_shared(database(), table)


def drop_lost_connection() -> None:
    """Close this thread's connection to the runs where it is lost, so that the next use makes a new one."""
    connection = connections[database()]
    if connection.connection is not None and not connection.in_atomic_block and not connection.is_usable():
        connection.close()


@contextmanager
def reconnecting() -> Iterator[None]:
    """Let what is tried again after an error find a connection that is there."""
    try:
        yield
    except Error:
        drop_lost_connection()
        raise


_warned: set[str] = set()


def warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning(text)


def person() -> str:
    """Return the name of the user of the operating system, as far as it is known."""
    with suppress(Exception):
        return getpass.getuser()[:150]
    return ""
