"""What a row costs as the table grows, by other keys, and with more indexes, on one database."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import megabytes, number
from benchmarks.methods import METHODS
from benchmarks.report import markdown, on_what

MICRO = 1_000_000


class Growth:
    """The cases of a database, each with the outcomes of its methods, round after round."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.machine, self.command = data["machine"], data["command"]
        self.title: str = data["title"]
        self.cases: list[dict[str, Any]] = data["cases"]

    @property
    def methods(self) -> list[str]:
        return list(self.cases[0]["outcomes"])

    def costs(self, case: dict[str, Any], method: str) -> list[float]:
        """Return the microseconds that a row took, in each round."""
        found = case["outcomes"].get(method, [])
        return [each["seconds"] / each["rows"] * MICRO for each in found if "error" not in each]

    def flatness(self, method: str) -> float | None:
        """Return what a row costs at the worst size, against the best; the keys and indexes being the same."""
        medians = [
            statistics.median(costs)
            for case in self.cases
            if case["grows"] and (costs := self.costs(case, method))
        ]
        return max(medians) / min(medians) if len(medians) > 1 else None

    @property
    def memory(self) -> float | None:
        found = [each.get("memory", 0) for each in self._outcomes()]
        return max(found, default=None)

    def errors(self) -> list[str]:
        failed = [each["error"] for each in self._outcomes() if "error" in each]
        return failed + [f"{each['wrong']:,} wrong rows" for each in self._outcomes() if each.get("wrong")]

    def _outcomes(self) -> list[dict[str, Any]]:
        return [each for case in self.cases for rounds in case["outcomes"].values() for each in rounds]

    def section(self) -> str:
        about = f"{self.machine['database']} (durable); {on_what(self.machine)}; `{self.command}`."
        header = ["table", *(f"{METHODS[name].title}, µs per row" for name in self.methods), "memory at most"]
        return f"{about}\n\n{markdown(header, [self.row(case) for case in self.cases])}"

    def row(self, case: dict[str, Any]) -> list[str]:
        memory = [each.get("memory", 0) for rounds in case["outcomes"].values() for each in rounds]
        cells = [_cell(self.costs(case, name)) for name in self.methods]
        return [case["title"], *cells, megabytes(max(memory, default=None))]


def _cell(costs: Sequence[float]) -> str:
    if not costs:
        return "not run"
    middle = number(statistics.median(costs))
    return f"{middle} ({number(min(costs))}–{number(max(costs))})" if len(costs) > 1 else middle  # noqa: RUF001
