"""How a run that workers share ends: well, or by an error."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from django.db import transaction
from django.utils import timezone

from safemigrate import signals
from safemigrate.conf import get
from safemigrate.engine.keys import key_to_json
from safemigrate.exceptions import BadRow, BadRows, TooManyRetries
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import leases, store
from safemigrate.runs.recorder import storable
from safemigrate.runs.status import Status

logger = logging.getLogger("safemigrate")

#: What an earlier attempt left is not said of the next one.
CLEAN: dict[str, Any] = {"error": "", "traceback": "", "bad_rows": []}


def succeed(run: BackfillRun, end: BackfillRange) -> bool:
    """Close a run of which no row is NULL any more, together with its end: whoever dies leaves both open."""
    with transaction.atomic(using=store.database()):
        closed = leases.end(end) and _close(run, Status.SUCCEEDED, **CLEAN, total_is_exact=True)
        transaction.set_rollback(not closed, using=store.database())
    if closed:
        logger.info("%s: run %s succeeded", run, run.pk)
        store.send_signal(signals.run_finished, store.find(run.pk))
    return closed


def fail(run: BackfillRun, error: Exception) -> None:
    """End a run by an error; the other workers stop after their batches."""
    trace = "".join(traceback.format_exception(error))
    told: dict[str, Any] = {"error": storable(str(error)), "traceback": storable(trace)}
    if isinstance(error, BadRows):
        told["bad_rows"] = [[key_to_json(row.key), storable(row.reason)] for row in error.examples]
    if _close(run, Status.FAILED, finished=timezone.now(), **told):
        failed = store.find(run.pk)
        store.note(failed, storable(str(error)).splitlines()[0])
        logger.error("%s: run %s failed: %s", run, run.pk, error)
        store.send_signal(signals.run_failed, failed, error=error)


def _close(run: BackfillRun, status: str, **changes: Any) -> bool:
    """Move the run there, from whatever state it is in by now; False where it is no longer this one's."""
    for _ in range(10):
        record = store.find(run.pk)
        if record.token != run.token or not store.may(record, status):
            return False
        if status == Status.SUCCEEDED:
            changes["rows_total"] = record.rows_done
        if store.move(record, status, "", lease_until=None, waiting_for="", **changes):
            return True
    return False


def too_many(run: BackfillRun) -> BadRows | None:
    """Return the error of a run whose ranges, all together, have more bad rows than it may have."""
    most = get("SAFEMIGRATE_MAX_BAD_ROWS")
    found = [
        BadRow(key, reason)
        for bad in leases.of(run).values_list("bad_rows", flat=True)
        for key, reason in bad
    ]
    if len(found) <= most:
        return None
    listed = "\n".join(f"  {row}" for row in found[:10])
    return BadRows(
        f"more than {most:,} rows of {run} got no value. The run stopped there (SAFEMIGRATE_MAX_BAD_ROWS). The "
        f"first 10:\n{listed}\nCorrect these rows or the populate, and go on: {run.command}",
        count=len(found),
        examples=found[:most],
    )


def attempts_exhausted(part: BackfillRange) -> TooManyRetries:
    why = f"the last error was: {part.error}" if part.error else "their workers died without a word"
    return TooManyRetries(
        f"Range {part.number} of run {part.run_id}, from {part.first} to {part.last}, was tried "
        f"{part.attempts - 1} times, and {why}. What is filled stays filled. When the cause is gone: "
        f"python manage.py backfill retry {part.run_id}"
    )
