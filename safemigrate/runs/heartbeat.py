"""The heartbeat of a process at work, and whether a process of this machine is gone (where Linux shows it)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from safemigrate.connections import Beside

#: Seconds.
BEAT = 1.0
PROC = Path("/proc")


class Heartbeat(threading.Thread):
    """Calls `beat` every second until it is stopped, on connections of its own.

    `beat` returns how many of the seconds to the next one it spent on something else.
    """

    def __init__(self, name: str, beat: Callable[[], float]) -> None:
        super().__init__(name=name, daemon=True)
        self.beat = beat
        self.beside = Beside()
        self.ended = threading.Event()

    def run(self) -> None:
        self.beside()
        try:
            spent = 0.0
            while not self.ended.wait(BEAT - spent):
                spent = self._once()
        finally:
            self._close()

    def _once(self) -> float:
        try:
            return self.beat()
        except Error:  # The next beat may come through; a lease is longer than a few.
            self._close()
            return 0.0

    @staticmethod
    def _close() -> None:
        for connection in connections.all(initialized_only=True):
            # SQLite's own close() leaves a database in memory open, as if no other thread had it open.
            BaseDatabaseWrapper.close(connection)

    def stop(self) -> None:
        """Wait for the beat under way, and end."""
        self.ended.set()
        self.join()


def machine() -> str:
    """Return a text that two processes share only if they see the same process numbers; empty if unknown."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    return ""


def is_gone(process: int, where: str) -> bool:
    """Is it certain that the process, which ran `where` as `machine` says, has ended?"""
    if not where or where != machine():
        return False
    try:
        state = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return state in {"Z", "X"}
