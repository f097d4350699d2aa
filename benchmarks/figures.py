"""What was measured on one database, round after round, as medians and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.methods import METHODS
from benchmarks.report import markdown, on_what

MB = 1_000_000
GAP = "\u00a0"  # at which no line is broken
LOOP = "loop"


class Figures:
    """The rounds of a database. One round has each method's outcome, taken after one another."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.machine, self.rows, self.command = data["machine"], data["rows"], data["command"]
        self.title: str = data["title"]
        self.rounds: list[dict[str, dict[str, Any]]] = data["rounds"]

    @property
    def names(self) -> list[str]:
        """The methods that were measured, each behind the one that it is compared with."""
        order = list(METHODS)
        return sorted(self.rounds[0], key=lambda name: (order.index(METHODS[name].base), order.index(name)))

    def errors(self, name: str) -> list[str]:
        return [each[name]["error"] for each in self.rounds if "error" in each[name]]

    def wrong(self, name: str) -> int:
        return sum(each[name].get("wrong", 0) for each in self.rounds)

    def median(self, name: str, figure: str) -> float | None:
        found = [each[name].get(figure) for each in self.rounds if name in each]
        known = [value for value in found if value is not None]
        return float(statistics.median(known)) if known else None

    def highest(self, figure: str, names: Sequence[str]) -> float | None:
        found = [each[name].get(figure) for each in self.rounds for name in names if name in each]
        return max((float(value) for value in found if value is not None), default=None)

    def ratios(self, name: str, base: str) -> list[float]:
        """Return how long a row takes, against the base's of the same round."""
        pairs = [(self._cost(each.get(name)), self._cost(each.get(base))) for each in self.rounds]
        return [cost / of_base for cost, of_base in pairs if cost and of_base]

    def ratio(self, name: str, base: str) -> float | None:
        found = self.ratios(name, base)
        return statistics.median(found) if found else None

    @staticmethod
    def _cost(outcome: dict[str, Any] | None) -> float | None:
        if outcome is None or "error" in outcome:
            return None
        seconds: float = outcome["seconds"] / max(outcome["rows"], 1)
        return seconds

    # As a text

    def section(self, columns: Sequence[str] = (), names: Sequence[str] = ()) -> str:
        """Return the table, with these columns and methods alone if any are named."""
        rounds = f"{len(self.rounds)} round{'' if len(self.rounds) == 1 else 's'}"
        about = (
            f"{self.machine['database']} (durable), {self.rows:,} rows, {rounds}; "
            f"{on_what(self.machine)}; `{self.command}`."
        )
        rows = [self.row(name) for name in self.names if not names or name in names]
        return "\n\n".join([about, markdown(*_chosen(rows, columns or HEADER)), *self._failures()])

    def row(self, name: str) -> list[str]:
        method = METHODS[name]
        if self.errors(name):
            return [method.title, "failed", *[""] * (len(HEADER) - 2)]
        return [
            method.title + self._fewer(name),
            self._time(name),
            self._rate(name),
            self._against(name, method.base),
            self._faster(name),
            megabytes(self.median(name, "memory")),
            megabytes(self.median(name, "log")),
            megabytes(self.median(name, "size")),
            milliseconds(self.median(name, "longest")),
            milliseconds(self.median(name, "exclusive")),
        ]

    def _fewer(self, name: str) -> str:
        rows = self.median(name, "rows") or 0
        return f" ({rows:,.0f} rows)" if METHODS[name].share > 1 and rows < self.rows else ""

    def _time(self, name: str) -> str:
        if wrong := self.wrong(name):
            return f"**{wrong:,} wrong rows**"
        seconds = self.median(name, "seconds") or 0
        return f"{seconds:.2f}{GAP}s" if seconds >= 1 else milliseconds(seconds)

    def _rate(self, name: str) -> str:
        rows, seconds = self.median(name, "rows"), self.median(name, "seconds")
        return f"{rows / seconds:,.0f}" if rows and seconds else ""

    def _against(self, name: str, base: str) -> str:
        found = self.ratios(name, base)
        if not found or name == base:
            return "1" if found else ""
        middle, least, most = statistics.median(found), min(found), max(found)
        return f"{number(middle)} ({number(least)}–{number(most)})" if len(found) > 1 else number(middle)  # noqa: RUF001

    def _faster(self, name: str) -> str:
        found = None if METHODS[name].required else self.ratio(LOOP, name)
        return "" if found is None else f"{number(found)}{GAP}×"  # noqa: RUF001

    def _failures(self) -> list[str]:
        failed = {METHODS[name].title: errors[0] for name in self.names if (errors := self.errors(name))}
        lines = [f"- {title}: `{error.strip().splitlines()[-1]}`" for title, error in failed.items()]
        return ["\n".join(["What failed:", "", *lines])] if lines else []


HEADER = (
    "",
    "time",
    "rows per second",
    "times its base",
    "faster than the loop",
    "memory",
    "log",
    "table",
    "longest transaction",
    "held alone",
)


def number(value: float) -> str:
    """Return a ratio with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value / MB:,.1f}{GAP}MB"
        if value < 10 * MB
        else f"{value / MB:,.0f}{GAP}MB"
    )


def milliseconds(seconds: float | None) -> str:
    if not seconds:
        return ""
    return f"{seconds * 1000:,.0f}{GAP}ms" if seconds >= 0.01 else f"{seconds * 1000:.1f}{GAP}ms"


def _chosen(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns that are not asked for, or in which this database has nothing."""
    kept = [
        n for n, name in enumerate(HEADER) if not name or (name in columns and any(row[n] for row in rows))
    ]
    return [HEADER[n] for n in kept], [[row[n] for n in kept] for row in rows]
