"""The ranges of a run that several workers share: cut, taken under a lease, given back, ended.

They are cut as they are asked for, each by one look into the primary key's index, so that a run begins at once
however large the table is and however its keys lie. How large the next one is follows from the time that the
last one took.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NoReturn

from django.db import transaction
from django.db.models import F, Q, QuerySet, Sum
from django.utils import timezone

from safemigrate import conf
from safemigrate.engine.batch_size import Pace
from safemigrate.engine.batches import Batches, Range
from safemigrate.engine.keys import key_from_json, key_to_json
from safemigrate.exceptions import BadRow, BadRows, TooManyRetries
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.retry import backoff
from safemigrate.runs import store
from safemigrate.runs.status import OVER, Status
from safemigrate.runs.store import lease

#: How long a range should take, and how many rows it may have.
PACE = Pace(seconds=10.0, start=10_000, smallest=200, largest=500_000)
#: So many ranges at least for each worker, as far as the number of rows is known.
EACH = 4
#: The longest that a worker waits before it looks again, and before a range is tried again, in seconds.
LOOK_AGAIN, LONGEST = 5.0, 60.0


class Wait(Exception):
    """There is nothing to take now: others hold what is left, or the database has workers enough."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class NotNeeded(Exception):
    """This worker is one too many, or the run is no longer what it was."""


def records() -> QuerySet[BackfillRange]:
    return BackfillRange._default_manager.using(store.database())


def of(run: BackfillRun) -> QuerySet[BackfillRange]:
    return records().filter(run_id=run.pk)


def held(ranges: QuerySet[BackfillRange]) -> QuerySet[BackfillRange]:
    """Return those that a worker holds now."""
    return ranges.filter(ended=None, lease_until__gt=timezone.now())


def cut_first(run: BackfillRun, batches: Batches) -> BackfillRange:
    """Cut the first range: after the key where an earlier process stopped, else from the first row to fill.

    May read the table up to that row.
    """
    if run.is_cursor and run.cursor is not None:  # What a process did that began the run alone.
        passed = {"ended": timezone.now(), "first": run.cursor, "last": run.cursor}
        passed |= {"bad_rows": run.bad_rows, "rows_done": run.rows_done}
        records().get_or_create(run_id=run.pk, number=0, defaults=passed)
    after = key_from_json(batches.model, run.cursor)
    inclusive = after is None
    start = batches.first_todo() if inclusive else after
    last = key_from_json(batches.model, run.last_key)
    part = None if start is None else batches.next(start, last, _size(run), inclusive=inclusive)
    return _create(run, 1, part)


def take(run: BackfillRun, batches: Batches, worker: str) -> BackfillRange:
    """Take a range that no worker holds under a lease, or the next one, or, when all have ended, the end.

    A worker that takes one waits briefly for the others that do. Raises Wait and NotNeeded.
    """
    while (taken := _take(run, worker)) is None:
        _cut(run, batches)  # Under no lock: it reads as many keys of an index as a range may have.
    return taken


def _take(run: BackfillRun, worker: str) -> BackfillRange | None:
    """Take a range that has been cut; None where none is free. Raises Wait and NotNeeded."""
    limit = run.options["workers"]
    open_ = _open_on(run.alias)  # Read before the transaction, or it would be what is seen in all of it.
    with transaction.atomic(using=store.database()):
        if not _alone(run, open_) or held(of(run)).count() >= limit:
            raise NotNeeded
        found = None
        if may := held(records().filter(run__alias=run.alias)).count() < limit:
            found = _free(run)
        if found is not None:
            _lease(run, found, worker)
    if not may:
        _wait_for_a_place(run)
    return found


def _open_on(alias: str) -> list[int]:
    open_ = store.records().filter(alias=alias).exclude(status__in=OVER)
    return list(open_.order_by("pk").values_list("pk", flat=True))


def _alone(run: BackfillRun, open_: list[int]) -> bool:
    """Keep all others from taking a range on this database until the end of the transaction.

    An UPDATE that changes nothing does so on every database, SQLite among them. One after another, always in the same
    order: of two who lock several rows by one statement, each may have what the other one waits for.
    """
    for key in open_:
        store.records().filter(pk=key).update(alias=run.alias)
    return store.records().filter(pk=run.pk, token=run.token, status=Status.RUNNING).exists()


def _free(run: BackfillRun) -> BackfillRange | None:
    now = timezone.now()
    free = Q(lease_until=None) | Q(lease_until__lte=now)
    ready = Q(not_before=None) | Q(not_before__lte=now)
    return of(run).filter(free, ready, ended=None).order_by("number").first()


def _cut(run: BackfillRun, batches: Batches) -> None:
    """Cut the next range, or the end. Raises Wait while others hold what comes before the end."""
    newest = of(run).order_by("-number").first()
    if newest is None:  # The process that began the run died before it cut the first one.
        cut_first(run, batches)
        return
    if newest.is_the_end:
        _wait_for_others(run)
        raise NotNeeded
    after, last = (key_from_json(batches.model, key) for key in (newest.last, run.last_key))
    part = batches.next(after, last, _size(run, newest), inclusive=False)
    if part is None:
        _wait_for_others(run)
    _create(run, newest.number + 1, part)


def _wait_for_others(run: BackfillRun) -> None:
    """Raise Wait while there are ranges that others hold, or that are to be tried again later."""
    now = timezone.now()
    moments = of(run).filter(ended=None).values_list("lease_until", "not_before")
    if left := [max(filter(None, pair), default=now) - now for pair in moments]:
        raise Wait(min(max(min(left).total_seconds(), 0.2), LOOK_AGAIN))


