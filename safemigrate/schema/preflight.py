"""What the server would refuse at the end is looked for before the first statement, and by `--plan` alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from django.db.models import Model

from safemigrate.backends import Database
from safemigrate.exceptions import InvalidField
from safemigrate.schema.steps import Obstacle
from safemigrate.types import AnyField

logger = logging.getLogger("safemigrate")


def obstacles(database: Database, model: type[Model], field: AnyField) -> list[Obstacle]:
    """Return what the server would refuse on the way to this field, as the model has it, as a required column.

    It waits no longer than a second or so for a lock on the table, and raises no error for that.
    """
    return list(database.obstacles(model, field))


def left(database: Database, model: type[Model], field: AnyField) -> list[Obstacle]:
    """Return the column of a new field that is there with another type than a stopped run would have left it."""
    found = database.other_type(model, field)
    if not found:
        return []
    wanted = field.db_type(database.connection)
    text = (
        f"the table has a column {field.column} already, of type {found}, but the field needs {wanted}. It may be left "
        "from a migration that was changed after it had begun."
    )
    cure = "Drop the column, or name the field otherwise, and run migrate again."
    return [Obstacle(text, cure, error=InvalidField)]


def refuse(database: Database, model: type[Model], field: AnyField, found: Iterable[Obstacle]) -> None:
    """Raise StepRefused, TableCopyNeeded or InvalidField for what is certain to be refused, before any is done."""
    where = f"{model._meta.label}.{field.name} on {database.connection.alias}"
    for obstacle in found:
        if obstacle.certain:
            raise obstacle.error(f"{where}: {obstacle.text} Nothing was changed. {obstacle.cure}")
        logger.info("%s: %s %s", where, obstacle.text, obstacle.cure)
