"""Operations run as `migrate` runs them, on a state that is kept by hand."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.migrations import Migration
from django.db.migrations.state import ProjectState


def applied(
    alias: str, state: ProjectState, *operations: Any, app: str = "polls", atomic: bool = False
) -> ProjectState:
    """Apply a migration of these operations, and return the state after it."""
    migration: Any = Migration("0001_bench", app)
    migration.operations, migration.atomic = [*operations], atomic
    with connections[alias].schema_editor(atomic=atomic) as editor:
        after: ProjectState = migration.apply(state.clone(), editor)
    return after
