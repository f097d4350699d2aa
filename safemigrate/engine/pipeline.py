"""Who does the batches of a fill beside the caller: a thread that writes, or several that do whole batches."""

from __future__ import annotations

import logging
import os
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
from multiprocessing import get_context, parent_process
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from time import monotonic
from typing import Any, Protocol

import django
from django.db import Error, connections
from django.utils.module_loading import import_string

from safemigrate import conf
from safemigrate.backends import for_connection, get_backend
from safemigrate.connections import Beside
from safemigrate.engine.batch_runner import (
    BatchFailed,
    ComputedInDatabase,
    ComputedInPython,
    DoneByFunction,
    Made,
    Work,
    written,
)
from safemigrate.engine.batches import Batches, Range
from safemigrate.exceptions import BadRow

logger = logging.getLogger("safemigrate")

#: Rows filled, rows that got no value, and the seconds that the batch's own work took.
Done = tuple[int, list[BadRow], float]
Begin = Callable[[Range], Callable[[], "Future[Done]"]]

#: A pool that is broken, no more threads or processes to be had, and those that may not have children.
FAILED_TO_START = (Error, RuntimeError, OSError, AssertionError)
#: The seconds after which rows that were read before are read again.
LONG = 1.0


class Workers(Protocol):
    def take(self, batch: Range, before: Callable[[], None]) -> Iterator[tuple[Range, Done | None]]:
        """Take a batch on, and yield those that have ended, in their order; None is for the caller to do.

        `before` is called just before it is written; it may wait.
        """

    def rest(self) -> Iterator[tuple[Range, Done | None]]:
        """Wait for those under way, and yield them."""

    def close(self) -> None: ...


class Sequential:
    """The caller does each batch itself."""

    def take(self, batch: Range, before: Callable[[], None]) -> Iterator[tuple[Range, Done | None]]:
        before()
        yield batch, None

    def rest(self) -> Iterator[tuple[Range, Done | None]]:
        return iter(())

    def close(self) -> None: ...


@dataclass
class Pool:
    """Up to `most` batches are under way in an executor. One that fails there is left to the caller.

    `begin` does what the caller can do of a batch in the meantime, and returns what starts the rest of it.
    """

    executor: Executor
    begin: Begin
    most: int
    opened: list[Any] = field(default_factory=list)  # the connections of its threads
    batches: Sequence[Batches] = ()  # where the others cannot know them themselves
    under_way: deque[tuple[Range, Future[Done]]] = field(default_factory=deque)
    warned: bool = False

    def take(self, batch: Range, before: Callable[[], None]) -> Iterator[tuple[Range, Done | None]]:
        start, read = self.begin(batch), monotonic()
        yield from self._ended()
        while self._is_full():
            wait(self._open(), return_when=FIRST_COMPLETED)
            yield from self._ended()
        before()
        if monotonic() - read > LONG:
            start = self.begin(batch)
        self.under_way.append((batch, _started(start)))

    def sees(self, session: tuple[Any, ...]) -> bool:
        """Do the others mean the same table? SET search_path, SET ROLE, a test's database are the caller's alone."""
        try:
            if self.executor.submit(_session, *self.batches).result() == session:
                return True
            logger.info(
                "other connections would see another table: this one was given a schema, a role, or a database"
            )
        except FAILED_TO_START as error:
            logger.warning("No other worker could start (%s). This process goes on alone.", error)
        return False

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
            self._warn("A batch failed beside this process, which does it again: %s", error)
        except BrokenExecutor as error:
            self._warn("One of the processes is gone (%s). This one goes on alone.", error)
        return batch, None

    def _warn(self, text: str, error: Exception) -> None:
        # Once is enough to know of it: it may be every batch from now on.
        (logger.debug if self.warned else logger.warning)(text, str(error).strip())
        self.warned = True

    def close(self) -> None:
        try:
            self.executor.shutdown(cancel_futures=True)
        finally:
            for connection in self.opened:
                connection.close()


