"""The fast path: one step on an empty table, and on SQLite one copy that computes the values of a full one."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.models import F, OuterRef, Subquery, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Concat, Length, Lower, NullIf
from django.utils import timezone

from safemigrate import apps
from safemigrate.backends import for_connection
from safemigrate.engine import engine
from safemigrate.exceptions import (
    AlreadyRunning,
    BadRows,
    DuplicateValues,
    LockNotAcquired,
    OrphanRows,
    RunPaused,
    TooManyRows,
)
from safemigrate.models import open_key
from safemigrate.operations import AddRequiredField
from safemigrate.populate import FromApps, FromRelated
from safemigrate.runs import store
from safemigrate.runs.status import Status
from safemigrate.schema import fast_path
from safemigrate.signals import batch_done
from tests.conftest import cleaned
from tests.support.processes import Polls
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, Statements, question
from tests.support.sessions import another, blocking, run

pytestmark = pytest.mark.matrix

LATER = F("pub_date") + timedelta(days=30)
LITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
SITE = migrations.CreateModel(
    "Site", [("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=20))]
)

#: The field, and a populate that fits it.
FIELDS: dict[str, tuple[Callable[[], Any], Any]] = {
    "plain": (lambda: models.DateTimeField("at"), LATER),
    "a text": (lambda: models.CharField(max_length=300), Concat("question_text", Value("%'"))),
    "blank": (lambda: models.CharField(max_length=40, blank=True), ""),
    "indexed": (lambda: models.CharField(max_length=300, db_index=True), F("question_text")),
    "a slug": (lambda: models.SlugField(max_length=300), Lower("question_text")),
    "unique": (lambda: models.CharField(max_length=200, unique=True), F("question_text")),
    "a unique uuid": (lambda: models.UUIDField(unique=True), uuid.uuid4),
    "a check": (models.PositiveIntegerField, Length("question_text")),
    "db_default": (lambda: models.IntegerField(db_default=7), 0),
    "db_default and unique": (lambda: models.IntegerField(db_default=7, unique=True), F("pk")),
    "referring": (lambda: models.ForeignKey(f"{APP}.question", models.CASCADE), F("pk")),
    "referring elsewhere": (lambda: models.ForeignKey(f"{APP}.site", models.CASCADE), 1),
    "referring once": (lambda: models.OneToOneField(f"{APP}.question", models.CASCADE), F("pk")),
    "referring, unchecked": (
        lambda: models.ForeignKey(f"{APP}.site", models.CASCADE, db_constraint=False),
        404,
    ),
    "db_column": (lambda: models.IntegerField(db_column="Other Name"), 7),
    "db_comment": (lambda: models.IntegerField(db_comment="what it's for"), 7),
    "auto_now": (lambda: models.DateTimeField(auto_now=True), F("pub_date")),
    "JSON": (models.JSONField, {"a": [None, "it's 100%"]}),
    "a decimal": (lambda: models.DecimalField(max_digits=9, decimal_places=3), Value("-12.340")),
    "binary": (models.BinaryField, b"\x00\xff'%s"),
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the values of any row may seem to take long."""
    monkeypatch.setattr(fast_path, "ALL_ROWS", 3600.0)


@pytest.fixture(params=FIELDS)
def add(request: pytest.FixtureRequest) -> AddRequiredField:
    make, populate = FIELDS[request.param]
    return AddRequiredField("question", "new", make(), populate)


def made(alias: str, rows: int = 0, *, site: int = 1, **options: Any) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias, SITE, question(**options))
    Site = sandbox.model("Site")  # noqa: N806
    sandbox.rows("Site").bulk_create([Site(name=f"Site {n}") for n in range(site)])
    sandbox.fill(rows)
    return sandbox


