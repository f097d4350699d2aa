"""What a run prints and warns of: kept with its record, and marked with its number in the log."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO, cast

from safemigrate.models import BackfillRun

#: The characters of a line that are kept.
WIDTH = 1_000


class Output:
    """Stands in for sys.stdout while the run is at work, and keeps the last lines."""

    def __init__(self, lines: deque[str]) -> None:
        self.lines, self.part, self.stdout, self.is_closed = lines, "", sys.stdout, False
        sys.stdout = cast("TextIO", self)

    def close(self) -> None:
        self.is_closed = True
        # Those of two runs in two threads may end in any order.
        while isinstance(sys.stdout, Output) and sys.stdout.is_closed:
            sys.stdout = sys.stdout.stdout

    def add(self, text: str) -> None:
        self.lines.extend(line[:WIDTH] for line in text.splitlines() if line.strip())

    @property
    def text(self) -> str:
        return "\n".join(list(self.lines) + [self.part] * bool(self.part.strip()))

    def write(self, text: str) -> int:
        # A line comes in parts: print() writes each of its arguments by itself.
        whole, _, self.part = (self.part + text).rpartition("\n")
        self.add(whole)
        self.part = self.part[:WIDTH]
        return self.stdout.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stdout, name)


class Lines(logging.Filter):
    """Tells each line that the thread at work logs which run it belongs to, and keeps the warnings.

    No handler: where a project has none, one of ours would keep Python from showing warnings on standard error.
    """

    def __init__(self, run: BackfillRun, keep: Callable[[str], None]) -> None:
        super().__init__()
        self.named = {"run": run.pk, "label": run.label, "alias": run.alias}
        self.thread, self.keep = threading.get_ident(), keep

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread == self.thread:
            vars(record).update(self.named)
            if record.levelno >= logging.WARNING:
                self.keep(record.getMessage())
        return True
