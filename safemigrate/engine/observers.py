"""Several ledgers told as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from safemigrate.engine.engine import Ledger, Run


class Ledgers:
    """Tells each ledger in turn. One that refuses the run at its start leaves those before it ended."""

    def __init__(self, factories: Sequence[Callable[[], Ledger]]) -> None:
        self.each = [factory() for factory in factories]
        self.started: list[Ledger] = []

    def start(self, run: Run) -> None:
        try:
            for ledger in self.each:
                ledger.start(run)
                self.started.append(ledger)
        except BaseException as error:
            self.end(run, error)
            raise

    def advance(self, run: Run) -> None:
        for ledger in self.started:
            ledger.advance(run)

    def hold(self, run: Run) -> str | None:
        return next(filter(None, (ledger.hold(run) for ledger in self.started)), None)

    def end(self, run: Run, error: BaseException | None) -> None:
        with ExitStack() as stack:  # Each is told, whatever another one raises.
            for ledger in self.started:  # The last one first: what it says then is still recorded.
                stack.callback(ledger.end, run, error)