@contextmanager
def long_road() -> Iterator[None]:
    """Run without the fast path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_path.Shortcut, "take", lambda self, **given: False)
        yield


def dump(sandbox: MigrationSandbox) -> Any:
    """All that the database says of the table."""
    database, table = for_connection(sandbox.connection), sandbox.model()._meta.db_table
    if sandbox.connection.vendor == "mysql":
        return database.fetch(f"SHOW CREATE TABLE {table}"), database.fetch("SHOW TRIGGERS")
    if sandbox.connection.vendor == "sqlite":
        return sorted(
            database.fetch("SELECT type, name, sql FROM sqlite_master WHERE tbl_name = %s", [table]), key=str
        )
    return [database.fetch(sql, [database.quote(table)]) for sql in CATALOGS]


CATALOGS = [
    """SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
    WHERE conrelid = to_regclass(%s) ORDER BY 1""",
    """SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid FROM pg_index
    WHERE indrelid = to_regclass(%s) ORDER BY 1""",
    """SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid),
    col_description(attrelid, attnum) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid
    AND adnum = attnum WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
    "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal",
]


def statements(sandbox: MigrationSandbox, *operations: Any) -> list[str]:
    seen = Statements()
    with sandbox.connection.execute_wrapper(seen):
        sandbox.run(*operations)
    return seen.texts


def updates(texts: Sequence[str]) -> list[str]:
    """Those of the fill, not of its record."""
    return [text for text in texts if text.startswith("UPDATE") and "safemigrate" not in text]


def raw(sandbox: MigrationSandbox, column: str = "new") -> list[Any]:
    with sandbox.connection.cursor() as cursor:
        cursor.execute(f"SELECT {column}, typeof({column}) FROM boxes_question ORDER BY id")
        return list(cursor.fetchall())


class Before:
    """Does something once, just before the first statement that begins with a text."""

    def __init__(self, text: str, action: Callable[[], Any]) -> None:
        self.text, self.action, self.done = text, action, False

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(self.text) and not self.done:
            self.done = True
            self.action()
        return execute(sql, params, many, context)


INSERT = "INSERT INTO boxes_question (question_text, pub_date) VALUES ('Late?', '2026-01-01 12:00:00')"


# A table without rows


def test_without_rows_the_table_is_in_the_end_as_by_the_long_road(alias: str, add: AddRequiredField) -> None:
    sandbox = made(alias)
    before = sandbox.state
    short = statements(sandbox, add)
    one, state = dump(sandbox), sandbox.state
    assert not sandbox.column(sandbox.model()._meta.get_field("new").column).nullable
    sandbox.undo(add, before=before)
    with long_road():
        long = statements(sandbox, add)
    assert (dump(sandbox), sandbox.state) == (one, state)
    assert len(short) < len(long)


def test_without_rows_it_goes_backwards_and_forwards_again(alias: str, add: AddRequiredField) -> None:
    sandbox = made(alias)
    before, start = sandbox.state, sandbox.schema()
    sandbox.run(add)
    one = sandbox.schema()
    sandbox.undo(add, before=before)
    assert sandbox.schema() == start
    sandbox.run(add)
    assert sandbox.schema() == one
    sandbox.state = before
    sandbox.run(add)
    assert sandbox.schema() == one


def test_without_rows_it_takes_a_few_statements_and_no_guard(alias: str) -> None:
    sandbox = made(alias)
    texts = statements(sandbox, AddRequiredField("question", "new", models.DateTimeField(), LATER))
    assert len(texts) <= 20
    assert not [text for text in texts if "TRIGGER" in text.split(" ON ")[0] or "VALID" in text]


@pytest.mark.parametrize("kind", ["plain", "unique", "db_default", "referring elsewhere"])
def test_without_rows_stopped_at_any_statement_the_next_run_ends_the_same(alias: str, kind: str) -> None:
    sandbox, (make, populate) = made(alias), FIELDS[kind]
    add, before = AddRequiredField("question", "new", make(), populate), sandbox.state
    made_by = Statements()
    with sandbox.connection.execute_wrapper(made_by):
        sandbox.run(add)
    clean = dump(sandbox)
    for at in made_by.stops:
        sandbox.undo(add, before=before)
        with pytest.raises(Statements.Crash), sandbox.connection.execute_wrapper(Statements(stop_at=at)):
            sandbox.run(add)
            raise AssertionError(f"not stopped at statement {at}")
        sandbox.connection.close()  # What the process held is gone with it.
        sandbox.run(add)
        assert dump(sandbox) == clean


