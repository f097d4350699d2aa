"""At once, in the process that asks for it."""

from __future__ import annotations

from typing import Any

from safemigrate.executors.base import call


class Inline:
    """Needs no queue and no worker: enqueue() returns when all is done, and raises what the function raises."""

    is_apart = False

    def check(self, queue: str) -> None: ...

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        call(path, *arguments)
