"""Virtual time: real code in threads of which one runs at a time, and the devices that it waits for.

A thread that waits gives its turn away; the clock goes to the next moment at which anything happens. So hours pass
in seconds, and what runs is not slowed by how many run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from heapq import heappop, heappush
from itertools import count
from threading import Semaphore, Thread, local
from typing import Any


class Signal:
    """What one thread waits for until it has happened."""

    def __init__(self) -> None:
        self.fired = False
        self.waiting: Semaphore | None = None


class Clock:
    """Time in seconds. The thread that made it has the first turn; the others begin with `enter`."""

    def __init__(self, enter: Callable[[], None] = lambda: None) -> None:
        self.enter = enter
        self.now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ready: deque[Semaphore] = deque()
        self._mine = local()
        self.errors: list[BaseException] = []

    def at(self, moment: float, do: Callable[[], None]) -> None:
        heappush(self._events, (moment, next(self._order), do))

    def sleep(self, seconds: float) -> None:
        signal = Signal()
        self.at(self.now + seconds, partial(self.fire, signal))
        self.wait(signal)

    def spawn(self, function: Callable[[], Any]) -> Signal:
        """Let the function run in a thread of its own; return what happens when it has ended."""
        ended, turn = Signal(), Semaphore(0)

        def run() -> None:
            turn.acquire()
            self._mine.turn = turn
            try:
                self.enter()
                function()
            except BaseException as error:  # noqa: BLE001  the one who waits for the end raises it
                self.errors.append(error)
            self.fire(ended)
            self._next().release()

        Thread(target=run, daemon=True).start()
        self._ready.append(turn)
        return ended

    def fire(self, signal: Signal) -> None:
        signal.fired = True
        if signal.waiting is not None:
            self._ready.append(signal.waiting)

    def wait(self, signal: Signal) -> None:
        if signal.fired:
            return
        if not hasattr(self._mine, "turn"):
            self._mine.turn = Semaphore(0)
        signal.waiting = self._mine.turn
        following = self._next()
        if following is not signal.waiting:
            following.release()
            signal.waiting.acquire()

    def _next(self) -> Semaphore:
        while not self._ready:
            self.now, _, do = heappop(self._events)
            do()
        return self._ready.popleft()


class Processors:
    """So many cores, shared evenly by all who compute: with twice as many of them, each takes twice as long."""

    def __init__(self, clock: Clock, cores: float) -> None:
        self.clock, self.cores = clock, cores
        self.busy = 0.0  # core-seconds
        self._order, self._version = count(), 0
        self._jobs: list[tuple[float, int, Signal]] = []
        self._given = self._since = 0.0  # the seconds that each job was given up to now, and when that was

    def use(self, seconds: float) -> None:
        """Wait until so many seconds of one core were given to the caller."""
        if seconds <= 0:
            return
        self._go_on()
        signal = Signal()
        heappush(self._jobs, (self._given + seconds, next(self._order), signal))
        self._plan()
        self.clock.wait(signal)

    @property
    def _speed(self) -> float:
        return min(1.0, self.cores / len(self._jobs)) if self._jobs else 0.0

    def _go_on(self) -> None:
        passed = self.clock.now - self._since
        self._given += passed * self._speed
        self.busy += passed * self._speed * len(self._jobs)
        self._since = self.clock.now

    def _plan(self) -> None:
        self._version += 1
        if self._jobs:
            left = max(self._jobs[0][0] - self._given, 0.0)
            self.clock.at(self.clock.now + left / self._speed, partial(self._end, self._version))

    def _end(self, version: int) -> None:
        if version != self._version:  # Another one came or left in the meantime.
            return
        self._go_on()
        while self._jobs and self._jobs[0][0] <= self._given + 1e-9:
            self.clock.fire(heappop(self._jobs)[2])
        self._plan()


class Log:
    """A write-ahead log. Who commits waits for a flush; those who come during one share the next."""

    def __init__(self, clock: Clock, sync: float, bandwidth: float) -> None:
        self.clock, self.sync, self.bandwidth = clock, sync, bandwidth
        self.busy = 0.0
        self._flushing = False
        self._waiting: list[tuple[Signal, float]] = []

    def commit(self, size: float) -> None:
        signal = Signal()
        self._waiting.append((signal, size))
        if not self._flushing:
            self._flush()
        self.clock.wait(signal)

    def _flush(self) -> None:
        taken, self._waiting = self._waiting, []
        self._flushing = bool(taken)
        if taken:
            seconds = self.sync + sum(size for _, size in taken) / self.bandwidth
            self.busy += seconds
            self.clock.at(self.clock.now + seconds, partial(self._flushed, taken))

    def _flushed(self, taken: list[tuple[Signal, float]]) -> None:
        for signal, _ in taken:
            self.clock.fire(signal)
        self._flush()


class RowLock:
    """Held by one at a time, in the order in which they came."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.busy = 0.0
        self._held = False
        self._waiting: deque[Signal] = deque()

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._held:
            self._waiting.append(turn := Signal())
            self.clock.wait(turn)
        self._held, since = True, self.clock.now
        try:
            yield
        finally:
            self.busy += self.clock.now - since
            if self._waiting:
                self.clock.fire(self._waiting.popleft())
            else:
                self._held = False
