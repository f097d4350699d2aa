"""How fast each way to fill a column is, side by side on each database: `make bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import django
from django.conf import settings

from benchmarks import pages
from benchmarks.figures import Figures
from benchmarks.methods import METHODS
from benchmarks.places import KINDS, Kind, Place
from benchmarks.traffic import RAW
from tools.servers import MissingServer


def main() -> int:
    options = parse_arguments()
    settings.configure(USE_TZ=True, TIME_ZONE="UTC")
    django.setup()
    sound = True
    for name in options.databases:
        kind = KINDS[name]
        size = options.rows or kind.rows
        if methods := chosen(kind, size, options.only):
            try:
                with kind.open() as place:
                    data = bench(place, kind, methods, size, options)
            except MissingServer as missing:
                print(f"{name} is left out: {missing}")
                continue
            sound = report(name, data, options) and sound
    if options.page:
        pages.write()
    return 0 if sound else 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rows", type=int, help="default: 1,000,000; on MariaDB 300,000")
    parser.add_argument("--runs", type=int, default=3, help="rounds, each of all methods (default: 3)")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="these, and what they are compared with")
    parser.add_argument("--databases", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--page", action="store_true", help="write docs/explanation/performance.md anew")
    return parser.parse_args(arguments)


def bench(
    place: Place, kind: Kind, names: Sequence[str], rows: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure, round after round, each method after the other, so that all see the same weather."""
    rounds: list[dict[str, Any]] = []
    place.fresh(METHODS[names[0]].shaped(rows))
    machine = place.facts()
    data = {
        "title": kind.title(machine),
        "machine": machine,
        "rows": rows,
        "command": command(options),
        "rounds": rounds,
    }
    print(f"\n{data['title']}, {rows:,} rows", flush=True)
    for _ in range(options.runs):
        rounds.append({})
        for name in names:
            rounds[-1][name] = place.measure(name, METHODS[name].shaped(rows))
            print(*filter(None, Figures(data | {"rounds": rounds[-1:]}).row(name)), sep=" | ", flush=True)
    return data


def chosen(kind: Kind, rows: int, only: Sequence[str] | None) -> list[str]:
    """Return the methods to be measured on a database, in their order."""
    wanted = {each for name in only or () for each in (name, METHODS[name].base)}
    names = []
    for name, method in METHODS.items():
        too_large = method.most_rows is not None and method.most_rows >= rows
        if kind.vendor not in method.vendors or too_large or (wanted and name not in wanted):
            continue
        if method.needs and find_spec(method.needs) is None:
            print(f"{method.title} is left out: there is no {method.needs}")
        elif wanted or kind.main or method.everywhere:
            names.append(name)
    return names


def report(name: str, data: dict[str, Any], options: argparse.Namespace) -> bool:
    """Keep and show what was measured; return whether all went well, and all values were right."""
    figures = Figures(data)
    pages.save(RAW / f"speed-{name}.json", data)
    for method in figures.names:
        for error in figures.errors(method):
            print(error, file=sys.stderr)
    print(f"\n{figures.section()}\n", flush=True)
    sound = not any(figures.errors(method) or figures.wrong(method) for method in figures.names)
    if options.page and sound:
        pages.save(pages.KEPT / f"speed-{name}.json", data)
    return sound


def command(options: argparse.Namespace) -> str:
    rows = f" ROWS={options.rows}" if options.rows else ""
    return f"make bench{rows}" + (f" RUNS={options.runs}" if options.runs != 3 else "")


if __name__ == "__main__":
    sys.exit(main())
