"""By Celery: each declared function is a shared task, known by its dotted path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from safemigrate.exceptions import NotEnqueued
from safemigrate.executors.base import call, missing

#: A task of ours ends by itself; the project's time limits for its own tasks would kill it in the middle. In seconds.
NO_LIMIT = 10**7
#: What is published is tried again for about three seconds; a worker goes on by itself then, a command says so.
RETRY = {"max_retries": 4, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 2.0}


class Celery:
    """Sends to the project's Celery app, as it is configured there: broker, routes, eager mode."""

    def __init__(self) -> None:
        if find_spec("celery") is None:
            raise missing("celery", "Celery")
        from celery import current_app

        self.app = current_app._get_current_object()

    @property
    def is_apart(self) -> bool:
        return not self.app.conf.task_always_eager

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        from kombu.exceptions import OperationalError

        self.check(queue)
        task = self.app.tasks.get(path)
        send = task.apply_async if task else partial(self.app.send_task, path)
        options = {"queue": queue, "countdown": seconds or None, "serializer": "json", "ignore_result": True}
        try:
            send(list(arguments), retry=True, retry_policy=RETRY, **options)
        except (OperationalError, OSError) as error:
            broker = self.app.connection_for_write().as_uri()
            raise NotEnqueued(f"Celery's broker, {broker}, does not take messages: {error}.") from error

    def check(self, queue: str) -> None:
        if self.app.main == "default":  # The one that Celery makes where there is none.
            raise NotEnqueued(
                "This process has no Celery app, so it cannot know the broker. Import yours where Django starts: in "
                "the __init__.py beside settings.py, from .celery import app. See docs/how-to/queues.md."
            )


def declare(function: Callable[..., Any], path: str) -> None:
    """Make it a shared task, where Celery is installed.

    Acknowledged when it is done and given back when its process is lost, so that a broker that can do so
    delivers it again at once; no result is kept.
    """
    if find_spec("celery") is None:
        return
    from celery import shared_task

    def run(*arguments: Any) -> None:
        call(path, *arguments)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    ours = path.startswith("safemigrate.")
    limits = {"time_limit": NO_LIMIT, "soft_time_limit": NO_LIMIT} if ours else {}
    shared_task(run, name=path, acks_late=True, reject_on_worker_lost=True, ignore_result=True, **limits)
