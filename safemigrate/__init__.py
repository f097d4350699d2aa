"""Add a required field to a table that is already full, while the site keeps serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__version__ = "0.1.0"


def is_finished(label: str, parameters: Mapping[str, Any] | None = None, *, using: str = "default") -> bool:
    """Has a backfill ended on the alias `using`: of a field, "polls.Question.expires_date", or a class, "shop.Recount"?

    Of a field it looks at the rows, not at a record: it stops at the first that is still to be filled, and reads the
    whole table where there is none, unless the column is NOT NULL. Of a class, a run of it has succeeded, with these
    parameters if any are given, or it has no row to do. Raises NothingToRun where there is no such backfill.
    """
    from safemigrate import backfills
    from safemigrate.runs import lookup

    if not lookup.is_backfill(label):
        return lookup.find(label, using).is_finished()
    return lookup.is_done(backfills.find(label).label(), using, parameters)
