"""Thousands of schedules: whatever is killed, sleeps, is lost or comes twice, each row is done once, and the run ends.

A schedule that fails says the line that repeats it: make simulate SEED=...
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import django
import pytest
from django.core.management import call_command
from django.db import Error, connections
from django.db.models import QuerySet
from polls.models import Question

from safemigrate import backfills
from safemigrate.backfills import Backfill
from safemigrate.engine.engine import Filling
from safemigrate.engine.keys import key_to_json
from safemigrate.exceptions import AlreadyRunning, IllegalMove, NothingToRun, RunPaused
from safemigrate.models import BackfillRange
from safemigrate.runs import heartbeat, leases, scheduler, store
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.recorder import RangeRecorder
from safemigrate.runs.status import OVER, Status
from tests.conftest import IN_CI
from tests.simulation.world import Chances, World
from tests.support.deliveries import Queue, kept_messages  # noqa: F401
from tests.support.processes import Polls

pytestmark = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)

ROWS, RANGE, BATCH = 24, 8, 4
SEED = int(os.environ.get("SIMULATION_SEED", "") or random.SystemRandom().randrange(10**9))
#: For so many seconds schedules are tried.
SECONDS = float(os.environ.get("SIMULATION_SECONDS", "30" if IN_CI and django.VERSION >= (6, 0) else "4"))


#: What happens in a world, by its events.
KINDS = ("is killed", "sleeps", "message is lost", "is away")


class Audited(Backfill):
    """Writes a row into another table for each row that it is given."""

    model = Question

    @classmethod
    def label(cls) -> str:
        return "polls.Audited"

    def batch(self, rows: QuerySet[Any]) -> None:
        keys = list(rows.values_list("pk", flat=True))
        with connections[self.using].cursor() as cursor:
            cursor.execute("INSERT INTO audit VALUES " + ", ".join(f"({key})" for key in keys))


Simulate = Callable[..., World]


@pytest.fixture
def simulate(place: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    polls = Polls(**place, rows=ROWS)
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    settings.SAFEMIGRATE_BATCH_SIZE = BATCH
    settings.SAFEMIGRATE_LEASE_SECONDS = 3
    settings.SAFEMIGRATE_TASK_SECONDS = 2.0
    settings.SAFEMIGRATE_RETRIES = 50
    settings.SAFEMIGRATE_TASK_RETRIES = 1_000
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    with polls.connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("CREATE TABLE audit (question_id BIGINT)")
    options = connections[polls.alias].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "timeout", 0)
    polls.connection.close()
    monkeypatch.setattr(backfills, "find", lambda label: Audited)
    monkeypatch.setattr(leases, "PACE", leases.Pace(seconds=10, start=RANGE, smallest=RANGE, largest=RANGE))

    def simulated(seed: int, **chances: float) -> World:
        with monkeypatch.context() as patched:
            world = World(seed, polls.alias, Chances(**chances))
            install(world, patched)
            try:
                play(world)
            finally:
                world.end()
        return world

    return simulated


def install(world: World, patched: pytest.MonkeyPatch) -> None:
    """Put the world's clock, sleep, queue and heartbeat in place of the real ones, for its threads."""
    real = {"monotonic": time.monotonic, "sleep": time.sleep}
    patched.setattr(time, "monotonic", lambda: world.monotonic() if world.me else real["monotonic"]())
    patched.setattr(
        time, "sleep", lambda seconds: world.sleep(seconds) if world.me else real["sleep"](seconds)
    )
    patched.setattr("django.utils.timezone.now", world.clock)
    patched.setattr(
        Queue, "enqueue", lambda self, *arguments, **options: world.enqueue(*arguments, **options)
    )
    patched.setattr(
        heartbeat.Heartbeat, "start", lambda self: world.spawn(world.me.process, lambda: beating(world, self))
    )
    patched.setattr(heartbeat.Heartbeat, "stop", lambda self: self.ended.set())
    patched.setattr("random.uniform", world.rng.uniform)
    for known in [*vars(Filling).values(), *vars(BackfillJob).values()]:
        if hasattr(known, "lock"):  # Up to Python 3.11 a cached_property has one lock for all instances.
            patched.setattr(known, "lock", nullcontext())


def beating(world: World, self: heartbeat.Heartbeat) -> None:
    me = world.me
    assert me is not None
    while not self.ended.is_set():
        me.pause(heartbeat.BEAT)
        if not self.ended.is_set():
            self._once()


def play(world: World) -> None:
    """Begin a run, let the world go on until it is over, and look at what came of it."""
    with connections[world.alias].cursor() as cursor:
        for table in (
            "audit",
            "safemigrate_backfillevent",
            "safemigrate_backfillrange",
            "safemigrate_backfillrun",
        ):
            cursor.execute(f"DELETE FROM {table}")
    world.begin("a person", lambda: begin(world))
    world.begin("a clock", lambda: requeueing(world))
    world.begin("a user", lambda: meddling(world))
    while not world.steps or (world.steps % 20 or not is_over()):
        world.step()
    world.end()
    with connections[world.alias].cursor() as cursor:
        cursor.execute("SELECT COUNT(*), COUNT(DISTINCT question_id) FROM audit")
        done = cursor.fetchone()
    run = store.records().get()
    ranges = BackfillRange._default_manager.using(world.alias)
    assert done == (ROWS, ROWS), f"{done[0]} rows were done, {done[1]} of them different ones, of {ROWS}"
    assert (run.status, run.rows_done) == (Status.SUCCEEDED, ROWS)
    assert not ranges.filter(ended=None).exists()


