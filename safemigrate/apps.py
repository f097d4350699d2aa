"""Wiring: the engine's observers, what `migrate` was given, and the system checks.

Each process of a site imports this module: what only some commands need is imported when it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db import Error
from django.db.models.signals import post_migrate, pre_migrate
from django.utils.module_loading import import_string

from safemigrate import signals
from safemigrate.engine import context, progress


def note_migrate(verbosity: int = 1, plan: Any = (), **kwargs: Any) -> None:
    progress.use_verbosity(verbosity)
    context.note_plan(plan)


def finalize_runs(using: str, plan: Any = None, **kwargs: Any) -> None:
    if plan is None:
        return  # `flush`, which each test of a TransactionTestCase ends with.
    with suppress(Error):  # The runs' database may be away: `migrate` itself is done.
        import_string("safemigrate.runs.store.finalize")(using, set(context.current.migrations.values()))


def new_observer() -> Any:
    recorder = import_string("safemigrate.runs.recorder.RunRecorder")
    observers = import_string("safemigrate.engine.observers.Observers")
    return observers([recorder, *context.current.observers, progress.Progress])


def imported_when_called(path: str) -> Callable[..., Any]:
    """Return a function that imports the function of that path when it is called, and calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return import_string(path)(*args, **kwargs)

    call.__qualname__ = path
    return call


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        context.new_observer = new_observer
        context.progress_of = imported_when_called("safemigrate.runs.summary.progress_of")
        context.filled_elsewhere = imported_when_called("safemigrate.runs.summary.filled_elsewhere")
        context.is_backfill_done = imported_when_called("safemigrate.runs.lookup.is_done")
        context.is_passed = imported_when_called("safemigrate.runs.store.is_passed")
        context.note_reversed = imported_when_called("safemigrate.runs.store.reverse")
        context.hand_over = imported_when_called("safemigrate.runs.scheduler.hand_over")
        logger = logging.getLogger("safemigrate")
        if not any(isinstance(handler, progress.Terminal) for handler in logger.handlers):
            logger.addHandler(progress.Terminal(logging.WARNING))
        pre_migrate.connect(note_migrate, dispatch_uid="safemigrate.migrate")
        post_migrate.connect(finalize_runs, sender=self, dispatch_uid="safemigrate.finalize")
        register(imported_when_called("safemigrate.checks.rules.check_migrations"), Tags.database)
        register(imported_when_called("safemigrate.checks.configuration.check_settings"))
        register(imported_when_called("safemigrate.checks.configuration.check_backfills"))
        self._connect("safemigrate.runs.scheduler.enqueue_queued", signals.run_queued)
        ends = (signals.run_finished, signals.run_failed, signals.run_stalled)
        self._connect("safemigrate.runs.notify.send_mail_about", *ends)
        self._connect("safemigrate.runs.notify.post_about", *ends)

    @staticmethod
    def _connect(path: str, *each: Any) -> None:
        for signal in each:
            # Nothing else refers to the function that imports it.
            signal.connect(imported_when_called(path), weak=False, dispatch_uid=path)
