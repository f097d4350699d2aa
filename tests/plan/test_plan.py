"""What `--plan` says beforehand is what then happens, and saying it leaves no trace."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.models import Case, F, Value, When
from django.db.models.functions import Cast
from django.test import override_settings

from safemigrate.engine.batch_size import Pace
from safemigrate.generator.targets import RequiredField
from safemigrate.operations import AddNullableField, AddRequiredField, GuardWrites, Populate, SetNotNull
from safemigrate.plan import plan, risks, sampling
from safemigrate.plan.plan import Action, DatabasePlan
from safemigrate.populate import FromRelated, PerBatch, PerRow, Suffix
from tests.schema.test_runner import another
from tests.support.projects import Project
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, Statements, question

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
SERVERS = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
SQLITE = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
MARIADB = pytest.mark.parametrize("alias", ["mariadb"], indirect=True)

LATER = F("pub_date") + MONTH
SITE = migrations.CreateModel("Site", [("id", models.BigAutoField(primary_key=True))])


def expires(populate: Any = LATER, **options: Any) -> AddRequiredField:
    return AddRequiredField("question", "expires_date", models.DateTimeField(), populate, **options)


def added(field: Any, populate: Any, name: str = "fresh") -> AddRequiredField:
    return AddRequiredField("question", name, field, populate)


def look(sandbox: MigrationSandbox, *operations: Any, model_name: str = "question") -> DatabasePlan:
    """The plan of these operations on the sandbox's database, as one migration."""
    state = sandbox.after(*operations)
    model = state.apps.get_model(APP, model_name)
    field = model._meta.get_field(operations[0].name)
    entries = plan.planned([sandbox._migration(operations, False)], sandbox.state)
    return plan.make(RequiredField(model, field), entries, sandbox.alias)


def fill_of(seen: DatabasePlan) -> Action:
    (action,) = (action for action in seen.actions if action.title.startswith("fill "))
    return action


def sample(sandbox: MigrationSandbox, *operations: Any, model_name: str = "question") -> sampling.Sample:
    found = fill_of(look(sandbox, *operations, model_name=model_name)).sample
    assert found
    return found


def said(seen: DatabasePlan, text: str) -> list[risks.Risk]:
    return [risk for risk in seen.risks if text in risk.text]


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(100)
    return sandbox


@SERVERS
def test_of_one_value_for_most_rows_the_values_are_tried_and_the_others_counted(
    sandbox: MigrationSandbox,
) -> None:
    populate = Case(When(question_text="Question 7?", then=Value("x" * 12)), default=Value("open"))
    seen = look(sandbox, added(models.CharField(max_length=12), populate))
    assert "with the value that most rows get: none is written" in seen.actions[0].title
    found = fill_of(seen).sample
    assert found
    assert (found.rows, found.share) == (100, 0.01)
    assert found.per_look > 0
    assert not [risk for risk in seen.risks if risk.hurts]
    seen = look(sandbox, added(models.CharField(max_length=9), populate))
    assert said(seen, "there is no value for the row")
    sandbox.connection.cursor().execute(
        "ALTER TABLE boxes_question ADD COLUMN fresh varchar(12) DEFAULT 'open'"
    )
    assert look(sandbox, added(models.CharField(max_length=12), populate)).nulls == 1


def everything(sandbox: MigrationSandbox) -> tuple[Any, ...]:
    """Schema, rows and tables; temporary tables among them."""
    with sandbox.connection.cursor() as cursor:
        tables = sandbox.connection.introspection.get_table_list(cursor)
    names = sorted(table.name for table in tables)
    return names, sandbox.schema(), list(sandbox.rows().values_list())


# It leaves no trace


def failing(row: Any) -> Any:
    raise ValueError("no date in it")