def _wait_for_a_place(run: BackfillRun) -> NoReturn:
    """Wait until the workers of other runs leave the database, with a lease: the run is not stalled."""
    now = timezone.now()
    until = now + lease() + timedelta(seconds=LOOK_AGAIN)
    why = f"other runs have the {run.options['workers']} workers that may fill on {run.alias} at once"
    waits = store.records().filter(pk=run.pk, token=run.token, status=Status.RUNNING)
    waits.update(lease_until=until, heartbeat=now, waiting_for=why)
    raise Wait(LOOK_AGAIN)


def _size(run: BackfillRun, newest: BackfillRange | None = None) -> int:
    """Return the rows of the next range: from the time that one of them took, and so that there are some for each."""
    rows = newest.size if newest is not None else PACE.start
    timed = None if newest is None else _timed(run)
    if timed is not None:
        took = timed.seconds if timed.ended else timed.seconds * timed.size / timed.rows_done
        rows = PACE.next_size(timed.size, took)
    share = run.rows_total // (EACH * run.options["workers"])
    return max(min(rows, share or rows), PACE.smallest)


def _timed(run: BackfillRun) -> BackfillRange | None:
    """Return the newest range that has a time: those that were just cut have none."""
    timed = Q(ended__isnull=False) | Q(rows_done__gt=0)
    return of(run).filter(timed, seconds__gt=0, last__isnull=False).order_by("-number").first()


def _create(run: BackfillRun, number: int, part: Range | None) -> BackfillRange:
    """Write the range down; None is the end of the run."""
    keys: dict[str, Any] = {}
    if part is not None:
        keys = {"first": key_to_json(part.first), "last": key_to_json(part.last), "after": part.after}
    keys["size"] = part.size if part else 0
    # The process that began the run, and a worker, may both cut the first one.
    return records().get_or_create(run_id=run.pk, number=number, defaults=keys)[0]


def _lease(run: BackfillRun, found: BackfillRange, worker: str) -> None:
    until = timezone.now() + lease()
    found.was_left = found.lease_until is not None
    found.lease_until, found.worker, found.not_before = until, worker, None
    found.token, found.attempts = found.token + 1, found.attempts + 1
    # Not where a router has objects written or read: that may be a replica.
    here = store.database()
    found.save(using=here, update_fields=["lease_until", "worker", "not_before", "token", "attempts"])
    # The one that had it before may have saved until now.
    found.refresh_from_db(using=here, fields=["cursor", "rows_done", "seconds", "bad_rows"])
    store.records().filter(pk=run.pk).update(lease_until=until, heartbeat=timezone.now(), enqueue_attempts=0)


def owned(part: BackfillRange) -> QuerySet[BackfillRange]:
    """Return the range as long as no other worker has taken it; nothing otherwise."""
    return records().filter(pk=part.pk, token=part.token, ended=None)


def release(part: BackfillRange) -> bool:
    """Let any worker take it at once: it was left cleanly."""
    return bool(owned(part).update(lease_until=None, attempts=0))


def postpone(part: BackfillRange, error: str) -> bool:
    """Let anybody take it later: the later the more often it failed, and never all at the same moment."""
    later = timezone.now() + timedelta(seconds=backoff(part.attempts, 1.0, LONGEST))
    return bool(owned(part).update(lease_until=None, not_before=later, error=error))


def end(part: BackfillRange) -> bool:
    """Note that all of it is seen to; False where another worker has taken it."""
    return bool(owned(part).update(lease_until=None, ended=timezone.now(), error=""))


def too_many_bad_rows(run: BackfillRun, most: int) -> BadRows | None:
    """Return the error of a run whose ranges, all together, have more bad rows than `most`."""
    kept = of(run).values_list("bad_rows", flat=True)
    found = [BadRow(key, reason) for bad in kept for key, reason in bad]
    if len(found) <= most:
        return None
    listed = "\n".join(f"  {row}" for row in found[:10])
    return BadRows(
        f"more than {most:,} rows of {run} got no value. The run stopped there (SAFEMIGRATE_MAX_BAD_ROWS). The "
        f"first 10:\n{listed}\nCorrect these rows or the populate, and go on: {run.command}",
        count=len(found),
        examples=found[:most],
    )


def attempts_exhausted(part: BackfillRange) -> TooManyRetries | None:
    """Return the error of a range that failed, or killed its worker, more often than a range may."""
    if part.attempts <= conf.get("SAFEMIGRATE_TASK_RETRIES") + 1:
        return None
    why = f"the last error was: {part.error}" if part.error else "their workers died without a word"
    return TooManyRetries(
        f"Range {part.number} of run {part.run_id}, from {part.first} to {part.last}, was tried "
        f"{part.attempts - 1} times, and {why}. What is filled stays filled. When the cause is gone: "
        f"python manage.py backfill retry {part.run_id}"
    )


def rows_done(ranges: QuerySet[BackfillRange]) -> int:
    return int(ranges.aggregate(sum=Sum("rows_done"))["sum"] or 0)


def reopen(run: BackfillRun) -> None:
    """Give the ranges that have not ended another full number of tries; the end comes after those still to be cut."""
    if run.is_cursor and (done := rows_done(of(run).filter(last__isnull=True))):
        first = of(run).order_by("number").values_list("pk", flat=True)[0]
        records().filter(pk=first).update(rows_done=F("rows_done") + done)
    of(run).filter(last__isnull=True).delete()
    if not run.is_cursor:
        of(run).exclude(ended=None).update(bad_rows=[])  # The end looks at those rows again.
    of(run).filter(ended=None).update(attempts=0, not_before=None, lease_until=None, token=F("token") + 1)
