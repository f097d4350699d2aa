"""What the users of a site notice while a required field is added to a full table: `make bench-traffic`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from benchmarks.report import DETAILS, brief, facts, row, section, write_page
from benchmarks.runs import Run, run
from benchmarks.scenarios import SCENARIOS
from tools.demo import ROOT
from tools.servers import MariaDB, MissingServer, PostgreSQL, Server

SERVERS: dict[str, type[Server]] = {"postgresql": PostgreSQL, "mysql": MariaDB}
ROWS = {"postgresql": 1_000_000, "mysql": 300_000}
RAW = ROOT / ".bench"


def main() -> int:
    options = parse_arguments()
    settings.configure(USE_TZ=True, TIME_ZONE="UTC")
    django.setup()
    if options.url:
        bench("postgresql" if options.url.startswith("postgres") else "mysql", options.url, options)
        return 0
    for vendor in options.databases:
        try:
            with SERVERS[vendor](durable=True) as server:
                bench(vendor, server.url, options)
        except MissingServer as missing:
            print(f"{vendor} is left out: {missing}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    parser.add_argument("--rows", type=int, help="default: 1,000,000 on PostgreSQL, 300,000 on MariaDB")
    parser.add_argument("--runs", type=int, default=3, help="of each migration (default: 3)")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--databases", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--url", default="", help="a server of your own, in place of those that are started")
    parser.add_argument(
        "--block",
        default="",
        help="with --page: the block of the page, where it is not that of all migrations",
    )
    parser.add_argument(
        "--page", action="store_true", help="write the tables into docs/explanation/traffic.md"
    )
    return parser.parse_args()


def bench(vendor: str, server: str, options: argparse.Namespace) -> None:
    """Run what is asked for on one server, round after round, and report it."""
    rows = options.rows or ROWS[vendor]
    machine = facts(server)
    names = [name for name in options.only if vendor in SCENARIOS[name].vendors]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(options.runs):
        for name in names:
            runs[name].append(run(server, name, rows))
            print(*row(runs[name][-1:], rows), sep=" | ", flush=True)
    save(RAW / f"traffic-{vendor}.json", machine, list(runs.values()))
    if not options.url:
        machine["database"] += " (durable)"
    text = section(list(runs.values()), rows, machine, command(options))
    print(f"\n{text}\n")
    if options.page:
        name = "-".join(filter(None, [vendor, options.block]))
        write_page(name, text, DETAILS)
        write_page(name, brief(text))


def save(path: Path, machine: dict[str, Any], runs: Sequence[Sequence[Run]]) -> None:
    """Keep every request of every run."""
    path.parent.mkdir(exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")
    path.write_text(json.dumps({"machine": machine, "runs": [asdict(run) for each in runs for run in each]}))


def command(options: argparse.Namespace) -> str:
    if options.url or options.only != list(SCENARIOS):
        only = "" if options.only == list(SCENARIOS) else f" --only {' '.join(options.only)}"
        more = f" --rows {options.rows}" if options.rows else ""
        more += " --url URL" if options.url else ""
        return f"python -m benchmarks.traffic{only} --runs {options.runs}{more}"
    rows = f" ROWS={options.rows}" if options.rows else ""
    return f"make bench-traffic{rows}" + (f" RUNS={options.runs}" if options.runs != 3 else "")


if __name__ == "__main__":
    sys.exit(main())