@pytest.mark.parametrize(
    "populate",
    [LATER, lambda row: row.pub_date, failing, Cast(F("question_text"), models.IntegerField())],
    ids=["expression", "function", "failing", "refused"],
)
def test_nothing_is_changed(sandbox: MigrationSandbox, populate: Any) -> None:
    before = everything(sandbox)
    look(sandbox, expires(populate))
    assert everything(sandbox) == before
    assert not sandbox.connection.in_atomic_block
    assert sandbox.connection.is_usable()


def test_an_interrupt_leaves_nothing_either(sandbox: MigrationSandbox) -> None:
    def stop(row: Any) -> Any:
        raise KeyboardInterrupt

    before = everything(sandbox)
    with pytest.raises(KeyboardInterrupt):
        look(sandbox, expires(stop))
    assert everything(sandbox) == before
    assert not sandbox.connection.in_atomic_block


@POSTGRESQL
def test_on_postgresql_the_table_is_held_as_by_a_reader(sandbox: MigrationSandbox) -> None:
    held: set[str] = set()

    def watch(row: Any) -> Any:
        if not held:
            with another(sandbox.alias) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT mode FROM pg_locks WHERE relation = 'boxes_question'::regclass AND granted"
                )
                held.update(mode for (mode,) in cursor.fetchall())
        return row.pub_date

    assert sample(sandbox, expires(watch)).problem is None
    assert held == {"AccessShareLock"}


def test_a_writer_passes_meanwhile(sandbox: MigrationSandbox) -> None:
    written: list[int] = []

    def write(row: Any) -> Any:
        if not written:
            with another(sandbox.alias) as connection, connection.cursor() as cursor:
                cursor.execute(NO_WAITING[connection.vendor])
                cursor.execute("UPDATE boxes_question SET question_text = 'written in the meantime'")
                written.append(cursor.rowcount)
        return row.pub_date

    assert sample(sandbox, expires(write)).problem is None
    assert written == [100]
    assert set(sandbox.values("question_text")) == {"written in the meantime"}


NO_WAITING = {
    "postgresql": "SET lock_timeout = '100ms'",
    "mysql": "SET innodb_lock_wait_timeout = 1",
    "sqlite": "PRAGMA busy_timeout = 0",
}


@SQLITE
def test_what_the_session_was_set_to_it_is_afterwards(sandbox: MigrationSandbox) -> None:
    def settings() -> tuple[Any, ...]:
        with sandbox.connection.cursor() as cursor:
            cursor.execute("PRAGMA foreign_keys")
            return cursor.fetchone(), sandbox.connection.transaction_mode

    before = settings()
    look(sandbox, expires())
    assert settings() == before


# What it lists is what is run


FIELDS = {
    "plain": expires,
    "computed": lambda: expires(lambda row: row.pub_date),
    "unique": lambda: added(
        models.CharField(max_length=40, unique=True), Cast("id", models.CharField(max_length=40))
    ),
    "indexed": lambda: added(models.IntegerField(db_index=True), 3),
    "checked": lambda: added(models.PositiveIntegerField(), 3),
    "referring": lambda: added(models.ForeignKey("boxes.Question", models.CASCADE), F("id")),
    "default": lambda: added(models.IntegerField(db_default=5), 3),
}
DDL = ("ALTER", "CREATE", "DROP", "INSERT INTO", "DELETE FROM sqlite_sequence", "PRAGMA legacy_alter_table")
# What a run is noted in, where this database has those tables, is no part of the plan.
RUNS = "safemigrate_backfill"
# The empty table on which the server is asked beforehand.
TRIED_ON = "safemigrate_try"
FOUND_NOTHING_TO_DO = ("DROP", "SET", "UPDATE")


def of_the_table(statements: Statements, *beginnings: str) -> list[str]:
    return [sql for sql in statements.like(*beginnings) if RUNS not in sql and TRIED_ON not in sql]


