"""The size of the next batch, from the time the last one took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemigrate.engine.batch_size import Pace

PACE = Pace(seconds=0.1, start=1_000, smallest=200, largest=20_000)


@pytest.mark.parametrize(
    ("size", "took", "expected"),
    [
        (1_000, 0.0, 4_000),
        (1_000, 0.001, 4_000),
        (4_000, 0.001, 16_000),
        (16_000, 0.001, 20_000),
        (1_000, 0.025, 3_000),
        (1_000, 0.05, 1_000),
        (1_000, 0.075, 1_000),
        (1_000, 0.1, 1_000),
        (1_000, 0.15, 500),
        (2_000, 0.5, 300),
        (20_000, 0.51, 2_000),
        (1_000, 60.0, 200),
    ],
)
def test_the_next_size_follows_the_time(size: int, took: float, expected: int) -> None:
    assert PACE.next_size(size, took) == pytest.approx(expected, abs=1)


@given(st.integers(200, 20_000), st.floats(0, 1e6))
def test_the_size_stays_within_its_bounds(size: int, took: float) -> None:
    assert PACE.smallest <= PACE.next_size(size, took) <= PACE.largest


@given(st.integers(200, 20_000), st.floats(0, 10), st.floats(0, 10))
def test_a_slower_batch_is_never_followed_by_a_larger_one(size: int, one: float, other: float) -> None:
    fast, slow = sorted([one, other])
    # What is in the middle of the aim is left alone, so near it the steps are coarse.
    if not 0.05 <= slow <= 0.1:
        assert PACE.next_size(size, slow) <= PACE.next_size(size, fast)


@given(st.floats(1e-7, 1e-3))
def test_a_steady_table_comes_to_rest_within_the_time(seconds_per_row: float) -> None:
    size = PACE.start
    for _ in range(20):
        size = PACE.next_size(size, size * seconds_per_row)
    rested = PACE.next_size(size, size * seconds_per_row)
    assert rested == size
    assert size * seconds_per_row <= PACE.seconds or size == PACE.smallest


@pytest.mark.parametrize("took", [0.0, 0.07, 9.0])
def test_a_fixed_pace_never_changes(took: float) -> None:
    pace = Pace.fixed(7)
    assert pace.start == 7
    assert pace.next_size(7, took) == 7
