"""What each thing costs that a worker of a queue does, measured one by one on a real PostgreSQL."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import connection, models
from django.db.migrations.state import ProjectState
from django.db.models import F

from benchmarks.applying import applied
from benchmarks.seeds import seed
from benchmarks.tables import Shape
from benchmarks.ways import MONTH, trivial
from safemigrate.conf import EXECUTORS
from safemigrate.engine.batch_runner import ComputedInPython, Made, written
from safemigrate.engine.batches import Range
from safemigrate.engine.engine import Filling, Run
from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.operations import AddNullableField, Populate
from safemigrate.populate.sources import resolve
from safemigrate.runs import leases, lookup, recorder, scheduler, store
from safemigrate.runs import worker as workers
from safemigrate.runs.status import Status

NAME, ALIAS = "expires_date", "default"
SMALL, LARGE, ROUNDS = 1_000, 10_000, 4
RANGES = 20_000
WAL_SEGMENT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Cost:
    """Of one thing: seconds of a worker's processor, and of the server's; bytes of log; trips to the server."""

    client: float = 0.0
    server: float = 0.0
    log: float = 0.0
    trips: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + theirs for mine, theirs in zip(self.values, other.values, strict=True)))

    def __mul__(self, number: float) -> Cost:
        return Cost(*(value * number for value in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        return self.client, self.server, self.log, self.trips


@dataclass(frozen=True)
class Line:
    """What a batch costs: something for itself, and something for each row."""

    batch: Cost
    row: Cost

    def of(self, rows: int) -> Cost:
        return self.batch + self.row * rows


class Standin:
    """A queue that is not there: a worker comes again by itself."""

    is_apart = True

    def check(self, queue: str) -> None:
        pass

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        pass


EXECUTORS["standin"] = f"{__name__}.Standin"


def slow(seconds: float) -> Callable[[Any], Any]:
    """Return a function of a row that asks another service, which takes so long to answer."""

    def ask(question: Any) -> Any:
        time.sleep(seconds)
        return trivial(question)

    return ask


#: The populates that are compared, by the seconds that a row waits for another service.
KINDS: dict[str, tuple[str, Any, float]] = {
    "expression": ("`F() + timedelta`", F("pub_date") + MONTH, 0.0),
    "row": ("a function of one row", trivial, 0.0),
    "ms1": ("a function that waits 1 ms", slow(0.001), 0.001),
    "ms50": ("a function that waits 50 ms", slow(0.05), 0.05),
}


def job(kind: str) -> lookup.FieldJob:
    state = Shape(0).state()
    AddNullableField("question", NAME, models.DateTimeField()).state_forwards("polls", state)
    return lookup.FieldJob(
        Populate("question", NAME, KINDS[kind][1]), "polls", "polls.0002_fill", ALIAS, state
    )


def fresh_table(rows: int) -> None:
    execute("DROP TABLE IF EXISTS polls_question")
    add_column(make_table(rows))


def make_table(rows: int) -> ProjectState:
    state = applied(ALIAS, ProjectState(), *Shape(rows).operations())
    execute(*seed(connection.vendor, rows))
    return state


def add_column(state: ProjectState) -> None:
    execute(f"ALTER TABLE polls_question DROP COLUMN IF EXISTS {NAME}", "VACUUM FULL ANALYZE polls_question")
    add_empty_column(state)


def add_empty_column(state: ProjectState) -> None:
    applied(ALIAS, state, AddNullableField("question", NAME, models.DateTimeField()))


def begin(kind: str, workers: int, batch_size: int | None = None) -> BackfillRun:
    """Open a run that workers share, and empty the list of those before it."""
    store.records().all().delete()
    options = scheduler.options_of(workers=workers, throttles=[], batch_size=batch_size)
    run = scheduler.begin(job(kind), "standin", options)
    assert run is not None
    return run


def worker(kind: str, key: int) -> Callable[[], None]:
    """Return what works on the run as a worker of a queue does, to which each message comes at once."""
    the_job, worker = job(kind), workers.Worker(key)
    lookup.find = lambda *named: the_job

    def begin() -> None:
        while again := worker.work(0):
            time.sleep(again.seconds)

    return begin


def seconds_of(key: int) -> tuple[float, float]:
    """Return the seconds of a run that has ended well, and those that its workers were at work."""
    run = store.find(key)
    if run.status != Status.SUCCEEDED or run.duration is None:
        raise RuntimeError(f"run {key} is {run.status}: {run.error}")
    return run.duration.total_seconds(), run.seconds_running


def execute(*statements: str) -> list[Any]:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


# The meter


class Meter:
    """Notes what is used between two looks, by this process and by its connection's."""

    def __init__(self) -> None:
        self.server = Path(f"/proc/{execute('SELECT pg_backend_pid()')[0][0]}/schedstat")
        self.cost = Cost()

    def _server(self) -> float:
        return int(self.server.read_text().split()[0]) / 1e9

    @contextmanager
    def on(self) -> Iterator[None]:
        trips = 0

        def counted(do: Any, *arguments: Any) -> Any:
            nonlocal trips
            trips += 1
            return do(*arguments)

        log, server, client = position(), self._server(), time.process_time()
        with connection.execute_wrapper(counted):
            yield
        used, served = time.process_time() - client, self._server() - server
        self.cost = Cost(used, served, float(position() - log), float(trips))


def position() -> int:
    return int(execute("SELECT pg_current_wal_insert_lsn() - '0/0'")[0][0])


def cost(do: Callable[[], Any], times: int = 30) -> Cost:
    """Return the medians of what it costs, each by itself."""
    meter, found = Meter(), []
    for _ in range(times):
        with meter.on():
            do()
        found.append(meter.cost.values)
    return Cost(*map(statistics.median, zip(*found, strict=True)))