@pytest.mark.parametrize("kind", FIELDS)
def test_the_statements_listed_are_those_that_run(sandbox: MigrationSandbox, kind: str) -> None:
    operation = FIELDS[kind]()
    operation.batch_size = 1_000  # The steps are what is listed, and SQLite may do them in one.
    listed = [sql for action in look(sandbox, operation).actions for sql in action.statements]
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(operation)
    # A guard that is there by then, a default or a trigger, is carried along by what makes the table anew.
    run = list(dict.fromkeys(sql.replace(" DEFAULT (3)", "") for sql in of_the_table(statements, *DDL)))
    in_order = iter(sql.replace(" DEFAULT (3)", "") for sql in listed)
    assert run
    assert [sql for sql in run if sql not in in_order] == []
    passed_over = [sql for sql in listed if sql not in run]
    assert [
        sql for sql in passed_over if not sql.startswith(FOUND_NOTHING_TO_DO) and "DEFAULT" not in sql
    ] == []


def test_the_update_listed_is_the_one_run(sandbox: MigrationSandbox) -> None:
    operation = added(models.IntegerField(), F("id") + 1)
    operation.batch_size = 1_000
    (listed,) = fill_of(look(sandbox, operation)).statements
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(operation)
    (run,) = of_the_table(statements, "UPDATE")
    assert run.replace("%s", "1").split(" WHERE ")[0] == listed.split(" WHERE ")[0]


def test_each_step_says_its_lock(sandbox: MigrationSandbox) -> None:
    steps = [action for action in look(sandbox, expires()).actions if action.sample is None]
    assert {action.blocks for action in steps} <= {"nobody", "writers", "everyone"}
    assert {action.lasts for action in steps} <= {"briefly", "while it is read", "while it is copied"}
    assert steps[0].wait == (1 if sandbox.connection.vendor == "mysql" else 0.1)


@pytest.mark.parametrize(
    ("rows", "batch_size", "batches"), [(1_000, 100, 10), (1_001, 100, 11), (100, 5_000, 1)]
)
@SQLITE
def test_batches_of_a_given_size_are_counted(alias: str, rows: int, batch_size: int, batches: int) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(rows)
    operation = added(models.IntegerField(), 3)
    operation.batch_size = batch_size
    assert fill_of(look(sandbox, operation)).batches == batches
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.run(operation)
    assert len(of_the_table(statements, "UPDATE")) == batches


def test_batches_grow_as_the_pace_has_it() -> None:
    # 1,000 at once, then 4,000, 16,000 and 20,000, when a row takes next to nothing.
    assert plan._batches(Pace(), 100_000, 1e-9) == 3 + 4
    assert plan._batches(Pace(), 0, 1e-9) == 0
    # 10 ms a row: the smallest there are, after one that was far too slow.
    assert plan._batches(Pace(), 3_000, 0.01) == 1 + 10


# The sample


def test_a_function_is_called_for_the_sample_alone(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 60)
    sandbox, called = MigrationSandbox(alias), []
    sandbox.fill(300)

    def remember(row: Any) -> Any:
        called.append(row.pk)
        return row.pub_date

    found = sample(sandbox, expires(remember))
    assert 0 < found.rows == len(called) <= 60
    # From all over the table, not from its beginning.
    assert min(called) < 30
    assert max(called) > 250
    assert found.per_row
    assert found.seconds


def test_values_made_for_the_sample_are_those_of_the_real_rows(sandbox: MigrationSandbox) -> None:
    seen: list[Any] = []
    sample(
        sandbox,
        expires(PerBatch(lambda rows: [seen.append(row.question_text) or row.pub_date for row in rows])),
    )
    assert sorted(seen) == sorted(sandbox.values("question_text"))


def test_a_row_without_a_value_is_found(sandbox: MigrationSandbox) -> None:
    problem = sample(sandbox, expires(lambda row: None if row.pk == 7 else row.pub_date)).problem
    assert problem == "1 of 100 rows got no value, the first with the key 7: the function returned None"


def test_an_expression_that_gives_null_is_found(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("closed", models.IntegerField(null=True))]))
    sandbox.fill(20, closed=lambda n: None if n > 18 else n)
    problem = sample(sandbox, added(models.IntegerField(), F("closed") + 1)).problem
    assert problem == "2 of 20 rows got no value, the first with the key 19: its value came out as NULL"


