"""Wiring: the engine's ledgers, what `migrate` was given, and the system checks."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db.models.signals import pre_migrate
from django.utils.module_loading import import_string

from safemigrate import backfill, checks, context, progress
from safemigrate.ledgers import Ledgers


def note_migrate(verbosity: int = 1, plan: Any = (), **kwargs: Any) -> None:
    progress.use_verbosity(verbosity)
    context.note_plan(plan)


def new_ledger() -> Ledgers:
    # Named, not imported: models cannot be imported before the apps are ready.
    recorder = import_string("safemigrate.recorder.Recorder")
    return Ledgers([recorder, *context.current.ledgers, progress.Progress])


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        backfill.use_ledger(new_ledger)
        pre_migrate.connect(note_migrate, dispatch_uid="safemigrate.migrate")
        register(checks.check_migrations, Tags.database)
