"""How far a fill is, on the terminal or in the log, and a way to stop it between two batches."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from safemigrate.exceptions import Interrupted

if TYPE_CHECKING:  # Each process of a site imports this module, and few of them ever fill.
    from safemigrate.engine.engine import Run

logger = logging.getLogger("safemigrate")

LINE_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_verbosity = 1


def use_verbosity(verbosity: int) -> None:
    """Show progress from verbosity 1 on, as `migrate -v` has it."""
    global _verbosity
    _verbosity = verbosity


def say(text: str, **extra: Any) -> None:
    """Log a line, and show it where `migrate` shows progress."""
    logger.info(text, extra=extra)
    if _verbosity > 0:
        print(text, file=sys.stderr, flush=True)


class Terminal(logging.Handler):
    """Shows warnings and errors as logging itself does where a project has configured none, without a traceback.

    What a command ends with is left out: it is shown as the command's own error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_terminal", True) and not self._others():
            print(record.getMessage(), file=sys.stderr, flush=True)

    def _others(self) -> bool:
        """Is there a handler of the project's?"""
        where: logging.Logger | None = logger
        while where is not None:
            if any(handler is not self for handler in where.handlers):
                return True
            where = where.parent if where.propagate else None
        return False


class Progress:
    """An observer that keeps nothing: it shows the run, and ends it after Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}
        self.last_line = time.monotonic()
        self.waited = 0.0
        self.logged_waiting = ""

    def start(self, run: Run) -> None:
        if threading.current_thread() is threading.main_thread():
            # What was ignored, as in a job that outlives its terminal, stays ignored.
            obeyed = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self.handlers = {number: signal.signal(number, self._stop) for number in obeyed}
        if _verbosity > 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=run.total or None, desc=f"{run.label} on {run.alias}", unit=" rows", unit_scale=True
            )

    def advance(self, run: Run) -> None:
        if self.bar is not None:
            self._draw(run)
        elif _verbosity > 0 and self._is_time(run):
            self.last_line, self.logged_waiting = time.monotonic(), run.waiting
            self._log(run, _line(run) + (f", waiting: {run.waiting}" if run.waiting else ""))
        self._obey(run)

    def _is_time(self, run: Run) -> bool:
        """A line is due every few seconds, and sooner where a wait begins or ends."""
        since = time.monotonic() - self.last_line
        changed = bool(run.waiting) != bool(self.logged_waiting)
        return since >= LINE_SECONDS or (changed and since >= 1)

    def _draw(self, run: Run) -> None:
        self.bar.initial, self.bar.total = run.before, run.of or None
        # The bar's rate is that of the time since the last drawing; waiting is none of it.
        self.bar.last_print_t += run.waited - self.waited
        self.waited = run.waited
        self.bar.set_postfix_str(f"waiting: {run.waiting}" if run.waiting else "", refresh=False)
        if run.waiting:
            self.bar.refresh()
        else:
            self.bar.update(run.done - self.bar.n)

    def hold(self, run: Run) -> str | None: ...
    def save(self, run: Run, cursor: Any, rows: int, bad: Any) -> None: ...

    def end(self, run: Run, error: BaseException | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.bar is not None:
            if error is None:
                self.bar.total = self.bar.n  # Of an estimate it would end at any percentage.
            self.bar.close()
        elif error is None and _verbosity > 0 and run.seconds >= LINE_SECONDS:
            waited = f", {run.waited:,.0f} s of it waiting" if run.waited >= 1 else ""
            self._log(
                run,
                f"Filled: {run.rows:,} rows of {run.label} on {run.alias} in {run.seconds:,.0f} s{waited}",
            )
        if error is None:
            self._obey(run)  # It may have come after the last batch.

    def _obey(self, run: Run) -> None:
        if self.signal is not None:
            self._log(run, f"Stopped: {_line(run)}. They stay filled; the same command carries on from here.")
            raise Interrupted(128 + self.signal)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # A second Ctrl-C does what Ctrl-C always does.
        signal.signal(number, self.handlers[number])

    def _log(self, run: Run, text: str) -> None:
        run.output.append(text)
        extra = {"label": run.label, "alias": run.alias, "rows": run.rows, "seconds": round(run.seconds, 3)}
        logger.info(text, extra=extra)
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _line(run: Run) -> str:
    rate = run.rows / run.working if run.working else 0.0
    rate = min(rate, run.rows_per_second or rate)  # Waiting for that is no part of the work.
    text = f"{run.label} on {run.alias}: {run.done:,} of about {run.of:,} rows, {rate:,.0f} rows/s"
    left = (run.of - run.done) / rate if rate else 0
    return f"{text}, {left:,.0f} s left" if left >= 1 else text
