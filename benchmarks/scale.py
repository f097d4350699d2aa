"""What a row costs in tables of any size, key and number of indexes: `make bench-scale`."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import django
from django.conf import settings

from benchmarks import pages
from benchmarks.growth import Growth
from benchmarks.places import KINDS, Place, SmallBuffers, postgresql
from benchmarks.tables import Shape
from benchmarks.traffic import RAW
from tools.servers import MissingServer

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
MOST_ROUNDS = 1_000_000  # larger tables are measured once
PATIENCE = 300.0
METHODS = {"sqlite": ("expression_orm", "row")}


@dataclass(frozen=True)
class Case:
    """A table. `grows` is one of those that differ in nothing but their size; `buffers` is on another server."""

    title: str
    shape: Shape
    grows: bool = False
    buffers: bool = False


def cases(vendor: str, most: int) -> list[Case]:
    """Return the tables to be measured, none with more rows than `most`."""
    sizes = [size for size in SIZES if size < most] + [most]
    rows = min(most, MOST_ROUNDS)
    size = f"{rows:,} rows"
    small = Case(f"{size}, `shared_buffers` of 16 MB", Shape(rows), buffers=True)
    return [
        *(Case(f"{size:,} rows", Shape(size), grows=True) for size in sizes),
        Case(f"{size}, UUID key in no order", Shape(rows, key="uuid")),
        Case(f"{size}, composite key", Shape(rows, key="composite")),
        Case(f"{size}, no secondary index", Shape(rows, indexes=0)),
        Case(f"{size}, 5 secondary indexes", Shape(rows, indexes=5)),
        *([small] if vendor == "postgresql" else []),
    ]


def main() -> int:
    options = parse_arguments()
    settings.configure(USE_TZ=True, TIME_ZONE="UTC")
    django.setup()
    sound = True
    for name in options.databases:
        try:
            data = bench(name, options)
        except MissingServer as missing:
            print(f"{name} is left out: {missing}")
            continue
        sound = report(name, data, options) and sound
    if options.page:
        pages.write()
    return 0 if sound else 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=SIZES[-1], help=f"of the largest (default: {SIZES[-1]:,})"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help=f"up to {MOST_ROUNDS:,} rows; larger tables once (default: 3)"
    )
    parser.add_argument(
        "--databases", nargs="*", choices=KINDS, default=["postgresql", "mariadb", "sqlite-wal"]
    )
    parser.add_argument("--page", action="store_true", help="write docs/explanation/performance.md anew")
    return parser.parse_args(arguments)


def bench(name: str, options: argparse.Namespace) -> dict[str, Any]:
    kind = KINDS[name]
    methods = METHODS.get(kind.vendor, ("expression", "row"))
    measured: list[dict[str, Any]] = []
    data: dict[str, Any] = {"command": command(options), "cases": measured}
    with kind.open() as place:
        place.fresh(Shape(0))
        data["machine"] = place.facts()
        data["title"] = kind.title(data["machine"])
        print(f"\n{data['title']}", flush=True)
        for case in cases(kind.vendor, options.rows):
            with small_buffers(place) if case.buffers else same(place) as where:
                measured.append(run(where, case, methods, options.runs, measured))
            print(*Growth(data).row(measured[-1]), sep=" | ", flush=True)
    return data


@contextmanager
def same(place: Place) -> Iterator[Place]:
    yield place


@contextmanager
def small_buffers(place: Place) -> Iterator[Place]:
    with postgresql(place.driver, server=SmallBuffers) as another:
        yield another


def run(
    place: Place, case: Case, methods: Sequence[str], rounds: int, before: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Measure the methods in turns; one that would take too long, by the tables before, is left out."""
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for _ in range(rounds if case.shape.rows <= MOST_ROUNDS else 1):
        for name in methods:
            if expected(before, name) * case.shape.rows <= PATIENCE:
                outcomes[name].append(place.measure(name, case.shape))
    place.clear()
    return {"title": case.title, "grows": case.grows, "shape": asdict(case.shape), "outcomes": outcomes}


def expected(before: Sequence[dict[str, Any]], name: str) -> float:
    """Return the seconds for a row, as the last table had it; 0 without one."""
    found = [each for case in before[-1:] for each in case["outcomes"][name] if "error" not in each]
    return statistics.median(each["seconds"] / each["rows"] for each in found) if found else 0.0


def report(name: str, data: dict[str, Any], options: argparse.Namespace) -> bool:
    growth = Growth(data)
    pages.save(RAW / f"scale-{name}.json", data)
    print(f"\n{growth.section()}\n", flush=True)
    errors = growth.errors()
    print(*errors, sep="\n", file=sys.stderr)
    if options.page and not errors:
        pages.save(pages.KEPT / f"scale-{name}.json", data)
    return not errors


def command(options: argparse.Namespace) -> str:
    rows = f" ROWS={options.rows}" if options.rows != SIZES[-1] else ""
    return f"make bench-scale{rows}" + (f" RUNS={options.runs}" if options.runs != 3 else "")


if __name__ == "__main__":
    sys.exit(main())