def begin(world: World) -> None:
    while True:
        with suppress(Error, NothingToRun):  # The database is busy, or away: a person types it again.
            with suppress(RunPaused, AlreadyRunning):  # It had begun when the database went away.
                scheduler.begin(
                    BackfillJob(Audited(using=world.alias)), "celery", scheduler.options_of(workers=3)
                )
            return
        world.sleep(1.0)


def is_over() -> bool:
    run = store.records().first()
    return run is not None and run.status in OVER


def requeueing(world: World) -> None:
    """What cron does, and a user who sees that a run has failed."""
    while True:
        world.sleep(20.0)
        with suppress(Error, AlreadyRunning):
            scheduler.requeue()
            for run in store.records().filter(status=Status.FAILED):
                store.retry(run.pk, "")


def meddling(world: World) -> None:
    """Pause the run now and then, and let it go on."""
    for _ in range(world.rng.randrange(3)):
        world.sleep(world.rng.uniform(0.1, 20.0))
        for act in (store.pause, store.resume):
            while not asked(act):  # The database is busy, or away: a person clicks again.
                world.sleep(1.0)
            world.sleep(world.rng.uniform(0.1, 10.0))


def asked(act: Callable[[int, str], object]) -> bool:
    """Ask it of the run, if it is open; return whether there was an answer."""
    try:
        for run in store.records().exclude(status__in=OVER):
            with suppress(IllegalMove):
                act(run.pk, "a user")
    except Error:
        return False
    return True


def schedules(simulate: Simulate, seconds: float, **chances: float) -> Counter[str]:
    """Try one schedule after another for so many seconds; return how many, and how often what happened in them.

    Raises with the line that repeats one.
    """
    until, number, seen = time.monotonic() + seconds, 0, Counter[str]()
    while time.monotonic() < until:
        seed = SEED + number
        try:
            world = simulate(seed, **chances)
        except BaseException as error:
            raise AssertionError(f"{error}\nTo repeat it: make simulate SEED={seed}") from error
        number += 1
        seen.update(kind for event in world.events for kind in KINDS if kind in event)
    return seen + Counter(schedules=number)


@pytest.mark.slow
@pytest.mark.parametrize("sleep", [0.004, 0.03])
def test_each_row_is_done_once_whatever_happens(simulate: Simulate, sleep: float) -> None:
    seen = schedules(simulate, SECONDS, sleep=sleep)
    print(f"from SEED={SEED} on: {dict(seen)}")  # shown by pytest -s
    assert seen["schedules"]
    if SECONDS >= 4:
        assert set(seen) == {"schedules", *KINDS}


# Bugs that are made on purpose, to see that they would be found


def save_without_looking(self: RangeRecorder, state: Any, cursor: Any, rows: int, bad: Any) -> None:
    """Save where the range is, also where another worker has it by now."""
    changes = {"rows_done": self.began[0] + state.rows + rows}
    changes |= {} if cursor is None else {"cursor": key_to_json(cursor)}
    leases.records().filter(pk=self.part.pk).update(**changes)


def save_by_token(self: RangeRecorder, state: Any, cursor: Any, rows: int, bad: Any) -> None:
    """Save where the range is, if its token is still this one's, however far it is."""
    changes = {"rows_done": self.began[0] + state.rows + rows}
    changes |= {} if cursor is None else {"cursor": key_to_json(cursor)}
    if not leases.owned(self.part).update(**changes):
        raise self._lost("another worker has it")


def work_and_save_later(self: Filling, batch: Any, *, passed: bool) -> Any:
    """Commit the batch, and then its position."""
    rows, bad = self.work(self.batches, batch)
    self._save(batch, rows, bad, passed=passed)
    self._note_saved(batch, bad, passed=passed)
    return rows, bad


def lease_with_the_same_token(run: Any, found: BackfillRange, worker: str) -> None:
    """Take a range as `leases._lease` does, without a new token."""
    lease(run, found, worker)
    found.token -= 1
    leases.records().filter(pk=found.pk).update(token=found.token)


lease = leases._lease
BUGS: dict[str, list[tuple[Any, str, Any]]] = {
    "the lease is not looked at when it saves": [(RangeRecorder, "save", save_without_looking)],
    "the cursor is saved after the batch": [(Filling, "_work_once", work_and_save_later)],
    "no token is raised": [
        (leases, "_lease", lease_with_the_same_token),
        (RangeRecorder, "save", save_by_token),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(simulate: Simulate, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, worse in BUGS[bug]:
        monkeypatch.setattr(place, name, worse)
    with pytest.raises(AssertionError, match="rows were done|To repeat it: make simulate SEED="):
        schedules(simulate, 120, sleep=0.03, kill=0.001)


def test_the_same_seed_is_the_same_schedule(simulate: Simulate) -> None:
    first, second = simulate(SEED), simulate(SEED)
    assert first.events == second.events
    assert (first.steps, first.now) == (second.steps, second.now)
