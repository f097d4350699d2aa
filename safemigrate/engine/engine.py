"""The engine: range after range of primary keys, each committed by itself, until no row has the mark.

The mark is NULL, or a condition: the rows themselves say what is left. So the engine can be stopped or killed at any
instruction and started again, a value that the application wrote in the meantime is never overwritten, and a
range done twice changes nothing. Where a row does not say it, the mark is the position that is saved with the run,
in the transaction of the batch itself: what is rolled back with a batch is its position too.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from django.db import Error, OperationalError, connections

from safemigrate import conf
from safemigrate.backends import for_connection
from safemigrate.engine import context
from safemigrate.engine.batch_runner import (
    BatchFailed,
    ComputedInPython,
    DoneByFunction,
    LeftRow,
    Work,
    reason,
    work_for,
)
from safemigrate.engine.batch_size import configured
from safemigrate.engine.batches import MAX_KEYS, Range, Target, keys_of
from safemigrate.engine.pipeline import Done, Sequential, Workers, chosen
from safemigrate.exceptions import BadRow, BadRows, InvalidPopulate, TooManyRetries, TryAgain
from safemigrate.populate.sources import InBatches, InPython, calls_function, fingerprint
from safemigrate.retry import backoff
from safemigrate.throttles import Throttles

logger = logging.getLogger("safemigrate")

EXAMPLES = 10
#: The rows that are looked at one by one, to see whether what was written leaves the mark in place: at the end, and
#: after the first batch.
LOOKED_AT, LOOKED_FIRST = 50, 3
LINES = 50
MAX_REMAINING_KEYS = 10_000
MAX_PASSES = 20
#: The tries for a locked row while writers wait for the end of the fill.
AT_ONCE = 3
#: The batches after which it pays to have others work too.
ALONE = 3
#: The seconds over which the rows in a second are counted: what was missed before is not caught up.
LOOKED_BACK = 10.0
#: The longest sleep between two questions to the throttles, in seconds.
SLEEP = 0.1

Result = TypeVar("Result")


@dataclass
class Run:
    """A fill as it goes: what an observer sees."""

    label: str
    alias: str
    total: int  # about how many rows the table has; those to fill once they are counted
    rows: int = 0
    before: int = 0  # the rows that were filled before it was resumed
    is_counted: bool = False
    cursor: Any = None
    resume_after: Any = None  # where an observer knows that all before it was seen to; it saves the search
    last: Any = None  # the largest key that is the run's, where that was fixed when it began
    batch_size: int = 0
    batches: int = 0
    took: float = 0.0  # the last batch's time, in seconds
    filled: int = 0  # the last batch's rows
    fixed_size: int | None = None  # the rows of each batch, where a person has set them
    rows_per_second: int | None = None  # no more than these
    waiting: str = ""  # why it waits now, as a throttle says it
    waited: float = 0.0  # the seconds given to throttles
    bad: list[BadRow] = field(default_factory=list)
    target: Target | None = None
    title: str = ""  # the populate in words
    fingerprint: str = ""  # what it is known by, should it be another one when the run is resumed
    output: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))  # the last lines that it said
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.before + self.rows

    @property
    def of(self) -> int:
        """About how many rows it is in all, with those of before."""
        return max(self.before + self.total if self.is_counted else self.total, self.done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def working(self) -> float:
        """The seconds without those spent on waiting."""
        return max(self.seconds - self.waited, 0.0)


class Observer(Protocol):
    """Is informed of a run after each committed batch, and again and again while it waits; ends it by raising.

    `hold` returns why the run has to wait, or None. `save` keeps, in the batch's own transaction, the position that a
    run with a cursor has come to (None: it stays where it is), the rows that the batch did, and all bad rows as they
    are then. Raises LeaseLost, and AlreadySaved where an earlier try of the batch was committed after all.
    """

    def start(self, run: Run) -> None: ...
    def advance(self, run: Run) -> None: ...
    def hold(self, run: Run) -> str | None: ...
    def save(self, run: Run, cursor: Any, rows: int, bad: Sequence[BadRow]) -> None: ...
    def end(self, run: Run, error: BaseException | None) -> None: ...


class AlreadySaved(Exception):
    """The batch is done: the answer to its commit was lost, and so it was tried again."""


class NullObserver:
    """Keeps nothing. The column alone says what is left."""

    def start(self, run: Run) -> None: ...
    def advance(self, run: Run) -> None: ...
    def hold(self, run: Run) -> str | None: ...
    def save(self, run: Run, cursor: Any, rows: int, bad: Sequence[BadRow]) -> None: ...
    def end(self, run: Run, error: BaseException | None) -> None: ...


def of_the_app() -> Observer:
    observer: Observer = context.new_observer() if context.new_observer else NullObserver()
    return observer


new_observer: Callable[[], Observer] = of_the_app


def use_observer(factory: Callable[[], Observer]) -> None:
    """Make every later backfill inform an observer that `factory` makes."""
    global new_observer
    new_observer = factory


def fill(
    target: Target,
    source: InBatches,
    *,
    batch_size: int | None = None,
    at_once: bool = False,
    throttles: Sequence[str] | None = None,
    max_bad_rows: int | None = None,
    before: Callable[[], None] | None = None,
) -> Run:
    """Fill every row that has the mark of the target, in committed batches, and return what was done.

    Holds no lock across batches; in a batch, only those of the rows that it writes. Run twice, or after a
    crash, it does what is left. Rows that get no value are passed over, and raise BadRows at the end, or
    when there are more than SAFEMIGRATE_MAX_BAD_ROWS. Errors that pass (a deadlock, a lost connection)
    are tried again, SAFEMIGRATE_RETRIES times, and raise TooManyRetries then. `at_once` is for the few rows
    that came in at the end, while new ones without a value are refused: no throttle and no observer may hold it.
    Several batches may be under way at once, each on a connection of its own, as `pipeline.chosen` says. `before` is
    called when the run is this process's, and nothing is done yet.
    """
    filling = Filling(
        target, source, batch_size, at_once=at_once, throttles=throttles, max_bad_rows=max_bad_rows
    )
    return filling.run(before)


def refuse_repeated_keys(target: Target, source: InBatches) -> None:
    """Raise InvalidPopulate where two rows may have the same key, by which Python writes its values."""
    if not for_connection(connections[target.alias]).has_unique_key(target.model):
        raise InvalidPopulate(
            f"{target.label} on {target.alias}: no unique index of {target.model._meta.db_table} covers the primary "
            f"key of the model, so two rows may have the same one, and {source.title} writes its values by it: a value "
            "could go into another row. Give the table its primary key, or populate by an expression, which the "
            "database computes in each row."
        )


class Locked(Exception):
    """A batch waited for a lock that another session holds, and was rolled back."""


class NotSaved(OperationalError):
    """The position of a batch could not be written, which was rolled back with it."""


#: Why a row is among the bad ones of a run with a cursor that will come back to it.
LOCKED = "locked by another session"


class Filling:
    """One run of the engine, or several of its ranges, one after another."""

    def __init__(
        self,
        target: Target,
        source: InBatches,
        batch_size: int | None,
        *,
        at_once: bool = False,
        workers: int | None = None,
        throttles: Sequence[str] | None = None,
        max_bad_rows: int | None = None,
    ) -> None:
        self.target, self.source, self.at_once = target, source, at_once
        self.number = conf.get("SAFEMIGRATE_WORKERS") if workers is None else workers
        self.paths = conf.get("SAFEMIGRATE_THROTTLES") if throttles is None else throttles
        self.workers: Workers = Sequential()
        self.started = False
        self.connection = connections[target.alias]
        self.database = for_connection(self.connection)
        self.batches = target.batches
        self.pace = configured(batch_size, calls=calls_function(source))
        self.max_bad = conf.get("SAFEMIGRATE_MAX_BAD_ROWS") if max_bad_rows is None else max_bad_rows
        self.state = self._new_state(self.pace.start)
        self.observer: Observer = NullObserver()
        self.bad: dict[Any, BadRow] = {}
        #: A pace, since when it is kept, and the rows done before.
        self.second: tuple[int, float, float] = (0, 0.0, 0)
        self.left: set[Any] = set()  # the keys of the last rows that a function left as they are
        self.locked: set[Any] = (
            set()
        )  # the keys of rows that were locked by others when they were to be written

    def _new_state(self, batch_size: int) -> Run:
        target, source = self.target, self.source
        return Run(
            target.label,
            target.alias,
            0,
            batch_size=batch_size,
            target=target,
            title=source.title,
            fingerprint=fingerprint(source, target.where),
            rows_per_second=conf.get("SAFEMIGRATE_ROWS_PER_SECOND"),
        )

    @cached_property
    def work(self) -> Work:
        work = work_for(self.target, self.source, self.database)
        if isinstance(work, ComputedInPython | DoneByFunction):
            refuse_repeated_keys(self.target, self.source)
        return work

    @cached_property
    def throttles(self) -> Throttles:
        return Throttles(self.target.model, self.target.alias, self.paths)

    def run(self, before: Callable[[], None] | None = None) -> Run:
        """Fill the whole table; of one that is full no observer is informed."""

        def fill_all(observer: Observer) -> None:
            if before is not None:
                before()
            self._fill_all(observer)

        if self.batches.any_left():
            self.state.total = self.database.estimated_rows(self.target.model)
            observer = NullObserver() if self.at_once else new_observer()
            self._recorded(observer, fill_all)
        return self.state

    def run_range(self, part: Range, observer: Observer) -> Run:
        """Fill one range. What gets no value is in `Run.bad`: it is no error before the end."""
        return self._begun_again(observer, partial(self._fill_range, part))

    def run_end(self, observer: Observer) -> Run:
        """Fill what the ranges left: rows that came in, and those that got no value. Raises BadRows."""
        return self._begun_again(observer, self._fill_left)

    def _begun_again(self, observer: Observer, fill: Callable[[Observer], None]) -> Run:
        self.bad = {}
        self.state = self._new_state(self.state.batch_size)
        self._recorded(observer, fill)
        return self.state

    def _recorded(self, observer: Observer, fill: Callable[[Observer], None]) -> None:
        error: BaseException | None = None
        _ = self.throttles, self.work  # What is wrong with them is no part of a run.
        self.observer = observer
        observer.start(self.state)
        self.bad = {row.key: row for row in self.state.bad}
        try:
            with self.database.filling():
                fill(observer)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, KeyboardInterrupt):
                self._gather()
            raise
        finally:
            self.state.bad = list(self.bad.values())
            try:
                self._dismiss()
            finally:
                observer.end(self.state, error)

    def _dismiss(self) -> None:
        workers, self.workers, self.started = self.workers, Sequential(), False
        workers.close()

    def _fill_range(self, part: Range, observer: Observer) -> None:
        if self.state.resume_after is None:
            self._go_through(observer, self._next(part.first, part.last, inclusive=not part.after), part.last)
        else:
            self._go_through(observer, self._next(self.state.resume_after, part.last), part.last)

    def _fill_left(self, observer: Observer) -> None:
        if self.target.is_cursor:
            self._come_back(observer)
            return
        keys = self._remaining_keys()
        if len(keys) == MAX_REMAINING_KEYS:
            self._fill_all(observer)
        else:
            self._fill_rest(observer, keys)

    def _fill_all(self, observer: Observer) -> None:
        self._pass(observer)
        if self.target.is_cursor:
            self._come_back(observer)
            return
        keys = self._remaining_keys()
        if len(keys) == MAX_REMAINING_KEYS and self.state.resume_after is not None:
            # Much is to be done before the place where it was resumed: the table is another one by now.
            self.state.resume_after = None
            self._pass(observer)
            keys = self._remaining_keys()
        self._fill_rest(observer, keys)

    def _fill_rest(self, observer: Observer, keys: list[Any]) -> None:
        """Fill these, and those that come in during it. Raises BadRows for what stays without a value."""
        passes = tries = 0
        while keys and passes < MAX_PASSES:
            self.locked.clear()
            self.left.clear()
            self._catch_up(observer, keys)
            left, tried = self._remaining_keys(), set(keys)
            stuck = [key for key in left if key in tried and key not in self.left]
            free = [key for key in stuck if key not in self.locked]
            if any(self._stays(key) for key in free[:LOOKED_AT]):
                raise self._bad_rows(free)
            if not stuck and self.left.issuperset(left):
                return
            if stuck:
                tries += 1
                self._wait_for_locked(observer, stuck, tries)
            else:
                passes += 1
            keys = left
        # Rows keep coming in faster than they are filled: the constraint that follows will stop them.

    def _stays(self, key: Any) -> bool:
        """Does a row still have the mark when it was just written, or may the site have changed it since?"""
        if key in self.bad or not self.target.backfill:
            return True
        one = Range(key, key)

        def written_and_seen() -> bool:
            with self.database.transaction():
                filled, _bad = self.work(self.batches, one)
                return bool(filled) and self.batches.todo.filter(one.condition).exists()

        try:
            return self._again(written_and_seen)
        except Error as error:
            if not self.database.is_row_locked(error):
                raise
            self.locked.add(key)
            return False

    def _come_back(self, observer: Observer) -> None:
        """Do once more the rows that were bad or locked when the cursor passed them. Raises BadRows."""
        tries = 0
        while True:
            for key in list(self.bad):
                self._wait(observer)
                self._fill(Range(key, key), passed=True)
                self._advance(observer)
            locked = [key for key, row in self.bad.items() if row.reason == LOCKED]
            if not locked:
                break
            tries += 1
            self._wait_for_locked(observer, locked, tries)
        if self.bad:
            raise self._bad_rows(list(self.bad))

    def _wait_for_locked(self, observer: Observer, keys: Sequence[Any], tries: int) -> None:
        """Wait a little for rows that another session has locked, all others being filled; raise after the last try."""
        most = AT_ONCE if self.at_once else conf.get("SAFEMIGRATE_LOCK_TRIES")
        holders = self.database.blockers([self.database.quote(self.target.model._meta.db_table)], "writers")
        by = f"; blocked by: {'; '.join(holders)}" if holders else ""
        waiting = f"{len(keys):,} rows are locked by other sessions{by}"
        if tries >= most:
            raise TooManyRetries(
                f"{self.target.label} on {self.target.alias}: {waiting}. They were tried {tries} times and are still "
                f"without a value; the first keys: {', '.join(map(str, keys[:EXAMPLES]))}. All other rows are filled. "
                "End what holds them, or wait for it, and run the same command again: it carries on from here."
            )
        pause = conf.get("SAFEMIGRATE_LOCK_PAUSE")
        extra = {"label": self.target.label, "alias": self.target.alias, "rows": self.state.rows}
        logger.log(
            logging.INFO if tries > 1 else logging.WARNING, "%s: %s", self.target.label, waiting, extra=extra
        )
        self.state.waiting = waiting
        observer.advance(self.state)
        time.sleep(random.uniform(pause, 2 * pause))
        self.state.waiting = ""

    def _pass(self, observer: Observer) -> None:
        """Go once through the table by key, from the first row that is still to be filled."""
        last = self._again(self.batches.last) if self.state.last is None else self.state.last
        self._go_through(observer, None if last is None else self._first(last), last)

    def _go_through(self, observer: Observer, batch: Range | None, last: Any) -> None:
        while batch is not None:
            for each, done in self.workers.take(batch, partial(self._wait, observer)):
                self._finish(observer, each, done)
            batch = self._next(batch.last, last)
            self._start_pool()
        for each, done in self.workers.rest():
            self._finish(observer, each, done)

    def _start_pool(self) -> None:
        """Let others work too, once there was work enough for it to pay."""
        if self.started or self.at_once or self.target.is_cursor or self.state.batches < ALONE:
            return
        self.started = True
        work_factory = context.work_factory_of(self.target)
        self.workers = self._again(lambda: chosen(self.work, self.batches, self.number, work_factory))

    def _finish(self, observer: Observer, batch: Range, done: Done | None) -> None:
        if done is None:
            self._fill(batch)
        else:
            self._note_done(batch, *done)
        if self.state.batches == 1:
            self._refuse_endless(batch)
        self.state.cursor = batch.last
        self._advance(observer)

    def _refuse_endless(self, batch: Range) -> None:
        """Raise BadRows after the first batch where a function does not end the condition: all would be written so."""
        if self.target.where is None or not (self.target.is_marked and isinstance(self.source, InPython)):
            return
        rows = self.batches.todo.filter(batch.condition).order_by("pk")
        passed = self.left | self.locked
        left = [key for key in self._again(lambda: keys_of(rows)) if key not in passed]
        if len(left) > self.max_bad and all(self._stays(key) for key in left[:LOOKED_FIRST]):
            raise self._bad_rows(left, more=True)

    def _gather(self) -> None:
        """Count what others had under way when an error ended the run: it is committed."""
        with suppress(Exception):  # It must not hide why the run ended.
            for _, done in self.workers.rest():
                self.state.rows += done[0] if done else 0

    def _first(self, last: Any) -> Range | None:
        if self.state.resume_after is not None:
            return self._next(self.state.resume_after, last)
        first = self._again(self.batches.first_todo)
        return None if first is None else self._next(first, last, inclusive=True)

    def _remaining_keys(self) -> list[Any]:
        return self._again(lambda: self.batches.remaining_keys(MAX_REMAINING_KEYS))

    def _next(self, after: Any, last: Any, *, inclusive: bool = False) -> Range | None:
        size = self._size()
        return self._again(lambda: self.batches.next(after, last, size, inclusive=inclusive))

    def _size(self) -> int:
        """Return the rows of the next batch: no more than may be written in a second."""
        size, most = self.state.fixed_size or self.state.batch_size, self.state.rows_per_second
        return min(size, most) if most else size

    def _too_fast(self) -> str | None:
        """Return why it has to wait, where it has written as many rows as it may by now."""
        most, now = self.state.rows_per_second, time.monotonic()
        if not most:
            return None
        pace, since, rows = self.second
        if pace != most:
            self.second = pace, since, rows = most, now, self.state.rows
        elif now - since > LOOKED_BACK:  # What was written too early is still owed.
            owed = max(self.state.rows - rows - most * (now - since), 0.0)
            self.second = pace, since, rows = most, now, self.state.rows - owed
        if (self.state.rows - rows) / most <= now - since:
            return None
        return f"no more than {most:,} rows a second"

    def _catch_up(self, observer: Observer, keys: Sequence[Any]) -> None:
        """Fill rows that came in, or were passed over, behind the pass."""
        size = min(self._size(), MAX_KEYS)
        for start in range(0, len(keys), size):
            batch = Range.of(keys[start : start + size])
            self._wait(observer)
            self._fill(batch)
            self._advance(observer)

    def _wait(self, observer: Observer) -> None:
        """Wait as long as a throttle says so. Nothing is locked in the meantime, and no pace sees it."""
        if self.at_once:
            return
        state, started, before = self.state, time.monotonic(), self.state.waited
        while reason := (
            observer.hold(state) or self._too_fast() or self._again(lambda: self.throttles.reason(state))
        ):
            for each, done in self.workers.rest():  # Nothing is under way while it waits.
                self._finish(observer, each, done)
            waited = time.monotonic() - started
            state.waiting, state.waited = reason, before + waited
            observer.advance(state)
            # In proportion, so that a short pause is no longer than it is meant to be.
            time.sleep(min(max(waited / 4, SLEEP / 50), SLEEP))
        state.waiting, state.waited = "", before + time.monotonic() - started

    def _advance(self, observer: Observer) -> None:
        self.state.bad = list(self.bad.values())
        observer.advance(self.state)

    def _fill(self, batch: Range, *, passed: bool = False) -> None:
        """Do a batch, or what can be done of it. A run with a cursor has `passed` the rows that it comes back to."""
        try:
            done = self._try(batch, passed=passed)
        except BatchFailed as error:
            self._split(batch, error, passed=passed)
        except Locked as error:
            if self.target.is_cursor:
                self._split(batch, error, passed=passed)
            else:
                self._go_round(batch)
        else:
            self._note_done(batch, *done)

    def _note_done(self, batch: Range, filled: int, bad: Sequence[BadRow], took: float) -> None:
        self.state.rows += filled
        self.state.filled = filled
        self.state.batches += 1
        self.state.took = took
        if batch.size:
            self.state.batch_size = self.pace.next_size(batch.size, took)
        self._note(bad)
        extra = {"label": self.target.label, "alias": self.target.alias, "rows": filled, "seconds": took}
        logger.debug("%s: %s rows in %.3f s", self.target.label, filled, took, extra=extra)

    def _split(self, batch: Range, error: Exception, *, passed: bool = False) -> None:
        """Halve a batch that the database refuses until the one row at fault stands alone."""
        halves = self._again(lambda: self.batches.halves(batch))
        if len(halves) == 1 and halves[0].first == halves[0].last:
            self._pass_over(halves[0], LOCKED if isinstance(error, Locked) else reason(error), passed=passed)
            return
        for half in halves:
            self._fill(half, passed=passed)

    def _pass_over(self, batch: Range, why: str, *, passed: bool) -> None:
        """Note the one row of a batch as bad; a run with a cursor saves that it has passed it."""
        row = BadRow(batch.last, why)
        if self.target.is_cursor:
            self._again(lambda: self._save(batch, 0, [row], passed=passed))
            self._note_saved(batch, [row], passed=passed)
        self._note([row])

    def _go_round(self, batch: Range) -> None:
        """Fill what is free of a batch; the rows that another session has locked come last."""
        free, locked = self._again(lambda: self.batches.round_locked(batch))
        self.locked.update(locked)
        for part in free:
            self._fill(part)

    def _note(self, bad: Sequence[BadRow]) -> None:
        for row in bad:
            if not isinstance(row, LeftRow):
                self.bad[row.key] = row
            elif len(self.left) < MAX_REMAINING_KEYS:
                self.left.add(row.key)
        if len(self.bad) > self.max_bad:
            raise self._bad_rows(list(self.bad), more=True)

    def _try(self, batch: Range, *, passed: bool = False) -> Done:
        """Fill one batch; return rows, bad rows, and the time of the last try."""

        def once() -> Done:
            started = time.monotonic()
            try:
                filled, bad = self._work_once(batch, passed=passed)
            except NotSaved:
                raise
            except Error as error:
                if self.database.is_row_locked(error):
                    raise Locked from error
                if self.database.is_cancelled(error):
                    self.state.batch_size = max(batch.size // 2, 1) if batch.size else self.state.batch_size
                elif not self.database.is_fault_of_a_row(error):
                    raise
                raise BatchFailed(reason(error)) from error
            return filled, bad, time.monotonic() - started

        return self._again(once)

    def _work_once(self, batch: Range, *, passed: bool) -> tuple[int, list[BadRow]]:
        """Do the work on a batch; where there is a cursor, save it in the same transaction, or else right after it."""
        if not self.target.is_cursor:
            return self.work(self.batches, batch)
        same = self.target.alias == conf.get("SAFEMIGRATE_RUNS_DATABASE")
        rows, bad = 0, list[BadRow]()
        with suppress(AlreadySaved), self.database.transaction() if same else nullcontext():
            rows, bad = self.work(self.batches, batch)
            rows += sum(isinstance(row, LeftRow) for row in bad)
            if same:
                self._save(batch, rows, bad, passed=passed)
        if not same:
            with suppress(AlreadySaved):
                self._again(lambda: self._save(batch, rows, bad, passed=passed))
        self._note_saved(batch, bad, passed=passed)
        return rows, bad

    def _save(self, batch: Range, rows: int, bad: Sequence[BadRow], *, passed: bool) -> None:
        """Save with the run how far it is after this batch. Raises NotSaved."""
        cursor, known = None if passed else batch.last, self._bad_after(batch, bad, passed=passed)
        try:
            self.observer.save(self.state, cursor, rows, list(known.values()))
        except Error as error:
            raise NotSaved(f"the position of the run could not be saved: {str(error).strip()}") from error

    def _note_saved(self, batch: Range, bad: Sequence[BadRow], *, passed: bool) -> None:
        """Go on from there: it is committed, so that whatever is saved next must not fall behind it."""
        self.bad = self._bad_after(batch, bad, passed=passed)
        self.state.bad = list(self.bad.values())
        if not passed:
            self.state.cursor = batch.last

    def _bad_after(self, batch: Range, bad: Sequence[BadRow], *, passed: bool) -> dict[Any, BadRow]:
        known = self.bad | {row.key: row for row in bad if not isinstance(row, LeftRow)}
        if passed and batch.last not in {row.key for row in bad if not isinstance(row, LeftRow)}:
            known.pop(batch.last, None)
        return known

    def _again(self, do: Callable[[], Result]) -> Result:
        """Return what `do` returns, tried again after errors that pass."""
        tries = conf.get("SAFEMIGRATE_RETRIES")
        for attempt in range(tries + 1):
            try:
                return do()
            except Error as error:
                if not (isinstance(error, NotSaved) or self.database.is_transient(error)):
                    raise
                self._recover(error, attempt, tries)
            except TryAgain as error:
                self._recover(error, attempt, tries)
        raise AssertionError("unreachable: the last try raises")

    def _recover(self, error: Exception, attempt: int, tries: int) -> None:
        if attempt >= tries:
            raise TooManyRetries(
                f"{self.target.label} on {self.target.alias}: a batch failed {tries + 1} times, the last time "
                f"with: {error}. {self.state.rows:,} rows were filled and stay so; run the same command again "
                "to carry on."
            ) from error
        extra = {"label": self.target.label, "alias": self.target.alias, "rows": self.state.rows}
        text = "%s: trying the batch again after: %s"
        logger.warning(text, self.target.label, str(error).strip(), extra=extra)
        self.database.drop_if_lost()
        time.sleep(backoff(attempt, 0.1, 5.0))

    def _count(self, keys: Sequence[Any]) -> int:
        return len(keys) if len(keys) < MAX_REMAINING_KEYS else self.batches.count()

    def _bad_rows(self, keys: Sequence[Any], *, more: bool = False) -> BadRows:
        where, backfill = self.target.where, self.target.backfill
        requires = where is None and not self.target.is_cursor
        why = "its value came out as NULL"
        if backfill or where is not None:
            why = f"it still fulfils {where or 'the condition'} after it was written"
        examples = [self.bad.get(key, BadRow(key, why)) for key in keys[:EXAMPLES]]
        count = max(len(self.bad), len(keys)) if more else self._count(keys)
        listed = "\n".join(f"  {row}" for row in examples)
        how_many = f"more than {self.max_bad:,}" if more else f"{count:,}"
        others = f" All other rows are {'done' if backfill else 'filled'}."
        rest = " The run stopped there (SAFEMIGRATE_MAX_BAD_ROWS)." if more else others
        return BadRows(
            f"{how_many} rows of {self.target.label} on {self.target.alias} "
            + ("could not be done." if backfill else "got no value")
            + ("" if backfill else ", so the column was not made required." if requires else ".")
            + f"{rest} The first {len(examples)}, by primary key:\n{listed}\n"
            f"Correct these rows or {'the class, and run it' if backfill else 'the populate, and run migrate'} again: "
            "it carries on from here.",
            count=count,
            examples=examples,
        )
