"""The workers of a queue in virtual time: the real engine and the real records, on a database that is a model.

Real are safemigrate's workers, ranges, leases, batches and their pace, on records in SQLite in memory. A model are the
keys (1, 2, 3, ...), the reading and writing of rows, and what all of it costs: see benchmarks/results/scale-out.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from django.db import connection, connections
from django.db.migrations.state import ProjectState

from benchmarks import costs
from benchmarks.applying import applied
from benchmarks.costs import ALIAS, Cost, Line
from benchmarks.tables import Shape
from benchmarks.virtual import Clock, Log, Processors, RowLock, Signal
from safemigrate.backends import for_connection
from safemigrate.engine import engine
from safemigrate.engine.batches import Batches, Range
from safemigrate.engine.engine import Run
from safemigrate.engine.pipeline import Sequential
from safemigrate.runs import leases, lookup, recorder, scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.heartbeat import BEAT
from safemigrate.runs.status import Status

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Case:
    """What is simulated: `seconds` of the run, or, where that is 0, all of it.

    The workers have machines of their own, one core each, and each trip to the database's takes `network` seconds;
    or they share its cores, as on the machine on which the costs were measured.
    """

    kind: str
    workers: int
    rows: int
    cores: int
    seconds: float = 0.0
    network: float = 0.0
    shared: bool = False
    batch_size: int | None = None


def share_connection() -> Callable[[], None]:
    """Return what makes a thread use this one's database, which is in memory: one thread runs at a time."""
    shared: Any = connections[ALIAS]
    shared.inc_thread_sharing()
    return partial(connections.__setitem__, ALIAS, shared)


@dataclass
class World:
    """The devices of a case, and the one row that all workers write: that of the run."""

    case: Case
    costs: Mapping[str, Any]
    clock: Clock = field(default_factory=lambda: Clock(share_connection()))
    done: list[tuple[float, int, float]] = field(default_factory=list)  # when, rows, and the batch's seconds

    def __post_init__(self) -> None:
        self.server = Processors(self.clock, self.case.cores)
        self.log = Log(self.clock, self.costs["sync"], self.costs["bandwidth"])
        self.row = RowLock(self.clock)
        self.lines = {name: Line(*(Cost(*c) for c in line)) for name, line in self.costs["lines"].items()}
        self.records = {name: Cost(*values) for name, values in self.costs["records"].items()}
        self.wait = self.costs["waits"].get(self.case.kind, 0.0)

    def pay(self, cost: Cost, client: Processors | None = None) -> None:
        """Let the time pass that it takes; on a core that nothing else uses, where none is given."""
        client = self.server if self.case.shared else client
        if client is not None:
            client.use(cost.client)
        aside = cost.trips * self.case.network + (cost.client if client is None else 0.0)
        if aside:
            self.clock.sleep(aside)
        self.server.use(cost.server)
        if cost.log > 0:
            self.log.commit(cost.log)


world: World


class Keys(Batches):
    """The keys 1, 2, 3, ... of a table that no database has."""

    def any_left(self) -> bool:
        if sum(rows for _, rows, _ in world.done) < world.case.rows:
            return True
        world.server.use(world.costs["scan"] * world.case.rows)
        return False

    def first_todo(self) -> Any:
        return 1

    def last(self) -> Any:
        return world.case.rows

    def next(self, after: Any, last: Any, size: int, *, inclusive: bool = False) -> Range | None:
        world.pay(world.lines["next"].of(size))
        end = after + size - inclusive
        if end <= last:
            return Range(after, end, not inclusive, size)
        return Range(after, last, not inclusive, size) if inclusive or after != last else None

    def remaining_keys(self, limit: int) -> list[Any]:
        return []


class Work:
    """What is done to a batch: an UPDATE, or rows read, computed, and written back."""

    def __init__(self) -> None:
        self.client = Processors(world.clock, 1)  # The thread that writes computes a little too.

    def __call__(self, batches: Batches, batch: Range) -> tuple[int, list[Any]]:
        rows, began = rows_in(batch), world.clock.now
        self.make(rows)
        self.write(rows)
        world.done.append((world.clock.now, rows, world.clock.now - began))
        return rows, []

    def make(self, rows: int) -> None:
        if world.case.kind != "expression":
            world.pay(world.lines["made"].of(rows), self.client)
            world.clock.sleep(rows * world.wait)

    def write(self, rows: int) -> None:
        world.pay(
            world.lines["expression" if world.case.kind == "expression" else "written"].of(rows), self.client
        )


class Writer:
    """The thread that writes one batch while the next is made, as `workers.Pool` has it."""

    def __init__(self, work: Work) -> None:
        self.work, self.under_way = work, list[tuple[Range, Signal, list[Any]]]()

    def take(self, batch: Range, before: Callable[[], None]) -> Iterator[tuple[Range, Any]]:
        began = world.clock.now
        self.work.make(rows_in(batch))
        took = world.clock.now - began
        yield from self.rest()
        before()
        result: list[Any] = []
        self.under_way.append(
            (batch, world.clock.spawn(lambda: result.append(self.written(batch, took))), result)
        )

    def written(self, batch: Range, took: float) -> tuple[int, list[Any], float]:
        began = world.clock.now
        self.work.write(rows_in(batch))
        took += world.clock.now - began
        world.done.append((world.clock.now, rows_in(batch), took))
        return rows_in(batch), [], took

    def rest(self) -> Iterator[tuple[Range, Any]]:
        while self.under_way:
            batch, ended, result = self.under_way.pop(0)
            world.clock.wait(ended)
            yield batch, result[0]

    def close(self) -> None: ...


