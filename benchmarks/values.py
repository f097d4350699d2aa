"""What the column is filled with: the field, the one UPDATE that does it, and how a wrong row is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models

from benchmarks.seeds import TABLE
from benchmarks.sites import WRONG

DATETIME = models.DateTimeField("expires at")
TITLE = models.CharField(max_length=200)


@dataclass(frozen=True)
class Value:
    """`update` is the SQL of the value, `wrong` a condition, and `distinct` says that no value comes twice."""

    name: str
    field: models.Field[Any, Any]
    update: Mapping[str, str]
    wrong: Mapping[str, str]
    distinct: bool = False

    def statement(self, vendor: str) -> str:
        return f"UPDATE {TABLE} SET {self.name} = {self.update[vendor]}"

    def count_wrong(self, connection: Any) -> int:
        """Return how many rows have not the value, or share it where they must not."""
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE {self.wrong[connection.vendor]}")
            (wrong,) = cursor.fetchone()
            if self.distinct:
                cursor.execute(f"SELECT COUNT({self.name}) - COUNT(DISTINCT {self.name}) FROM {TABLE}")
                wrong += cursor.fetchone()[0]
        return int(wrong)


def everywhere(sql: str) -> dict[str, str]:
    return dict.fromkeys(("postgresql", "mysql", "sqlite"), sql)


def differs(name: str, **values: str) -> dict[str, str]:
    """Return the conditions that the column is not this, or is NULL."""
    forms = {
        "postgresql": "{} IS DISTINCT FROM {}",
        "mysql": "NOT {} <=> {}",
        "sqlite": "{} IS NOT {}",
    }
    return {vendor: form.format(name, values[vendor]) for vendor, form in forms.items()}


CLOSES = everywhere("(SELECT closes FROM polls_poll WHERE polls_poll.id = poll_id)")
SLUG = {"postgresql": "'question-' || id", "mysql": "concat('question-', id)", "sqlite": "'question-' || id"}
PICKED = {
    "postgresql": "'Question ' || id",
    "mysql": "concat('Question ', id)",
    "sqlite": "'Question ' || id",
}

COMMON = {  # The others are 1 % of the rows.
    "postgresql": "CASE WHEN pub_date < '2024-01-08 10:40+00' THEN 'closed' ELSE 'open' END",
    "mysql": "CASE WHEN pub_date < '2024-01-08 10:40' THEN 'closed' ELSE 'open' END",
    "sqlite": "CASE WHEN pub_date < '2024-01-08 10:40' THEN 'closed' ELSE 'open' END",
}

VALUES = {
    "datetime": Value(
        "expires_date",
        DATETIME,
        {
            "postgresql": "pub_date + interval '30 days'",
            "mysql": "pub_date + INTERVAL 30 DAY",
            "sqlite": "datetime(pub_date, '+30 days')",
        },
        WRONG,
    ),
    "text": Value(
        "title", TITLE, everywhere("question_text"), differs("title", **everywhere("question_text"))
    ),
    "constant": Value("title", TITLE, everywhere("'open'"), differs("title", **everywhere("'open'"))),
    "common": Value("title", TITLE, COMMON, differs("title", **COMMON)),
    "uuid": Value(
        "token",
        models.UUIDField(),
        {"postgresql": "gen_random_uuid()", "mysql": "uuid()", "sqlite": "lower(hex(randomblob(16)))"},
        everywhere("token IS NULL"),
        distinct=True,
    ),
    "related": Value("expires_date", DATETIME, CLOSES, differs("expires_date", **CLOSES)),
    # No server is asked to make these.
    "slug": Value("title", TITLE, {}, differs("title", **SLUG)),
    "picked": Value("title", TITLE, {}, differs("title", **PICKED)),
}
