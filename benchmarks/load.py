"""The traffic of a site that goes on while its table is changed: python -m benchmarks.load ROWS

Runs in a project, with the project's own models, until its standard input ends; says "ready" when it
has begun, and prints what became of each request. The loop is open: each request has its moment, and
waits from that moment on, also for those before it on the same connection, as visitors do.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import django
from django.db import Error, connection, connections
from django.utils import timezone

CONNECTIONS = 4
PER_SECOND = 200
MIX = ["select"] * 5 + ["update"] * 3 + ["insert"] * 2
TEXT = "Would you rather ask a question, or answer one? ".ljust(76, ".")


class Traffic:
    """The connections' common schedule. Moments are those of the system's monotonic clock."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.begins = 0.0
        self.ends = float("inf")
        self.ready = threading.Barrier(CONNECTIONS, action=self._begin)

    def _begin(self) -> None:
        self.begins = time.monotonic()
        print("ready", flush=True)

    def client(self, number: int) -> list[dict[str, Any]]:
        """Send every CONNECTIONS-th request by a connection of its own, and return them all."""
        connection.ensure_connection()
        self.ready.wait()
        choose = random.Random(number)
        try:
            return [
                send(choose.choice(MIX), choose.randint(1, self.rows), due) for due in self._moments(number)
            ]
        finally:
            connections.close_all()

    def _moments(self, first: int) -> Iterator[float]:
        for number in count(first, CONNECTIONS):
            due = self.begins + number / PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            if due > self.ends:
                return
            yield due


def send(kind: str, key: int, due: float) -> dict[str, Any]:
    """Send one request; its wait is counted from the moment it was due."""
    error = None
    try:
        REQUESTS[kind](key)
    except Error as failure:
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    wait = time.monotonic() - due
    if error and not connection.is_usable():
        connection.close()  # the next request opens another
    return {"kind": kind, "due": due, "wait": wait, "error": error}


def select(key: int) -> None:
    questions().get(pk=key)


def update(key: int) -> None:
    # Who knows a nullable field saves an instance that was loaded when it was NULL.
    nullable = {field.name: None for field in questions().model._meta.concrete_fields if field.null}
    questions().filter(pk=key).update(question_text=TEXT, **nullable)


def insert(key: int) -> None:
    questions().create(question_text=TEXT, pub_date=timezone.now())


REQUESTS: dict[str, Callable[[int], None]] = {"select": select, "update": update, "insert": insert}


def questions() -> Any:
    from polls.models import Question  # can be had once Django is set up

    return Question._base_manager


def main() -> None:
    django.setup()
    traffic = Traffic(int(sys.argv[1]))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        clients = [pool.submit(traffic.client, number) for number in range(CONNECTIONS)]
        sys.stdin.read()
        traffic.ends = time.monotonic()
    print(json.dumps([request for client in clients for request in client.result()]))


if __name__ == "__main__":
    main()
