"""Work on rows that is no part of a migration: a class in the `backfills.py` of an app, and what is made of it.

from safemigrate.backfills import Backfill

class PublishOld(Backfill):
    model = "blog.Post"
    where = Q(status="draft", publish_at__lt=F("created"))
    values = {"status": "published"}

python manage.py backfill run blog.PublishOld
"""

from __future__ import annotations

from safemigrate.backfills.backfill import Backfill
from safemigrate.backfills.registry import find, registered

__all__ = ["Backfill", "find", "registered"]
