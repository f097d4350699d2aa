"""What the server would refuse at the end is looked for before the first statement, and by `--plan` alike."""

from __future__ import annotations

import logging

from django.db.models import Model

from safemigrate.backends import Database
from safemigrate.schema.steps import Obstacle
from safemigrate.types import AnyField

logger = logging.getLogger("safemigrate")


def obstacles(database: Database, model: type[Model], field: AnyField) -> list[Obstacle]:
    """Return what the server would refuse on the way to this field, as the model has it, as a required column.

    It waits no longer than a second or so for a lock on the table, and raises no error for that.
    """
    return list(database.obstacles(model, field))


def refuse(database: Database, model: type[Model], field: AnyField) -> None:
    """Raise StepRefused, or TableCopyNeeded, where a step is certain to be refused, before any is done."""
    where = f"{model._meta.label}.{field.name} on {database.connection.alias}"
    for obstacle in obstacles(database, model, field):
        if obstacle.certain:
            raise obstacle.error(f"{where}: {obstacle.text} Nothing was changed. {obstacle.cure}")
        logger.info("%s: %s %s", where, obstacle.text, obstacle.cure)
