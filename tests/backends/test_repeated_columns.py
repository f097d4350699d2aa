"""PostgreSQL: a fill sets an indexed column to itself, which is seen in the index alone."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from django.db import connections, models
from django.db.migrations import AddIndex
from django.test.utils import CaptureQueriesContext

from safemigrate.backends import for_connection
from safemigrate.operations import AddNullableField, Populate
from safemigrate.populate import PerBatch
from tests.engine.test_engine import another, run
from tests.support.everyfield import SealedInSQL
from tests.support.sandbox import MigrationSandbox, question

pytestmark = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)

TABLE = "boxes_question"
TITLE = models.CharField(max_length=200)
POPULATES: dict[str, Any] = {
    "expression": models.F("question_text"),
    "rows": lambda question: question.question_text,
    "batches": PerBatch(lambda questions: [question.question_text for question in questions]),
}
populates = pytest.mark.parametrize("populate", POPULATES.values(), ids=list(POPULATES))


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(db_index=True))]))
    sandbox.fill(100, votes=lambda n: n % 7)
    sandbox.run(AddNullableField("question", "title", TITLE))
    return sandbox


def repeated(sandbox: MigrationSandbox, *names: str) -> list[str]:
    return for_connection(sandbox.connection).repeated_columns(sandbox.model(), names or ["title"])


def filled(sandbox: MigrationSandbox, populate: Any) -> list[str]:
    """Fill the titles, and return the statements that did it."""
    with CaptureQueriesContext(sandbox.connection) as queries:
        sandbox.run(Populate("question", "title", populate))
    return [each["sql"] for each in queries if each["sql"].startswith(f'UPDATE "{TABLE}"')]


@populates
def test_an_index_has_a_column_of_it_set_to_itself(sandbox: MigrationSandbox, populate: Any) -> None:
    before = list(sandbox.rows().values_list("pk", "votes"))
    updates = filled(sandbox, populate)
    assert updates
    assert all(re.search(rf'SET .*, "votes" = \(?"{TABLE}"\."votes"', update) for update in updates)
    assert list(sandbox.rows().values_list("pk", "votes")) == before
    assert sandbox.rows().filter(title=models.F("question_text")).count() == 100


@populates
def test_what_the_site_writes_meanwhile_stays(
    sandbox: MigrationSandbox, populate: Any, settings: Any
) -> None:
    """The batch waits for the row's lock, and then sees the row as it is."""
    settings.SAFEMIGRATE_LOCK_TIMEOUT = 10
    with another(sandbox.alias) as site:
        site.set_autocommit(False)
        run(site, f"UPDATE {TABLE} SET votes = 999 WHERE id = 50")
        commit = threading.Timer(0.5, lambda: run(site, "COMMIT"))
        commit.start()
        began = time.monotonic()
        filled(sandbox, populate)
        commit.join()
    assert time.monotonic() - began > 0.4
    assert sandbox.rows().get(pk=50).votes == 999
    assert sandbox.rows().filter(title=None).count() == 0


def test_an_expression_index_has_none_and_one_of_several_columns_its_first(sandbox: MigrationSandbox) -> None:
    assert repeated(sandbox) == ["votes"]
    assert repeated(sandbox, "votes") == []
    run(sandbox.connection, f"CREATE INDEX lowered ON {TABLE} (lower(question_text))")
    run(sandbox.connection, f"CREATE INDEX two ON {TABLE} (pub_date, question_text)")
    assert repeated(sandbox) == ["pub_date", "votes"]


def test_a_unique_index_is_of_no_use(sandbox: MigrationSandbox) -> None:
    run(sandbox.connection, f"CREATE UNIQUE INDEX once ON {TABLE} (question_text)")
    assert repeated(sandbox) == ["votes"]


@populates
def test_a_trigger_that_waits_for_the_column_is_not_fired(sandbox: MigrationSandbox, populate: Any) -> None:
    run(
        sandbox.connection,
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fired'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE OF votes ON {TABLE} FOR EACH ROW EXECUTE FUNCTION refuse();
        """,
    )
    filled(sandbox, populate)
    assert sandbox.rows().filter(title=None).count() == 0
    run(sandbox.connection, f"DROP TRIGGER refuse ON {TABLE}")
    assert repeated(sandbox) == ["votes"]


def test_what_a_user_may_not_write_is_not_written(sandbox: MigrationSandbox) -> None:
    connection = sandbox.connection
    run(connection, "DROP ROLE IF EXISTS only_titles")
    run(connection, "CREATE ROLE only_titles")
    try:
        run(connection, f"GRANT SELECT, UPDATE (title) ON {TABLE} TO only_titles")
        run(connection, "SET ROLE only_titles")
        assert repeated(sandbox) == []
        assert repeated(sandbox, "votes") == []
    finally:
        run(connection, "RESET ROLE")
        run(connection, "DROP OWNED BY only_titles")
        run(connection, "DROP ROLE only_titles")


def test_a_computed_column_is_left_to_the_database(sandbox: MigrationSandbox) -> None:
    run(sandbox.connection, f"ALTER TABLE {TABLE} ADD twice integer GENERATED ALWAYS AS (votes * 2) STORED")
    run(sandbox.connection, f"CREATE INDEX doubled ON {TABLE} (twice)")
    assert repeated(sandbox) == ["votes"]
    filled(sandbox, models.F("question_text"))


def test_a_field_with_sql_of_its_own_is_not_wrapped_in_it_again(alias: str) -> None:
    class Reversed(SealedInSQL):
        """Wraps expressions too."""

        def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> str:
            return "REVERSE(%s)"

        def get_placeholder_sql(self, value: Any, compiler: Any, connection: Any) -> Any:
            sql, params = compiler.compile(value) if hasattr(value, "as_sql") else ("%s", (value,))
            return f"REVERSE({sql})", params

    sandbox = MigrationSandbox(alias, question(fields=[("code", Reversed(max_length=10, db_index=True))]))
    sandbox.run(AddNullableField("question", "title", TITLE))
    sandbox.fill(1, code="abc")
    filled(sandbox, models.F("question_text"))
    assert sandbox.rows().values_list("code").get() == ("cba",)
    assert repeated(sandbox) == ["code"]


def test_a_table_in_partitions(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    run(
        connections[alias],
        f"""
        ALTER TABLE {TABLE} RENAME TO old;
        CREATE TABLE {TABLE} (LIKE old INCLUDING DEFAULTS INCLUDING IDENTITY) PARTITION BY RANGE (id);
        ALTER TABLE {TABLE} ADD PRIMARY KEY (id);
        CREATE TABLE boxes_first PARTITION OF {TABLE} FOR VALUES FROM (0) TO (50);
        CREATE TABLE boxes_second PARTITION OF {TABLE} FOR VALUES FROM (50) TO (1000);
        CREATE INDEX by_both ON {TABLE} (id, pub_date);
        """,
    )
    sandbox.fill(100)
    sandbox.run(AddNullableField("question", "title", TITLE))
    assert repeated(sandbox) == []
    sandbox.run(AddIndex("question", models.Index(fields=["pub_date"], name="by_date")))
    assert repeated(sandbox) == ["pub_date"]
    filled(sandbox, models.F("question_text"))
    assert sandbox.rows().filter(title=models.F("question_text")).count() == 100
