"""A backfill started by a clock, or by a person in the admin."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from safemigrate import backfills
from safemigrate.conf import get
from safemigrate.engine import context
from safemigrate.exceptions import AlreadyRunning, RunPaused
from safemigrate.models import BackfillRun
from safemigrate.runs import scheduler
from safemigrate.runs.lookup import find

logger = logging.getLogger("safemigrate")


def executor_of(label: str) -> str:
    """Return by whose workers a backfill is done."""
    return backfills.find(label).executor or str(get("SAFEMIGRATE_EXECUTOR"))


def start(label: str, parameters: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
    """Start a backfill on these aliases, by default on all of its own; where one is at work, that one goes on.

    Inline it is done when this returns. Raises what keeps it from being started.
    """
    for alias in aliases or backfills.find(label).databases:
        try:
            start_on(label, parameters, alias)
        except (AlreadyRunning, RunPaused) as reason:
            logger.info("%s", reason)


def start_on(label: str, parameters: Mapping[str, Any], alias: str, person: str = "") -> BackfillRun | None:
    """Start it on one alias, in the name of a person; return its run, None where nothing is to be done, or inline.

    Raises AlreadyRunning, RunPaused, NotEnqueued, and what is wrong with the class or its parameters.
    """
    job, executor = find(label, alias, parameters), executor_of(label)
    job.check_column()
    with context.changed(person=person):
        if executor == "inline":
            job.run()
            return None
        job.validate()
        return scheduler.begin(job, executor, scheduler.options_of())
