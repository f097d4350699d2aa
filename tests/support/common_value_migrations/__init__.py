"""The polls whose new field gets the same value in most rows.

Used by `MIGRATION_MODULES = {"polls": "tests.support.common_value_migrations"}`.
"""

from datetime import datetime, timezone

from django.db.models import Case, DateTimeField, Q, Value, When

#: A third of the rows, wherever they stand.
EARLY = Q(pub_date__second__lt=20)
SOON = Value(datetime(2027, 1, 1, tzinfo=timezone.utc))
LATE = Value(datetime(2030, 1, 1, tzinfo=timezone.utc))
POPULATE = Case(When(EARLY, then=SOON), default=LATE, output_field=DateTimeField())
