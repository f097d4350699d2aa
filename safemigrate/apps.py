"""Wiring: the engine's observers, what `migrate` was given, and the system checks."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db import Error
from django.db.models.signals import post_migrate, pre_migrate
from django.utils.module_loading import import_string

from safemigrate.checks import rules
from safemigrate.checks.configuration import check_settings
from safemigrate.engine import context, engine, progress
from safemigrate.engine.observers import Observers


def note_migrate(verbosity: int = 1, plan: Any = (), **kwargs: Any) -> None:
    progress.use_verbosity(verbosity)
    context.note_plan(plan)


def finalize_runs(using: str, plan: Any = None, **kwargs: Any) -> None:
    if plan is None:
        return  # `flush`, which each test of a TransactionTestCase ends with.
    with suppress(Error):  # The runs' database may be away: `migrate` itself is done.
        import_string("safemigrate.runs.store.finalize")(using, set(context.current.migrations.values()))


def new_observer() -> Observers:
    # Named, not imported: models cannot be imported before the apps are ready.
    recorder = import_string("safemigrate.runs.recorder.RunRecorder")
    return Observers([recorder, *context.current.observers, progress.Progress])


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        engine.use_observer(new_observer)
        logger = logging.getLogger("safemigrate")
        if not any(isinstance(handler, progress.Terminal) for handler in logger.handlers):
            logger.addHandler(progress.Terminal(logging.WARNING))
        pre_migrate.connect(note_migrate, dispatch_uid="safemigrate.migrate")
        post_migrate.connect(finalize_runs, sender=self, dispatch_uid="safemigrate.finalize")
        register(rules.check_migrations, Tags.database)
        register(check_settings)
        import_string("safemigrate.runs.notify.connect")()
        import_string("safemigrate.runs.scheduler.connect")()
        context.progress_of = import_string("safemigrate.runs.summary.progress_of")
        context.hand_over = import_string("safemigrate.runs.scheduler.hand_over")
