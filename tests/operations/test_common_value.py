"""Of a Case, most rows get one value: the column is added with it, and only the others are written."""

from __future__ import annotations

import random
import uuid
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, models
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.functions import Now, Random
from django.db.models.lookups import Exact

from safemigrate.backends import for_connection
from safemigrate.exceptions import BadRows, InvalidPopulate, SafemigrateError
from safemigrate.operations import AddRequiredField, UnguardWrites
from safemigrate.populate import FromApps
from safemigrate.schema.common_value import BEGUN
from safemigrate.types import field_of
from tests.operations.test_guards import SERVERS, AtEach, insert
from tests.support.sandbox import APP, START, MigrationSandbox, Statements, question
from tests.support.sessions import run

servers = pytest.mark.parametrize("alias", SERVERS, indirect=True)
both = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
EARLY = START + timedelta(hours=10, minutes=1)
OLD = Q(pub_date__lt=EARLY)
STATE = Case(When(OLD, then=Value("old")), default=Value("new"))


def add(populate: Any = STATE, field: Any = None, **options: Any) -> AddRequiredField:
    return AddRequiredField("question", "state", field or models.CharField(max_length=9), populate, **options)


def full(alias: str, rows: int = 50) -> MigrationSandbox:
    sandbox = MigrationSandbox(
        alias, question(fields=[(name, models.IntegerField(null=True)) for name in ("votes", "score")])
    )
    sandbox.fill(rows)
    return sandbox


def updates_of(sandbox: MigrationSandbox, operation: AddRequiredField) -> list[str]:
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(operation)
    return [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]


def comment(sandbox: MigrationSandbox, name: str = "state") -> str:
    model = sandbox.model()
    return for_connection(sandbox.connection).comment(model, field_of(model, name))


def is_right(sandbox: MigrationSandbox) -> bool:
    return all(row.state == ("old" if row.pub_date < EARLY else "new") for row in sandbox.rows())


@both
def test_only_the_others_are_written(alias: str) -> None:
    sandbox = full(alias, 500)
    others = sandbox.rows().filter(OLD).count()
    before = run(sandbox.connection, "SELECT pg_relation_filenode('boxes_question'::regclass)")
    sandbox.run(add())
    run(sandbox.connection, "SELECT pg_stat_force_next_flush()")
    counted = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'boxes_question'"
    assert 0 < others < 250
    assert run(sandbox.connection, counted) == [(others,)]
    assert run(sandbox.connection, "SELECT pg_relation_filenode('boxes_question'::regclass)") == before
    assert is_right(sandbox)


@servers
def test_the_end_is_that_of_the_whole_fill(alias: str) -> None:
    sandbox = full(alias)
    before, operation = sandbox.state, add(field=models.CharField(max_length=9, db_index=True))
    sandbox.run(operation)
    schema, state, values = sandbox.schema(), sandbox.state, sandbox.values("state")
    assert comment(sandbox) == ""
    assert set(values) == {"old", "new"}
    sandbox.undo(operation, before=before)
    sandbox.run(
        add(
            lambda row: "old" if row.pub_date < EARLY else "new",
            models.CharField(max_length=9, db_index=True),
        )
    )
    assert sandbox.schema() == schema
    assert sandbox.state == state
    assert sandbox.values("state") == values


KINDS: dict[str, tuple[Any, Any, Any]] = {
    "a text": (models.CharField(max_length=20), "it's 100 % \\ ☃", "it's 100 % \\ ☂"),
    "only the case differs": (models.CharField(max_length=20), "open", "Open"),
    "blanks": (models.TextField(), "open", "open "),
    "an empty text": (models.CharField(max_length=20), "", "x"),
    "a number": (models.IntegerField(), 0, -7),
    "a large number": (models.BigIntegerField(), 2**60, 2**60 + 1),
    "a number that is not negative": (models.PositiveIntegerField(), 0, 3),
    "a decimal": (models.DecimalField(max_digits=8, decimal_places=3), Decimal("1.1"), Decimal("1.101")),
    "a float": (models.FloatField(), 0.1, 0.2),
    "a truth": (models.BooleanField(), False, True),
    "a day": (models.DateField(), date(2026, 1, 2), date(2026, 1, 3)),
    "a moment": (models.DateTimeField(), START, START + timedelta(microseconds=1)),
    "a uuid": (models.UUIDField(), uuid.UUID(int=5), uuid.UUID(int=6)),
    "the same": (models.IntegerField(), 4, 4),
}


@servers
@pytest.mark.parametrize("kind", KINDS)
def test_each_type_of_value_is_distinguished_from_the_common_one(alias: str, kind: str) -> None:
    field, common, other = KINDS[kind]
    sandbox = full(alias)
    populate = Case(When(OLD, then=Value(other)), default=Value(common), output_field=field.clone())
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(add(populate, field))
    updates = statements.like("UPDATE")
    assert [sql for sql in statements.texts if BEGUN in sql] or sandbox.connection.vendor == "mysql"
    assert not any("boxes_question" in sql for sql in updates) if common == other else updates
    expected = [other if row.pub_date < EARLY else common for row in sandbox.rows().order_by("pk")]
    assert list(sandbox.rows().order_by("pk").values_list("state", flat=True)) == expected


