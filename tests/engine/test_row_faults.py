"""One row's fault is that row's, whatever the error is called; a statement's is the statement's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import Error, OperationalError, models
from django.db.models import F, Func, OuterRef, Subquery, Value

from safemigrate.backends import for_connection
from safemigrate.exceptions import BadRows
from safemigrate.operations import AddNullableField, Populate
from safemigrate.populate import FromApps
from tests.engine.test_engine import LATER, NAME, POPULATES, fill
from tests.engine.test_locked_rows import site
from tests.support.sandbox import APP, MigrationSandbox, month_later
from tests.support.sessions import skip_on_mysql

pytestmark = pytest.mark.matrix

ROWS, KEY = 300, 150
SAID = "old polls stay as they are"
RAISING = """CREATE FUNCTION boxes_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '{said}' USING ERRCODE = '{code}'; END $$"""
TRIGGER = "CREATE TRIGGER boxes_refuse BEFORE UPDATE ON boxes_question "
SIGNAL = "SIGNAL SQLSTATE '{code}' SET MESSAGE_TEXT = '{said}'"
REFUSING: dict[str, Callable[[str], list[str]]] = {
    "postgresql": lambda code: [
        RAISING.format(said=SAID, code=code),
        f"{TRIGGER} FOR EACH ROW WHEN (NEW.id = {KEY}) EXECUTE FUNCTION boxes_refuse()",
    ],
    "mysql": lambda code: [
        f"{TRIGGER} FOR EACH ROW IF NEW.id = {KEY} THEN {SIGNAL.format(code=code, said=SAID)}; END IF"
    ],
    "sqlite": lambda code: [f"{TRIGGER} WHEN NEW.id = {KEY} BEGIN SELECT RAISE(ABORT, '{SAID}'); END"],
}


@pytest.fixture
def sandbox(alias: str) -> Iterator[MigrationSandbox]:
    made = MigrationSandbox(alias)
    made.fill(ROWS)
    made.run(AddNullableField("question", NAME, models.DateTimeField()))
    yield made
    if made.connection.vendor == "postgresql":
        for_connection(made.connection).execute("DROP FUNCTION IF EXISTS boxes_refuse CASCADE")


@pytest.mark.parametrize("populate", POPULATES.values(), ids=list(POPULATES))
@pytest.mark.parametrize("code", ["45000", "P0001", "AB123"])
def test_a_row_that_the_table_s_own_trigger_refuses(
    sandbox: MigrationSandbox, populate: Any, code: str
) -> None:
    database = for_connection(sandbox.connection)
    if sandbox.connection.vendor != "postgresql":
        code = "45000"  # Others have no such choice.
    database.execute(*REFUSING[sandbox.connection.vendor](code))
    with pytest.raises(BadRows) as caught:
        fill(sandbox, populate)
    assert [row.key for row in caught.value.examples] == [KEY]
    assert SAID in str(caught.value)
    assert list(sandbox.rows().filter(**{f"{NAME}__isnull": True}).values_list("pk", flat=True)) == [KEY]
    on = " ON boxes_question" if sandbox.connection.vendor == "postgresql" else ""
    database.execute(f"DROP TRIGGER boxes_refuse{on}")
    assert fill(sandbox, populate).rows == 1
    assert month_later(sandbox.rows())


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_a_subquery_that_finds_several_rows_for_one(sandbox: MigrationSandbox) -> None:
    """SQLite takes the first one."""
    sandbox.rows().filter(pk__gt=KEY).update(question_text=F("id"))
    sandbox.rows().filter(pk=KEY - 1).update(question_text=f"Question {KEY}?")
    same = FromApps(
        lambda apps: Subquery(
            apps.get_model(APP, "Question")
            .objects.filter(question_text=OuterRef("question_text"))
            .values("pub_date")
        )
    )
    with pytest.raises(BadRows) as caught:
        fill(sandbox, same)
    assert {row.key for row in caught.value.examples} == {KEY - 1, KEY}


def test_a_wrong_statement_is_no_bad_row(sandbox: MigrationSandbox) -> None:
    wrong = Func(F("pub_date"), function="no_such_function", output_field=models.DateTimeField())
    with pytest.raises(Error, match="no_such_function"):
        fill(sandbox, wrong)
    assert sandbox.values(NAME) == [None] * ROWS


# Limits for the time of a statement


LIMIT = {"postgresql": "SET statement_timeout = '200ms'", "mysql": "SET max_statement_time = 0.2"}
SERVERS = pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)


@SERVERS
def test_a_batch_that_takes_longer_than_a_statement_may_is_halved(sandbox: MigrationSandbox) -> None:
    skip_on_mysql(sandbox.alias, "its limit is for SELECT alone")
    database, vendor = for_connection(sandbox.connection), sandbox.connection.vendor
    database.execute(LIMIT[vendor])
    sandbox.rows().filter(pk__gt=100).delete()
    template = {
        "postgresql": "CASE WHEN pg_sleep(0.004) IS NULL THEN NULL ELSE %(expressions)s END",
        "mysql": "IF(SLEEP(0.004), NULL, %(expressions)s)",
    }[vendor]
    slow = Func(F("pub_date"), template=template, output_field=models.DateTimeField())
    done = fill(sandbox, slow, batch_size=100)
    assert (done.rows, done.bad) == (100, [])
    assert done.batch_size < 100
    assert sandbox.values(NAME) == sandbox.values("pub_date")


@SERVERS
def test_a_look_at_the_table_may_take_longer_than_a_statement(sandbox: MigrationSandbox) -> None:
    skip_on_mysql(sandbox.alias, "its SLEEP just ends there, without an error")
    database, vendor = for_connection(sandbox.connection), sandbox.connection.vendor
    database.execute(LIMIT[vendor])
    sleep = "SELECT count(pg_sleep(0.3))" if vendor == "postgresql" else "SELECT SLEEP(0.3)"
    with pytest.raises(Error) as caught:
        database.fetch(sleep)
    assert database.is_cancelled(caught.value)
    assert database.patiently(lambda: len(database.fetch(sleep))) == 1
    with pytest.raises(Error):
        database.fetch(sleep)


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_where_the_server_cannot_say_which_rows_are_free_they_are_named_in_ever_smaller_parts(
    sandbox: MigrationSandbox, settings: Any
) -> None:
    """MariaDB 11.8 fails so where it passes the locked row on the way to the others."""
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.05

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SKIP LOCKED" in sql:
            raise OperationalError(1180, 'Got error 1 "Operation not permitted" during COMMIT')
        return execute(sql, params, many, context)

    with site(sandbox) as others, sandbox.connection.execute_wrapper(refuse):
        done = fill(sandbox, POPULATES["in Python"], batch_size=ROWS)
    assert (others.errors, others.left, done.rows, done.bad) == ([], 1, ROWS, [])
    assert month_later(sandbox.rows())


def test_several_fields_at_once(sandbox: MigrationSandbox) -> None:
    """The rows that a trigger refuses are named, and the other fields of these rows stay as they were."""
    for_connection(sandbox.connection).execute(*REFUSING[sandbox.connection.vendor]("45000"))
    changes = {NAME: LATER, "question_text": Value("new")}
    with pytest.raises(BadRows) as caught:
        sandbox.run(Populate("question", [NAME, "question_text"], changes))
    assert [row.key for row in caught.value.examples] == [KEY]
    assert sandbox.rows().filter(question_text="new").count() == ROWS - 1
    assert timedelta(days=30) == sandbox.rows().get(pk=1).expires_date - sandbox.rows().get(pk=1).pub_date
