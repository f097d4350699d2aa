"""One run in a process of its own, so that its memory and its driver are its own.

python -m benchmarks.child build|measure JOB, the job as JSON; what was measured is printed as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.migrations.state import ProjectState

from benchmarks.applying import applied
from benchmarks.meters import Transactions, forget_peak, peak, size, written
from benchmarks.methods import METHODS, Method
from benchmarks.seeds import TABLE
from benchmarks.tables import Shape
from benchmarks.ways import drop_column
from tools.demo import EXAMPLE

CHECKPOINTS = {
    "postgresql": ["CHECKPOINT"],
    "mysql": ["FLUSH TABLES polls_question FOR EXPORT", "UNLOCK TABLES"],
    "sqlite": ["PRAGMA wal_checkpoint(TRUNCATE)"],
}


def main() -> None:
    job = json.loads(sys.argv[2])
    shape = Shape(**job["shape"])
    if sys.argv[1] == "build":
        set_up(job["url"], job["driver"])
        build(shape)
    else:
        method = METHODS[job["method"]]
        set_up(job["url"], job["driver"], method.engine, method.apps, method.settings)
        print(json.dumps(measure(method, shape)))


def set_up(
    url: str,
    driver: str,
    engine: str = "",
    apps: Sequence[str] = (),
    changed: Mapping[str, Any] | None = None,
) -> None:
    if driver == "psycopg2":
        # Django takes psycopg 3 wherever that can be imported.
        sys.modules["psycopg"] = None  # type: ignore[assignment]
    sys.path.append(str(EXAMPLE))
    database = import_module("mysite.database_urls").parse(url)
    settings.configure(
        DATABASES={"default": database | ({"ENGINE": engine} if engine else {})},
        INSTALLED_APPS=["django.contrib.contenttypes", "safemigrate", *apps],
        USE_TZ=True,
        **(changed or {}),
    )
    django.setup()


def build(shape: Shape) -> None:
    """Make the tables that every copy is taken of."""
    call_command("migrate", verbosity=0)
    applied("default", ProjectState(), *shape.operations())
    with connection.cursor() as cursor:
        for statement in shape.seed(connection.vendor):
            cursor.execute(statement)


def flush(connection: Any) -> None:
    """Read the table once, and leave nothing to be written later that is of the time before."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT SUM(LENGTH(question_text)) FROM {TABLE}")
        cursor.fetchall()
        for statement in CHECKPOINTS[connection.vendor]:
            cursor.execute(statement)
            if cursor.description:
                cursor.fetchall()
    os.sync()


def measure(method: Method, shape: Shape) -> dict[str, Any]:
    table = method.table(shape)
    method.prepare(table)
    flush(table.connection)
    gc.collect()
    forget_peak()
    base, log, transactions, times = peak(), written(table.connection), Transactions(), []
    for number in range(method.times):
        if number:
            with transactions.ignored():
                drop_column(table)
        started = time.monotonic()
        method.run(table)
        times.append(time.monotonic() - started)
    return {
        "seconds": statistics.median(times),
        "rows": table.part,
        "memory": peak() - base,
        "log": None if log is None else (written(table.connection) or 0) - log,
        "size": size(table.connection),
        "longest": transactions.longest,
        "exclusive": transactions.exclusive if table.connection.vendor == "postgresql" else None,
        "wrong": method.count_wrong(table),
        "driver": table.connection.Database.__name__,
    }


if __name__ == "__main__":
    main()