@pytest.mark.parametrize("kind", ["plain", "db_default", "a text"])
def test_a_row_that_comes_in_after_the_look_gets_the_value_of_old_rows(alias: str, kind: str) -> None:
    sandbox, (make, populate) = made(alias), FIELDS[kind]
    late = Before(
        "BEGIN IMMEDIATE" if sandbox.connection.vendor == "sqlite" else "ALTER TABLE",
        lambda: run(other, INSERT),
    )
    with another(alias) as other, sandbox.connection.execute_wrapper(late):
        sandbox.run(AddRequiredField("question", "new", make(), populate))
    assert late.done
    (row,) = sandbox.rows()
    assert row.new == {"plain": START + MONTH, "db_default": 0, "a text": "Late?%'"}[kind]
    assert not sandbox.column("new").nullable


def test_without_rows_a_guard_that_is_to_be_kept_is_put_up(alias: str) -> None:
    sandbox = made(alias)
    sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER, keep_guard=True))
    if sandbox.connection.vendor == "sqlite":
        return  # It cannot be kept there, and a warning says so.
    with sandbox.connection.cursor() as cursor:
        cursor.execute(INSERT)
    assert sandbox.values("new") == [START + MONTH]


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_a_table_in_another_schema(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE SCHEMA elsewhere")
    sandbox = MigrationSandbox(alias, question(db_table='elsewhere"."question'))
    before = sandbox.state
    add = AddRequiredField("question", "new", models.SlugField(unique=True), "x")
    sandbox.run(add)
    one = dump(sandbox)
    sandbox.undo(add, before=before)
    with long_road():
        sandbox.run(add)
    assert dump(sandbox) == one


def test_who_blocks_is_named_and_nothing_is_changed(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES, settings.SAFEMIGRATE_LOCK_PAUSE = 2, 0.01
    sandbox = made(alias)
    with blocking(alias), pytest.raises(LockNotAcquired):
        sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
    assert "new" not in sandbox.schema()["columns"]


def test_sqlmigrate_prints_the_long_road(alias: str) -> None:
    sandbox = made(alias)
    printed = sandbox.sql(AddRequiredField("question", "new", models.DateTimeField(), LATER))
    assert "-- fill new by" in printed


# SQLite's one copy


@LITE
def test_one_copy_ends_as_the_long_road(alias: str, add: AddRequiredField) -> None:
    sandbox = made(alias, 40)
    before = sandbox.state
    texts = statements(sandbox, add)
    assert not updates(texts)
    assert len([text for text in texts if text.startswith('INSERT INTO "new__')]) == 1
    one, values, state = dump(sandbox), raw(sandbox, column_of(add)), sandbox.state
    sandbox.undo(add, before=before)
    with long_road():
        assert updates(statements(sandbox, add))
    assert (dump(sandbox), sandbox.state) == (one, state)
    if add.populate is uuid.uuid4:
        assert {value.version for value in sandbox.values("new")} == {4}
    else:
        assert raw(sandbox, column_of(add)) == values


def column_of(add: AddRequiredField) -> str:
    add.field.set_attributes_from_name("new")
    return f'"{add.field.column}"'


SOURCES: dict[str, Any] = {
    "FromRelated": FromRelated("site__name"),
    "FromApps": FromApps(
        lambda apps: Subquery(
            apps.get_model(APP, "Site").objects.filter(pk=OuterRef("site")).values("name")[:1]
        )
    ),
    "raw SQL": RawSQL("substr(question_text, %s)", [10]),
    "a number": Concat(Length("question_text"), Value("")),
    "of the table itself": FromApps(
        lambda apps: Subquery(
            apps.get_model(APP, "Question")
            .objects.filter(pk__lte=OuterRef("pk"))
            .order_by("pub_date")
            .values("question_text")[:1]
        )
    ),
}


@LITE
@pytest.mark.parametrize("source", SOURCES)
def test_one_copy_computes_what_an_update_computes(alias: str, source: str) -> None:
    site = ("site", models.ForeignKey(f"{APP}.site", models.CASCADE))
    sandbox = MigrationSandbox(alias, SITE, question(fields=[site]))
    Site = sandbox.model("Site")  # noqa: N806
    sandbox.rows("Site").bulk_create([Site(name=f"Site {n}") for n in range(1, 4)])
    sandbox.fill(30, site_id=lambda n: n % 3 + 1)
    add, before = AddRequiredField("question", "new", models.TextField(), SOURCES[source]), sandbox.state
    assert not updates(statements(sandbox, add))
    values = raw(sandbox)
    sandbox.undo(add, before=before)
    with long_road():
        sandbox.run(add)
    assert raw(sandbox) == values


@LITE
def test_a_foreign_key_is_taken_from_raw_sql_as_it_is_meant(alias: str) -> None:
    sandbox = made(alias, 5, site=9)
    field = models.ForeignKey(f"{APP}.site", models.CASCADE)
    texts = statements(sandbox, AddRequiredField("question", "site", field, RawSQL("id + 1", [])))
    assert not updates(texts)
    assert sandbox.values("site_id") == [2, 3, 4, 5, 6]


@LITE
def test_foreign_keys_from_other_tables_and_from_its_own_survive(alias: str) -> None:
    choice = [
        ("id", models.BigAutoField(primary_key=True)),
        ("question", models.ForeignKey(f"{APP}.question", models.CASCADE)),
    ]
    own = ("first", models.ForeignKey(f"{APP}.question", models.CASCADE, null=True))
    sandbox = MigrationSandbox(alias, question(fields=[own]), migrations.CreateModel("Choice", choice))
    sandbox.fill(20, first_id=lambda n: None if n == 1 else 1)
    Choice = sandbox.model("Choice")  # noqa: N806
    sandbox.rows("Choice").bulk_create([Choice(question_id=n) for n in range(1, 21)])
    fetch = for_connection(sandbox.connection).fetch
    before = fetch("PRAGMA foreign_key_list(boxes_choice)"), fetch("PRAGMA foreign_key_list(boxes_question)")
    sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
    after = fetch("PRAGMA foreign_key_list(boxes_choice)"), fetch("PRAGMA foreign_key_list(boxes_question)")
    assert after == before
    assert fetch("PRAGMA foreign_key_check") == []
    assert fetch("PRAGMA foreign_keys") == [(1,)]
    assert sandbox.values("question_id", "Choice") == list(range(1, 21))
    with pytest.raises(Exception, match="FOREIGN KEY"):
        sandbox.rows("Choice").update(question=99)


@LITE
def test_a_generated_column_and_a_table_with_an_awkward_name(alias: str) -> None:
    length = models.GeneratedField(
        expression=Length("question_text"), output_field=models.IntegerField(), db_persist=True
    )
    sandbox = MigrationSandbox(alias, question(fields=[("length", length)], db_table="odd 'name'"))
    sandbox.fill(3)
    texts = statements(sandbox, AddRequiredField("question", "new", models.IntegerField(), F("length") + 1))
    assert not updates(texts)
    assert sandbox.values("new") == [12, 12, 12]


# Where the copy is refused, the steps report why


@LITE
def test_a_null_is_a_bad_row_as_ever_and_the_run_is_one(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_observer", apps.new_observer)
    sandbox = made(alias, 1_500)  # The last row is not among those that are looked at before.
    add = AddRequiredField(
        "question", "new", models.CharField(max_length=99), NullIf("question_text", Value("Question 1500?"))
    )
    before = sandbox.state
    seen = Statements()
    with (
        pytest.raises(BadRows, match="1500: its value came out as NULL"),
        sandbox.connection.execute_wrapper(seen),
    ):
        sandbox.run(add)
    assert seen.like('INSERT INTO "new__')
    record = store.records().get()
    assert (record.status, record.attempts) == (Status.FAILED, 2)
    sandbox.state = before
    sandbox.rows().filter(pk=1_500).update(question_text="Changed")
    sandbox.run(add)
    assert None not in sandbox.values("new")
    assert sandbox.rows().count() == 1_500


@LITE
def test_a_null_among_the_first_rows_is_not_even_tried(alias: str) -> None:
    sandbox = made(alias, 3)
    seen = Statements()
    with pytest.raises(BadRows), sandbox.connection.execute_wrapper(seen):
        sandbox.run(
            AddRequiredField(
                "question", "new", models.TextField(), NullIf("question_text", F("question_text"))
            )
        )
    assert not seen.like('INSERT INTO "new__')


@LITE
def test_duplicates_and_rows_that_point_nowhere_are_told_as_ever(alias: str) -> None:
    sandbox = made(alias, 4)
    with pytest.raises(DuplicateValues, match="'same' in 4 rows"):
        sandbox.run(AddRequiredField("question", "code", models.CharField(max_length=9, unique=True), "same"))
    with pytest.raises(OrphanRows, match="3 rows of boxes.Question"):
        sandbox.run(
            AddRequiredField("question", "site", models.ForeignKey(f"{APP}.site", models.CASCADE), F("pk"))
        )


@pytest.mark.slow
@LITE
def test_values_that_take_long_are_computed_in_batches(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = made(alias)
    with sandbox.connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO boxes_question (question_text, pub_date) WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL "
            "SELECT n + 1 FROM s WHERE n < 100000) SELECT 'Question?', '2026-01-01 12:00:00' FROM s"
        )
    before = sandbox.state
    add = AddRequiredField("question", "new", models.DateTimeField(), LATER)
    with monkeypatch.context() as patch:
        patch.setattr(fast_path, "ALL_ROWS", 0.1)
        texts = statements(sandbox, add)
    assert len(updates(texts)) > 3
    sandbox.undo(add, before=before)
    assert not updates(statements(sandbox, add))


@LITE
@pytest.mark.parametrize(
    "why", ["batch_size", "SAFEMIGRATE_BATCH_SIZE", "SAFEMIGRATE_THROTTLES", "keep_guard"]
)
def test_who_asks_for_batches_gets_them(alias: str, settings: Any, why: str) -> None:
    options: dict[str, Any] = {"batch_size": 5} if why == "batch_size" else {}
    options |= {"keep_guard": True} if why == "keep_guard" else {}
    values = {"SAFEMIGRATE_BATCH_SIZE": 5, "SAFEMIGRATE_THROTTLES": ["safemigrate.throttles.Nice"]}
    if why in values:
        setattr(settings, why, values[why])
    sandbox = made(alias, 10)
    texts = statements(sandbox, AddRequiredField("question", "new", models.DateTimeField(), LATER, **options))
    assert updates(texts)
    assert month_later_new(sandbox)


def month_later_new(sandbox: MigrationSandbox) -> bool:
    return all(row.new == row.pub_date + MONTH for row in sandbox.rows())


@LITE
def test_more_rows_than_migrate_may_fill_are_refused_as_ever(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_MAX_ROWS_IN_MIGRATE = 9
    sandbox = made(alias, 10)
    before = sandbox.state
    add = AddRequiredField("question", "new", models.DateTimeField(), LATER)
    with pytest.raises(TooManyRows, match="10 rows"):
        sandbox.run(add)
    sandbox.state = before
    assert raw(sandbox)  # The column is there, to be filled outside.


@LITE
def test_a_column_that_another_process_adds_meanwhile_keeps_its_values(alias: str) -> None:
    sandbox = made(alias, 3)

    def add() -> None:
        run(other, "ALTER TABLE boxes_question ADD COLUMN new datetime NULL")
        run(other, "UPDATE boxes_question SET new = '2000-01-01 00:00:00' WHERE id = 2")

    late = Before("BEGIN IMMEDIATE", add)
    with another(alias) as other, sandbox.connection.execute_wrapper(late):
        sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
    assert late.done
    assert [row.new.year for row in sandbox.rows()] == [2026, 2000, 2026]
    assert not sandbox.column("new").nullable


@LITE
def test_an_open_column_of_an_earlier_run_is_filled_by_the_long_road(alias: str) -> None:
    sandbox = made(alias, 3)
    with sandbox.connection.cursor() as cursor:
        cursor.execute("ALTER TABLE boxes_question ADD COLUMN new datetime NULL")
    texts = statements(sandbox, AddRequiredField("question", "new", models.DateTimeField(), LATER))
    assert updates(texts)
    assert month_later_new(sandbox)


# Its record


@pytest.fixture
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_observer", apps.new_observer)


@LITE
@pytest.mark.usefixtures("_recorded")
def test_the_copy_is_a_run_like_any_other(alias: str) -> None:
    sandbox, heard = made(alias, 25), []

    def hear(sender: Any, run: Any, rows: int, **kwargs: Any) -> None:
        heard.append((run.label, rows))

    batch_done.connect(hear)
    try:
        sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
    finally:
        batch_done.disconnect(hear)
    record = store.records().get()
    assert (record.status, record.attempts, record.alias) == (Status.SUCCEEDED, 1, alias)
    assert (record.rows_done, record.rows_total, record.total_is_exact) == (25, 25, True)
    assert record.populate.startswith("F(pub_date) + ")
    assert heard == [("boxes.Question.new", 25)]


@LITE
@pytest.mark.usefixtures("_recorded")
def test_a_paused_or_taken_run_is_refused_and_the_table_stays(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_WAIT_SECONDS = 0
    sandbox = made(alias, 5)
    before, schema = sandbox.state, sandbox.schema()
    add = AddRequiredField("question", "new", models.DateTimeField(), LATER)
    record = store.records().create(
        app_label=APP, model_name="Question", field_names="new", alias=alias, open_key=key(alias)
    )
    store.pause(record.pk, "Ada")
    with pytest.raises(RunPaused):
        sandbox.run(add)
    store.resume(record.pk, "Ada")
    taken = {"status": Status.RUNNING, "lease_until": timezone.now() + timedelta(minutes=5), "machine": "x"}
    store.records().filter(pk=record.pk).update(**taken)
    with pytest.raises(AlreadyRunning):
        sandbox.run(add)
    assert (sandbox.schema(), sandbox.state) == (schema, before)
    store.records().filter(pk=record.pk).update(lease_until=None)
    sandbox.run(add)
    assert store.records().get().status == Status.SUCCEEDED


def key(alias: str) -> str:
    return open_key(f"{APP}.Question.new", alias)


@LITE
@pytest.mark.usefixtures("_recorded")
def test_a_lock_that_is_not_given_ends_the_run_as_failed(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES, settings.SAFEMIGRATE_LOCK_PAUSE = 2, 0.01
    settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
    sandbox = made(alias, 5)
    with cleaned("archive"):
        with blocking(alias), pytest.raises(LockNotAcquired):
            sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
        assert store.records().get().status == Status.FAILED
        sandbox.run(AddRequiredField("question", "new", models.DateTimeField(), LATER))
        assert store.records().get().status == Status.SUCCEEDED


# Killed


@pytest.mark.slow
@LITE
@pytest.mark.parametrize("statement", ['INSERT INTO "new__', "DROP TABLE", "RENAME TO"])
def test_killed_in_the_copy_the_table_is_as_it_was(
    alias: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    connections[alias].close()
    monkeypatch.setitem(connections[alias].settings_dict, "NAME", str(tmp_path / "polls.sqlite3"))
    names = json.loads(environment["SAFEMIGRATE_TEST_NAMES"]) | {alias: str(tmp_path / "polls.sqlite3")}
    polls = Polls(alias, environment | {"SAFEMIGRATE_TEST_NAMES": json.dumps(names)}, rows=2_000)
    before = polls.schema()
    with polls.start_and_die(statement, 0.01) as process:
        output, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, (output, errors)
    assert polls.schema() == before
    assert "expires_date" not in polls.columns()
    polls.finish()
    polls.assert_ended_well()
    assert store.records().get().attempts == 2
    connections[alias].close()