def test_a_row_that_the_database_refuses_is_named(sandbox: MigrationSandbox) -> None:
    problem = sample(
        sandbox, added(models.CharField(max_length=3), lambda row: "1" if row.pk < 40 else "12345")
    ).problem
    if sandbox.connection.vendor == "sqlite":
        assert problem is None  # It does not look at lengths.
    else:
        assert problem
        assert "the row with the key 40: " in problem


def test_a_value_that_is_not_unique_is_found(sandbox: MigrationSandbox) -> None:
    problem = sample(sandbox, added(models.IntegerField(unique=True), 3)).problem
    assert problem == "fresh is to be unique, and 99 of 100 values were there already"


def test_a_suffix_makes_them_unique(sandbox: MigrationSandbox) -> None:
    field = models.SlugField(unique=True)
    assert sample(sandbox, added(field, PerRow(lambda row: "same", unique=Suffix("-")))).problem is None


def test_a_reference_to_nowhere_is_found(alias: str) -> None:
    sandbox = MigrationSandbox(alias, SITE, question())
    sandbox.fill(10)
    sandbox.rows("Site").create(pk=1)
    field = models.ForeignKey("boxes.Site", models.CASCADE)
    assert sample(sandbox, added(field, lambda: 1, "site")).problem is None
    problem = sample(sandbox, added(field, 2, "site")).problem
    assert problem == "10 rows got a site that is no row of boxes.Site, such as 2"


def test_a_value_of_a_row_of_the_same_table_is_read_there(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "ROWS", 10)
    parent = ("parent", models.ForeignKey("boxes.Question", models.CASCADE, null=True))
    sandbox = MigrationSandbox(alias, question(fields=[parent]))
    sandbox.fill(40)
    sandbox.rows().update(parent=40)
    # The copy does not have the row 40.
    found = sample(sandbox, added(models.CharField(max_length=200), FromRelated("parent__question_text")))
    assert (found.problem, found.skipped) == (None, None)


@pytest.mark.parametrize("kind", ["uuid", "text", "generated", "index"])
def test_other_tables_are_sampled_too(alias: str, kind: str) -> None:
    options: dict[str, Any] = {
        "uuid": {"key": ("id", models.UUIDField(primary_key=True, default=uuid.uuid4))},
        "text": {"key": ("code", models.CharField(primary_key=True, max_length=20))},
        "generated": {
            "fields": [
                (
                    "double",
                    models.GeneratedField(
                        expression=Value(2), output_field=models.IntegerField(), db_persist=True
                    ),
                )
            ]
        },
        "index": {"indexes": [models.Index(fields=["pub_date", "question_text"], name="boxes_two")]},
    }[kind]
    sandbox = MigrationSandbox(alias, question(**options))
    sandbox.fill(30, **({"code": lambda n: f"c{n}"} if kind == "text" else {}))
    found = sample(sandbox, expires())
    assert (found.rows, found.problem, found.skipped) == (30, None, None)


def test_a_composite_key_is_sampled(alias: str) -> None:
    fields = [("tenant", models.IntegerField()), ("code", models.CharField(max_length=10))]
    sandbox = MigrationSandbox(
        alias, question(key=("pk", models.CompositePrimaryKey("tenant", "code")), fields=fields)
    )
    sandbox.fill(30, tenant=lambda n: n % 3, code=lambda n: f"c{n}")
    found = sample(sandbox, expires())
    assert (found.rows, found.problem, found.skipped) == (30, None, None)


def test_a_child_is_sampled_with_what_it_has_of_its_parent(alias: str) -> None:
    child = migrations.CreateModel("Quiz", [("prize", models.IntegerField())], bases=("boxes.question",))
    sandbox = MigrationSandbox(alias, question(), child)
    for number in range(1, 11):
        sandbox.model("Quiz")(question_text=f"{number}", pub_date=START, prize=number).save(using=alias)
    operation = AddRequiredField(
        "quiz", "text", models.CharField(max_length=20), lambda row: row.question_text * 2
    )
    found = sample(sandbox, operation, model_name="quiz")
    assert (found.rows, found.problem, found.skipped) == (10, None, None)