def any_condition(source: random.Random) -> Q:
    """Return a condition over columns that may be NULL."""
    number = source.randrange(5)
    one = source.choice([
        Q(votes__isnull=True), Q(votes__lt=number), Q(votes__in=[number, number + 1]), Q(votes=F("score")),
        Q(pub_date__gt=START + timedelta(hours=10 * number)), Q(question_text__contains=str(number)),
        Q(votes__gte=F("score") - number),
    ])  # fmt: skip
    made = ~one if source.random() < 0.3 else one
    if source.random() < 0.5:
        return made
    return made | any_condition(source) if source.random() < 0.5 else made & any_condition(source)


@servers
@pytest.mark.parametrize("seed", range(6))
def test_random_rows_end_as_by_the_whole_fill(alias: str, seed: int) -> None:
    sandbox, source = full(alias, 120), random.Random(seed)
    for row in sandbox.rows():
        votes = source.choice([None, 0, 1, 2, 3, 4])
        sandbox.rows().filter(pk=row.pk).update(votes=votes, score=source.choice([None, 1, 2, votes]))
    branches = [
        When(any_condition(source), then=Value(source.randrange(4))) for _ in range(source.randint(1, 4))
    ]
    populate = Case(*branches, default=Value(source.randrange(4)))
    expected = dict(
        sandbox.rows().annotate(safemigrate_expected=populate).values_list("pk", "safemigrate_expected")
    )
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(add(populate, models.IntegerField(), batch_size=source.choice([7, 1000])))
    assert dict(sandbox.rows().values_list("pk", "state")) == expected
    assert [sql for sql in statements.texts if BEGUN in sql]


NOT_SIMPLE: dict[str, Any] = {
    "a column as the value": Case(When(OLD, then=F("question_text")), default=Value("new")),
    "a column as the common value": Case(When(OLD, then=Value("old")), default=F("question_text")),
    "the time of day": Case(When(pub_date__gt=Now(), then=Value("old")), default=Value("new")),
    "chance": Case(When(votes__gt=Random(), then=Value("old")), default=Value("new")),
    "a lookup of its own": Case(When(Exact(F("votes"), 1), then=Value("old")), default=Value("new")),
}


@both
@pytest.mark.parametrize("kind", NOT_SIMPLE)
def test_what_is_not_so_simple_is_filled_as_ever(alias: str, kind: str) -> None:
    sandbox = full(alias)
    sandbox.rows().update(question_text="text")
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(add(NOT_SIMPLE[kind]))
    assert not [sql for sql in statements.texts if BEGUN in sql]
    assert not sandbox.column("state").nullable


@servers
def test_old_code_inserts_until_the_end_and_with_keep_guard_afterwards(alias: str) -> None:
    sandbox = full(alias)
    with sandbox.connection.execute_wrapper(AtEach(lambda: insert(sandbox))):
        sandbox.run(add(keep_guard=True))
    insert(sandbox)
    assert sandbox.rows().count() > 52
    assert is_right(sandbox)
    sandbox.run(UnguardWrites("question", "state"))
    with pytest.raises((IntegrityError, DatabaseError)):
        insert(sandbox)


DAY, HALF = date(2026, 1, 1), Decimal("1.105")
INEXACT: dict[str, tuple[Any, Any, Any]] = {
    "a day for a moment": (models.DateTimeField(), DAY, DAY + timedelta(days=1)),
    "a decimal that is rounded": (models.DecimalField(max_digits=6, decimal_places=2), HALF, 2 * HALF),
    "a number for a text": (models.CharField(max_length=9), 1, 2),
    "a truth for a number": (models.IntegerField(), False, True),
    "a number that is rounded": (models.IntegerField(), 1.7, 4.7),
    "blanks that are cut": (models.CharField(max_length=3), "ab   ", "cd   "),
}


@servers
@pytest.mark.parametrize("kind", INEXACT)
def test_where_the_server_would_store_another_value_each_row_is_written(alias: str, kind: str) -> None:
    """It could not be seen which rows hold the common value: those of the branches would keep it, unseen."""
    field, common, other = INEXACT[kind]
    sandbox, statements = full(alias), Statements()
    with sandbox.connection.execute_wrapper(statements), suppress(SafemigrateError):
        sandbox.run(add(Case(When(OLD, then=Value(other)), default=Value(common)), field))
    assert not [sql for sql in statements.texts if BEGUN in sql]


