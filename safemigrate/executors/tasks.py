"""By Django Tasks: the backend that TASKS["default"] names.

Imported only where it is asked for: Django 5.2 has the tasks from the package django-tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.db import Error
from django.utils import timezone

from safemigrate.exceptions import NotEnqueued
from safemigrate.executors.base import call, missing

PACKAGE = next(filter(find_spec, ["django.tasks", "django_tasks"]), None)
if PACKAGE is None:
    raise missing("tasks", "django-tasks", "'safemigrate[tasks]' django-tasks")

library: Any = import_module(PACKAGE)
backend: Any = library.default_task_backend


# Any queue that the backend has will do here: what is enqueued says its own.
@library.task(queue_name=min(backend.queues, default="default"))  # type: ignore[untyped-decorator]
def do(path: str, arguments: Sequence[Any]) -> None:
    """Be the one task that all messages name."""
    call(path, *arguments)


class Tasks:
    """Enqueues in the project's own backend; one that cannot put a task off does it as soon as it can."""

    @property
    def is_apart(self) -> bool:
        # The two that Django brings: one does it at once, the other never.
        return type(backend).__name__ not in ("ImmediateBackend", "DummyBackend")

    def check(self, queue: str) -> None:
        if backend.queues and queue not in backend.queues:
            raise NotEnqueued(
                f"There is no queue {queue!r} in TASKS (there is: {', '.join(sorted(backend.queues))}). Add it to "
                'QUEUES of "default", so that a long fill does not delay your other tasks; or set '
                "SAFEMIGRATE_QUEUE, or --queue."
            )

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        self.check(queue)
        later = timezone.now() + timedelta(seconds=seconds) if seconds and backend.supports_defer else None
        try:
            do.using(queue_name=queue, run_after=later).enqueue(path, list(arguments))
        except Error as error:
            raise NotEnqueued(f"The queue {queue} does not take tasks: {str(error).strip()}.") from error