def rows_in(batch: Range) -> int:
    return int(batch.last - batch.first + (not batch.after))


class Beats:
    """A heartbeat whose beats cost what they cost, and write nothing: no lease ends here."""

    def __init__(self, name: str, beat: Callable[[], float]) -> None:
        self.ended = False

    def start(self) -> None:
        world.clock.spawn(self.run)

    def run(self) -> None:
        half = world.records["beat"] * 0.5  # for the range, which is the worker's own, and for the run
        while not self.ended:
            world.clock.sleep(BEAT)
            world.pay(half)
            with world.row.held():
                world.pay(half)

    def stop(self) -> None:
        self.ended = True


# The run


def paid(name: str, do: Callable[..., Any], *, locks: bool = False) -> Callable[..., Any]:
    """Return what does it in a moment, and lets the time pass that it takes; some of it holds the run's row."""

    def call(*arguments: Any) -> Any:
        if not locks:
            world.pay(world.records[name])
            return do(*arguments)
        with world.row.held():
            world.pay(world.records[name])
            return do(*arguments)

    return call


@contextmanager
def in_virtual_time() -> Iterator[None]:
    """Put the model in the place of the database, of the time, and of nothing else."""
    time = SimpleNamespace(monotonic=lambda: world.clock.now, sleep=world.clock.sleep)
    patches: list[Any] = [
        *(patch.object(module, "time", time) for module in (engine, recorder, workers)),
        patch("django.utils.timezone.now", lambda: BEGAN + timedelta(seconds=world.clock.now)),
        patch.object(engine, "Run", begun_now),
        patch("safemigrate.engine.batches.Batches", Keys),
        patch.object(engine, "work_for", lambda *given: Work()),
        patch.object(
            engine,
            "chosen",
            lambda work, *given: Sequential() if world.case.kind == "expression" else Writer(work),
        ),
        patch.object(recorder, "Heartbeat", Beats),
        patch.object(scheduler, "may_share", lambda *given: True),
        patch.object(type(for_connection(connection)), "estimated_rows", lambda *given: world.case.rows),
        patch.object(lookup, "find", lambda *named: the_job),
        patch.object(leases, "_take", paid("take", leases._take, locks=True)),
        patch.object(leases, "_cut", paid("cut", leases._cut)),
        patch.object(leases, "end", paid("end", leases.end)),
        patch.object(
            recorder.RangeRecorder, "_write", paid("write", recorder.RangeRecorder._write, locks=True)
        ),
        patch.object(recorder.RangeRecorder, "_look", paid("look", recorder.RangeRecorder._look)),
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def begun_now(*given: Any, **named: Any) -> Run:
    named["started"] = world.clock.now
    return Run(*given, **named)


the_job: lookup.FieldJob


def simulated(case: Case, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return how fast the run was, and how busy each device."""
    global world, the_job
    world, the_job = World(case, measured), costs.job("expression")
    if not connection.introspection.table_names(include_views=False).count("polls_question"):
        costs.add_empty_column(applied(ALIAS, ProjectState(), *Shape(0).operations()))
    with in_virtual_time():
        run = costs.begin("expression", case.workers, batch_size=case.batch_size)
        if case.seconds:
            world.clock.at(case.seconds, cancel)
        for ended in [world.clock.spawn(partial(worker, run.pk)) for _ in range(case.workers)]:
            world.clock.wait(ended)
    for error in world.clock.errors:
        raise error
    run = store.find(run.pk)
    wanted = {Status.CANCELLING, Status.CANCELLED} if case.seconds else {Status.SUCCEEDED}
    assert run.status in wanted, run.error
    seconds = run.duration.total_seconds() if run.duration else 0.0
    return {"seconds": seconds} | outcome(world, case.seconds or max(moment for moment, *_ in world.done))


def cancel() -> None:
    store.records().update(status=Status.CANCELLING)


def worker(key: int) -> None:
    worker = workers.Worker(key)
    while again := worker.work(0):
        world.clock.sleep(again.seconds)


def outcome(world: World, end: float) -> dict[str, Any]:
    """Return the rate in the second half of the time, when the sizes of batches and ranges have settled."""
    seen = [batch for batch in world.done if batch[0] > end / 2]
    rows = sum(rows * part(moment, took, end) for moment, rows, took in seen)
    return {
        "rate": rows / (end / 2),
        "batch": statistics.median(rows for _, rows, _ in seen),
        "took": statistics.median(took for *_, took in seen),
        "cores": world.server.busy / (world.case.cores * world.clock.now),
        "log": world.log.busy / world.clock.now,
        "row": world.row.busy / world.clock.now,
    }


def part(moment: float, took: float, end: float) -> float:
    """Return how much of a batch was done in the second half of the time."""
    return max(min(moment, end) - max(moment - took, end / 2), 0.0) / took
