"""What it costs to record a run: a fill with and without its record, in turns.

python -m benchmarks.recording [ROWS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections, models
from django.db.migrations import CreateModel
from django.db.migrations.state import ProjectState
from django.db.models import F, QuerySet

from benchmarks.applying import applied
from safemigrate import apps
from safemigrate.engine import engine
from safemigrate.operations import AddNullableField, Populate
from tools.demo import EXAMPLE
from tools.servers import PostgreSQL

PAIRS = 5
TITLE = models.CharField(max_length=200)


def main(rows: int, folder: Path) -> None:
    sys.path.insert(0, str(EXAMPLE))
    parse = import_module("mysite.database_urls").parse
    with PostgreSQL(durable=True) as server:
        settings.configure(
            INSTALLED_APPS=["django.contrib.contenttypes", "safemigrate"],
            DATABASES={
                "default": parse(server.url),
                "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "bench.sqlite3"},
            },
            USE_TZ=True,
        )
        django.setup()
        for alias in settings.DATABASES:
            call_command("migrate", database=alias, verbosity=0)
            settings.SAFEMIGRATE_RUNS_DATABASE = alias
            print(f"{connections[alias].display_name}, {rows:,} rows: {measured(alias, rows)}", flush=True)
        connections.close_all()


def measured(alias: str, rows: int) -> str:
    """Return the median ratio of the times with and without the record, and the range."""
    state = table(alias, rows)
    ratios = []
    for _ in range(PAIRS):
        without = filled(alias, state, engine.NullObserver)
        ratios.append(filled(alias, state, apps.new_observer) / without)
    return f"{statistics.median(ratios):.3f} times the time without ({min(ratios):.3f} to {max(ratios):.3f})"


def table(alias: str, rows: int) -> ProjectState:
    fields: list[tuple[str, models.Field[Any, Any]]] = [
        ("id", models.BigAutoField(primary_key=True)),
        ("question_text", TITLE),
    ]
    state = applied(alias, ProjectState(), CreateModel("Question", fields), app="bench")
    state = applied(alias, state, AddNullableField("question", "title", TITLE), app="bench")
    model = state.apps.get_model("bench", "Question")
    made = (
        model(question_text=f"What about number {number}, and what comes after it?") for number in range(rows)
    )
    QuerySet(model, using=alias).bulk_create(made, batch_size=5_000)
    return state


def filled(alias: str, state: ProjectState, observer: Callable[[], Any]) -> float:
    """Empty the column, fill it, and return the seconds that the fill took."""
    engine.use_observer(observer)
    QuerySet(state.apps.get_model("bench", "Question"), using=alias).update(title=None)
    with connections[alias].cursor() as cursor:
        cursor.execute("VACUUM")
    started = time.monotonic()
    applied(alias, state, Populate("question", "title", F("question_text")), app="bench")
    return time.monotonic() - started


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, Path(made))
