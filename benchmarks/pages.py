"""What was measured, kept beside the code, and written from there into the page and its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import promises
from benchmarks.figures import Figures
from benchmarks.growth import Growth
from benchmarks.places import KINDS
from benchmarks.plot import plot
from benchmarks.promises import Measured
from benchmarks.report import write_page
from benchmarks.traffic import RAW
from tools.demo import ROOT

KEPT = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/explanation/performance.md"
EVERYTHING = KEPT / "README.md"
PICTURE = ROOT / "docs/images/speed.svg"
MISSING = "Not measured yet."
#: What the page shows of all that is known: databases, columns and methods.
SHOWN = ("postgresql", "mariadb", "sqlite-wal")
COLUMNS = ("time", "times its base", "longest transaction", "held alone")
COMPARED = (
    "update",
    "update_orm",
    "expression",
    "expression_orm",
    "expression_two",
    "row",
    "row_alone",
    "loop",
    "bulk_update",
    "maintenance_task",
    "deferred_fill",
    "update_related",
    "related",
    "update_5_indexes",
    "expression_5_indexes",
    "alter_field",
    "set_not_null",
    "migration_tools",
    "zero_downtime",
    "deferred_not_null",
    "plain_operation",
    "operation",
    "deferred_operation",
    "plain_1000",
    "operation_1000",
)
ABOUT = (
    "Written by `make bench` and `make bench-scale` from the rounds beside it; "
    "`docs/explanation/performance.md` says how they were measured, and what a column is."
)
GROWS = (
    "Microseconds for a row, by an expression and by a function of one row; tables of more than 1,000,000 rows "
    "are filled once."
)


def save(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.parent == RAW:
        (RAW / ".gitignore").write_text("*\n")
    path.write_text(json.dumps(data, indent=1) + "\n")


def kept(folder: Path = KEPT) -> dict[str, Measured]:
    """Return what is known, by database, in the order of the page."""
    found = {name: Measured(_read(folder, "speed", name), _read(folder, "scale", name)) for name in KINDS}
    return {name: measured for name, measured in found.items() if measured.speed or measured.growth}


def _read(folder: Path, what: str, name: str) -> Any:
    path = folder / f"{what}-{name}.json"
    made = {"speed": Figures, "scale": Growth}[what]
    return made(json.loads(path.read_text())) if path.exists() else None


def sections(measured: dict[str, Measured]) -> Iterator[tuple[str, str]]:
    """Yield each text between marks of the page, with the name of its mark."""
    yield "promises", promises.section(measured) if measured else MISSING
    for name in SHOWN:
        known = measured.get(name, Measured())
        yield name, known.speed.section(COLUMNS, COMPARED) if known.speed else MISSING


def everything(measured: dict[str, Measured]) -> str:
    """Return all tables with all columns."""
    tables = [
        f"## {known.speed.title}\n\n{known.speed.section()}" for known in measured.values() if known.speed
    ]
    tables += [
        f"## What a row costs as the table grows: {known.growth.title}\n\n{GROWS}\n\n{known.growth.section()}"
        for known in measured.values()
        if known.growth
    ]
    return "\n\n".join(["# All figures", ABOUT, *tables]) + "\n"


def write() -> None:
    """Write the page and the picture anew from what is kept."""
    measured = kept()
    for mark, text in sections(measured):
        write_page(mark, text, PAGE)
    EVERYTHING.write_text(everything(measured), encoding="utf-8")
    PICTURE.write_text(plot([known.speed for known in measured.values() if known.speed]))


if __name__ == "__main__":
    write()