@servers
def test_a_set_has_no_order_that_could_be_remembered(alias: str) -> None:
    sandbox, statements = full(alias), Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(add(Case(When(question_text__in={"a", "b"}, then=Value("old")), default=Value("new"))))
    assert not [sql for sql in statements.texts if BEGUN in sql]
    assert set(sandbox.values("state")) == {"new"}


class Stopped(Exception):
    pass


class StopAt:
    """Stops before the nth statement that changes something."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.number -= AtEach.is_ours(sql) or sql.startswith("COMMENT")
        if self.number <= 0:
            raise Stopped
        return execute(sql, params, many, context)


@servers
def test_stopped_at_every_statement_and_run_again_it_ends_the_same(alias: str) -> None:
    sandbox, schema, ended = full(alias), None, False
    before, number = sandbox.state, 0
    while not ended:
        number += 1
        operation = add(batch_size=20)
        try:
            with sandbox.connection.execute_wrapper(StopAt(number)):
                sandbox.run(operation)
            ended = True
        except Stopped:
            with suppress(DatabaseError):  # Where the column is required already.
                insert(sandbox)
            sandbox.run(operation)
        assert is_right(sandbox)
        assert comment(sandbox) == ""
        schema = schema or sandbox.schema()
        assert sandbox.schema() == schema
        sandbox.undo(operation, before=before)
    assert number > 8


def stopped(alias: str) -> MigrationSandbox:
    """Return a sandbox whose column holds the common value everywhere."""
    sandbox = full(alias)

    def stop(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE"):
            raise Stopped
        return execute(sql, params, many, context)

    with pytest.raises(Stopped), sandbox.connection.execute_wrapper(stop):
        sandbox.run(add())
    return sandbox


@servers
def test_a_populate_that_was_changed_meanwhile_is_refused(alias: str) -> None:
    sandbox = stopped(alias)
    for populate in (
        Value("x"),
        F("question_text"),
        lambda: "x",
        Case(When(OLD, then=Value("x")), default=Value("y")),
    ):
        with pytest.raises(InvalidPopulate, match=r"(?s)populate has been changed since.*--abandon"):
            sandbox.run(add(populate))
    sandbox.run(add())
    assert is_right(sandbox)
    assert comment(sandbox) == ""


@servers
def test_a_branch_without_a_value_is_a_bad_row(alias: str) -> None:
    sandbox = full(alias)
    with pytest.raises(BadRows, match="NULL"):
        sandbox.run(add(Case(When(OLD, then=Value(None)), default=Value("new"))))
    assert sandbox.column("state").nullable
    sandbox.rows().filter(OLD).delete()
    sandbox.run(add(Case(When(OLD, then=Value(None)), default=Value("new"))))
    assert set(sandbox.values("state")) == {"new"}


@servers
def test_where_the_server_refuses_it_after_all_each_row_is_written(alias: str) -> None:
    sandbox = full(alias)

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "ADD COLUMN" in sql and "DEFAULT" in sql and "safemigrate_try" not in sql:
            raise DatabaseError("refused")
        return execute(sql, params, many, context)

    with sandbox.connection.execute_wrapper(refuse):
        sandbox.run(add())
    assert is_right(sandbox)
    assert not sandbox.column("state").nullable


@servers
def test_sqlmigrate_shows_what_is_run(alias: str) -> None:
    sandbox = full(alias)
    schema = sandbox.schema()
    shown = sandbox.sql(add())
    assert sandbox.schema() == schema
    assert "with the value that most rows get: none is written" in shown
    assert "UPDATE" in shown


@pytest.mark.parametrize("alias", ["sqlite", *SERVERS], indirect=True)
@pytest.mark.parametrize("field", [models.DateTimeField(), models.DateField()], ids=["a moment", "a day"])
def test_dates_chosen_by_other_rows_of_the_table_are_read_as_dates(alias: str, field: Any) -> None:
    """MySQL reads them before it writes, and has the values of a CASE as texts."""
    sandbox = full(alias, 9)
    given = [START + timedelta(days=n) for n in (1, 2)]
    if not isinstance(field, models.DateTimeField):
        given = [moment.date() for moment in given]

    def chosen(apps: Any) -> Case:
        later = apps.get_model(APP, "Question").objects.filter(pub_date__gt=OuterRef("pub_date"))
        return Case(
            When(Exists(later), then=Value(given[0])), default=Value(given[1]), output_field=field.clone()
        )

    sandbox.run(add(FromApps(chosen), field))
    assert sorted(sandbox.values("state")) == [*[given[0]] * 8, given[1]]


@servers
def test_a_part_of_a_date_is_no_other_table(alias: str) -> None:
    sandbox = full(alias, 30)
    populate = Case(When(pub_date__hour__lt=6, then=Value("night")), default=Value("day"))
    updates = updates_of(sandbox, add(populate))
    assert len(updates) == 1
    assert {row.state == "night" for row in sandbox.rows() if row.pub_date.hour < 6} == {True}
