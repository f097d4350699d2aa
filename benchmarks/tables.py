"""The questions' table in the shapes that are measured: as migrations' state, and as SQL that fills it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from django.db import models
from django.db.migrations import CreateModel
from django.db.migrations.state import ProjectState

from benchmarks.seeds import COLUMNS, insert, seed

PER_POLL = 100  # questions


@dataclass(frozen=True)
class Shape:
    """How many rows, by what key, with how many secondary indexes; `related` to a table of polls or not."""

    rows: int
    key: str = "integer"
    indexes: int = 1
    text: str = "text"
    related: bool = False

    @property
    def name(self) -> str:
        return "_".join(str(part) for part in asdict(self).values()).lower()

    def operations(self) -> list[CreateModel]:
        fields = [
            *KEYS[self.key],
            ("question_text", models.CharField(max_length=200)),
            ("pub_date", models.DateTimeField("date published")),
        ]
        if not self.related:
            return [CreateModel("Question", fields)]
        poll = ("poll", models.ForeignKey("polls.Poll", on_delete=models.CASCADE))
        closes = ("closes", models.DateTimeField())
        return [CreateModel("Poll", [*KEYS["integer"], closes]), CreateModel("Question", [*fields, poll])]

    def state(self) -> ProjectState:
        state = ProjectState()
        for operation in self.operations():
            operation.state_forwards("polls", state)
        return state

    def seed(self, vendor: str) -> list[str]:
        """Return the statements that fill the tables."""
        polls = max(self.rows // PER_POLL, 1)
        columns = KEY_COLUMNS[self.key] | COLUMNS | {"question_text": self.text}
        if not self.related:
            return seed(vendor, self.rows, columns, indexes=self.indexes)
        return [
            insert(vendor, "polls_poll", polls, {"closes": "date"}),
            *seed(vendor, self.rows, columns | {"poll_id": "poll"}, indexes=self.indexes, polls=polls),
        ]


KEYS: dict[str, list[tuple[str, Any]]] = {
    "integer": [("id", models.BigAutoField(primary_key=True))],
    "uuid": [("id", models.UUIDField(primary_key=True))],
    "composite": [
        ("pk", models.CompositePrimaryKey("tenant", "number")),
        ("tenant", models.IntegerField()),
        ("number", models.BigIntegerField()),
    ],
}
KEY_COLUMNS: dict[str, dict[str, str]] = {
    "integer": {},
    "uuid": {"id": "uuid"},
    "composite": {"tenant": "part", "number": "number"},
}
