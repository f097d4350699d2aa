"""The settings: one flat name each, with a default that is right for most projects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from safemigrate.exceptions import InvalidSetting

EXECUTORS = {
    "inline": "safemigrate.executors.inline.Inline",
    "celery": "safemigrate.executors.celery.Celery",
    "rq": "safemigrate.executors.rq.RQ",
    "tasks": "safemigrate.executors.tasks.Tasks",
}
HOUR = r"([01]\d|2[0-3]):[0-5]\d"


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rows(value: Any) -> bool:
    return _count(value) and value > 0


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _hours(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(f"{HOUR}-{HOUR}", value) is not None)


@dataclass(frozen=True)
class Setting:
    default: Any
    valid: Callable[[Any], bool]
    form: str
    meaning: str


SETTINGS: dict[str, Setting] = {
    "SAFEMIGRATE_BATCH_SIZE": Setting(
        None,
        lambda value: value is None or _rows(value),
        "a number of rows, or None",
        "Rows in a batch. None: as many as fit into SAFEMIGRATE_BATCH_SECONDS.",
    ),
    "SAFEMIGRATE_BATCH_SECONDS": Setting(
        0.1, _positive, "a number of seconds", "The time that a batch should take at most, committed."
    ),
    "SAFEMIGRATE_LOCK_TIMEOUT": Setting(
        0.1,
        _positive,
        "a number of seconds",
        "How long one try may wait for the lock of a table or a row; all who come later wait as long.",
    ),
    "SAFEMIGRATE_LOCK_TRIES": Setting(
        50,
        _rows,
        "a number of tries",
        "How often the lock of a table, or of the last rows, is tried before the migration gives up.",
    ),
    "SAFEMIGRATE_LOCK_PAUSE": Setting(
        0.5, _positive, "a number of seconds", "The pause between two tries; up to twice as long, at random."
    ),
    "SAFEMIGRATE_WAIT_SECONDS": Setting(
        600.0,
        lambda value: value == 0 or _positive(value),
        "a number of seconds, or 0",
        "How long `migrate` waits for another one that is at the same field. 0: it ends with an error at once.",
    ),
    "SAFEMIGRATE_RETRIES": Setting(
        8,
        _count,
        "a number of tries",
        "How often a batch is tried again after a deadlock, a lost connection or the like.",
    ),
    "SAFEMIGRATE_MAX_BAD_ROWS": Setting(
        100, _count, "a number of rows", "How many rows may fail before the fill stops looking for more."
    ),
    "SAFEMIGRATE_WRITER_THREAD": Setting(
        True,
        lambda value: isinstance(value, bool),
        "True or False",
        "Whether values that Python makes are written by a thread, with a connection of its own, while the next "
        "batch is read and computed.",
    ),
    "SAFEMIGRATE_WORKERS": Setting(
        1,
        _rows,
        "a number, 1 or more",
        "How many connections fill at once: threads for an expression, processes for a function in `backfill run`.",
    ),
    "SAFEMIGRATE_ALLOW_TABLE_COPY": Setting(
        False,
        lambda value: isinstance(value, bool),
        "True or False",
        "Let MySQL and MariaDB copy the table under a lock where they cannot change it online.",
    ),
    "SAFEMIGRATE_CHECKS": Setting(
        True,
        lambda value: isinstance(value, bool),
        "True or False",
        "Whether `check --database` and `migrate` look at the migrations that are not applied yet.",
    ),
    "SAFEMIGRATE_THROTTLES": Setting(
        [],
        _names,
        "a list of dotted paths to classes",
        "What is asked before each batch whether the fill may go on.",
    ),
    "SAFEMIGRATE_ROWS_PER_SECOND": Setting(
        None,
        lambda value: value is None or _rows(value),
        "a number, 1 or more, or None",
        "How many rows a run writes in a second at the most.",
    ),
    "SAFEMIGRATE_MAX_REPLICATION_LAG": Setting(
        5.0, _positive, "a number of seconds", "How far a replica may be behind before ReplicationLag waits."
    ),
    "SAFEMIGRATE_REPLICAS": Setting(
        [],
        _names,
        "a list of aliases",
        "The replicas that ReplicationLag asks themselves how far they are behind.",
    ),
    "SAFEMIGRATE_FILL_HOURS": Setting(
        None,
        _hours,
        'hours as in "22:00-06:00", or None',
        "The hours of the day, in TIME_ZONE, in which FillHours lets a fill run.",
    ),
    "SAFEMIGRATE_RUNS_DATABASE": Setting(
        "default",
        lambda value: isinstance(value, str) and value in settings.DATABASES,
        "an alias of DATABASES",
        "The database in which runs are recorded, wherever they fill.",
    ),
    "SAFEMIGRATE_LEASE_SECONDS": Setting(
        15.0,
        lambda value: _positive(value) and value >= 3,
        "a number of seconds, 3 or more",
        "How long a process may give no sign of life before its run counts as stalled, and another may take it.",
    ),
    "SAFEMIGRATE_MAX_ROWS_IN_MIGRATE": Setting(
        None,
        lambda value: value is None or _count(value),
        "a number of rows, or None",
        "With more rows to fill, `migrate` stops and names the `backfill run` to type. None: it fills any number.",
    ),
    "SAFEMIGRATE_EXECUTOR": Setting(
        "inline",
        lambda value: value in EXECUTORS,
        f"one of {', '.join(EXECUTORS)}",
        "Where `backfill run` fills: in its own process, or by the workers of Celery, django-rq or Django Tasks.",
    ),
    "SAFEMIGRATE_QUEUE": Setting(
        "safemigrate",
        lambda value: isinstance(value, str) and value != "",
        "the name of a queue",
        "The queue that tasks are sent to; one of its own keeps long fills out of the way of the site's tasks.",
    ),
    "SAFEMIGRATE_QUEUE_WORKERS": Setting(
        2,
        _rows,
        "a number, 1 or more",
        "How many workers of a queue may fill at once on a database, all runs together.",
    ),
    "SAFEMIGRATE_TASK_SECONDS": Setting(
        30.0,
        _positive,
        "a number of seconds",
        "How long a task works before it saves where it is, and is enqueued again.",
    ),
    "SAFEMIGRATE_TASK_RETRIES": Setting(
        8,
        _count,
        "a number of tries",
        "How often a range is tried again after its worker died, or its database failed, before the run fails.",
    ),
    "SAFEMIGRATE_MIGRATE_ENQUEUES": Setting(
        False,
        lambda value: isinstance(value, bool),
        "True or False",
        "Whether `migrate` hands to SAFEMIGRATE_EXECUTOR what is more than SAFEMIGRATE_MAX_ROWS_IN_MIGRATE.",
    ),
    "SAFEMIGRATE_NOTIFY": Setting(
        [],
        _names,
        "a list of mail addresses",
        "Who gets a mail when a run has ended, well or not, or is seen to be stalled.",
    ),
    "SAFEMIGRATE_WEBHOOK": Setting(
        None,
        lambda value: value is None or (isinstance(value, str) and re.match("https?://", value) is not None),
        "an address that begins with https://, or None",
        "Where the same is posted as JSON: for a chat, or a program of yours.",
    ),
    "SAFEMIGRATE_WEBHOOK_SECRET": Setting(
        "",
        lambda value: isinstance(value, str),
        "a text",
        "What signs the body of such a post, in its header X-Safemigrate-Signature. Empty: it is not signed.",
    ),
}

_changed: dict[str, Any] = {}


def get(name: str) -> Any:
    """Return the value of the setting `name`, checked.

    Raises InvalidSetting, which says what the setting takes.
    """
    setting = SETTINGS[name]
    value = _changed.get(name, getattr(settings, name, setting.default))
    if not setting.valid(value):
        raise InvalidSetting(f"{name} must be {setting.form}, not {value!r}. {setting.meaning}")
    return value


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Run with these settings in place of the project's."""
    before = dict(_changed)
    _changed.update(values)
    try:
        yield
    finally:
        _changed.clear()
        _changed.update(before)
