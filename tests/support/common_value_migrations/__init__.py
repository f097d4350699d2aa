"""The polls whose new field gets the same value in most rows.

Used by `MIGRATION_MODULES = {"polls": "tests.support.common_value_migrations"}`.
"""

from datetime import datetime, timezone

from django.db.models import Q, Value

EARLY = Q(pub_date__lt=datetime(2026, 1, 1, 12, 5, tzinfo=timezone.utc))
SOON = Value(datetime(2027, 1, 1, tzinfo=timezone.utc))
LATE = Value(datetime(2030, 1, 1, tzinfo=timezone.utc))
