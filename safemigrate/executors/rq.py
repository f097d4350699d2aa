"""By django-rq: a job on one of the project's RQ_QUEUES."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from django.conf import settings

from safemigrate.exceptions import NotEnqueued
from safemigrate.executors.base import call, missing


class RQ:
    """Its jobs have no time limit of their own, keep no result, and are seen on django-rq's pages."""

    is_apart = True

    def __init__(self) -> None:
        if find_spec("django_rq") is None:
            raise missing("rq", "django-rq")

    def enqueue(self, path: str, *arguments: Any, queue: str, seconds: float = 0.0) -> None:
        from django_rq import get_queue
        from redis.exceptions import RedisError

        options = {"job_timeout": -1, "result_ttl": 0, "description": f"{path}{arguments}"}
        self.check(queue)
        try:
            jobs = get_queue(queue)
            if seconds:
                jobs.enqueue_in(timedelta(seconds=seconds), call, path, *arguments, **options)
            else:
                jobs.enqueue(call, path, *arguments, **options)
        except RedisError as error:
            raise NotEnqueued(f"The Redis of the queue {queue} does not take jobs: {error}.") from error

    def check(self, queue: str) -> None:
        known = getattr(settings, "RQ_QUEUES", {})
        if queue not in known:
            raise NotEnqueued(
                f"There is no queue {queue!r} in RQ_QUEUES (there is: {', '.join(known) or 'none'}). Add one, so that "
                "a long fill does not delay your other jobs; or set SAFEMIGRATE_QUEUE, or --queue."
            )
