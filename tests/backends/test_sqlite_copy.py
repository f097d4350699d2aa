"""SQLite's copy of a table keeps what no model knows of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, models
from django.db.models import F

from safemigrate.backends import for_connection
from safemigrate.backends.sqlite.definition import Definition
from safemigrate.operations import AddRequiredField
from safemigrate.populate import PerRow
from tests.support.sandbox import APP, MigrationSandbox, question

pytestmark = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)

HANDMADE = """CREATE TABLE boxes_question (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, -- the key, (really
    [question_text] text NOT NULL COLLATE NOCASE DEFAULT 'a, b''s ) "',
    `pub_date` text NOT NULL, /* once , a ( date */
    "legacy, col" text CHECK ("legacy, col" <> 'no'),
    length int AS (length(question_text)),
    CONSTRAINT one CHECK (question_text <> '--'), UNIQUE (pub_date, "question_text") -- the end
) STRICT"""
EXTRAS = [
    'CREATE VIEW latest AS SELECT max(pub_date) AS "when" FROM boxes_question',
    "CREATE TABLE log (n integer)",
    "CREATE TRIGGER on_log AFTER INSERT ON log BEGIN UPDATE boxes_question SET \"legacy, col\" = 'seen'; END",
    "CREATE TRIGGER own AFTER UPDATE OF question_text ON boxes_question BEGIN INSERT INTO log VALUES (7); END",
    'CREATE INDEX old ON boxes_question ("legacy, col") WHERE length > 2',
]
POPULATES = {
    "one copy": F("question_text"),
    "step by step": PerRow(lambda row: row.question_text),
}
FIELDS = {
    "plain": models.TextField,
    "an index": lambda: models.TextField(db_index=True),
    "unique": lambda: models.TextField(unique=True),
}


@pytest.fixture
def sandbox(alias: str) -> Iterator[MigrationSandbox]:
    made = MigrationSandbox(alias, question(managed=False))
    database = for_connection(made.connection)
    database.execute(HANDMADE, *EXTRAS)
    made.state.models[APP, "question"].options["managed"] = True
    made.state.reload_model(APP, "question")
    database.execute(
        "INSERT INTO boxes_question (question_text, pub_date, \"legacy, col\") VALUES ('A', '2026-01-01', 'x'), "
        "('B', '2026-01-02', 'y'), ('C', '2026-01-03', 'z')",
        "DELETE FROM boxes_question WHERE id = 3",
    )
    yield made
    database.execute("DROP VIEW latest", "DROP TABLE log")


def rest(sandbox: MigrationSandbox) -> list[tuple[Any, ...]]:
    """All that the file keeps of views, triggers and indexes, and of the table's other columns."""
    database = for_connection(sandbox.connection)
    rows = database.fetch(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'table' "
        "AND name NOT LIKE %s ORDER BY name",
        ["%new%"],
    )
    ((sql,),) = database.fetch("SELECT sql FROM sqlite_master WHERE name = 'boxes_question'")
    definition = Definition.parse(sql).with_column("new", None)
    values = database.fetch('SELECT id, question_text, pub_date, "legacy, col", length FROM boxes_question')
    return [*rows, definition, *values]  # type: ignore[list-item]


@pytest.mark.parametrize("populate", POPULATES)
@pytest.mark.parametrize("kind", FIELDS)
def test_what_the_model_does_not_know_is_kept(sandbox: MigrationSandbox, kind: str, populate: str) -> None:
    before, kept = sandbox.state, rest(sandbox)
    operation = AddRequiredField("question", "new", FIELDS[kind](), POPULATES[populate])
    sandbox.run(operation)
    assert rest(sandbox) == kept
    assert sandbox.values("new") == ["A", "B"]
    assert not sandbox.column("new").nullable
    sandbox.undo(operation, before=before)
    assert rest(sandbox) == kept
    database = for_connection(sandbox.connection)
    assert database.fetch('SELECT "when" FROM latest') == [("2026-01-02",)]
    database.execute("INSERT INTO log VALUES (1)")
    assert database.fetch('SELECT DISTINCT "legacy, col" FROM boxes_question') == [("seen",)]
    with pytest.raises(IntegrityError):
        database.execute("UPDATE boxes_question SET \"legacy, col\" = 'no'")
    with pytest.raises(IntegrityError):
        database.execute("UPDATE boxes_question SET question_text = 1, pub_date = x'00'")


def test_a_key_that_was_deleted_is_not_given_out_again(sandbox: MigrationSandbox) -> None:
    sandbox.run(AddRequiredField("question", "new", models.TextField(), F("question_text")))
    for_connection(sandbox.connection).execute(
        "INSERT INTO boxes_question (question_text, pub_date, new) VALUES ('D', '4', 'D')"
    )
    assert sandbox.values("pk") == [1, 2, 4]


@pytest.mark.parametrize("populate", [*POPULATES, "a value"])
def test_a_default_with_percent_signs(alias: str, populate: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    text = "5% odd %s"
    field = models.CharField(max_length=20, db_default=text)
    sandbox.run(AddRequiredField("question", "new", field, POPULATES.get(populate, text)))
    sandbox.fill(1)
    assert sandbox.values("new")[-1] == text
