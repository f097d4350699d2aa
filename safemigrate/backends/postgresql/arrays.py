"""PostgreSQL: values sent as the text of an array, which no driver has to take apart and quote one by one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

SPECIAL = re.compile(r'["\\]')


def _quoted(text: str) -> str:
    return '"' + SPECIAL.sub(r"\\\g<0>", text) + '"'


def _interval(value: timedelta) -> str:
    # With both signs: by one of the server's styles a first minus is meant for all of it.
    return f'"{value.days:+} days {value.seconds:+}.{value.microseconds:06} seconds"'


#: How a value is written that the server reads back as the very same. Without spaces nothing is quoted.
FORMS: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "t" if value else "f",
    int: int.__repr__,
    float: float.__repr__,
    str: _quoted,
    uuid.UUID: str,
    Decimal: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _interval,
}


def array(values: Sequence[Any]) -> str | None:
    """Return the values, all of one type, as a one-dimensional array's text; None where there is no such form."""
    types = {type(value) for value in values}
    form = _form(types.pop()) if len(types) == 1 else None
    return None if form is None else "{" + ",".join(map(form, values)) + "}"


def _form(kind: type) -> Callable[[Any], str] | None:
    # Drivers give numbers types of their own, and choices are texts or numbers by descent.
    return next((FORMS[base] for base in kind.__mro__ if base in FORMS), None)
