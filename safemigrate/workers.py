"""Who does the batches of a fill beside the caller: a thread that writes, or several that do whole batches."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from signal import SIG_IGN, SIGINT, signal
from time import monotonic
from typing import Any, Protocol

import django
from django.db import Error, connections
from django.utils.module_loading import import_string

from safemigrate import conf
from safemigrate.batches import Batches, Range
from safemigrate.databases import for_connection, writes
from safemigrate.exceptions import BadRow
from safemigrate.work import BatchFailed, ComputedInDatabase, ComputedInPython, Made, Work, written

logger = logging.getLogger("safemigrate")

#: Rows filled, rows that got no value, and the seconds that the batch's own work took.
Done = tuple[int, list[BadRow], float]
Begin = Callable[[Range], Callable[[], "Future[Done]"]]


class Workers(Protocol):
    def take(self, batch: Range, before: Callable[[], bool]) -> Iterator[tuple[Range, Done | None]]:
        """Take a batch on, and yield those that have ended, in their order; None is for the caller to do.

        `before` is called just before it is written, and returns True where what was read by then may be old.
        """

    def rest(self) -> Iterator[tuple[Range, Done | None]]:
        """Wait for those under way, and yield them."""

    def close(self) -> None: ...


class Alone:
    """The caller does each batch itself."""

    def take(self, batch: Range, before: Callable[[], bool]) -> Iterator[tuple[Range, Done | None]]:
        before()
        yield batch, None

    def rest(self) -> Iterator[tuple[Range, Done | None]]:
        return iter(())

    def close(self) -> None: ...


@dataclass
class Beside:
    """Up to `most` batches are under way in an executor. One that fails there is left to the caller.

    `begin` does what the caller can do of a batch meanwhile, and returns what starts the rest of it.
    """

    executor: Executor
    begin: Begin
    most: int
    opened: list[Any] = field(default_factory=list)  # the connections of its threads
    under_way: deque[tuple[Range, Future[Done]]] = field(default_factory=deque)
    broken: bool = False

    def take(self, batch: Range, before: Callable[[], bool]) -> Iterator[tuple[Range, Done | None]]:
        start = self.begin(batch)
        yield from self._ended()
        while self._is_full():
            wait(self._open(), return_when=FIRST_COMPLETED)
            yield from self._ended()
        if before():
            start = self.begin(batch)
        try:
            self.under_way.append((batch, start()))
        except BrokenExecutor as error:
            self.under_way.append((batch, _failed(error)))

    def _is_full(self) -> bool:
        # Those that have ended wait for the ones before them, but not without end.
        return len(self._open()) >= self.most or len(self.under_way) >= 2 * self.most

    def _open(self) -> list[Future[Done]]:
        return [future for _, future in self.under_way if not future.done()]

    def _ended(self) -> Iterator[tuple[Range, Done | None]]:
        while self.under_way and self.under_way[0][1].done():
            yield self._next()

    def rest(self) -> Iterator[tuple[Range, Done | None]]:
        while self.under_way:
            yield self._next()

    def _next(self) -> tuple[Range, Done | None]:
        batch, future = self.under_way.popleft()
        try:
            return batch, future.result()
        except (Error, BatchFailed) as error:
            logger.debug("a batch is done again: %s", error)
        except BrokenExecutor as error:
            if not self.broken:
                logger.warning("One of the processes is gone (%s). This one goes on alone.", error)
            self.broken = True
        return batch, None

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)
        for connection in self.opened:
            connection.close()


def chosen(work: Work, batches: Batches, number: int, recipe: Sequence[str] = ()) -> Workers:
    """Return who shall do the batches: `number` threads for an UPDATE, or processes for a function.

    The recipe is what another process finds the same work by: the dotted path of a function that returns
    (work, batches), and its arguments. Without one a function runs in this process alone, and a thread writes
    for it, as SAFEMIGRATE_WRITER_THREAD says. In a transaction, and where a database has one writer, the caller
    is alone.
    """
    connection = connections[batches.alias]
    if connection.in_atomic_block or not for_connection(connection).writes_at_once:
        return Alone()
    if isinstance(work, ComputedInDatabase):
        return _threads(work, batches, number) if number > 1 else Alone()
    if not (isinstance(work, ComputedInPython) and work.may_be_apart):
        return Alone()
    if number > 1 and recipe:
        return _processes(recipe, number)
    return _writer(work, batches) if conf.get("SAFEMIGRATE_WRITER_THREAD") else Alone()


def _writer(work: ComputedInPython, batches: Batches) -> Beside:
    """Return a thread that writes one batch while the caller reads and computes the next."""
    pool, opened = _pool(batches.alias, 1)
    write = cache(lambda: writes.for_target(for_connection(connections[batches.alias]), work.target))

    def rest(made: Made, took: float) -> Done:
        began = monotonic()
        return written(write(), made), made.bad, took + monotonic() - began

    def begin(batch: Range) -> Callable[[], Future[Done]]:
        began = monotonic()
        try:
            made = work.made(batches, batch)
        except (Error, BatchFailed) as error:
            return partial(_failed, error)
        return partial(pool.submit, rest, made, monotonic() - began)

    return Beside(pool, begin, 1, opened)


def _failed(error: Exception) -> Future[Done]:
    future: Future[Done] = Future()
    future.set_exception(error)
    return future


def _threads(work: Work, batches: Batches, number: int) -> Beside:
    pool, opened = _pool(batches.alias, number)
    return Beside(pool, lambda batch: partial(pool.submit, _do, work, batches, batch), number, opened)


def _pool(alias: str, number: int) -> tuple[ThreadPoolExecutor, list[Any]]:
    """Return threads, and their connections, which whoever ends the threads has to close."""
    opened: list[Any] = []

    def begin() -> None:
        connections[alias].inc_thread_sharing()
        opened.append(connections[alias])

    return ThreadPoolExecutor(number, "safemigrate", begin), opened


def _do(work: Work, batches: Batches, batch: Range) -> Done:
    began = monotonic()
    rows, bad = work(batches, batch)
    return rows, bad, monotonic() - began


def _processes(recipe: Sequence[str], number: int) -> Beside:
    # Forked ones would share this process's connections, and its threads' locks.
    pool = ProcessPoolExecutor(number, get_context("spawn"), partial(_find_work, *recipe))
    return Beside(pool, lambda batch: partial(pool.submit, _do_found, batch), number)


_found: tuple[Work, Batches] | None = None


def _find_work(path: str, *arguments: str) -> None:
    global _found
    signal(SIGINT, SIG_IGN)  # Ctrl-C is for the one that hands the batches out.
    django.setup()
    _found = import_string(path)(*arguments)


def _do_found(batch: Range) -> Done:
    assert _found is not None
    return _do(*_found, batch)
