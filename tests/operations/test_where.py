"""Populate(where=...): the rows that fulfil a condition are written anew, and each write repeats it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Concat, Length, Upper

from safemigrate.exceptions import BadRows, InvalidPopulate, NullsRemain
from safemigrate.operations import Populate, RequireField, SetNotNull
from tests.operations.test_guards import SERVERS
from tests.support.sandbox import APP, MigrationSandbox, Statements, question
from tests.support.sessions import another, run

VOTES = ("votes", models.IntegerField())
STATE = ("state", models.CharField(max_length=20))
SITE = migrations.CreateModel("Site", [("id", models.BigAutoField(primary_key=True))])


def with_votes(alias: str, rows: int = 40) -> MigrationSandbox:
    """A table whose every second row has no votes, and none is NULL."""
    sandbox = MigrationSandbox(alias, question(fields=[VOTES, STATE]))
    sandbox.fill(rows, votes=lambda n: n if n % 2 else 0, state="new")
    return sandbox


def shout(row: Any) -> str:
    return str(row.question_text.upper())


POPULATES: dict[str, tuple[Any, Any]] = {
    "an expression": (Upper("question_text"), lambda n: f"QUESTION {n}?"),
    "a value": ("zero", lambda n: "zero"),
    "a function of a row": (shout, lambda n: f"QUESTION {n}?"),
    "a function of none": (lambda: "none", lambda n: "none"),
}


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("kind", POPULATES)
def test_the_rows_of_the_condition_are_written_and_no_others(
    alias: str, kind: str, batch_size: int | None
) -> None:
    populate, expected = POPULATES[kind]
    sandbox = with_votes(alias)
    sandbox.run(Populate("question", "state", populate, where=Q(votes=0, state="new"), batch_size=batch_size))
    assert sandbox.values("state") == ["new" if n % 2 else expected(n) for n in range(1, 41)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POPULATES)
def test_stopped_after_every_change_and_run_again_it_ends_the_same(alias: str, kind: str) -> None:
    populate, expected = POPULATES[kind]
    sandbox, statements = with_votes(alias), Statements()
    operation = Populate("question", "state", populate, where=Q(votes=0, state="new"), batch_size=6)
    with connections[alias].execute_wrapper(statements):
        sandbox.run(operation)
    assert len(statements.stops) > 3
    crashes = 0
    for at in statements.stops:
        sandbox.rows().update(state="new")
        try:
            with connections[alias].execute_wrapper(Statements(stop_at=at)):
                sandbox.run(operation)
        except Statements.Crash:
            crashes += 1
        connections[alias].close()
        sandbox.run(operation)
        assert sandbox.values("state") == ["new" if n % 2 else expected(n) for n in range(1, 41)]
    # On SQLite the run is recorded by the same connection, once a second: a slow first run had more to stop at.
    assert crashes >= len(statements.stops) - 2


def test_twice_nothing_is_left_to_do(alias: str) -> None:
    sandbox = with_votes(alias)
    operation = Populate("question", "state", Upper("question_text"), where=Q(votes=0, state="new"))
    sandbox.run(operation)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(operation)
    assert not statements.like("UPDATE")


def test_several_fields_in_one_pass(alias: str) -> None:
    sandbox = with_votes(alias)
    populate = {"votes": Length("question_text"), "state": Concat("state", Value("er"))}
    sandbox.run(Populate("question", ["votes", "state"], populate, where=Q(votes=0)))
    assert {row.state for row in sandbox.rows() if row.pk % 2 == 0} == {"newer"}
    assert {row.state for row in sandbox.rows() if row.pk % 2} == {"new"}
    assert 0 not in sandbox.values("votes")
    sandbox.run(
        Populate(
            "question",
            ["votes", "state"],
            lambda row: {"votes": -row.pk, "state": "done"},
            where=Q(state="newer"),
        )
    )
    assert sandbox.values("votes")[1::2] == [-n for n in range(2, 41, 2)]


def test_a_row_that_still_fulfils_it_is_a_bad_row(alias: str) -> None:
    sandbox = with_votes(alias)
    with pytest.raises(BadRows) as caught:
        sandbox.run(Populate("question", "votes", F("votes") * 2, where=Q(votes=0)))
    text = str(caught.value)
    assert text.startswith("20 rows of boxes.Question.votes on ")
    assert "2: it still fulfils (AND: ('votes', 0)) after it was written" in text
    assert "required" not in text


def test_a_function_without_a_value_for_a_row_leaves_it(alias: str) -> None:
    sandbox = with_votes(alias)
    with pytest.raises(BadRows, match="the function returned None"):
        sandbox.run(Populate("question", "votes", lambda row: None if row.pk == 4 else 1, where=Q(votes=0)))
    assert sandbox.values("votes").count(0) == 1


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
@pytest.mark.parametrize("populate", [Value("ours"), lambda row: "ours"], ids=["an expression", "a function"])
def test_what_the_site_writes_between_reading_and_writing_wins(alias: str, populate: Any) -> None:
    """A row that no longer fulfils the condition when it is written is left alone."""
    sandbox = with_votes(alias)
    changed: list[int] = []

    def change_one(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if (
            sql.startswith(("UPDATE", "SELECT"))
            and "FOR UPDATE" not in sql
            and not changed
            and "votes" in sql
        ):
            changed.append(1)
            with another(alias) as other:
                run(other, "UPDATE boxes_question SET votes = 5, state = 'theirs' WHERE id = 20")
        return execute(sql, params, many, context)

    with sandbox.connection.execute_wrapper(change_one):
        sandbox.run(Populate("question", "state", populate, where=Q(votes=0, state="new")))
    assert changed
    assert sandbox.rows().get(pk=20).state == "theirs"
    assert sandbox.values("state").count("ours") == 19


def test_null_and_a_condition_beside_each_other(alias: str) -> None:
    sandbox = MigrationSandbox(
        alias, question(fields=[("state", models.CharField(max_length=20, null=True))])
    )
    sandbox.fill(6, state=lambda n: None if n % 2 else "")
    sandbox.run(Populate("question", "state", "empty", where=Q(state="")))
    assert sandbox.values("state") == [None, "empty"] * 3
    field = models.CharField(max_length=20)
    with pytest.raises(NullsRemain, match="3 rows"):
        sandbox.run(SetNotNull("question", "state", field))
    sandbox.run(RequireField("question", "state", field, "none"))
    assert sandbox.values("state") == ["none", "empty"] * 3


def test_a_condition_by_a_subquery_of_another_table(alias: str) -> None:
    site = ("site", models.ForeignKey(f"{APP}.site", models.CASCADE))
    sandbox = MigrationSandbox(alias, SITE, question(fields=[site, VOTES]))
    for key in (1, 2):
        sandbox.rows("Site").create(pk=key)
    sandbox.fill(6, site_id=lambda n: 1 + n % 2, votes=0)
    first: QuerySet[Any] = QuerySet(sandbox.model("Site")).filter(pk=OuterRef("site"), pk__lt=2)
    where = Q(Exists(first)) & Q(votes=0)
    sandbox.run(Populate("question", "votes", 9, where=where))
    assert sandbox.values("votes") == [0, 9] * 3
    with pytest.raises(InvalidPopulate, match=r"reads columns of another table.*by a subquery"):
        sandbox.run(
            Populate("question", "votes", 1, where=Q(site__pk__lt=2, site__id__gt=0) & Q(site__question=1))
        )


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (Q(nothing=1), "Cannot resolve keyword 'nothing'"),
        (Q(votes="many"), "expected a number"),
    ],
    ids=["no such field", "no such value"],
)
def test_a_condition_that_cannot_be_asked_is_refused(alias: str, where: Q, why: str) -> None:
    sandbox = with_votes(alias)
    with pytest.raises(InvalidPopulate, match=f"where of Populate on boxes.Question.votes .*{why}"):
        sandbox.run(Populate("question", "votes", 1, where=where))


@pytest.mark.parametrize("where", [Q(), "votes = 0", {"votes": 0}], ids=["empty", "a text", "a dict"])
def test_what_is_no_condition_is_refused_when_it_is_written(where: Any) -> None:
    with pytest.raises(InvalidPopulate, match="where must be a condition"):
        Populate("question", "votes", 1, where=where)


def test_a_function_as_run_python_takes_it_is_checked_by_the_condition(alias: str) -> None:
    sandbox = with_votes(alias)

    def some(apps: Any, schema_editor: Any) -> None:
        rows = QuerySet(apps.get_model(APP, "question"), using=schema_editor.connection.alias)
        rows.filter(votes=0, pk__lt=10).update(votes=1)

    with pytest.raises(
        BadRows, match=r"16 rows of boxes\.Question\.votes .* still fulfil \(AND: \('votes', 0\)\)"
    ):
        sandbox.run(Populate("question", "votes", some, where=Q(votes=0)))


def test_sqlmigrate_shows_the_condition(alias: str) -> None:
    sandbox = with_votes(alias)
    shown = sandbox.sql(Populate("question", "state", "x", where=Q(votes__lt=3)))
    assert "UPDATE" in shown
    assert "< 3" in shown
    assert set(sandbox.values("state")) == {"new"}


def test_written_and_read_again_it_is_the_same() -> None:
    operation = Populate("question", "votes", Case(When(votes=0, then=1), default=2), where=Q(votes__lt=3))
    name, args, kwargs = operation.deconstruct()
    assert Populate(*args, **kwargs).deconstruct() == (name, args, kwargs)
    assert "where (AND: ('votes__lt', 3))" in operation.describe()
