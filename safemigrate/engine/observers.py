"""Several observers behind one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from safemigrate.engine.engine import Observer, Run


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

    def hold(self, run: Run) -> str | None:
        return next(filter(None, (observer.hold(run) for observer in self.started)), None)

    def end(self, run: Run, error: BaseException | None) -> None:
        with ExitStack() as stack:  # Each is informed, whatever another one raises.
            for observer in self.started:  # The last one first: what it says then is still recorded.
                stack.callback(observer.end, run, error)
