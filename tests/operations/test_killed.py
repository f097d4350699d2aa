"""`kill -9` of a real `migrate`, and `migrate` again: always the same end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from typing import Any

import django
import pytest

from tests.conftest import IN_CI
from tests.support.processes import CommonPolls, NullablePolls, Polls

# What is killed is ours: the oldest Django need not go through all of it again.
THOROUGH = (IN_CI and django.VERSION >= (6,)) or "KILLS" in os.environ
KILLS = int(os.environ.get("KILLS", "10" if THOROUGH else "4"))
ROWS = 100_000 if THOROUGH else 30_000
SEED = int(os.environ.get("KILLS_SEED", "") or random.SystemRandom().randrange(10**6))

#: What of a statement shows at which step the process is, in the order of the steps.
PHASES = {
    "postgresql": [
        "ADD COLUMN",
        "UPDATE",
        "NOT VALID",
        "VALIDATE CONSTRAINT",
        'INSERT INTO "django_migrations"',
    ],
    "postgresql_old": [
        "ADD COLUMN",
        "UPDATE",
        "NOT VALID",
        "VALIDATE CONSTRAINT",
        "SET NOT NULL",
        "DROP CONSTRAINT",
        'INSERT INTO "django_migrations"',
    ],
    "mariadb": ["ADD COLUMN", "UPDATE", "MODIFY", "INSERT INTO `django_migrations`"],
    "default": [
        "ADD COLUMN",
        "UPDATE",
        'CREATE TABLE "new__',
        'INSERT INTO "new__',
        "DROP TABLE",
        "RENAME TO",
        'INSERT INTO "django_migrations"',
    ],
}
#: Seconds into the statement: before it begins, somewhere in it, when it has ended.
MOMENTS = {"before": 0.0, "during": None, "after": 60.0}


@pytest.fixture
def rng() -> random.Random:
    print(f"KILLS_SEED={SEED}")  # shown when the test fails
    return random.Random(SEED)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_killed_at_random_moments_it_ends_the_same(place: dict[str, Any], rng: random.Random) -> None:
    ended_the_same(Polls(**place, rows=ROWS), rng, KILLS)


def ended_the_same(polls: Polls, rng: random.Random, kills: int) -> None:
    seconds = clean_run(polls)
    polls.assert_ended_well()
    clean = polls.schema()
    polls.back()
    for moment in spread(rng, kills, seconds):
        while not killed(polls, moment):
            # It was faster this time: back to the start, and earlier.
            polls.assert_ended_well()
            polls.back()
            moment *= 0.8  # noqa: PLW2901
    polls.finish()
    polls.assert_ended_well()
    assert polls.schema() == clean


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_so_it_does_where_a_field_that_is_there_is_made_required(
    place: dict[str, Any], rng: random.Random, settings: Any
) -> None:
    settings.MIGRATION_MODULES = NullablePolls.MODULES
    ended_the_same(NullablePolls(**place, rows=ROWS // 5), rng, max(KILLS // 2, 4))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_so_it_does_where_most_rows_get_one_value(
    place: dict[str, Any], rng: random.Random, settings: Any
) -> None:
    settings.MIGRATION_MODULES = CommonPolls.MODULES
    ended_the_same(CommonPolls(**place, rows=ROWS // 2), rng, max(KILLS // 2, 4))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("moment", MOMENTS if THOROUGH else ["during"])
def test_killed_in_each_phase_it_ends_the_same(
    place: dict[str, Any], rng: random.Random, moment: str
) -> None:
    polls = Polls(**place, rows=5_000)
    for statement in PHASES[polls.alias]:
        seconds = MOMENTS[moment]
        with polls.start_and_die(statement, rng.uniform(0, 0.02) if seconds is None else seconds) as process:
            output, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, (statement, output, errors)
    polls.finish()
    polls.assert_ended_well()
    killed_schema = polls.schema()
    polls.back()
    polls.finish()
    assert polls.schema() == killed_schema


def spread(rng: random.Random, number: int, seconds: float) -> list[float]:
    """Return a random moment of each of `number` equal parts of the time, in random order."""
    moments = [(part + rng.random()) * seconds / number for part in range(number)]
    rng.shuffle(moments)
    return moments


def clean_run(polls: Polls) -> float:
    """Migrate, and return the seconds from the first statement to the end."""
    with polls.start() as process:
        assert begun(process)
        started = time.monotonic()
        output, errors = process.communicate()
    assert process.returncode == 0, (output, errors)
    return time.monotonic() - started


def killed(polls: Polls, moment: float) -> bool:
    """Migrate, kill it at the moment, and return whether that was before its end."""
    with polls.start() as process:
        try:
            process.communicate(timeout=moment) if begun(process) else process.communicate()
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    assert process.returncode == 0
    return False


def begun(process: Any) -> bool:
    """Wait until the migration begins; False when the process ends without."""
    seen = b""
    while b"Applying" not in seen:
        if not (more := process.stdout.read1()):
            return False
        seen += more
    return True
