"""The simulation of many workers keeps the laws of its devices, and its page shows what was kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from benchmarks import scale_out
from benchmarks.scale_plot import plot
from benchmarks.virtual import Clock, Log, Processors, RowLock


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(scale_out.KEPT.read_text())
    return data


def together(clock: Clock, number: int, do: Callable[[], None]) -> float:
    """Let so many threads do it at once; return the virtual seconds until all have ended."""
    began = clock.now
    for ended in [clock.spawn(do) for _ in range(number)]:
        clock.wait(ended)
    assert not clock.errors
    return clock.now - began


class TestDevices:
    @pytest.mark.parametrize(("jobs", "seconds"), [(1, 3), (2, 3), (3, 4.5), (8, 12)])
    def test_cores_are_shared_evenly(self, jobs: int, seconds: float) -> None:
        cores = Processors(clock := Clock(), 2)
        assert together(clock, jobs, lambda: cores.use(3)) == pytest.approx(seconds)
        assert cores.busy == pytest.approx(3 * jobs)

    def test_who_comes_late_gets_its_share_from_then_on(self) -> None:
        core, ends = Processors(clock := Clock(), 1), []

        def late(start: float) -> None:
            clock.sleep(start)
            core.use(2)
            ends.append(clock.now)

        for ended in [clock.spawn(partial(late, start)) for start in (0, 1)]:
            clock.wait(ended)
        assert ends == pytest.approx([3, 4])

    def test_commits_during_a_flush_share_the_next(self) -> None:
        log = Log(clock := Clock(), sync=1, bandwidth=100)
        assert together(clock, 1, lambda: log.commit(50)) == pytest.approx(1.5)
        assert together(clock, 4, lambda: log.commit(50)) == pytest.approx(1.5 + 1 + 1.5)

    def test_a_row_is_held_by_one_at_a_time(self) -> None:
        row, order = RowLock(clock := Clock()), []

        def hold() -> None:
            with row.held():
                order.append(clock.now)
                clock.sleep(2)

        assert together(clock, 3, hold) == 6
        assert order == [0, 2, 4]
        assert row.busy == 6

    def test_an_error_in_a_thread_is_kept(self) -> None:
        clock = Clock()
        clock.wait(clock.spawn(lambda: 1 / 0))
        assert [type(error) for error in clock.errors] == [ZeroDivisionError]


@pytest.mark.slow
def test_the_engine_runs_in_virtual_time(kept: dict[str, Any]) -> None:
    """All rows of a whole run are done, four workers take a quarter of the time, a core gives what it can."""
    case = {"kind": "ms1", "rows": 40_000, "cores": 8}
    cases = [case | {"workers": number} for number in (1, 4)]
    cases += [{"kind": "expression", "rows": 10**9, "cores": 1, "workers": 8, "seconds": 10.0}]
    one, four, crowded = scale_out.simulate(cases, kept["costs"])
    assert one["seconds"] > 40_000 * 0.001
    assert one["seconds"] / four["seconds"] == pytest.approx(4, rel=0.3)
    server, _ = scale_out.demands(kept["costs"], "expression", crowded["batch"])
    assert crowded["rate"] <= 1.1 / server


def test_the_page_and_its_picture_show_what_is_kept(kept: dict[str, Any]) -> None:
    for path, written in ((scale_out.PAGE, scale_out.sections), (scale_out.DETAILS, scale_out.details)):
        page = path.read_text(encoding="utf-8")
        for mark, text in written(kept):
            assert f"<!-- figures: {mark} -->\n\n{text}\n\n<!-- end -->" in page
        marks = re.findall("<!-- figures: (.*) -->", page)
        assert sorted(marks) == sorted(mark for mark, _ in written(kept))
    lines = {title: scale_out.points(kept, kind) for kind, title in scale_out.TITLES.items()}
    assert scale_out.PICTURE.read_text(encoding="utf-8") == plot(lines)


def test_a_limit_is_named_only_where_a_device_is_full() -> None:
    idle = {"cores": 0.5, "log": 0.2, "row": 0.1}
    assert scale_out.limit_of(idle) == ""
    assert scale_out.limit_of(idle | {"row": 0.95}) == "the run's row"


def test_the_bounds_follow_from_the_costs() -> None:
    lines = {name: [[0, 0.001, 100, 1], [0, 0.00001, 400, 0]] for name in ("next", "expression")}
    server, log = scale_out.demands({"lines": lines}, "expression", 1_000)
    assert (server, log) == pytest.approx((2 * (0.001 / 1_000 + 0.00001), 2 * (0.1 + 400)))
