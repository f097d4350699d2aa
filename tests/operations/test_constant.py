"""One value for all rows costs nothing: the catalogue holds it, and no row is written."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connections, migrations, models
from django.db.models import F, Func, Value
from django.db.models.functions import Concat, Now, Random

from safemigrate.exceptions import DuplicateValues, InvalidPopulate
from safemigrate.operations import AddRequiredField, UnguardWrites
from tests.operations.test_guards import SERVERS, AtEach, insert
from tests.support.sandbox import APP, START, MigrationSandbox, Statements, question
from tests.support.sessions import run, skip_on_mysql

servers = pytest.mark.parametrize("alias", SERVERS, indirect=True)
SITE = migrations.CreateModel("Site", [("id", models.BigAutoField(primary_key=True))])


def add(field: Any, populate: Any, **options: Any) -> AddRequiredField:
    return AddRequiredField("question", "new", field, populate, **options)


def full(alias: str, rows: int = 50) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias, SITE, question())
    sandbox.rows("Site").create(pk=1)
    sandbox.fill(rows)
    return sandbox


def statements_of(sandbox: MigrationSandbox, operation: AddRequiredField) -> Statements:
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(operation)
    return statements


def has_default(sandbox: MigrationSandbox, column: str = "new") -> bool:
    return bool(sandbox.column(column).has_default)


CONSTANTS: dict[str, tuple[Any, Any, Any]] = {
    "a number": (models.IntegerField(), 0, 0),
    "a negative number": (models.BigIntegerField(), -7, -7),
    "a number that is not negative": (models.PositiveIntegerField(), 3, 3),
    "a decimal": (models.DecimalField(max_digits=6, decimal_places=2), Decimal("1.50"), Decimal("1.50")),
    "a truth": (models.BooleanField(), True, True),
    "an empty text": (models.CharField(max_length=9), "", ""),
    "a text": (models.CharField(max_length=20), "it's 100 % \\ ☃", "it's 100 % \\ ☃"),
    "lines": (models.CharField(max_length=20), "a\nb\r\n\tc \x01", "a\nb\r\n\tc \x01"),
    "a moment": (models.DateTimeField(), START, START),
    "a day": (models.DateField(), date(2026, 1, 2), date(2026, 1, 2)),
    "a uuid": (models.UUIDField(), uuid.UUID(int=5), uuid.UUID(int=5)),
    "a Value": (models.CharField(max_length=9), Value("x"), "x"),
    "an index": (models.CharField(max_length=9, db_index=True), "new", "new"),
    "a foreign key": (models.ForeignKey(f"{APP}.site", models.CASCADE), 1, 1),
    "a collation": (models.CharField(max_length=9, db_column="other"), "x", "x"),
}


@servers
@pytest.mark.parametrize("kind", CONSTANTS)
def test_no_row_is_written(alias: str, kind: str) -> None:
    field, populate, expected = CONSTANTS[kind]
    sandbox = full(alias)
    statements = statements_of(sandbox, add(field, populate))
    assert not [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]
    assert {getattr(row, sandbox.model()._meta.get_field("new").attname) for row in sandbox.rows()} == {
        expected
    }
    column = sandbox.model()._meta.get_field("new").column
    assert not sandbox.column(column).nullable
    assert not has_default(sandbox, column)


@servers
@pytest.mark.parametrize(
    "kind", ["a number", "a number that is not negative", "a text", "an index", "a foreign key"]
)
def test_the_end_is_that_of_a_fill(alias: str, kind: str) -> None:
    field, populate, _ = CONSTANTS[kind]
    sandbox = full(alias)
    before, operation = sandbox.state, add(field, populate)
    sandbox.run(operation)
    schema, state, values = sandbox.schema(), sandbox.state, sandbox.values("new")
    sandbox.undo(operation, before=before)
    sandbox.run(add(field, lambda: populate))
    assert sandbox.schema() == schema
    assert sandbox.state == state
    assert sandbox.values("new") == values


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_the_server_counts_no_update(alias: str) -> None:
    sandbox = full(alias, 500)
    counted = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'boxes_question'"
    file = "SELECT pg_relation_filenode('boxes_question'::regclass)"
    before = run(sandbox.connection, file)
    sandbox.run(add(models.IntegerField(), 7))
    run(sandbox.connection, "SELECT pg_stat_force_next_flush()")
    assert run(sandbox.connection, counted) == [(0,)]
    assert run(sandbox.connection, file) == before
    assert sandbox.values("new") == [7] * 500


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_an_expression_that_reads_no_column_is_one_too(alias: str) -> None:
    sandbox = full(alias)
    statements = statements_of(sandbox, add(models.DateTimeField(), Now()))
    assert not [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]
    assert len(set(sandbox.values("new"))) == 1
    sandbox.run(AddRequiredField("question", "text", models.TextField(), Concat(Value("a"), Value("b"))))
    assert set(sandbox.values("text")) == {"ab"}


VOLATILE: dict[str, tuple[Any, Any]] = {
    "random": (models.FloatField(), Random()),
    "uuid4": (models.UUIDField(), uuid.uuid4),
    "a function": (models.FloatField(), random.random),
    "a column": (models.IntegerField(), F("pk")),
}


@servers
@pytest.mark.parametrize("kind", VOLATILE)
def test_what_differs_from_row_to_row_is_filled(alias: str, kind: str) -> None:
    field, populate = VOLATILE[kind]
    sandbox = full(alias)
    statements = statements_of(sandbox, add(field, populate))
    assert [sql for sql in statements.texts if sql.startswith("UPDATE") and "boxes_question" in sql]
    assert len(set(sandbox.values("new"))) == 50


class Positive(models.IntegerField):
    def db_type(self, connection: Any) -> str:
        return "boxes_positive"


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_domain_that_the_server_would_check_row_by_row_is_filled(alias: str) -> None:
    sandbox = full(alias)
    run(sandbox.connection, "CREATE DOMAIN boxes_positive AS integer CHECK (VALUE > 0)")
    try:
        statements = statements_of(sandbox, add(Positive(), 5))
        written = [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]
        # 18 and before write the table for it; what the server says is what is done.
        assert written or sandbox.connection.pg_version >= 190000
        assert set(sandbox.values("new")) == {5}
    finally:
        run(sandbox.connection, "DROP DOMAIN boxes_positive CASCADE")


@servers
def test_long_texts_and_json_end_the_same_whatever_the_server_can(alias: str) -> None:
    sandbox = full(alias)
    sandbox.run(add(models.TextField(), "long"))
    assert set(sandbox.values("new")) == {"long"}
    sandbox.run(
        AddRequiredField("question", "more", models.JSONField(), Value({"a": [1]}, models.JSONField()))
    )
    assert sandbox.values("more") == [{"a": [1]}] * 50
    assert not has_default(sandbox)
    assert not has_default(sandbox, "more")


@servers
def test_old_code_inserts_until_the_end_and_with_keep_guard_afterwards(alias: str) -> None:
    sandbox = full(alias)
    field = models.CharField(max_length=9, db_index=True)
    with connections[alias].execute_wrapper(AtEach(lambda: insert(sandbox))):
        sandbox.run(add(field, "new", keep_guard=True))
    insert(sandbox)
    assert sandbox.rows().count() > 52
    assert set(sandbox.values("new")) == {"new"}
    sandbox.run(UnguardWrites("question", "new"))
    with pytest.raises(DatabaseError):
        insert(sandbox)


@servers
def test_a_db_default_stays(alias: str) -> None:
    sandbox = full(alias)
    statements = statements_of(sandbox, add(models.IntegerField(db_default=7), 7))
    assert not [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]
    insert(sandbox)
    assert set(sandbox.values("new")) == {7}
    sandbox.run(AddRequiredField("question", "other", models.IntegerField(db_default=8), 0))
    insert(sandbox)
    assert [*sandbox.values("other")][-2:] == [0, 8]


@servers
def test_a_value_that_is_to_be_unique_is_refused_as_before(alias: str) -> None:
    sandbox = full(alias)
    with pytest.raises(DuplicateValues):
        sandbox.run(add(models.IntegerField(unique=True), 1))


@servers
def test_a_foreign_key_to_nowhere_is_refused_before_anything_is_done(alias: str) -> None:
    sandbox = full(alias)
    schema = sandbox.schema()
    with pytest.raises(InvalidPopulate, match="cannot be filled with 9: no row of boxes.Site has this id"):
        sandbox.run(add(models.ForeignKey(f"{APP}.site", models.CASCADE), 9))
    assert sandbox.schema() == schema


@servers
def test_sqlmigrate_shows_what_is_run(alias: str) -> None:
    sandbox = full(alias)
    schema = sandbox.schema()
    shown = sandbox.sql(add(models.IntegerField(), 7))
    assert sandbox.schema() == schema
    assert "with one value for all rows: none is written" in shown
    assert "UPDATE" not in shown
    assert "DROP DEFAULT" in shown


@servers
def test_where_the_server_refuses_it_after_all_the_rows_are_filled(alias: str) -> None:
    sandbox = full(alias)

    def refuse(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if "ADD COLUMN" in sql and "DEFAULT" in sql and "safemigrate_try" not in sql:
            raise DatabaseError("refused")
        return execute(sql, params, many, context)

    with sandbox.connection.execute_wrapper(refuse):
        sandbox.run(add(models.IntegerField(), 7))
    assert set(sandbox.values("new")) == {7}
    assert not sandbox.column("new").nullable


@servers
def test_a_user_who_may_make_no_table_has_the_rows_filled(alias: str) -> None:
    sandbox = full(alias)

    def deny(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("CREATE TEMPORARY TABLE", "CREATE TABLE")):
            raise DatabaseError("denied")
        return execute(sql, params, many, context)

    with sandbox.connection.execute_wrapper(deny):
        sandbox.run(add(models.IntegerField(), Func(Value(7), function="ABS")))
    assert set(sandbox.values("new")) == {7}


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
@pytest.mark.parametrize("populate", ["new", lambda: "new"], ids=["a value", "a function"])
def test_a_table_whose_instant_changes_are_used_up_is_built_anew_online(alias: str, populate: Any) -> None:
    """MariaDB counts columns that were added and dropped in an instant as a part of each row."""
    skip_on_mysql(alias, "it counts versions of the table, of which it takes more")
    sandbox = full(alias)
    wide = "ALTER TABLE boxes_question ADD COLUMN wide varchar(60) NOT NULL DEFAULT 'x', ALGORITHM=INSTANT"
    with pytest.raises(DatabaseError, match="Row size too large"):
        for _ in range(60):
            run(sandbox.connection, wide)
            run(sandbox.connection, "ALTER TABLE boxes_question DROP COLUMN wide, ALGORITHM=INSTANT")
    sandbox.run(add(models.CharField(max_length=60), populate))
    assert set(sandbox.values("new")) == {"new"}
    assert not sandbox.column("new").nullable


@servers
def test_a_key_with_a_percent_sign_is_referred_to(alias: str) -> None:
    kind = migrations.CreateModel("Kind", [("code", models.CharField(max_length=9, primary_key=True))])
    sandbox = MigrationSandbox(alias, kind, question())
    sandbox.fill(3)
    sandbox.rows("Kind").create(code="5%s %")
    field = models.ForeignKey(f"{APP}.kind", models.CASCADE)
    statements = statements_of(sandbox, add(field, "5%s %"))
    assert not [sql for sql in statements.like("UPDATE") if "boxes_question" in sql]
    assert {row.new_id for row in sandbox.rows()} == {"5%s %"}
