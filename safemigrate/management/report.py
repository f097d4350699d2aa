"""What a bug report needs, as a text that can be posted: versions, databases, settings, a run."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.db import Error, connections
from django.db.migrations.recorder import MigrationRecorder

import safemigrate
from safemigrate import conf
from safemigrate.models import BackfillRun
from safemigrate.runs import store
from safemigrate.runs.summary import state

#: Settings whose value is not to be posted.
PRIVATE = {"SAFEMIGRATE_NOTIFY", "SAFEMIGRATE_WEBHOOK", "SAFEMIGRATE_WEBHOOK_SECRET"}
#: Of a database, what changes how a fill behaves and says nothing of where it is, as Django has it.
DEFAULTS = {
    "ATOMIC_REQUESTS": False,
    "AUTOCOMMIT": True,
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "DISABLE_SERVER_SIDE_CURSORS": False,
}
#: What a message shows of rows and people: texts in quotes, values in brackets, addresses, who holds a lock.
VALUES = re.compile(
    r"'[^']*'|\"[^\"]*\"|=\([^)]*\)|Failing row contains .*|[^\s@]+@[^\s@]+|(?<=blocked by: ).*|(?<= paused by )[^;]*"
)


def report(run: BackfillRun | None = None) -> str:
    """Return it without hosts, users, passwords, addresses and values of rows."""
    parts = [("versions", _versions()), ("databases", _databases()), ("settings", _settings())]
    if run is not None:
        parts.append((f"run {run.pk}", _run(run)))
    return "\n".join("\n".join([heading, *(f"  {line}" for line in lines)]) for heading, lines in parts)


def _versions() -> Iterator[str]:
    yield f"safemigrate {safemigrate.__version__}"
    yield f"Django {django.get_version()}, Python {platform.python_version()}, {sys.platform}"


def _databases() -> Iterator[str]:
    for alias in connections:
        yield f"{alias}: {_server(alias)}"
        given = settings.DATABASES[alias]
        own = {name: given[name] for name, value in DEFAULTS.items() if given.get(name, value) != value}
        if changed := [f"{name} = {value!r}" for name, value in own.items()]:
            yield f"  {', '.join(changed)}"
    yield f"runs are kept in {store.database()}{f': {why}' if (why := masked(store.unreadable())) else ''}"


def _server(alias: str) -> str:
    connection = connections[alias]
    driver = getattr(connection, "Database", None)
    by = f"{getattr(driver, '__name__', '?')} {getattr(driver, '__version__', '')}".strip()
    try:
        version = ".".join(map(str, connection.get_database_version()))
        ours = sorted(
            name for app, name in MigrationRecorder(connection).applied_migrations() if app == "safemigrate"
        )
    except Error as error:  # Its name would be asked of the server.
        engine = settings.DATABASES[alias]["ENGINE"]
        return f"{engine} by {by}, which cannot be reached: {type(error).__name__}"
    return f"{connection.display_name} {version} by {by}; safemigrate {ours[-1] if ours else 'has no table there'}"


def _settings() -> Iterator[str]:
    """Yield those that are not the default."""
    changed = [
        name for name, each in conf.SETTINGS.items() if getattr(settings, name, each.default) != each.default
    ]
    for name in changed:
        yield f"{name} = {'(set)' if name in PRIVATE else repr(getattr(settings, name))}"
    if not changed:
        yield "all as they are by default"


def _run(run: BackfillRun) -> Iterator[str]:
    facts: dict[str, Any] = {
        "of": run.label,
        "on": run.alias,
        "state": state(run),
        "by": masked(run.populate),
        "executor": run.executor,
        "rows": f"{run.rows_done:,} of {run.rows_total:,}, batches of {run.batch_size:,}",
        "time": f"{run.seconds_running:,.1f} s at work, {run.seconds_waiting:,.1f} s waiting",
        "attempts": run.attempts,
        "bad rows": len(run.bad_rows),
        "parameters": ", ".join(run.shown_parameters),
        "waiting": masked(run.waiting_for),
        "error": masked(run.error.partition("\n")[0]),
        "raised by": _last_frame(run.traceback),
    }
    for name, value in facts.items():
        if value not in ("", 0):
            yield f"{name}: {value}"
    for event in run.events.using(store.database()):
        yield f"{event.at:%Y-%m-%d %H:%M:%S} {masked(event.text)}"


def _last_frame(trace: str) -> str:
    """Return where the error was raised, without the way to it."""
    frames = re.findall(r'File ".*?([^/\\"]+)", line (\d+), in (\w+)', trace)
    return "{} line {}, {}()".format(*frames[-1]) if frames else ""


def masked(text: str) -> str:
    """Return a message without what it may show of rows."""
    return VALUES.sub("(...)", text)
