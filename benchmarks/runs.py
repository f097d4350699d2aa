"""A migration that is run for real, by `manage.py migrate`, under the traffic of benchmarks/load.py."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.sites import Site, database

LEAD, TAIL = 1.0, 2.0  # seconds of traffic before and after the migration


@dataclass(frozen=True)
class Run:
    """What became of the migration, and of each request beside it."""

    scenario: str
    rows: int
    seconds: float
    error: str | None
    wrong_rows: int | None
    requests: list[dict[str, Any]]

    @cached_property
    def waits(self) -> list[float]:
        return sorted(request["wait"] for request in self.requests)

    @property
    def failures(self) -> Counter[str]:
        """How many requests failed, by error."""
        return Counter(request["error"] for request in self.requests if request["error"])

    def figures(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "statements": len(self.requests),
            "failed": sum(self.failures.values()),
            "over a second": sum(wait > 1 for wait in self.waits),
            "worst": self.waits[-1],
            "p99": self.waits[int(len(self.waits) * 0.99)],
            "median": statistics.median(self.waits),
        }


def run(server: str, name: str, rows: int) -> Run:
    """Run the migration of a scenario, on a new database of the server with this URL."""
    scenario = SCENARIOS[name]
    rows = min(rows, scenario.most_rows or rows)
    with (
        tempfile.TemporaryDirectory(prefix="safemigrate-") as folder,
        database(server, f"traffic_{name}") as url,
    ):
        site = Site(Path(folder), url, scenario.column)
        site.fill(rows)
        return _run(site, name, scenario, rows)


def _run(site: Site, name: str, scenario: Scenario, rows: int) -> Run:
    target = scenario.write(site)
    obstacle = scenario.obstacle()
    obstacle.prepare(site)
    with load(site, rows) as requests:
        time.sleep(LEAD)
        with obstacle.hold(site):
            started = time.monotonic()
            done = site.manage(site.new, "migrate", "polls", target)
            seconds = time.monotonic() - started
        time.sleep(TAIL)
    error = done.stderr.strip().splitlines()[-1] if done.returncode else None
    wrong = site.wrong_rows() if scenario.fills and not error else None
    return Run(name, rows, seconds, error, wrong, requests)


@contextmanager
def load(site: Site, rows: int) -> Iterator[list[dict[str, Any]]]:
    """Send the old code's traffic while the block runs; afterwards the list has the requests."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", str(rows)],
        cwd=site.old,
        env=site.environment(site.old),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    requests: list[dict[str, Any]] = []
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("The traffic did not begin; the reason is above.")
        yield requests
    finally:
        output, _ = process.communicate()
    requests += json.loads(output)