def chosen(work: Work, batches: Batches, number: int, work_factory: Sequence[str] = ()) -> Workers:
    """Return who shall do the batches: `number` threads for an UPDATE, or processes for a function.

    The work_factory is what another process finds the same work by: the dotted path of a function that returns
    (work, batches), and its arguments. Without one a function runs in this process alone, and a thread writes
    for it, as SAFEMIGRATE_WRITER_THREAD says. In a transaction, and where a database has one writer, the caller
    is alone.
    """
    connection = connections[batches.alias]
    alone = connection.in_atomic_block or not connection.get_autocommit()
    if alone or not for_connection(connection).writes_at_once:
        return Sequential()
    session, workers = _session(batches), _started_for(work, batches, number, work_factory)
    if workers is None or workers.sees(session):
        return workers or Sequential()
    workers.close()
    return Sequential()


def _started_for(work: Work, batches: Batches, number: int, work_factory: Sequence[str]) -> Pool | None:
    if isinstance(work, ComputedInDatabase):
        return _threads(work, batches, number) if number > 1 else None
    if not isinstance(work, ComputedInPython | DoneByFunction):
        return None
    if number > 1 and work_factory and work.may_be_shared:
        return _processes(work_factory, number)
    if isinstance(work, DoneByFunction) or not (work.may_be_apart and conf.get("SAFEMIGRATE_WRITER_THREAD")):
        return None
    return _writer(work, batches)


def _writer(work: ComputedInPython, batches: Batches) -> Pool:
    """Return a thread that writes one batch while the caller reads and computes the next."""
    pool, opened = _pool(batches.alias, 1)
    write = cache(lambda: get_backend(connections[batches.alias]).writer(work.target))

    def finish(made: Made, took: float) -> Done:
        began = monotonic()
        return written(write(), made), made.bad, took + monotonic() - began

    def begin(batch: Range) -> Callable[[], Future[Done]]:
        began = monotonic()
        try:
            made = work.made(batches, batch)
        except (Error, BatchFailed) as error:
            return partial(_failed, error)
        return partial(pool.submit, finish, made, monotonic() - began)

    return Pool(pool, begin, 1, opened, [batches])


def _started(start: Callable[[], Future[Done]]) -> Future[Done]:
    try:
        return start()
    except FAILED_TO_START as error:
        return _failed(BrokenExecutor(str(error)))


def _failed(error: Exception) -> Future[Done]:
    future: Future[Done] = Future()
    future.set_exception(error)
    return future


def _threads(work: Work, batches: Batches, number: int) -> Pool:
    pool, opened = _pool(batches.alias, number)
    return Pool(
        pool, lambda batch: partial(pool.submit, _do, work, batches, batch), number, opened, [batches]
    )


def _pool(alias: str, number: int) -> tuple[ThreadPoolExecutor, list[Any]]:
    """Return threads, and their connections, which the caller that ends the threads has to close."""
    opened: list[Any] = []
    beside = Beside()

    def share_connection() -> None:
        beside()
        connections[alias].inc_thread_sharing()
        opened.append(connections[alias])

    return ThreadPoolExecutor(number, "safemigrate", share_connection), opened


def _do(work: Work, batches: Batches, batch: Range) -> Done:
    began = monotonic()
    try:
        rows, bad = work(batches, batch)
    except Error:
        for_connection(connections[batches.alias]).drop_if_lost()
        raise
    return rows, bad, monotonic() - began


def _session(batches: Batches | None = None) -> tuple[Any, ...]:
    """Return what decides which table another connection means; in a process, that of its own work."""
    batches = batches or (_found and _found[1])
    return for_connection(connections[batches.alias]).session(batches.model) if batches else ()


def _processes(work_factory: Sequence[str], number: int) -> Pool:
    # Forked ones would share this process's connections, and its threads' locks.
    pool = ProcessPoolExecutor(number, get_context("spawn"), partial(_find_work, Beside(), *work_factory))
    return Pool(pool, lambda batch: partial(pool.submit, _do_found, batch), number)


_found: tuple[Work, Batches] | None = None


def _find_work(beside: Beside, path: str, *arguments: str) -> None:
    global _found
    signal(SIGINT, SIG_IGN)  # Ctrl-C is for the one that hands the batches out.
    Thread(target=_end_with_parent, daemon=True).start()
    django.setup()
    beside()
    _found = import_string(path)(*arguments)
    for_connection(connections[_found[1].alias]).filling().__enter__()  # Up to the end of the process.


def _end_with_parent() -> None:
    """Leave nothing behind where the first process was killed: what is not committed is rolled back."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_found(batch: Range) -> Done:
    assert _found is not None
    return _do(*_found, batch)
