"""Where the time of a function of one row goes, stage by stage, one after the other in one thread.

python -m benchmarks.stages [--rows ROWS] [--page]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db import connections, models
from django.db.migrations.state import ProjectState

from benchmarks.applying import applied
from benchmarks.pages import KEPT
from benchmarks.report import write_page
from benchmarks.seeds import seed
from benchmarks.tables import Shape
from safemigrate.backends import for_connection
from safemigrate.engine.batch_runner import ComputedInPython, work_for
from safemigrate.engine.batches import Batches, Target, null_in
from safemigrate.operations import AddNullableField
from safemigrate.populate.sources import resolve
from tools.demo import EXAMPLE
from tools.servers import PostgreSQL

PAGE = KEPT / "stages.md"
SIZE = 10_000
NAME = "expires_date"
STAGES = {
    "_read": "rows read, as instances",
    "_computed": "the function called",
    "_sorted": "values adapted for the database",
    "write": "rows written, committed",
}
LINE = "| {:<32} | {:>12} | {:>5} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/stages.md anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(sections(options.rows, Path(folder)))
    print(text)
    if options.page:
        write_page("stages", text, PAGE)


def sections(rows: int, folder: Path) -> Iterator[str]:
    sys.path.insert(0, str(EXAMPLE))
    parse = import_module("mysite.database_urls").parse
    with PostgreSQL(durable=True) as server:
        settings.configure(
            INSTALLED_APPS=["django.contrib.contenttypes"],
            DATABASES={
                "default": parse(server.url),
                "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "bench.sqlite3"},
            },
            USE_TZ=True,
        )
        django.setup()
        for alias in settings.DATABASES:
            title = f"{connections[alias].display_name}, {rows:,} rows in batches of {SIZE:,}"
            yield f"{title}; `python -m benchmarks.stages --rows {rows}`:\n\n{table(measured(alias, rows), rows)}"
        connections.close_all()


def measured(alias: str, rows: int) -> Counter[str]:
    """Fill the column, and return the seconds that each stage took."""
    shape = Shape(rows)
    state = applied(alias, ProjectState(), *shape.operations())
    with connections[alias].cursor() as cursor:
        for statement in seed(connections[alias].vendor, rows):
            cursor.execute(statement)
    state = applied(alias, state, AddNullableField("question", NAME, models.DateTimeField()))
    model = state.apps.get_model("polls", "Question")
    target = Target(model, [NAME], [NAME], alias, state.apps)
    source: Any = resolve(lambda question: question.pub_date + timedelta(days=30), [NAME])
    work, spent = work_for(target, source, for_connection(connections[alias])), Counter[str]()
    assert isinstance(work, ComputedInPython)
    for stage in STAGES:
        setattr(work, stage, timed(getattr(work, stage), stage, spent))
    fill(work, Batches(model, alias, null_in([NAME])), spent)
    return spent


def fill(work: ComputedInPython, batches: Batches, spent: Counter[str]) -> None:
    find = timed(batches.next, "range", spent)
    last = batches.last()
    batch = find(batches.first_todo(), last, SIZE, inclusive=True)
    while batch is not None:
        work(batches, batch)
        batch = find(batch.last, last, SIZE)


def timed(function: Callable[..., Any], stage: str, spent: Counter[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = function(*arguments, **named)
        spent[stage] += time.perf_counter() - began  # type: ignore[assignment]
        return result

    return call


def table(spent: Counter[str], rows: int) -> str:
    titles = {"range": "the end of each range found"} | STAGES
    lines = [LINE.format("stage", "µs for a row", "share"), "| --- | ---: | ---: |"]
    for stage, title in titles.items():
        share = spent[stage] / sum(spent.values())
        lines.append(LINE.format(title, f"{spent[stage] / rows * 1e6:.2f}", f"{share:.0%}"))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
