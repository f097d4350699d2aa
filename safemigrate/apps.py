"""Wiring: the engine's ledger, and the verbosity that `migrate` was given."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import pre_migrate

from safemigrate import backfill, progress


def note_verbosity(verbosity: int = 1, **kwargs: Any) -> None:
    progress.use_verbosity(verbosity)


class SafemigrateConfig(AppConfig):
    name = "safemigrate"

    def ready(self) -> None:
        backfill.use_ledger(progress.Progress)
        pre_migrate.connect(note_verbosity, dispatch_uid="safemigrate.verbosity")
