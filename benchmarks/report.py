"""The figures of runs as tables, on the terminal's page and in the documentation."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import django

from benchmarks.runs import Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.sites import connect
from tools.demo import ROOT

PAGE = ROOT / "docs/explanation/traffic.md"
#: Has every column, and what failed.
DETAILS = ROOT / "benchmarks/results/traffic.md"
HEADER = (
    "migration",
    "it ends",
    "statements",
    "failed",
    "over 1 s",
    "worst wait",
    "p99",
    "median",
)
SHOWN = ("migration", "it ends", "failed", "over 1 s", "worst wait")


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Return the median of each figure; of what must never happen, the highest."""
    figures = [run.figures() for run in runs]
    highest = ("failed", "over a second")
    return {
        name: (max if name in highest else statistics.median)(each[name] for each in figures)
        for name in figures[0]
    }


def row(runs: Sequence[Run], rows: int) -> list[str]:
    found = summary(runs)
    title = SCENARIOS[runs[0].scenario].title
    fewer = f" ({runs[0].rows:,} rows)" if runs[0].rows != rows else ""
    errors = [run.error for run in runs if run.error]
    end = (
        f"in {found['seconds']:.1f} s" if not errors else f"{len(errors)} of {len(runs)}: {_kind(errors[0])}"
    )
    if wrong := max(run.wrong_rows or 0 for run in runs):
        end += f", with {wrong:,} rows wrong"
    waits = [_milliseconds(found[name]) for name in ("worst", "p99", "median")]
    counts = [f"{found[name]:,.0f}" for name in ("statements", "failed", "over a second")]
    return [title + fewer, end, *counts, *waits]


def _kind(error: str) -> str:
    return f"`{error.partition(':')[0].rpartition('.')[2]}`"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def table(runs: Sequence[Sequence[Run]], rows: int) -> str:
    return markdown(HEADER, [row(each, rows) for each in runs], texts=2)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return a table, of which the first columns are texts and the others numbers."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts(url: str, driver: str = "") -> dict[str, Any]:
    """Return on what the figures were taken; `driver` names the module where it was not Django's choice."""
    connection = connect(url)
    version = ".".join(map(str, connection.get_database_version()))
    found = {
        "database": f"{connection.display_name} {version}",
        "driver": _with_version(driver or connection.Database.__name__),
        "django": django.get_version(),
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    connection.close()
    return found


def _with_version(module: str) -> str:
    """Return a driver's name and version; PyMySQL gives itself out for another."""
    packages = metadata.packages_distributions().get(module, [])
    return f"{module} {metadata.version(packages[0])}" if packages else module.partition(".")[0]


def section(runs: Sequence[Sequence[Run]], rows: int, facts: dict[str, Any], command: str) -> str:
    times = len(runs[0])
    lines = f"{facts['database']}, {rows:,} rows, {times} runs of each; {on_what(facts)}; `{command}`."
    return f"{lines}\n\n{table(runs, rows)}\n\n{failures(runs)}"


def brief(text: str) -> str:
    """Return what the page shows of a section: how it was taken, and some columns of its table."""
    about, whole, _ = text.split("\n\n", 2)
    header, _, *rows = [line.strip("| ").split(" | ") for line in whole.splitlines()]
    picked = [header.index(name) for name in SHOWN]
    return f"{about}\n\n{markdown(SHOWN, [[line[n] for n in picked] for line in rows], texts=2)}"


def on_what(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cores']} cores, {facts['system']}, Python {facts['python']}, Django {facts['django']}, "
        f"{facts['driver']}; load of the machine before the first run {facts['load']}; {facts['date']}"
    )


def failures(runs: Sequence[Sequence[Run]]) -> str:
    """Tell, for each scenario, the commonest errors of the migration and of the requests."""
    lines = []
    for each in runs:
        texts = [f"the migration: `{run.error}`" for run in each if run.error][:1]
        found = sum((run.failures for run in each), start=each[0].failures.__class__())
        texts += [f"a request: `{error}`" for error, _ in found.most_common(1)]
        if texts:
            lines.append(f"- {SCENARIOS[each[0].scenario].title}: {'; '.join(texts)}")
    return "\n".join(["What failed:", "", *lines]) if lines else "Nothing failed."


def write_page(vendor: str, text: str, page: Path = PAGE) -> None:
    """Put the text between the marks that the page has for this database."""
    marked = re.compile(rf"(<!-- figures: {vendor} -->\n).*?(<!-- end -->)", re.DOTALL)
    before = page.read_text(encoding="utf-8")
    page.write_text(marked.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before), encoding="utf-8")
