"""How the time of a fill falls with the workers of a queue, for a billion rows, and what sets the limit.

python -m benchmarks.scale_out [--cores 8] [--network 0.5] [--page]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

from benchmarks.report import facts, markdown, on_what, write_page
from benchmarks.scale_plot import plot
from tools.demo import EXAMPLE, ROOT
from tools.servers import PostgreSQL

ROWS = 1_000_000_000
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: The populates, and how many seconds of their runs are simulated: some tasks of each worker.
TITLES = {
    "expression": "`F() + timedelta`",
    "row": "a function of one row",
    "ms1": "a function that waits 1 ms",
    "ms50": "a function that waits 50 ms",
}
SECONDS = {"expression": 24.0, "row": 24.0, "ms1": 40.0, "ms50": 240.0}
#: What is run here too: kind, rows, workers.
REAL = [
    *(
        (kind, rows, number)
        for rows in (300_000, 1_000_000)
        for kind in ("expression", "row")
        for number in (1, 2)
    ),
    *(("ms1", 20_000, number) for number in (1, 2, 4)),
]
CORES = (2, 8, 32)
FULL = 0.9
LIMITS = {"cores": "cores", "log": "log", "row": "the run's row"}
KEPT = ROOT / "benchmarks/results/scale-out.json"
PAGE = ROOT / "docs/explanation/scale.md"
DETAILS = ROOT / "benchmarks/results/scale-out.md"
PICTURE = ROOT / "docs/images/scale.svg"


def main() -> None:
    options = parse_arguments()
    if options.work:
        work(*options.work)
        return
    data = json.loads(KEPT.read_text()) if options.again else measured(options)
    print(*(f"{text}\n" for _, text in [*sections(data), *details(data)]), sep="\n")
    if options.page:
        KEPT.write_text(json.dumps(data, indent=1) + "\n")
        write(data)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__)
    parser.add_argument("--cores", type=int, default=8, help="of the database's machine (default: 8)")
    parser.add_argument(
        "--network", type=float, default=0.5, help="ms of a trip to the database (default: 0.5)"
    )
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} and {DETAILS.name} anew")
    parser.add_argument("--again", action="store_true", help="measure nothing: print what is kept")
    parser.add_argument("--work", nargs=3, metavar=("URL", "KIND", "RUN"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the costs and some runs here, and simulate these and the large ones."""
    with PostgreSQL(durable=True) as server:
        set_up(server.url)
        machine = facts(server.url)
        found = import_module("benchmarks.costs").measure(300_000)
        real = [run_for_real(server.url, *case) for case in REAL]
    ours = {"cores": os.cpu_count(), "shared": True}
    large = {"cores": options.cores, "network": options.network / 1000, "rows": ROWS}
    cases = [dict(zip(("kind", "rows", "workers"), case, strict=True), **ours) for case in REAL]
    # The largest first, so that no process is left alone with it.
    pairs = [(kind, number) for number in reversed(WORKERS) for kind in TITLES]
    cases += [{"kind": kind, "workers": number, "seconds": SECONDS[kind], **large} for kind, number in pairs]
    outcomes = simulate(cases, found)
    return {
        "machine": machine,
        "command": f"python -m benchmarks.scale_out --cores {options.cores} --network {options.network}",
        "cores": options.cores,
        "network": options.network / 1000,
        "costs": found,
        "real": [[*case, *each] for case, each in zip(REAL, real, strict=True)],
        "predicted": outcomes[: len(REAL)],
        "simulated": {
            kind: {str(number): outcomes[len(REAL) + pairs.index((kind, number))] for number in WORKERS}
            for kind in TITLES
        },
    }


def set_up(url: str = "") -> None:
    """Use the server, or without one a database in memory."""
    sys.path.insert(0, str(EXAMPLE))
    parse = import_module("mysite.database_urls").parse
    memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    settings.configure(
        DATABASES={"default": parse(url) if url else memory},
        INSTALLED_APPS=["django.contrib.contenttypes", "safemigrate"],
        USE_TZ=True,
        # In virtual time no worker dies.
        SAFEMIGRATE_LEASE_SECONDS=15 if url else 1e7,
        LOGGING_CONFIG=None,
    )
    django.setup()
    call_command("migrate", verbosity=0)


