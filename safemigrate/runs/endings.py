"""How a run ends: well, by an error, by a limit, or as it was asked to."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.dispatch import Signal
from django.utils import timezone

from safemigrate import signals
from safemigrate.engine.keys import key_to_json
from safemigrate.exceptions import BadRow, BadRows, RunCancelled
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import leases, store
from safemigrate.runs.status import Status, end_of

logger = logging.getLogger("safemigrate")

#: What an earlier attempt left, which the next one does not show.
CLEAN: dict[str, Any] = {"error": "", "traceback": "", "bad_rows": []}

SIGNALS: dict[str, Signal] = {
    Status.SUCCEEDED: signals.run_finished,
    Status.FAILED: signals.run_failed,
    Status.STOPPED: signals.run_stopped,
    Status.PAUSED: signals.run_stopped,
    Status.CANCELLED: signals.run_stopped,
}


def end(run: BackfillRun, error: BaseException | None, **changes: Any) -> None:
    """Move the run, with these changes, to the state that the error leads to, and send its signal.

    Does nothing where the run is no longer the caller's. A pause or a cancel that was asked for in the last moment
    is answered too.
    """
    to = outcome(error)
    text = "" if error is None or to == Status.STOPPED else storable(str(error))
    trace = "".join(traceback.format_exception(error)) if error is not None and to == Status.FAILED else ""
    changes |= {"error": text, "traceback": storable(trace), "finished": timezone.now()}
    if isinstance(error, BadRows) and (run.is_shared or not run.is_cursor):
        changes.setdefault("bad_rows", stored(error.examples))
    if reached := _move(run, to, changes):
        _report(run, reached, text, error)


def succeed(run: BackfillRun, last: BackfillRange) -> bool:
    """End a shared run together with its last range: a worker that dies leaves both open."""
    with transaction.atomic(using=store.database()):
        # What a worker did in its last second before it died, only its range knows.
        done = {"rows_done": leases.rows_done(leases.of(run))} if run.is_cursor else {}
        reached = _move(run, Status.SUCCEEDED, CLEAN | done) if leases.end(last) else ""
        transaction.set_rollback(not reached, using=store.database())
    if reached:
        _report(run, reached)
    return bool(reached)


def outcome(error: BaseException | None) -> str:
    """Return the state that a run ends in after this error."""
    if error is None:
        return Status.SUCCEEDED
    if isinstance(error, RunCancelled):
        return Status.CANCELLED
    return (
        Status.STOPPED if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit) else Status.FAILED
    )


def stored(bad: Sequence[BadRow]) -> list[list[Any]]:
    """Return bad rows as a record keeps them: key and reason."""
    return [[key_to_json(row.key), storable(row.reason)] for row in bad]


def storable(text: str) -> str:
    """Return the text without what a database may refuse: the null character, and half characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def fields(run: BackfillRun) -> dict[str, Any]:
    """Return the fields of a line in the log that is about the run."""
    return {
        "run": run.pk,
        "label": run.label,
        "alias": run.alias,
        "status": str(run.status),
        "rows": run.rows_done,
        "rows_total": run.rows_total,
        "seconds": round(run.seconds_running, 3),
    }


def _move(run: BackfillRun, to: str, changes: dict[str, Any]) -> str:
    """Move the run, and return where it has come to; nothing where it is no longer the caller's."""
    for _ in range(10):
        record = store.records().filter(pk=run.pk, token=run.token).first()
        if record is None:
            return ""
        reached = end_of(record.status, to)
        if not store.may(record, reached):
            return ""
        if reached == Status.SUCCEEDED:
            rows = changes.get("rows_done", record.rows_done)
            changes = changes | {"rows_total": rows, "total_is_exact": True}
        if store.move(record, reached, "", **changes | {"lease_until": None, "waiting_for": ""}):
            return reached
    return ""


def _report(run: BackfillRun, status: str, text: str = "", error: BaseException | None = None) -> None:
    ended = store.records().filter(pk=run.pk).first() or run
    if text:
        store.note(ended, text.splitlines()[0])
    failed = status == Status.FAILED
    if failed:
        # In a migrate or a command the user sees the error itself; Sentry and the like see it here.
        extra = fields(ended) | {"on_terminal": ended.is_shared}
        trace = "".join(traceback.format_exception(error))
        shown = (
            error if storable(trace) == trace else None
        )  # A half character would break the handlers of others.
        logger.error("%s: run %s %s: %s", ended, ended.pk, status, text, exc_info=shown, extra=extra)
    else:
        logger.info("%s: run %s %s", ended, ended.pk, status, extra=fields(ended))
    store.send_signal(SIGNALS[status], ended, **({"error": error} if failed else {}))
