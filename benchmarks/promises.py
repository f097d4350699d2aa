"""What is promised of the speed, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.figures import GAP, MB, Figures, number
from benchmarks.growth import Growth
from benchmarks.methods import METHODS
from benchmarks.report import markdown


@dataclass(frozen=True)
class Measured:
    """What is known of one database."""

    speed: Figures | None = None
    growth: Growth | None = None

    @property
    def title(self) -> str:
        return next((known.title for known in (self.speed, self.growth) if known), "")


Reached = Callable[[Measured], float | None]


@dataclass(frozen=True)
class Promise:
    """A figure, and its limit on each database: the most that it may be, or the least with `least`."""

    title: str
    reached: Reached
    limits: Mapping[str, float]
    least: bool = False
    unit: str = ""

    def holds(self, found: float, limit: float) -> bool:
        return found >= limit if self.least else found <= limit

    def cell(self, name: str, measured: Measured) -> str:
        limit, found = self.limits.get(name), self.reached(measured)
        if limit is None or found is None:
            return ""
        text = f"{number(found)}{self.unit}"
        text = text if self.holds(found, limit) else f"**{text}**"
        return f"{text} ({'≥' if self.least else '≤'}{GAP}{limit:g}{self.unit})"


def against_base(*names: str) -> Reached:
    """Return the time of the first of these methods that was measured, to that of what it is compared with."""

    def reached(measured: Measured) -> float | None:
        if measured.speed is None:
            return None
        found = [measured.speed.ratio(name, METHODS[name].base) for name in names]
        return next((ratio for ratio in found if ratio is not None), None)

    return reached


def faster(name: str, than: str) -> Reached:
    return lambda measured: measured.speed.ratio(than, name) if measured.speed else None


def memory(measured: Measured) -> float | None:
    most = [measured.speed.highest("memory", OURS)] if measured.speed else []
    most += [measured.growth.memory] if measured.growth else []
    return max((value / MB for value in most if value is not None), default=None)


def held_alone(measured: Measured) -> float | None:
    longest = measured.speed.highest("exclusive", LONG_OPERATIONS) if measured.speed else None
    return longest * 1000 if longest else None


def flat(*names: str) -> Reached:
    """Return how much dearer a row is at the worst size than at the best."""

    def reached(measured: Measured) -> float | None:
        found = [measured.growth.flatness(name) for name in names] if measured.growth else []
        return max((value for value in found if value is not None), default=None)

    return reached


LONG_OPERATIONS = ("set_not_null", "operation")
OURS = [name for name, method in METHODS.items() if method.ours]
PSYCOPG, PSYCOPG2 = ("postgresql", "postgresql-system"), ("postgresql-psycopg2",)
POSTGRESQL, SQLITE = (*PSYCOPG, *PSYCOPG2), ("sqlite", "sqlite-wal")
EVERYWHERE = (*POSTGRESQL, "mariadb", *SQLITE)


def on(names: tuple[str, ...], limit: float) -> dict[str, float]:
    return dict.fromkeys(names, limit)


def times(name: str, than: str) -> Reached:
    """Return the time of a row by one method, to that by another."""
    return lambda measured: measured.speed.ratio(name, than) if measured.speed else None


EXPRESSIONS = on((*POSTGRESQL, "mariadb", "sqlite-wal"), 1.1) | {"sqlite": 1.25}
PROMISES = [
    Promise(
        "An expression, to one UPDATE: timestamps", against_base("expression", "expression_orm"), EXPRESSIONS
    ),
    Promise("An expression, to one UPDATE: texts", against_base("expression_text"), EXPRESSIONS),
    Promise("The same with no secondary index", against_base("expression_0_indexes"), on(POSTGRESQL, 1.15)),
    Promise("The same with 5 secondary indexes", against_base("expression_5_indexes"), on(POSTGRESQL, 1.15)),
    Promise(
        "Dates in SQLite, to one UPDATE in its own words",
        times("expression_orm", "update"),
        on(SQLITE, 2),
    ),
    Promise("`FromRelated`, to one UPDATE", against_base("related"), on(POSTGRESQL, 1.15)),
    Promise(
        "A function of one row, to one UPDATE",
        against_base("row"),
        on(POSTGRESQL, 1.9) | {"mariadb": 2.3} | on(SQLITE, 8),
    ),
    Promise("The same without a writer thread", against_base("row_alone"), on(POSTGRESQL, 3.3)),
    Promise(
        "A function of one row, times faster than the loop of `save()`",
        faster("row", "loop"),
        on(POSTGRESQL, 35),
        least=True,
    ),
    Promise(
        "A function of one row, times faster than `bulk_update`",
        faster("row", "bulk_update"),
        on(POSTGRESQL, 12),
        least=True,
    ),
    Promise(
        "A function of one row, times faster than django-maintenance-tasks",
        faster("row", "maintenance_task"),
        on(("postgresql", "mariadb"), 1),
        least=True,
    ),
    Promise("`uuid.uuid4`, to one UPDATE", against_base("uuid4"), on(PSYCOPG, 1.8) | on(PSYCOPG2, 2.1)),
    Promise(
        "A function of no arguments, to one UPDATE",
        against_base("own_uuid"),
        on(PSYCOPG, 1.8) | on(PSYCOPG2, 2.1),
    ),
    Promise(
        "The whole operation, to `AddField`, UPDATE, `AlterField`",
        against_base("operation"),
        on(POSTGRESQL, 1.12) | on(SQLITE, 1.1),
    ),
    Promise(
        "The whole operation, times faster than django-deferred-migrations",
        faster("operation", "deferred_operation"),
        on(("postgresql",), 1),
        least=True,
    ),
    *(
        Promise(
            f"The whole operation on {rows:,} rows, to the same",
            against_base(f"operation_{rows}"),
            on(("postgresql",), most),
        )
        for rows, most in ((1_000, 3), (10_000, 1.6), (50_000, 1.2))
    ),
    Promise(
        "The whole operation on no rows, to a plain `AddField`",
        against_base("operation_0"),
        on(EVERYWHERE, 2),
    ),
    Promise("`SetNotNull`, to `AlterField`", against_base("set_not_null"), on(("postgresql",), 1.2)),
    Promise("Memory of the client", memory, on(EVERYWHERE, 32), unit=f"{GAP}MB"),
    Promise("A table held alone (ACCESS EXCLUSIVE)", held_alone, on(POSTGRESQL, 5), unit=f"{GAP}ms"),
    Promise(
        "A row at the worst size of table, to the best",
        flat("expression", "expression_orm", "row"),
        on(EVERYWHERE, 1.15),
    ),
]


def section(measured: Mapping[str, Measured]) -> str:
    """Return the table of what was promised, with what was reached; bold where that is too little."""
    rows = [[each.title, *(each.cell(*known) for known in measured.items())] for each in PROMISES]
    return markdown(["", *(known.title for known in measured.values())], rows)