@POSTGRESQL
def test_a_table_in_another_schema_is_sampled(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE SCHEMA other")
    sandbox = MigrationSandbox(alias, question(db_table='"other"."question"'))
    sandbox.fill(10)
    found = sample(sandbox, expires())
    assert (found.rows, found.problem, found.skipped) == (10, None, None)


def test_an_empty_table_is_not_sampled(alias: str) -> None:
    seen = look(MigrationSandbox(alias), expires())
    assert (seen.rows, seen.hurts, seen.seconds) == (0, False, None)
    found = fill_of(seen).sample
    assert found
    assert found.skipped == "the table has no rows"


def test_a_function_of_the_migration_is_not_called(sandbox: MigrationSandbox) -> None:
    def forbidden(apps: Any, schema_editor: Any) -> None:
        raise AssertionError("called")

    found = sample(sandbox, expires(forbidden))
    assert found.skipped
    assert "forbidden(apps, schema_editor) runs in the migration alone" in found.skipped


# Where it stands already


def test_of_a_run_that_was_stopped_it_tells_what_is_left(sandbox: MigrationSandbox) -> None:
    sandbox.run(AddNullableField("question", "expires_date", models.DateTimeField()))
    sandbox.rows().filter(pk__lte=60).update(expires_date=F("pub_date"))
    sandbox.state = without_the_field(sandbox)
    seen = look(sandbox, expires())
    assert seen.nulls == 40
    assert seen.actions[0].done
    assert not fill_of(seen).done
    found = fill_of(seen).sample
    assert found
    assert found.rows == 100
    assert found.problem is None


def without_the_field(sandbox: MigrationSandbox) -> Any:
    state = sandbox.state.clone()
    state.remove_field(APP, "question", "expires_date")
    return state


def test_of_a_run_that_ended_there_is_nothing_left(sandbox: MigrationSandbox) -> None:
    before = sandbox.state
    sandbox.run(expires())
    sandbox.state = before
    seen = look(sandbox, expires())
    # The guard is put up and taken down once more, where there is one.
    assert [action.title for action in seen.actions if not action.done and "guard" not in action.title] == []
    assert (seen.nulls, seen.seconds, seen.hurts) == (0, None, False)


def test_without_the_table_there_is_nothing_to_fill(alias: str) -> None:
    sandbox = MigrationSandbox(alias, SITE)
    question().state_forwards(APP, sandbox.state)
    seen = look(sandbox, expires())
    assert (seen.rows, seen.actions, seen.hurts) == (0, (), False)
    assert said(seen, "has no table boxes_question yet")


@SERVERS
def test_a_server_that_does_not_answer_is_told(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.connection.close()
    monkeypatch.setitem(sandbox.connection.settings_dict, "PORT", "1")
    seen = look(sandbox, expires())
    monkeypatch.undo()
    assert seen.hurts
    assert said(seen, "could not be looked at")


# What could go wrong


@contextmanager
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a table of a few rows count as one that is not small."""
    with monkeypatch.context() as patch:
        patch.setattr(risks, "SMALL", 10)
        patch.setattr(plan, "SMALL", 10)
        yield


def test_a_small_table_is_told(sandbox: MigrationSandbox) -> None:
    (risk,) = said(look(sandbox, expires()), "100 rows are few")
    assert risk.cure == "It may run at any hour."


def test_a_failing_sample_hurts(sandbox: MigrationSandbox) -> None:
    seen = look(sandbox, expires(failing))
    (risk,) = said(seen, "In the sample, 100 of 100 rows got no value")
    assert risk.hurts
    assert seen.hurts
    assert "ValueError: no date in it" in risk.text
    assert seen.risks[0] == risk


@SQLITE
def test_a_copy_of_a_large_table_hurts(sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not look(sandbox, expires()).hurts
    with large(monkeypatch):
        seen = look(sandbox, expires())
    (risk,) = said(seen, "the table is locked while it is copied: everyone must wait, with 100 rows")
    assert risk.hurts
    assert seen.hurts


@SERVERS
def test_on_a_server_no_step_hurts(sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with large(monkeypatch):
        for operation in (expires(), added(models.IntegerField(unique=True), F("id"))):
            assert not look(sandbox, operation).hurts


@MARIADB
def test_a_copy_that_is_allowed_hurts(sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with large(monkeypatch), override_settings(SAFEMIGRATE_ALLOW_TABLE_COPY=True):
        seen = look(sandbox, expires())
    (risk,) = said(seen, "writers must wait")
    assert risk.hurts
    assert "SAFEMIGRATE_ALLOW_TABLE_COPY" in risk.cure


@pytest.mark.slow
@SERVERS
def test_an_open_transaction_is_told(sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risks, "OPEN_SECONDS", 0.5)
    with another(sandbox.alias) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE boxes_question SET question_text = 'x' WHERE id = 1")
        time.sleep(2)
        seen = look(sandbox, expires())
        # MariaDB does not show whose table it is, so the transactions of other tests may be there too.
        risk, *_ = said(seen, "A transaction is open for more than 0.5 s")
        assert not risk.hurts
        assert not seen.hurts
        patience = {
            "SAFEMIGRATE_LOCK_TRIES": 1,
            "SAFEMIGRATE_LOCK_TIMEOUT": 0.1,
            "SAFEMIGRATE_LOCK_PAUSE": 0.1,
        }
        with override_settings(**patience):
            seen = look(sandbox, expires())
        risk, *_ = said(seen, "open for longer than a lock is tried for")
        assert risk.hurts
        assert seen.hurts
        cursor.execute("ROLLBACK")


TRIGGERS = {
    "postgresql": [
        "CREATE FUNCTION boxes_audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER boxes_audit BEFORE UPDATE ON boxes_question FOR EACH ROW EXECUTE FUNCTION boxes_audit()",
    ],
    "mysql": ["CREATE TRIGGER boxes_audit BEFORE UPDATE ON boxes_question FOR EACH ROW SET @audited = 1"],
    "sqlite": ["CREATE TRIGGER boxes_audit AFTER UPDATE ON boxes_question BEGIN SELECT 1; END"],
}


def test_triggers_are_named(sandbox: MigrationSandbox) -> None:
    assert not said(look(sandbox, expires()), "triggers")
    with sandbox.connection.cursor() as cursor:
        for statement in TRIGGERS[sandbox.connection.vendor]:
            cursor.execute(statement)
    assert said(look(sandbox, expires()), "fire for each filled row: boxes_audit.")


@POSTGRESQL
def test_many_indexes_are_told(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    indexes = [models.Index(fields=["pub_date", "question_text"], name=f"boxes_{n}") for n in range(4)]
    sandbox = MigrationSandbox(alias, question(indexes=indexes))
    sandbox.fill(20)
    with large(monkeypatch):
        assert said(look(sandbox, expires()), "5 indexes and full pages (fillfactor 100)")
        with sandbox.connection.cursor() as cursor:
            cursor.execute("ALTER TABLE boxes_question SET (fillfactor = 50)")
        assert not said(look(sandbox, expires()), "full pages")


@POSTGRESQL
def test_replicas_that_cannot_be_seen_are_told(sandbox: MigrationSandbox) -> None:
    with sandbox.connection.cursor() as cursor:
        cursor.execute("SELECT pg_create_physical_replication_slot('safemigrate_forecast', true)")
        try:
            seen = look(sandbox, expires())
        finally:
            cursor.execute("SELECT pg_drop_replication_slot('safemigrate_forecast')")
    assert said(seen, "How far the replicas are behind cannot be seen")
    assert not seen.hurts


class SiteElsewhere:
    def allow_migrate(
        self, db: str, app_label: str, model_name: str | None = None, **hints: Any
    ) -> bool | None:
        return False if model_name == "site" else None


def test_a_foreign_key_to_another_alias_hurts(alias: str) -> None:
    sandbox = MigrationSandbox(alias, SITE, question())
    sandbox.fill(10)
    sandbox.rows("Site").create(pk=1)
    with override_settings(DATABASE_ROUTERS=[SiteElsewhere()]):
        seen = look(sandbox, added(models.ForeignKey("boxes.Site", models.CASCADE), 1, "site"))
        (risk,) = said(seen, "which the routers keep away from")
        assert risk.hurts
        assert "db_constraint=False" in risk.cure
        field = models.ForeignKey("boxes.Site", models.CASCADE, db_constraint=False)
        (risk,) = said(look(sandbox, added(field, 1, "site")), "which the routers keep away from")
        assert not risk.hurts


OLD_CODE = "Code that does not know the field cannot insert rows once it is required"


def test_old_code_is_thought_of(sandbox: MigrationSandbox) -> None:
    in_one = look(sandbox, added(models.IntegerField(), 3))
    assert said(in_one, OLD_CODE)[0].cure.count("--phases 3") == 1
    in_three = look(
        sandbox,
        AddNullableField("question", "fresh", models.IntegerField()),
        GuardWrites("question", "fresh", 3),
        Populate("question", "fresh", 3),
        SetNotNull("question", "fresh", models.IntegerField()),
    )
    assert not said(in_three, OLD_CODE)
    assert not said(look(sandbox, added(models.IntegerField(db_default=5), 3)), OLD_CODE)


@SERVERS
def test_a_guard_that_is_kept_is_enough(sandbox: MigrationSandbox) -> None:
    assert not said(look(sandbox, expires(keep_guard=True)), OLD_CODE)


def test_python_cannot_be_guarded(sandbox: MigrationSandbox) -> None:
    (risk,) = said(look(sandbox, expires(lambda row: row.pub_date)), "No write guard")
    assert "computed in Python" in risk.text
    assert not said(look(sandbox, added(models.IntegerField(), 3)), "No write guard")


# The command

PLAN = ("add_required_field", "polls.Question.expires_date", "--plan")
POPULATE = ("--populate", 'F("pub_date") + timedelta(days=30)')


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path).made()
    project.seed("default", 20)
    project.seed("archive", 30)
    project.add_field()
    return project


def test_the_command_plans_for_every_database_and_writes_nothing(project: Project) -> None:
    before = project.migrations()
    shown = project.must(*PLAN, *POPULATE)
    assert "polls.Question.expires_date on default (SQLite)" in shown
    assert "polls.Question.expires_date on archive (SQLite)" in shown
    assert "Safe to run" in shown
    assert project.migrations() == before
    assert "on default" not in project.must(*PLAN, *POPULATE, "--database", "archive")


def test_json_holds_the_same_and_nothing_else(project: Project) -> None:
    plan = json.loads(project.must(*PLAN, *POPULATE, "--format", "json"))
    assert plan["safe"] is True
    assert [(each["alias"], each["rows"]) for each in plan["plans"]] == [("default", 20), ("archive", 30)]
    fill = next(action for action in plan["plans"][0]["actions"] if action["sample"])
    assert fill["sample"]["rows"] == 20
    assert fill["batches"] == 1
    assert fill["seconds"] > 0


def test_json_is_alone_also_where_the_default_serves(project: Project) -> None:
    project.write(
        "polls/models.py", project.read("polls/models.py").replace('("expires at")', "(default=timezone.now)")
    )
    project.write("polls/models.py", "from django.utils import timezone\n" + project.read("polls/models.py"))
    assert json.loads(project.must(*PLAN, "--format", "json"))["plans"]


def test_a_plan_that_hurts_is_shown_and_exits_with_1(project: Project) -> None:
    project.write("polls/populate.py", "def none(row):\n    return None\n")
    done = project.run(*PLAN, "--populate", "polls.populate.none")
    assert done.returncode == 1
    assert "!! In the sample, 20 of 20 rows got no value" in " ".join(done.stdout.split())
    assert "Not safe to run now: polls.Question.expires_date on default" in done.stderr


def test_three_files_are_planned_as_three(project: Project) -> None:
    plans = json.loads(project.must(*PLAN, *POPULATE, "--phases", "3", "--format", "json"))["plans"]
    migrations = dict.fromkeys(action["migration"] for action in plans[0]["actions"])
    assert [name.rpartition("_")[2] for name in migrations] == ["add", "fill", "require"]


def test_what_is_written_is_planned_from_its_migration(project: Project) -> None:
    project.must("add_required_field", "polls.Question.expires_date", *POPULATE)
    plans = json.loads(project.must(*PLAN, "--format", "json"))["plans"]
    assert plans[0]["actions"][0]["migration"] == "0002_question_expires_date"
    project.must("migrate", "-v0", "--database", "archive")
    todo, done = json.loads(project.must(*PLAN, "--format", "json"))["plans"]
    assert not any(action["done"] for action in todo["actions"])
    assert all(action["done"] for action in done["actions"])


def test_a_database_that_is_behind_is_told(project: Project) -> None:
    project.must("migrate", "-v0", "polls", "zero", "--database", "archive")
    archive = json.loads(project.must(*PLAN, *POPULATE, "--database", "archive", "--format", "json"))[
        "plans"
    ][0]
    assert archive["rows"] == 0
    assert "no table polls_question yet" in archive["risks"][0]["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plan", "--migrate"], "leave --migrate and --dry-run out"),
        (["--plan", "--dry-run"], "leave --migrate and --dry-run out"),
        (["--format", "json"], "add --plan"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    project: Project, options: list[str], words: str
) -> None:
    done = project.run("add_required_field", "polls.Question.expires_date", *POPULATE, *options)
    assert done.returncode == 1
    assert words in done.stderr


def test_the_text_fits_the_terminal(project: Project) -> None:
    lines = project.must(*PLAN, *POPULATE, COLUMNS="60").splitlines()
    long = [line for line in lines if len(line) > 60]
    assert all(" " not in line.strip() for line in long)


def test_durations_read_as_people_say_them() -> None:
    from safemigrate.plan.render import _bytes, _seconds

    spans = [timedelta(milliseconds=12), timedelta(seconds=45), timedelta(minutes=31), timedelta(hours=5)]
    assert [_seconds(span.total_seconds()) for span in spans] == ["12 ms", "45 s", "31 minutes", "5.0 hours"]
    assert [_bytes(size) for size in (None, 0, 2048, 3 * 2**20, 5000 * 2**30)] == [
        "",
        "0 bytes",
        "2 kB",
        "3 MB",
        "5000 GB",
    ]


# While the table is locked


HELD = {
    "postgresql": "LOCK TABLE boxes_question IN ACCESS EXCLUSIVE MODE",
    "mysql": "LOCK TABLES boxes_question WRITE",
}


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_while_another_session_holds_the_table_it_answers_and_names_it(sandbox: MigrationSandbox) -> None:
    with another(sandbox.alias) as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(HELD[other.vendor])
        seen = look(sandbox, expires())
        with other.cursor() as cursor:
            if other.vendor == "mysql":
                cursor.execute("UNLOCK TABLES")
        other.rollback()
    (risk,) = seen.risks
    assert seen.hurts
    assert seen.actions == ()
    assert risk.text.startswith(
        "Another session holds the table boxes_question, so it could not even be read."
    )
    who = r"pid \d+, user" if other.vendor == "postgresql" else "Blocked by: "
    assert re.search(who, risk.text)
    assert look(sandbox, expires()).actions
    if other.vendor == "postgresql":
        with sandbox.connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("0",)
