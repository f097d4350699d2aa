"""An observer that ends a run cleanly: after a time, at an hour, or after a number of rows."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from safemigrate.engine.engine import Run
from safemigrate.exceptions import LimitReached

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Limits:
    """What a run may take. `started` is on the monotonic clock: several runs may share one limit."""

    started: float
    seconds: float | None = None
    until: datetime | None = None
    rows: int | None = None


class Limited:
    """Raises LimitReached, which is no failure, after the batch in which a limit is reached."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def start(self, run: Run) -> None:
        self._obey(run)

    def advance(self, run: Run) -> None:
        self._obey(run)

    def hold(self, run: Run) -> str | None:
        return None

    def end(self, run: Run, error: BaseException | None) -> None: ...

    def _obey(self, run: Run) -> None:
        if reason := self._reached(run):
            raise LimitReached(f"{run.label} on {run.alias}: {reason}; {run.rows:,} rows filled this time.")

    def _reached(self, run: Run) -> str | None:
        limits = self.limits
        if limits.seconds is not None and time.monotonic() - limits.started >= limits.seconds:
            return f"its time of {limits.seconds:,.0f} s is over"
        if limits.until is not None and timezone.now() >= limits.until:
            return f"it is {timezone.localtime(limits.until):%H:%M}"
        if limits.rows is not None and run.rows >= limits.rows:
            return f"its {limits.rows:,} rows are filled"
        return None


def seconds(text: str) -> float:
    """Return the seconds of a text such as 90, 45m, 2h or 1h30m. Raises ValueError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+[smhd])+", text):
        raise ValueError(f"{text!r} is no time: give seconds, or 45m, 2h, 1h30m.")
    return float(sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text)))


def next_time(text: str, now: datetime) -> datetime:
    """Return the next moment at which the clock shows a text such as 06:00. Raises ValueError."""
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if not match:
        raise ValueError(f"{text!r} is no time of day: give 06:00 or 23:30.")
    then = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)