# What is measured


def measure(rows: int) -> dict[str, Any]:
    """Return all costs, by name, and what the disk and the way to the server take."""
    state = make_table(rows)
    lines = {name: line(samples) for name, samples in batches(state).items()}
    sync, bandwidth = disk()
    return {
        "lines": {name: [each.batch.values, each.row.values] for name, each in lines.items()},
        "records": {name: found.values for name, found in records().items()},
        "scan": scan(rows),
        "sync": sync,
        "bandwidth": bandwidth,
        "waits": {name: wait for name in KINDS if (wait := waited(name))},
    }


def batches(state: ProjectState) -> dict[str, list[tuple[int, Cost]]]:
    """Do batches of two sizes in each way, and return what each cost."""
    found: dict[str, list[tuple[int, Cost]]] = {
        name: [] for name in ("next", "expression", "made", "written")
    }
    for _ in range(3):
        add_column(state)
        meter, after = Meter(), 0
        ways = {kind: filling(kind) for kind in ("expression", "row")}
        for by in ways.values():
            for size in (SMALL, LARGE) * ROUNDS:
                batch = None
                with meter.on():
                    batch = by.batches.next(after, rows_of(), size)
                found["next"].append((size, meter.cost))
                assert batch is not None
                for name, do in steps(by, batch):
                    with meter.on():
                        do()
                    found[name].append((size, meter.cost))
                after = batch.last
    return found


def rows_of() -> int:
    return int(execute("SELECT MAX(id) FROM polls_question")[0][0])


def filling(kind: str) -> Filling:
    work = job(kind)
    source: Any = resolve(work.operation.populate, work.operation.names)
    return Filling(work.target, source, None, workers=1, throttles=[])


def steps(by: Filling, batch: Range) -> Iterator[tuple[str, Callable[[], Any]]]:
    work = by.work
    if not isinstance(work, ComputedInPython):
        yield "expression", lambda: work(by.batches, batch)
        return
    made: list[Made] = []
    yield "made", lambda: made.append(work.made(by.batches, batch))
    yield "written", lambda: written(work.write, made[0])


def line(samples: list[tuple[int, Cost]]) -> Line:
    """Return the line through the medians of both sizes."""
    small, large = (
        Cost(
            *map(
                statistics.median,
                zip(*(cost.values for size, cost in samples if size == wanted), strict=True),
            )
        )
        for wanted in (SMALL, LARGE)
    )
    row = Cost(*(max(value, 0.0) for value in ((large + small * -1) * (1 / (LARGE - SMALL))).values))
    return Line(Cost(*(max(value, 0.0) for value in (small + row * -SMALL).values)), row)


def records() -> dict[str, Cost]:
    """Return what the record of a run costs: a range that is cut, taken and ended, saving, the heartbeat, a look."""
    run, by = begin("expression", 1_000), filling("expression")
    store.records().update(
        status="running", started=run.created, samples=[[n, n * 100_000] for n in range(240)]
    )
    run = store.find(run.pk)
    part = leases.take(run, by.batches, "worker")
    assert isinstance(part, BackfillRange)
    held = recorder.RangeRecorder(run, part, by.target, time.monotonic() + 1e6)
    held.state = Run("polls", ALIAS, 0, cursor=1)
    find = cost(lambda: by.batches.next(1, run.last_key, leases.PACE.smallest))
    add_ended_ranges(run, part.number)
    found = {
        "cut": cost(lambda: leases._cut(run, by.batches)) + find * -1,
        "take": cost(lambda: leases._take(run, "worker")) + Cost(trips=2),
        "write": cost(held._write) + Cost(trips=2),  # BEGIN and COMMIT are statements too
        "beat": cost(held._beat),
        "look": cost(held._look),
        "end": cost(lambda: leases.owned(part).update(worker="worker", error="")),
    }
    store.records().all().delete()
    return found


def add_ended_ranges(run: BackfillRun, number: int) -> None:
    """Make the run one that has been going on for long."""
    ended = {"run_id": run.pk, "first": 1, "last": 1, "size": leases.PACE.smallest, "ended": run.created}
    made = (BackfillRange(number=number + n, **ended) for n in range(1, RANGES + 1))
    leases.records().bulk_create(made, batch_size=5_000)
    execute("VACUUM ANALYZE")


def scan(rows: int) -> float:
    """Return the server's seconds for a row, to find that none is NULL."""
    execute(
        f"UPDATE polls_question SET {NAME} = pub_date WHERE {NAME} IS NULL", "VACUUM ANALYZE polls_question"
    )
    by = filling("expression")
    return cost(by.batches.any_left, 5).server / rows


def disk() -> tuple[float, float]:
    """Return the seconds of a sync, and the bytes per second, of a file as a write-ahead log's."""
    with tempfile.NamedTemporaryFile() as file:
        os.write(file.fileno(), bytes(WAL_SEGMENT))
        os.fsync(file.fileno())
        page = statistics.median(synced(file.fileno(), os.urandom(8192)) for _ in range(200))
        segment = statistics.median(synced(file.fileno(), os.urandom(WAL_SEGMENT)) for _ in range(10))
    return page, WAL_SEGMENT / (segment - page)


def synced(file: int, data: bytes) -> float:
    began = time.perf_counter()
    os.pwrite(file, data, 0)
    os.fdatasync(file)
    return time.perf_counter() - began


def waited(kind: str) -> float:
    """Return the seconds that a row really waits: a sleep takes longer than it is asked for."""
    if not KINDS[kind][2]:
        return 0.0
    began = time.perf_counter()
    for _ in range(50):
        time.sleep(KINDS[kind][2])
    return (time.perf_counter() - began) / 50
