"""Observers of a run: several behind one, and the limits that end it cleanly."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from safemigrate.engine.engine import NullObserver, Observer, Run
from safemigrate.exceptions import BadRow, LimitReached

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Observers:
    """Informs each observer in turn. One that refuses the run at its start leaves those before it ended."""

    def __init__(self, factories: Sequence[Callable[[], Observer]]) -> None:
        self.each = [factory() for factory in factories]
        self.started: list[Observer] = []

    def start(self, run: Run) -> None:
        try:
            for observer in self.each:
                observer.start(run)
                self.started.append(observer)
        except BaseException as error:
            self.end(run, error)
            raise

    def advance(self, run: Run) -> None:
        for observer in self.started:
            observer.advance(run)

    def save(self, run: Run, cursor: Any, rows: int, bad: Sequence[BadRow]) -> None:
        for observer in self.started:
            observer.save(run, cursor, rows, bad)

    def hold(self, run: Run) -> str | None:
        return next(filter(None, (observer.hold(run) for observer in self.started)), None)

    def end(self, run: Run, error: BaseException | None) -> None:
        with ExitStack() as stack:  # Each is informed, whatever another one raises.
            for observer in self.started:  # The last one first: what it says then is still recorded.
                stack.callback(observer.end, run, error)


@dataclass(frozen=True)
class Limits:
    """What a run may take. `started` is on the monotonic clock: several runs may share one limit."""

    started: float
    seconds: float | None = None
    until: datetime | None = None
    rows: int | None = None


class Limited(NullObserver):
    """Ends the run after a time, at an hour, or after a number of rows, and counts the rows.

    Raises LimitReached, which is no failure, after the batch in which the limit is reached.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.rows = limits, 0

    def start(self, run: Run) -> None:
        self._obey(run)

    def advance(self, run: Run) -> None:
        self._obey(run)

    def end(self, run: Run, error: BaseException | None) -> None:
        self.rows = run.rows

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
