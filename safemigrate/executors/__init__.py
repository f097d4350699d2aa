"""Where work is done: in this process, or by the queue that the project has already.

from safemigrate.executors import background, later

@background
def report(person): ...

later(report, request.user.pk)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.utils.module_loading import import_string

from safemigrate.conf import EXECUTORS, get
from safemigrate.executors import base, celery
from safemigrate.executors.base import Executor

__all__ = ["Executor", "background", "later", "named"]

Function = TypeVar("Function", bound=Callable[..., Any])


def background(function: Function) -> Function:
    """Let the function of a module be done by a worker; called directly it is what it was.

    Its arguments have to be JSON: numbers, texts, lists. A message may be delivered twice, so it should do
    no harm to do it twice. In a module `tasks` of an app, Celery's workers find it by themselves.
    """
    path = base.declare(function)
    celery.declare(function, path)
    return function


def later(
    function: Callable[..., Any], *arguments: Any, queue: str = "", seconds: float = 0.0, executor: str = ""
) -> None:
    """Have a @background function done by SAFEMIGRATE_EXECUTOR, `seconds` from now at the earliest.

    Inline it is done at once, when this returns. Raises NotEnqueued where the queue does not take it.
    In a transaction, call it by transaction.on_commit: a worker is often quicker than the commit. With Celery keep
    `seconds` well below the broker's visibility or consumer timeout, or it is done more than once.
    """
    path = f"{function.__module__}.{function.__qualname__}"
    if path not in base.declared:
        raise TypeError(f"{path} is not declared: put @background above it, so that a message may name it.")
    queue = queue or get("SAFEMIGRATE_QUEUE")
    named(executor).enqueue(path, *arguments, queue=queue, seconds=seconds)


def named(name: str = "") -> Executor:
    """Return the executor of that name, by default SAFEMIGRATE_EXECUTOR. Raises NotEnqueued without its package."""
    found: Executor = import_string(EXECUTORS[name or get("SAFEMIGRATE_EXECUTOR")])()
    return found
