"""What may be done later, by another process, and how it is handed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from django.apps import apps
from django.db import connections
from django.utils.module_loading import import_string

from safemigrate.exceptions import NotEnqueued

Function = TypeVar("Function", bound=Callable[..., Any])

#: The functions that messages may name, by their dotted paths.
declared: dict[str, Callable[..., Any]] = {}


class Executor(Protocol):
    """A way to have a declared function done by another process."""

    #: Is it done apart from the process that enqueues it? Where it is not, enqueue() returns when it is done.
    is_apart: bool

    def check(self, queue: str) -> None:
        """Raise NotEnqueued where it can be seen, without asking the broker, that nothing can be enqueued there."""

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        """Have it done by the queue, `seconds` from now at the earliest. Raises NotEnqueued; then nothing was sent."""


def declare(function: Function) -> str:
    """Let messages name the function; return its dotted path."""
    path = f"{function.__module__}.{function.__qualname__}"
    declared[path] = function
    return path


def call(path: str, *arguments: Any) -> None:
    """Do what a message says. Only what was declared: a message is no way to call anything else.

    The connections are this task's own: one that the server closed since the last task is opened anew.
    """
    if path not in declared and apps.get_containing_app_config(path):  # A message imports nothing else.
        import_string(path)
    if path not in declared:
        raise NotEnqueued(f"{path} is not declared with @background, so no message may call it.")
    renew_connections()
    try:
        declared[path](*arguments)
    finally:
        renew_connections()


def renew_connections() -> None:
    """As before and after a request; but inline, or by an eager queue, the caller may be in a transaction."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def missing(executor: str, package: str, install: str = "") -> NotEnqueued:
    """Return what to say where the package that an executor stands on is not installed."""
    install = install or f"'safemigrate[{executor}]'"
    return NotEnqueued(
        f"The executor {executor} needs {package}, which is not installed here: "
        f"pip install {install}. Or fill in this process: --executor inline."
    )
