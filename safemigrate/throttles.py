"""What is asked before each batch whether the fill may go on, or has to wait, and why.

SAFEMIGRATE_THROTTLES names the classes. Each is made once for a fill, with the model and the alias. Its
`reason(run)` returns None to go on, or why to wait; it is asked again until it returns None. It is called
outside any transaction, after all that was filled is committed; several workers may be at work when it is
asked first, none is while the fill waits; `run` is a `safemigrate.engine.engine.Run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from typing import Any, ClassVar, Protocol

from django.db import connections
from django.db.models import Model
from django.utils import timezone
from django.utils.module_loading import import_string

from safemigrate.backends import get_backend
from safemigrate.conf import get
from safemigrate.exceptions import InvalidSetting, NotVisible
from safemigrate.formatting import nearest

__all__ = ["FillHours", "Nice", "ReplicationLag", "Throttle", "Vacuum", "WaitingLocks", "Watch"]

#: A server is not asked more often, be the batches as small as they may.
ASK_SECONDS = 1.0


class Throttle(Protocol):
    """Says before each batch whether the fill has to wait."""

    def __init__(self, model: type[Model], alias: str) -> None: ...
    def reason(self, run: Any) -> str | None: ...


class Throttles:
    """All that are named, asked in that order; the first that says wait is heard."""

    def __init__(self, model: type[Model], alias: str, paths: Sequence[str]) -> None:
        self.each = [imported(path)(model, alias) for path in paths]

    def reason(self, run: Any) -> str | None:
        """Return why the run has to wait, None when it may go on."""
        return next(filter(None, (throttle.reason(run) for throttle in self.each)), None)


def imported(path: str) -> Callable[[Any, str], Throttle]:
    """Return the class of a throttle. Raises InvalidSetting."""
    try:
        found: Any = import_string(path)
    except ImportError as error:
        own = nearest(path, [f"{__name__}.{name}" for name in __all__])
        raise InvalidSetting(
            f"SAFEMIGRATE_THROTTLES names {path!r}, which cannot be imported: {error}.{own}"
        ) from error
    if not (isinstance(found, type) and callable(getattr(found, "reason", None))):
        raise InvalidSetting(
            f"SAFEMIGRATE_THROTTLES names {path!r}, which is no class with a method reason(self, run): "
            "it has to return None to go on, or a text that says why to wait."
        )
    return found


class Watch:
    """Asks a server, now and then. Waits while the answer is not to be seen, and gives up after a time.

    A class of your own may build on it: `ask` is called at most once in ASK_SECONDS.
    """

    #: How long it may be unable to see before the run is stopped.
    blind_seconds: ClassVar[float] = 30.0

    def __init__(self, model: type[Model], alias: str) -> None:
        self.model, self.alias = model, alias
        self.monitoring = get_backend(connections[alias]).monitoring
        self.asked: float | None = None
        self.blind_since: float | None = None
        self.answer: str | None = None

    def ask(self, run: Any) -> str | None:
        """Return why the run has to wait, None when it may go on; raise NotVisible when that is not known."""
        raise NotImplementedError

    def reason(self, run: Any) -> str | None:
        if self.asked is None or time.monotonic() - self.asked >= ASK_SECONDS:
            self.answer = self._look(run)
            self.asked = time.monotonic()
        return self.answer

    def _look(self, run: Any) -> str | None:
        try:
            answer = self.ask(run)
        except NotVisible as error:
            return self._blind(error)
        self.blind_since = None
        return answer

    def _blind(self, error: NotVisible) -> str:
        now = time.monotonic()
        self.blind_since = now if self.blind_since is None else self.blind_since
        if now - self.blind_since < self.blind_seconds:
            return f"{type(self).__name__} cannot see: {error}"
        raise NotVisible(
            f"{type(self).__name__} has not been able to see for {self.blind_seconds:g} seconds "
            f"whether {self.alias} bears more load: {error}. The fill was stopped. What "
            "was filled stays so; run the same command again to carry on, or take the class out of "
            "SAFEMIGRATE_THROTTLES."
        ) from error


class ReplicationLag(Watch):
    """Waits while a replica is more than SAFEMIGRATE_MAX_REPLICATION_LAG seconds behind."""

    def __init__(self, model: type[Model], alias: str) -> None:
        super().__init__(model, alias)
        self.most = get("SAFEMIGRATE_MAX_REPLICATION_LAG")

    def ask(self, run: Any) -> str | None:
        lag = self.monitoring.replication_lag()
        return None if lag is None or lag <= self.most else f"a replica is {lag:,.0f} s behind"


class WaitingLocks(Watch):
    """Waits while others wait for a lock on the table: it has work enough."""

    def ask(self, run: Any) -> str | None:
        waiting = self.monitoring.waiting_for(self.model)
        if not waiting:
            return None
        return f"{len(waiting)} waiting for a lock on {self.model._meta.db_table}, {waiting[0]}"


class Vacuum(Watch):
    """On PostgreSQL, a VACUUM after `every` so many rows, and a wait while another is at work.

    So the next rows find room where the last ones left it, and the table does not double.
    """

    every: ClassVar[int] = 100_000

    def __init__(self, model: type[Model], alias: str) -> None:
        super().__init__(model, alias)
        self.vacuumed = 0
        self.before = 0  # rows of the ranges before, each of which is a run of its own here
        self.run: Any = None
        self.announced = False

    def reason(self, run: Any) -> str | None:
        if not self.monitoring.keeps_dead_rows:
            return None
        if self.run is not None and run is not self.run:
            self.before += self.run.rows
        self.run = run
        return super().reason(run) or self._own()

    @property
    def rows(self) -> int:
        return self.before + int(self.run.rows)

    def ask(self, run: Any) -> str | None:
        if not self.monitoring.vacuuming(self.model):
            return None
        self.vacuumed = self.rows
        return f"a vacuum is at work on {self.model._meta.db_table}"

    def _own(self) -> str | None:
        if self.rows - self.vacuumed < self.every:
            return None
        if not self.announced:  # said first, so that it is shown while it runs
            self.announced = True
            return f"VACUUM of {self.model._meta.db_table}"
        self.monitoring.vacuum(self.model)
        self.vacuumed, self.announced = self.rows, False
        return None


class Nice:
    """Pauses after each batch for `ratio` times as long as it took."""

    ratio: ClassVar[float] = 1.0

    def __init__(self, model: type[Model], alias: str) -> None:
        self.batches = 0
        self.until = 0.0

    def reason(self, run: Any) -> str | None:
        now = time.monotonic()
        if run.batches != self.batches:
            self.batches, self.until = run.batches, now + self.ratio * run.took
        return None if now >= self.until else f"a pause of {self.ratio:g} times the batch"


class FillHours:
    """Lets the fill run in SAFEMIGRATE_FILL_HOURS alone, by the clock of the project's TIME_ZONE."""

    def __init__(self, model: type[Model], alias: str) -> None:
        hours = get("SAFEMIGRATE_FILL_HOURS")
        if hours is None:
            raise InvalidSetting(
                "FillHours is among SAFEMIGRATE_THROTTLES, and SAFEMIGRATE_FILL_HOURS does not say in which hours "
                'of the day a fill may run. Set it, for example SAFEMIGRATE_FILL_HOURS = "22:00-06:00".'
            )
        self.first, _, self.last = hours.partition("-")
        self.zone: tzinfo = timezone.get_default_timezone()

    def reason(self, run: Any) -> str | None:
        now = self.now().strftime("%H:%M")
        return (
            None
            if _is_between(self.first, now, self.last)
            else f"it is {now}, and fills run from {self.first} to {self.last}"
        )

    def now(self) -> datetime:
        return datetime.now(self.zone)


def _is_between(first: str, now: str, last: str) -> bool:
    """Is it that time of the day, be midnight in between or not?"""
    return first <= now < last if first < last else not last <= now < first