def simulate(cases: Sequence[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    # Fresh processes: Django is set up otherwise here.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), set_up) as pool:
        return list(pool.map(partial(simulated, found), cases))


def simulated(found: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    model = import_module("benchmarks.simulated")
    outcome: dict[str, Any] = model.simulated(model.Case(**case), found)
    return outcome


# For real


def run_for_real(url: str, kind: str, rows: int, workers: int) -> tuple[float, float]:
    """Return the seconds of the run, from its own record, and those of its workers' batches for a row."""
    costs = import_module("benchmarks.costs")
    costs.fresh_table(rows)
    run = costs.begin(kind, workers)
    command = [sys.executable, "-m", "benchmarks.scale_out", "--work", url, kind, str(run.pk)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes: list[Any] = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(workers)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.close()
    if any(process.wait() for process in processes):
        raise RuntimeError(f"A worker failed: {' '.join(command)}")
    seconds, working = costs.seconds_of(run.pk)
    print(f"{kind}, {rows:,} rows, {workers} workers: {seconds:.1f} s", flush=True)
    return seconds, working / rows


def work(url: str, kind: str, run: str) -> None:
    """Be a worker of a queue that delivers at once; begin when the others are there."""
    set_up(url)
    begin = import_module("benchmarks.costs").worker(kind, int(run))
    print("ready", flush=True)
    sys.stdin.read()
    begin()


# As texts


def write(data: dict[str, Any]) -> None:
    for mark, text in sections(data):
        write_page(mark, text, PAGE)
    for mark, text in details(data):
        write_page(mark, text, DETAILS)
    PICTURE.write_text(plot({TITLES[kind]: points(data, kind) for kind in TITLES}))


def sections(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each text between marks of the page, with the name of its mark."""
    yield "workers", f"{worker_table(data)}\n\n{about(data)}"
    yield "bounds", bound_table(data)
    yield "errors", errors(data)


def details(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what stands beside the results: what the page's figures follow from."""
    yield "costs", f"{about(data)}\n\n{cost_table(data['costs'])}"
    yield "validation", validation(data)


def about(data: dict[str, Any]) -> str:
    return f"{data['machine']['database']} (durable); {on_what(data['machine'])}; `{data['command']}`."


def errors(data: dict[str, Any]) -> str:
    """Return how far the predictions were from the runs that were done for real."""
    _, rows, workers, _, _, found = zip(*compared(data), strict=True)
    return (
        f"{len(found)} runs of {min(rows):,} to {max(rows):,} rows, with {min(workers)} to {max(workers)} workers, "
        f"were done for real. The predicted times were off by {min(found):+.0%} to {max(found):+.0%}."
    )


def compared(data: dict[str, Any]) -> Iterator[tuple[str, int, int, float, float, float]]:
    """Yield for each run its kind, rows and workers, the seconds measured and predicted, and the error."""
    for (kind, number, workers, seconds, _), predicted in zip(data["real"], data["predicted"], strict=True):
        yield kind, number, workers, seconds, predicted["seconds"], predicted["seconds"] / seconds - 1


def cost_table(found: dict[str, Any]) -> str:
    titles = {"next": "the end of a batch or range found", "expression": "`F() + timedelta`: the UPDATE"}
    titles |= {"made": "a function of one row: read and compute", "written": "a function of one row: write"}
    header = ["", "worker's CPU", "server's CPU", "log", "trips", "and for each row: worker", "server", "log"]
    rows = [
        [title, *_cost(*found["lines"][name][0]), *_cost(*found["lines"][name][1])[:3]]
        for name, title in titles.items()
    ]
    records = {
        "cut": "a range is cut",
        "take": "a range is taken",
        "write": "its place is saved, each second",
        "beat": "the heartbeat, each second",
    }
    records |= {"look": "a look at the run, each batch", "end": "a range ends"}
    rows += [[title, *_cost(*found["records"][name]), "", "", ""] for name, title in records.items()]
    disk = (
        f"A sync of the log takes {found['sync'] * 1e3:.2f} ms, and the disk takes "
        f"{found['bandwidth'] / 1e6:,.0f} MB/s. To see that nothing is NULL takes the server "
        f"{found['scan'] * 1e9:.0f} ns for a row."
    )
    return f"{markdown(header, rows)}\n\n{disk}"


def _cost(client: float, server: float, log: float, trips: float) -> list[str]:
    return [_micro(client), _micro(server), f"{log:,.0f} B" if log else "", f"{trips:.0f}" if trips else ""]


def _micro(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} µs"


def validation(data: dict[str, Any]) -> str:
    rows = [
        [TITLES[kind], f"{number:,}", f"{workers}", f"{seconds:.1f} s", f"{predicted:.1f} s", f"{wrong:+.0%}"]
        for kind, number, workers, seconds, predicted, wrong in compared(data)
    ]
    return markdown(["", "rows", "workers", "measured", "predicted", "error"], rows)


def worker_table(data: dict[str, Any]) -> str:
    header = ["workers", *TITLES.values()]
    return markdown(
        header, [[f"{number}", *(_cell(data, kind, number) for kind in TITLES)] for number in WORKERS]
    )


def _cell(data: dict[str, Any], kind: str, number: int) -> str:
    limit = limit_of(data["simulated"][kind][str(number)])
    return duration(hours(data, kind, number)) + (f" ({limit})" if limit else "")


def limit_of(outcome: dict[str, Any]) -> str:
    """Return what has no room for more workers."""
    busiest = max(LIMITS, key=lambda name: outcome[name])
    return LIMITS[busiest] if outcome[busiest] >= FULL else ""


def hours(data: dict[str, Any], kind: str, number: int) -> float:
    scan: float = data["costs"]["scan"] * ROWS
    rate: float = data["simulated"][kind][str(number)]["rate"]
    return (ROWS / rate + scan) / 3600


def points(data: dict[str, Any], kind: str) -> list[tuple[int, float]]:
    return [(number, hours(data, kind, number)) for number in WORKERS]


def duration(hours: float) -> str:
    return (
        f"{hours * 60:.0f} min"
        if hours < 2
        else f"{hours:.1f} h"
        if hours < 48
        else f"{hours / 24:,.1f} days"
    )


def bound_table(data: dict[str, Any]) -> str:
    """Return what each device can do at most, by the formula in benchmarks/results/scale-out.md."""
    header = ["", "one worker", *(f"{cores} cores" for cores in CORES), "the log"]
    rows = []
    for kind, title in TITLES.items():
        one = data["simulated"][kind]["1"]
        server, log = demands(data["costs"], kind, one["batch"])
        limits = [*(cores / server for cores in CORES), data["costs"]["bandwidth"] / log]
        rows.append([title, *(f"{rate:,.0f}" for rate in (one["rate"], *limits))])
    held = row_seconds(data)
    return (
        f"{markdown(header, rows)}\n\nRows per second. A worker holds the run's row for {held * 1e3:.1f} ms of each "
        f"second, so no more than {1 / held:,.0f} workers find it free."
    )


def demands(found: dict[str, Any], kind: str, size: float) -> tuple[float, float]:
    """Return the server's seconds and the bytes of log for a row, in batches of that size."""
    names = ["next", "expression"] if kind == "expression" else ["next", "made", "written"]
    lines = [found["lines"][name] for name in names]
    server, log = (sum(batch[n] / size + row[n] for batch, row in lines) for n in (1, 2))
    return server, log


def row_seconds(data: dict[str, Any]) -> float:
    """Return how long a worker holds the run's row in a second, with a range of ten seconds."""
    records, found = data["costs"]["records"], data["costs"]
    seconds = {
        name: client + server + trips * data["network"] + found["sync"]
        for name, (client, server, _, trips) in records.items()
    }
    return float(seconds["write"] + seconds["beat"] / 2 + seconds["take"] / 10)


if __name__ == "__main__":
    main()
