"""A world of workers in one process, on one SQLite file, with a clock and a scheduler of its own.

Each worker is a thread, and one alone goes on at a time: before each statement, and before and after each COMMIT, it
stops, and a seeded generator decides who goes next, whether a worker is killed there or sleeps for long, and what
becomes of a message. Time is what the world says; a sleep costs none. So a schedule that fails can be repeated.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import OperationalError, connections

from safemigrate.executors import base

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
#: How long SQLite waits for another writer, and how often it looks, in seconds.
BUSY, LOOK = 5.0, 0.25
#: The steps after which a world that has not ended is taken for one that never will.
STEPS = 40_000
AWAY = "the database is away"


def held() -> Any:
    """Return a lock that another thread is to release: quicker than a semaphore, which is written in Python."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Killed(BaseException):
    """The process of this thread is dead: it does nothing any more."""


@dataclass(eq=False)
class Process:
    """A worker's process: its threads live, sleep and die together."""

    name: str
    dead: bool = False
    sleeps_until: float = 0.0


class Actor(threading.Thread):
    """A thread of a process, that goes on only when it is its turn."""

    def __init__(self, world: World, process: Process, function: Callable[[], None]) -> None:
        super().__init__(name=process.name, daemon=True)
        self.world, self.process, self.function = world, process, function
        self.turn = held()
        self.wakes = world.now
        self.error: BaseException | None = None

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self.process.dead:
                self.world.instrument()
                self.function()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  the world shows it
            self.error = error
        finally:
            self.world.close_connections()
            self.world.actors.remove(self)
            self.world.step_ended.release()

    def pause(self, seconds: float = 0.0) -> None:
        """Let others go on, for so many seconds at the least."""
        if self.process.dead:  # It cleans up, which a dead one does not.
            raise Killed
        self.wakes = self.world.now + seconds
        self.world.step_ended.release()
        self.turn.acquire()
        if self.process.dead:
            raise Killed

    @property
    def ready_at(self) -> float:
        return max(self.wakes, self.process.sleeps_until)


@dataclass
class Chances:
    """How likely it is, at each step."""

    kill: float = 0.004
    sleep: float = 0.004
    lose: float = 0.1
    double: float = 0.1
    away: float = 0.0005


@dataclass
class World:
    """The scheduler, the clock, the messages and the people."""

    seed: int
    alias: str
    chances: Chances = field(default_factory=Chances)
    now: float = 0.0
    actors: list[Actor] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    messages: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    step_ended: Any = field(default_factory=held)
    steps: int = 0
    events: list[str] = field(default_factory=list)
    away_until: float = 0.0  # till then the database, which keeps the runs too, answers nothing

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    # What the code under test sees in place of the real ones

    @property
    def me(self) -> Actor | None:
        thread = threading.current_thread()
        return thread if isinstance(thread, Actor) else None

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def monotonic(self) -> float:
        return 1_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        if self.me is not None:
            self.me.pause(seconds)

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        if self.rng.random() < self.chances.lose:
            self.note("a message is lost")
            return
        late = self.rng.choice([0.0, 0.0, 5.0, 60.0])
        for _ in range(2 if self.rng.random() < self.chances.double else 1):
            self.messages.append((self.now + seconds + late, path, arguments))

    def instrument(self) -> None:
        """Let this thread stop before each of its statements and around each commit."""
        connection: Any = connections[self.alias]
        commit, me = connection._commit, self.me
        assert me is not None

        def committing() -> None:
            me.pause()
            self.refuse()
            self.patiently(commit)
            me.pause()
            self.refuse()  # It is committed, and that is not known here.

        connection.execute_wrappers.append(self.execute)
        connection._commit = committing

    def execute(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        me = self.me
        assert me is not None
        me.pause()
        self.refuse()
        return self.patiently(lambda: execute(sql, params, many, context))

    def refuse(self) -> None:
        if self.now < self.away_until:
            raise OperationalError(AWAY)

    def patiently(self, do: Callable[[], Any]) -> Any:
        """Do it, and wait for another writer as long as SQLite does."""
        waited, me = 0.0, self.me
        while True:
            try:
                return do()
            except OperationalError as error:
                if "locked" not in str(error) or waited >= BUSY or me is None:
                    raise
                waited += LOOK
                me.pause(LOOK)

    def close_connections(self) -> None:
        connection: Any = connections[self.alias]
        connection.execute_wrappers.clear()
        connection.__dict__.pop("_commit", None)
        connection.close()

    # What happens

    def note(self, text: str) -> None:
        self.events.append(f"{self.steps:>6} {self.now:8.2f} {text}")

    def spawn(self, process: Process, function: Callable[[], None]) -> Actor:
        actor = Actor(self, process, function)
        self.actors.append(actor)
        actor.start()
        return actor

    def beside_me(self, function: Callable[[], None]) -> Actor:
        """Start one more thread of the process that calls."""
        me = self.me
        assert me is not None
        return self.spawn(me.process, function)

    def begin(self, name: str, function: Callable[[], None]) -> Process:
        process = Process(f"{name} {len(self.processes)}")
        self.processes.append(process)
        self.spawn(process, function)
        return process

    def deliver(self, most: int) -> None:
        """Give a message that is due to a new process, while there are no more than so many."""
        working = {actor.process for actor in self.actors if actor.process.name.startswith("worker")}
        due = [message for message in self.messages if message[0] <= self.now]
        if not due or len(working) >= most:
            return
        message = self.rng.choice(due)
        self.messages.remove(message)
        self.begin("worker", lambda: base.call(message[1], *message[2]))

    def kill(self, process: Process) -> None:
        self.note(f"{process.name} is killed")
        process.dead = True
        for actor in [each for each in self.actors if each.process is process]:
            self.let(actor)
            actor.join(10)
            assert not actor.is_alive(), f"{actor.name} cannot be killed"

    def end(self) -> None:
        """Kill all that are there."""
        for process in list(dict.fromkeys(actor.process for actor in self.actors)):
            self.kill(process)

    def let(self, actor: Actor) -> None:
        """Let it go on to where it stops next, or ends."""
        actor.turn.release()
        assert self.step_ended.acquire(timeout=20), f"{actor.name} hangs"
        if actor.error is not None:
            raise AssertionError(f"{actor.name} raised {actor.error!r}") from actor.error

    def step(self, most: int = 3) -> None:
        """Let one of them go on by a statement; what is likely at each step may happen before."""
        self.steps += 1
        assert self.steps < STEPS, "it does not end; the last of it:\n" + "\n".join(self.events[-40:])
        self.deliver(most)
        ready = [actor for actor in self.actors if actor.ready_at <= self.now]
        if not ready:
            waiting = [actor.ready_at for actor in self.actors] + [
                at for at, *_rest in self.messages if at > self.now
            ]
            self.now = min(waiting, default=self.now + 1.0)
            return
        if self.rng.random() < self.chances.away:
            self.away_until = self.now + self.rng.choice([0.01, 2.0, 20.0])
            self.note(f"the database is away until {self.away_until:.2f}")
        actor = self.rng.choice(ready)
        chance, workers = self.rng.random(), actor.process.name.startswith("worker")
        if workers and chance < self.chances.kill:
            self.kill(actor.process)
        elif workers and chance < self.chances.kill + self.chances.sleep:
            seconds = self.rng.choice([1.0, 4.0, 30.0])
            self.note(f"{actor.process.name} sleeps for {seconds:.0f} s")
            actor.process.sleeps_until = self.now + seconds
        else:
            self.now += 0.001
            self.let(actor)
