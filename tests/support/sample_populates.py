"""What migrations in the tests name by its path: importable, as a populate in a real project is."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Concat

A_VALUE = "draft"
AN_EXPRESSION = Concat("question_text", "question_text")
A_PATH = "tests.support.sample_populates.A_VALUE"
NOTHING = None


def new_code() -> str:
    return uuid.uuid4().hex


def from_text(row: Any) -> str:
    return row.question_text.upper()


def fill_codes(apps: Any, schema_editor: Any) -> None:
    questions = apps.get_model("boxes", "question").objects.using(schema_editor.connection.alias)
    for question in questions.filter(code=None):
        questions.filter(pk=question.pk).update(code=from_text(question))


def copy_text(apps: Any, schema_editor: Any) -> None:
    questions = apps.get_model("boxes", "question").objects.using(schema_editor.connection.alias)
    questions.update(code=F("question_text"))


def page_title(apps: Any) -> Subquery:
    pages = apps.get_model("boxes", "page").objects.filter(pk=OuterRef("page"))
    return Subquery(pages.values("title")[:1])


def titles(apps: Any, alias: str) -> dict[Any, str]:
    return dict(apps.get_model("boxes", "page").objects.using(alias).values_list("pk", "title"))


def title_in(row: Any, prepared: dict[Any, str]) -> str:
    return prepared[row.page_id]


def all_from_text(rows: list[Any]) -> list[str]:
    return [from_text(row) for row in rows]


def code_and_votes(row: Any) -> dict[str, Any]:
    return {"code": from_text(row), "votes": row.votes + 100}
