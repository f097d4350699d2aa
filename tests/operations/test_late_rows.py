"""Rows that come in, and stops that come, in the worst moments: between the fill and NOT NULL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connections, models
from django.db.models import F

from safemigrate.backends import for_connection
from safemigrate.engine import engine
from safemigrate.exceptions import BadRows, InvalidField, OrphanRows
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.schema import proofs
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, question

EXPIRES = models.DateTimeField("expires at")


def add_null() -> AddNullableField:
    return AddNullableField("question", "expires_date", EXPIRES)


class Before:
    """Does something once, just before the first statement that has a certain text."""

    def __init__(self, text: str, action: Callable[[], Any]) -> None:
        self.text, self.action, self.done = text, action, False

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if self.text in sql and not self.done:
            self.done = True
            self.action()
        return execute(sql, params, many, context)


def insert_as_old_code(sandbox: MigrationSandbox) -> None:
    with sandbox.connection.cursor() as cursor:
        cursor.execute("INSERT INTO boxes_question (question_text, pub_date) VALUES ('Late?', %s)", [START])


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_row_that_comes_in_just_before_the_door_is_shut_is_filled(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    late = Before("NOT VALID", lambda: insert_as_old_code(sandbox))
    with connections[alias].execute_wrapper(late):
        sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, lambda row: row.pub_date + MONTH))
    assert late.done
    assert sandbox.rows().count() == 4
    assert all(row.expires_date == row.pub_date + MONTH for row in sandbox.rows())


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_stop_while_the_door_is_shut_opens_it_again(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    before = sandbox.state

    def later(row: Any) -> Any:
        if row.question_text == "Late?":
            raise KeyboardInterrupt
        return row.pub_date + MONTH

    late = Before("NOT VALID", lambda: insert_as_old_code(sandbox))
    with pytest.raises(KeyboardInterrupt), connections[alias].execute_wrapper(late):
        sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, later))
    insert_as_old_code(sandbox)
    sandbox.state = before
    sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, lambda row: row.pub_date + MONTH))
    assert None not in sandbox.values("expires_date")


@pytest.mark.parametrize("alias", ["sqlite", "mariadb"], indirect=True)
def test_a_null_that_comes_in_after_the_fill_is_filled_too(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    text = "CREATE TABLE" if alias == "default" else "TRIGGER"
    late = Before(text, lambda: insert_as_old_code(sandbox))
    with connections[alias].execute_wrapper(late):
        sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, lambda row: row.pub_date + MONTH))
    assert late.done
    assert None not in sandbox.values("expires_date")
    # On SQLite the late row was part of the transaction that failed.
    assert sandbox.rows().count() == (3 if alias == "default" else 4)


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_during_the_rebuild_no_new_null_is_let_in_and_the_old_rows_can_be_updated(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    refused = []

    def late() -> None:
        with pytest.raises(IntegrityError, match="expires_date"):
            insert_as_old_code(sandbox)
        refused.append(sandbox.rows().update(question_text="Changed?"))

    with connections[alias].execute_wrapper(Before("TABLE `boxes_question` MODIFY ", late)):
        sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, lambda row: row.pub_date + MONTH))
    assert refused == [3]
    assert for_connection(connections[alias]).fetch("SHOW TRIGGERS LIKE 'boxes_question'") == []


@pytest.mark.parametrize("python", [False, True])
def test_of_two_fields_one_that_is_required_already_keeps_its_value(alias: str, python: bool) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    votes, score = models.IntegerField(), models.IntegerField()
    values = (lambda row: {"votes": 1, "score": 2}) if python else {"votes": 1, "score": 2}
    sandbox.run(
        AddNullableField("question", "votes", votes),
        AddNullableField("question", "score", score),
        Populate("question", ["votes", "score"], values),
        SetNotNull("question", "votes", votes),
    )
    first = sandbox.rows()[0].pk
    sandbox.rows().filter(pk=first).update(votes=777, score=None)
    sandbox.run(SetNotNull("question", "score", score))
    assert sandbox.values("votes") == [777, 1, 1]
    assert sandbox.values("score") == [2, 2, 2]


def test_rows_without_a_value_yet_are_no_duplicates(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    sandbox.run(AddNullableField("question", "code", models.CharField(max_length=9, unique=True)))
    field = sandbox.model()._meta.get_field("code")
    proofs.refuse_duplicates(sandbox.model(), alias, field)
    assert sandbox.values("code") == [None, None]


def test_a_row_that_cannot_be_filled_is_told_even_while_others_come_in(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    second = sandbox.values("pk")[1]

    class Busy(engine.NullObserver):
        def advance(self, run: engine.Run) -> None:
            insert_as_old_code(sandbox)

    monkeypatch.setattr(engine, "new_observer", Busy)
    sandbox.run(add_null())
    with pytest.raises(BadRows) as caught:
        sandbox.run(
            Populate("question", "expires_date", lambda row: None if row.pk == second else row.pub_date)
        )
    assert [bad.key for bad in caught.value.examples] == [second]


def test_a_function_of_apps_is_run_once_and_its_late_rows_are_told(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    runs = []

    def everything(apps: Any, schema_editor: Any) -> None:
        runs.append(schema_editor.connection.alias)
        apps.get_model(APP, "Question").objects.using(runs[-1]).update(expires_date=START)

    sandbox.run(add_null(), Populate("question", "expires_date", everything))
    sandbox.rows().filter(pk=sandbox.rows()[0].pk).update(expires_date=START + MONTH)
    insert_as_old_code(sandbox)
    with pytest.raises(BadRows, match="1 rows of"):
        sandbox.run(SetNotNull("question", "expires_date", EXPIRES))
    assert runs == [alias]
    assert sandbox.values("expires_date")[0] == START + MONTH


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_statement_that_cannot_be_rolled_back_is_not_run_twice(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    before = sandbox.state
    add = AddRequiredField(
        "question", "parent", models.ForeignKey(f"{APP}.question", models.CASCADE), models.F("pk")
    )
    sandbox.run(add)

    def busy() -> None:
        raise OperationalError(1205, "Lock wait timeout exceeded; try restarting transaction")

    with connections[alias].execute_wrapper(Before("DROP COLUMN", busy)):
        sandbox.undo(add, before=before)
    assert "parent_id" not in sandbox.schema()["columns"]


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_orphans_are_looked_for_also_where_the_foreign_key_is_there(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    before = sandbox.state
    add = AddRequiredField(
        "question", "parent", models.ForeignKey(f"{APP}.question", models.CASCADE), models.F("pk")
    )
    sandbox.run(add)
    with connections[alias].constraint_checks_disabled():
        sandbox.rows().update(parent=10**6)
    sandbox.state = before
    with pytest.raises(OrphanRows):
        sandbox.run(add)


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_an_index_on_an_expression_survives_the_copy(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE INDEX by_lower ON boxes_question (lower(question_text))")
    sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, models.F("pub_date")))
    found = for_connection(connections[alias]).fetch("SELECT 1 FROM sqlite_master WHERE name = 'by_lower'")
    assert found == [(1,)]


class FiveLetters(models.Field):
    def db_type(self, connection: Any) -> str:
        return "char(5)"


def test_a_text_of_fixed_length_is_written_whole(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(key=("code", FiveLetters(primary_key=True))))
    sandbox.fill(3, code=lambda n: f"key-{n}")
    sandbox.run(AddRequiredField("question", "mark", FiveLetters(), lambda row: row.code[::-1]))
    assert sandbox.values("mark") == ["1-yek", "2-yek", "3-yek"]


@pytest.mark.slow
def test_a_batch_wider_than_the_protocol_allows_is_written_in_parts(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(25_000)
    names = ["votes", "score"]
    sandbox.run(*(AddNullableField("question", name, models.IntegerField()) for name in names))
    sandbox.run(Populate("question", names, lambda row: {"votes": row.pk, "score": 1}, batch_size=25_000))
    assert sandbox.values("votes") == sandbox.values("pk")


def test_a_column_left_by_another_field_is_not_taken_over(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    before = sandbox.state
    kinds = [models.CharField(max_length=10), models.CharField(max_length=120), models.IntegerField()]
    sandbox.run(AddNullableField("question", "code", kinds[0]))
    for kind in kinds[1:]:
        sandbox.state = before
        with pytest.raises(
            InvalidField, match="has a column code already, of type .*10.*, but the field needs"
        ):
            sandbox.run(AddRequiredField("question", "code", kind, 1))
    sandbox.run(AddRequiredField("question", "code", kinds[0], "short"))
    assert sandbox.values("code") == ["short", "short"]


@pytest.mark.parametrize("other", [F("question_text"), lambda row: row.question_text], ids=["SQL", "Python"])
def test_a_text_for_one_of_several_fields_is_that_text_and_no_column(alias: str, other: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    text = models.CharField(max_length=200)
    sandbox.run(
        AddNullableField("question", "state", text),
        AddNullableField("question", "title", text),
        Populate("question", ["state", "title"], {"state": "question_text", "title": other}),
    )
    assert sandbox.values("state") == ["question_text", "question_text"]
    assert sandbox.values("title") == ["Question 1?", "Question 2?"]
