"""The settings: one flat name each, with a default that is right for most projects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from safemigrate.exceptions import InvalidSetting
from safemigrate.pacing import Pace


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rows(value: Any) -> bool:
    return _count(value) and value > 0


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
    "SAFEMIGRATE_BATCH_SIZE_MIN": Setting(
        200, _rows, "a number of rows", "The smallest batch that the pace may choose."
    ),
    "SAFEMIGRATE_BATCH_SIZE_MAX": Setting(
        20_000, _rows, "a number of rows", "The largest batch that the pace may choose."
    ),
    "SAFEMIGRATE_LOCK_TIMEOUT": Setting(
        0.1,
        _positive,
        "a number of seconds",
        "How long one try may wait for a table lock; all who come later wait as long.",
    ),
    "SAFEMIGRATE_LOCK_TRIES": Setting(
        50, _rows, "a number of tries", "How often a table lock is tried before the migration gives up."
    ),
    "SAFEMIGRATE_LOCK_PAUSE": Setting(
        0.5, _positive, "a number of seconds", "The pause between two tries; up to twice as long, at random."
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
    "SAFEMIGRATE_ALLOW_TABLE_COPY": Setting(
        False,
        lambda value: isinstance(value, bool),
        "True or False",
        "Let MySQL and MariaDB copy the table under a lock where they cannot change it online.",
    ),
}


def get(name: str) -> Any:
    """Return the value of the setting `name`, checked.

    Raises InvalidSetting, which says what the setting takes.
    """
    setting = SETTINGS[name]
    value = getattr(settings, name, setting.default)
    if not setting.valid(value):
        raise InvalidSetting(f"{name} must be {setting.form}, not {value!r}. {setting.meaning}")
    return value


def pace(batch_size: int | None = None) -> Pace:
    """Return the pace that the settings ask for; `batch_size`, in rows, overrides them."""
    fixed = batch_size or get("SAFEMIGRATE_BATCH_SIZE")
    if fixed:
        return Pace.fixed(fixed)
    smallest, largest = get("SAFEMIGRATE_BATCH_SIZE_MIN"), get("SAFEMIGRATE_BATCH_SIZE_MAX")
    if smallest > largest:
        raise InvalidSetting(
            f"SAFEMIGRATE_BATCH_SIZE_MIN ({smallest}) is larger than SAFEMIGRATE_BATCH_SIZE_MAX ({largest})."
        )
    start = min(max(1_000, smallest), largest)
    return Pace(get("SAFEMIGRATE_BATCH_SECONDS"), start, smallest, largest)
