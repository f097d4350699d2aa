"""MySQL's and MariaDB's modes of SQL: a constant means the same to the guard and to the fill."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from django.db.models import F, Value
from django.db.models.functions import Concat

from safemigrate.backends import for_connection
from safemigrate.operations import AddRequiredField
from tests.support.sandbox import MigrationSandbox

pytestmark = [pytest.mark.matrix, pytest.mark.parametrize("alias", ["mariadb"], indirect=True)]

TEXTS = ["a\\b", "it's", "\\'", "100% \\n", '"quoted" \\"', "emoji 🎈 \\"]
MODES = ["NO_BACKSLASH_ESCAPES", "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES", "", "ANSI_QUOTES"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["a value", "an expression", "db_default"])
def test_a_constant_with_backslashes_and_quotes(alias: str, mode: str, text: str, kind: str) -> None:
    sandbox = MigrationSandbox(alias)
    database = for_connection(sandbox.connection)
    before = database.fetch("SELECT @@SESSION.sql_mode")[0][0]
    database.execute(f"SET SESSION sql_mode = '{mode}'")
    try:
        sandbox.fill(3)
        populate: Any = Concat(F("question_text"), Value(text)) if kind == "an expression" else text
        options = {"db_default": text} if kind == "db_default" else {}
        field = models.CharField(max_length=100, **options)
        operation = AddRequiredField("question", "new", field, populate, keep_guard=True)
        sandbox.run(operation)
        columns = "(question_text, pub_date)"
        database.execute(f"INSERT INTO boxes_question {columns} VALUES ('old code', '2026-01-01')")
        made = (
            ["Question 1?", "Question 2?", "Question 3?", "old code"] if kind == "an expression" else [""] * 4
        )
        assert sandbox.values("new") == [f"{first}{text}" for first in made]
    finally:
        database.execute(f"SET SESSION sql_mode = '{before}'")
