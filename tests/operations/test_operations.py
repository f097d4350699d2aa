"""The operations on real tables: forwards, backwards, twice, in the wrong place, on every database."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connections, migrations, models
from django.db.models import F, Value
from django.utils import timezone

from safemigrate.backends import for_connection
from safemigrate.exceptions import (
    BadRows,
    DuplicateValues,
    InTransaction,
    InvalidField,
    InvalidPopulate,
    NullsRemain,
    OrphanRows,
    StepRefused,
    TableCopyNeeded,
)
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.schema import runner
from tests.conftest import cleaned
from tests.support import sample_populates as samples
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, Statements, month_later, question
from tests.support.sessions import is_mysql

LATER = F("pub_date") + timedelta(days=30)


def add_expires(populate: Any = LATER, **kwargs: Any) -> AddRequiredField:
    return AddRequiredField(
        "question", "expires_date", models.DateTimeField("expires at"), populate, **kwargs
    )


def three_steps() -> list[Any]:
    field = models.DateTimeField("expires at")
    return [
        AddNullableField("question", "expires_date", field),
        Populate("question", "expires_date", LATER),
        SetNotNull("question", "expires_date", field),
    ]


def test_a_full_table_gets_a_required_field(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2_500)
    sandbox.run(add_expires())
    assert sandbox.rows().count() == 2_500
    assert month_later(sandbox.rows())
    assert not sandbox.column("expires_date").nullable


def test_the_three_steps_end_as_the_one(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(30)
    before = sandbox.state
    sandbox.run(add_expires())
    one, state = sandbox.schema(), sandbox.state
    sandbox.undo(add_expires(), before=before)
    assert "expires_date" not in sandbox.schema()["columns"]
    sandbox.run(*three_steps())
    assert month_later(sandbox.rows())
    assert sandbox.schema() == one
    assert sandbox.state == state


def test_each_step_backwards(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    start = sandbox.state
    add, fill, require = three_steps()
    sandbox.run(add)
    added, schema = sandbox.state, sandbox.schema()
    assert sandbox.column("expires_date").nullable
    sandbox.run(fill)
    filled = sandbox.state
    sandbox.run(require)
    sandbox.undo(require, before=filled)
    assert sandbox.schema() == schema
    assert month_later(sandbox.rows())
    sandbox.undo(fill, before=added)
    assert month_later(sandbox.rows())
    sandbox.undo(add, before=start)
    assert "expires_date" not in sandbox.schema()["columns"]
    assert sandbox.rows().count() == 5


def test_an_empty_table(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.run(add_expires())
    assert not sandbox.column("expires_date").nullable


def test_run_twice_changes_nothing(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    before = sandbox.state
    sandbox.run(add_expires())
    schema, values = sandbox.schema(), sandbox.values("expires_date")
    sandbox.rows().filter(pk=sandbox.rows()[0].pk).update(expires_date=START)
    sandbox.state = before
    sandbox.run(add_expires())
    assert sandbox.schema() == schema
    assert sandbox.values("expires_date") == [START, *values[1:]]


def test_what_the_application_wrote_meanwhile_stays(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    add, fill, _ = three_steps()
    sandbox.run(add)
    sandbox.rows().filter(pk=sandbox.rows()[2].pk).update(expires_date=START)
    sandbox.run(fill)
    assert sandbox.values("expires_date")[2] == START
    assert None not in sandbox.values("expires_date")


def test_rows_that_come_in_behind_the_fill_are_filled_by_set_not_null(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    add, fill, require = three_steps()
    sandbox.run(add, fill)
    sandbox.fill(7)
    assert sandbox.values("expires_date").count(None) == 7
    sandbox.run(require)
    assert month_later(sandbox.rows())


def test_set_not_null_alone_proves_and_refuses(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    add, _, require = three_steps()
    sandbox.run(add)
    with pytest.raises(NullsRemain, match=r"3 rows of boxes.Question.expires_date on \w+ are still NULL"):
        sandbox.run(require)
    assert sandbox.column("expires_date").nullable
    sandbox.fill(1)  # Old code can still insert.
    sandbox.rows().update(expires_date=START)
    sandbox.run(require)
    assert not sandbox.column("expires_date").nullable


def test_set_not_null_refuses_any_other_change(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    add, fill, _ = three_steps()
    with pytest.raises(InvalidField, match="differs from the one in the migrations before it in: type"):
        sandbox.run(add, fill, SetNotNull("question", "expires_date", models.DateField()))


def test_an_index_may_come_with_set_not_null(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    add, fill, _ = three_steps()
    sandbox.run(add, fill)
    filled, schema = sandbox.state, sandbox.schema()
    require = SetNotNull("question", "expires_date", models.DateTimeField(db_index=True))
    sandbox.run(require)
    indexed = sandbox.schema()
    sandbox.undo(require, before=filled)
    assert sandbox.schema() == schema
    sandbox.run(SetNotNull("question", "expires_date", models.DateTimeField()))
    sandbox.run(migrations.AlterField("question", "expires_date", models.DateTimeField(db_index=True)))
    assert sandbox.schema() == indexed


def test_what_is_only_python_s_may_change_with_set_not_null(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    add, fill, _ = three_steps()
    field = models.DateTimeField("ends", default=timezone.now, blank=True, help_text="When?", editable=False)
    sandbox.run(add, fill, SetNotNull("question", "expires_date", field))
    assert not sandbox.column("expires_date").nullable
    assert sandbox.column("expires_date").has_default is False
    assert sandbox.model()._meta.get_field("expires_date").verbose_name == "ends"


@pytest.mark.parametrize(
    ("field", "populate", "why"),
    [
        (
            models.CharField(max_length=10),
            "abcdefghijklmnop",
            "it has 16 characters, and the column takes 10",
        ),
        (models.CharField(max_length=10), Value("abcdefghijklmnop"), "it has 16 characters"),
        (models.SmallIntegerField(), 70_000, "the column takes numbers from -32,768 to 32,767"),
        (models.PositiveIntegerField(), -1, "the column takes numbers from 0 to"),
        (
            models.DecimalField(max_digits=4, decimal_places=1),
            Decimal("12345.6"),
            "the column takes 3 digits before",
        ),
        (models.IntegerField(), "many", "expected a number but got 'many'"),
        (models.DateField(), "tomorrow", "has an invalid date format"),
        (models.UUIDField(), "x", "is not a valid UUID"),
    ],
    ids=str,
)
def test_a_constant_that_does_not_fit_is_refused_before_anything_is_done(
    alias: str, field: Any, populate: Any, why: str
) -> None:
    if alias == "default" and isinstance(
        field,
        models.CharField | models.SmallIntegerField | models.PositiveIntegerField | models.DecimalField,
    ):
        pytest.xfail("SQLite holds it")
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    before = sandbox.schema()
    with pytest.raises(InvalidPopulate, match=f"does not fit into .*{why}.* Nothing was changed"):
        sandbox.run(AddRequiredField("question", "code", field, populate))
    assert sandbox.schema() == before
    sandbox.fill(1)  # As old code does.


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
@pytest.mark.parametrize(
    "populate",
    [F("question_text"), lambda row: row.question_text, samples.copy_text],
    ids=["sql", "row", "loop"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_value_that_does_not_fit_is_not_cut_in_a_session_that_is_not_strict(
    alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch, populate: Any, workers: int
) -> None:
    settings.SAFEMIGRATE_WORKERS = workers
    options = connections[alias].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "init_command", "SET SESSION sql_mode = ''")
    connections[alias].close()
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5_000, question_text=lambda n: "long" * 10 if n == 4_999 else "short")
    with pytest.raises((BadRows, StepRefused)):
        sandbox.run(
            AddRequiredField("question", "code", models.CharField(max_length=9), populate, batch_size=200)
        )
    database = for_connection(connections[alias])
    assert database.fetch("SELECT count(*) FROM boxes_question WHERE code = 'longlongl'") == [(0,)]
    assert database.fetch("SELECT @@SESSION.sql_mode") == [("",)]  # The session is as it was.
    connections[alias].close()


def test_a_populate_without_a_mark_is_refused_where_there_are_rows(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    fill = Populate("question", "question_text", Value("new"))
    sandbox.run(fill)  # As a squashed migration does, on the table that it has just made.
    sandbox.fill(3)
    before = sandbox.values("question_text")
    with pytest.raises(InvalidPopulate, match=r"would change nothing: .*question_text is not null=True"):
        sandbox.run(fill)
    assert sandbox.values("question_text") == before
    with pytest.raises(InvalidPopulate, match="would change nothing"):
        sandbox.sql(fill)


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "sqlite"], indirect=True)
def test_a_transaction_is_refused_with_the_line_to_add(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    for operation in (add_expires(), three_steps()[0]):
        with pytest.raises(InTransaction, match="atomic = False"):
            sandbox.run(operation, atomic=True)
    assert "expires_date" not in sandbox.schema()["columns"]


def test_bad_rows_are_named_and_the_rest_is_filled(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(30)
    keys = sandbox.values("pk")
    before = sandbox.state
    with pytest.raises(BadRows) as caught:
        sandbox.run(add_expires(sometimes))
    assert caught.value.count == 12
    assert len(caught.value.examples) == 10
    text = str(caught.value)
    assert text.startswith(f"12 rows of boxes.Question.expires_date on {alias} got no value")
    assert f"{keys[0]}: the function returned None" in text
    assert f"{keys[3]}: LookupError: no date for Question 4?" in text
    sandbox.state = sandbox.after(three_steps()[0])
    assert sandbox.column("expires_date").nullable
    assert sandbox.values("expires_date").count(None) == 12
    sandbox.state = before
    sandbox.fill(1)  # Old code can still insert.
    sandbox.run(add_expires())  # The cure: another populate.
    assert month_later(sandbox.rows())


def sometimes(row: Any) -> Any:
    number = int(row.question_text.split()[1].rstrip("?"))
    if number % 5 == 4:
        raise LookupError(f"no date for {row.question_text}")
    return None if number % 5 == 1 else row.pub_date + MONTH


def test_an_expression_that_comes_out_as_null_is_a_bad_row(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("closed", models.DateTimeField(null=True))]))
    sandbox.fill(10, closed=lambda n: None if n == 4 else START)
    with pytest.raises(BadRows, match="its value came out as NULL") as caught:
        sandbox.run(add_expires(F("closed")))
    assert caught.value.count == 1
    assert caught.value.examples[0].key == sandbox.values("pk")[3]


def test_a_row_that_the_database_refuses_is_found(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("parts", models.IntegerField(default=1))]))
    sandbox.fill(300, parts=lambda n: n)
    add = AddRequiredField("question", "share", models.SmallIntegerField(), F("parts") * 120)
    if alias == "default":
        sandbox.run(add)  # SQLite stores any number in any column.
        return
    with pytest.raises(BadRows) as caught:
        sandbox.run(add)
    refused = [n for n in range(1, 301) if n * 120 > 32_767]
    assert caught.value.count == len(refused)
    assert [bad.key for bad in caught.value.examples] == [sandbox.values("pk")[n - 1] for n in refused[:10]]


def test_duplicates_stop_before_the_constraint(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(6)
    field = models.CharField(max_length=40, unique=True)
    before = sandbox.state
    with pytest.raises(DuplicateValues, match="2 values of boxes.Question.code") as caught:
        sandbox.run(AddRequiredField("question", "code", field, odd_or_even))
    assert "'even' in 3 rows" in str(caught.value)
    sandbox.state = sandbox.after(AddNullableField("question", "code", field))
    assert sandbox.column("code").nullable
    for row in sandbox.rows():
        sandbox.rows().filter(pk=row.pk).update(code=f"{row.code}{row.pk}")
    sandbox.state = before
    sandbox.run(AddRequiredField("question", "code", field, odd_or_even))
    assert not sandbox.column("code").nullable
    with pytest.raises(DatabaseError):
        sandbox.rows().update(code="same")


def test_a_foreign_key_to_nowhere_stops_before_the_constraint(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(4)
    keys = sandbox.values("pk")
    field = models.ForeignKey(f"{APP}.question", models.CASCADE)
    before, add = sandbox.state, AddRequiredField("question", "parent", field, F("pk") + 2)
    with pytest.raises(OrphanRows, match="2 rows of boxes.Question on") as caught:
        sandbox.run(add)
    assert f"{keys[2]}: {keys[2] + 2}" in str(caught.value)
    sandbox.state = sandbox.after(AddNullableField("question", "parent", field))
    assert sandbox.column("parent_id").nullable
    sandbox.rows().filter(pk__gte=keys[2]).update(parent=keys[0])
    sandbox.state = before
    sandbox.run(add)
    with pytest.raises(DatabaseError), connections[alias].constraint_checks_disabled():
        sandbox.rows().update(parent=None)


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_foreign_key_that_has_got_orphans_meanwhile_is_taken_back(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    field = models.ForeignKey(f"{APP}.question", models.CASCADE)
    after = sandbox.after(AddNullableField("question", "parent", field))
    sandbox.run(AddNullableField("question", "parent", field))
    sandbox.rows().update(parent=10**6)
    model = after.apps.get_model(APP, "question")
    database = for_connection(connections[alias])
    with pytest.raises(OrphanRows):
        runner.run(database, database.require(model, model, model._meta.get_field("parent")).after)
    assert all("'foreign_key': None" in constraint for constraint in sandbox.schema()["constraints"])
    assert database.fetch("SELECT @@SESSION.foreign_key_checks") == [(1,)]


def test_the_check_of_a_field_is_kept(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(AddRequiredField("question", "votes", models.PositiveIntegerField(), 0))
    with pytest.raises(DatabaseError):
        sandbox.rows().update(votes=-1)
    if alias == "mariadb" and not is_mysql(alias):  # MySQL's UNSIGNED does it; a CHECK would copy the table.
        created = for_connection(connections[alias]).fetch("SHOW CREATE TABLE boxes_question")[0][1]
        assert "CHECK (`votes` >= 0)" in created


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_table_that_the_server_would_have_to_copy_is_refused(alias: str, settings: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    with connections[alias].cursor() as cursor:
        cursor.execute("ALTER TABLE boxes_question ADD FULLTEXT INDEX words (question_text)")
    with pytest.raises(TableCopyNeeded, match="SAFEMIGRATE_ALLOW_TABLE_COPY = True"):
        sandbox.run(add_expires())
    assert "expires_date" not in sandbox.schema()["columns"]
    settings.SAFEMIGRATE_ALLOW_TABLE_COPY = True
    sandbox.run(add_expires())
    assert month_later(sandbox.rows())
    assert not sandbox.column("expires_date").nullable


def odd_or_even(row: Any) -> str:
    return "even" if int(row.question_text.split()[1].rstrip("?")) % 2 == 0 else "odd"


def test_routers_decide(alias: str, settings: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    settings.DATABASE_ROUTERS = [f"{__name__}.Never"]
    sandbox.run(add_expires())
    settings.DATABASE_ROUTERS = []
    assert "expires_date" not in sandbox.schema()["columns"]
    assert "expires_date" in sandbox.state.models[APP, "question"].fields


class Never:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return False


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_each_alias_is_filled_on_its_own_connection(alias: str) -> None:
    with cleaned("postgresql_archive", "default"):
        boxes = [MigrationSandbox(name) for name in (alias, "postgresql_archive", "default")]
        for number, sandbox in enumerate(boxes, 1):
            sandbox.fill(number)
        for number, sandbox in enumerate(boxes, 1):
            populated.clear()
            sandbox.run(add_expires(note_alias))
            assert populated == [sandbox.alias] * number
            assert month_later(sandbox.rows())


populated: list[str] = []


def note_alias(row: Any) -> Any:
    populated.append(row._state.db)
    return row.pub_date + MONTH


def test_sqlmigrate_shows_and_touches_nothing(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    schema = sandbox.schema()
    text = sandbox.sql(add_expires())
    assert sandbox.schema() == schema
    assert "ADD COLUMN" in text
    assert "NOT NULL" in text
    assert "-- fill expires_date by" in text
    assert "-- UPDATE" in text
    assert "AND <the primary key is in the range>;" in text
    assert "computes the values" in sandbox.sql(add_expires(uuid.uuid4))


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_no_statement_on_postgresql_needs_the_table_for_long(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(add_expires())
    new = connections[alias].pg_version >= 180000
    constraint = (
        'ADD CONSTRAINT "boxes_question_expires_date_not_null" NOT NULL "expires_date" NOT VALID'
        if new
        else 'ADD CONSTRAINT "boxes_question_expires_date_safemigrate" CHECK ("expires_date" IS NOT NULL) NOT VALID'
    )
    name = constraint.split('"')[1]
    table = 'ALTER TABLE "boxes_question" '
    expected = [
        table + 'ADD COLUMN "expires_date" timestamp with time zone NULL',
        table + constraint,
        table + f'VALIDATE CONSTRAINT "{name}"',
    ]
    if not new:
        expected += [table + 'ALTER COLUMN "expires_date" SET NOT NULL', table + f'DROP CONSTRAINT "{name}"']
    assert statements.like("ALTER") == expected


STOPPED: dict[str, Any] = {
    "an expression": add_expires,
    "unique": lambda: AddRequiredField("question", "code", models.UUIDField(unique=True), uuid.uuid4),
    "an index": lambda: AddRequiredField(
        "question", "state", models.CharField(max_length=9, db_index=True), "new"
    ),
    "a foreign key": lambda: AddRequiredField(
        "question", "parent", models.ForeignKey(f"{APP}.question", models.CASCADE), F("pk")
    ),
    "a check": lambda: AddRequiredField("question", "votes", models.PositiveIntegerField(), 0),
    "a default": lambda: AddRequiredField("question", "votes", models.IntegerField(db_default=7), 0),
}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("kind", STOPPED)
def test_stopped_at_any_statement_on_sqlite_the_next_run_ends_the_same(
    alias: str, kind: str, first: int
) -> None:
    stop_at_each(alias, STOPPED[kind](), first, 3)


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
@pytest.mark.parametrize("kind", STOPPED)
def test_stopped_at_any_statement_the_next_run_ends_the_same(alias: str, kind: str) -> None:
    stop_at_each(alias, STOPPED[kind]())


def stop_at_each(
    alias: str, operation: Any, first: int = 0, step: int = 1, fields: Sequence[tuple[str, Any]] = ()
) -> None:
    """Stop the operation after each change, of which only each so many-th is taken, and run it again.

    `fields` are those that the table has before it; each time they are NULL again.
    """
    sandbox = MigrationSandbox(alias, question(fields=fields))
    sandbox.fill(3)
    before = sandbox.state
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(operation)
    clean, state = sandbox.schema(), sandbox.state
    stops = statements.stops[first::step]
    assert len(stops) * step > 5
    for at in stops:
        sandbox.undo(operation, before=before)
        if fields:
            sandbox.rows().update(**{name: None for name, _ in fields})
        with pytest.raises(Statements.Crash), connections[alias].execute_wrapper(Statements(stop_at=at)):
            sandbox.run(operation)
            raise AssertionError(f"not stopped at statement {at}")
        connections[alias].close()  # What the process held is gone with it.
        sandbox.run(operation)
        assert sandbox.schema() == clean, statements.texts[at]
        assert None not in sandbox.values(operation.name)
    assert sandbox.state == state


def test_refused_fields() -> None:
    for field, words in {
        models.ManyToManyField("question"): "many-to-many",
        models.AutoField(primary_key=True): "primary key",
        models.IntegerField(null=True): "null=True",
        models.GeneratedField(
            expression=F("id"), output_field=models.IntegerField(), db_persist=True
        ): "generated field",
    }.items():
        for make in (
            lambda field: AddRequiredField("question", "new", field, 1),
            lambda field: AddNullableField("question", "new", field),
            lambda field: SetNotNull("question", "new", field),
        ):
            with pytest.raises(InvalidField, match=words):
                make(field)


def test_a_populate_that_cannot_be_imported_leaves_the_table_alone(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    with pytest.raises(InvalidPopulate, match='"tests.nowhere.f" looks like a dotted path'):
        sandbox.run(add_expires("tests.nowhere.f"))
    assert "expires_date" not in sandbox.schema()["columns"]


def test_unmanaged_and_proxy_models_are_left_alone(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(managed=False))
    sandbox.run(add_expires())
    assert "boxes_question" not in connections[alias].introspection.table_names()


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_triggers_and_indexes_of_the_database_survive_the_copy(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE INDEX by_hand ON boxes_question (pub_date) WHERE pub_date > '2000'")
        cursor.execute(
            "CREATE TRIGGER upper_text AFTER INSERT ON boxes_question BEGIN "
            "UPDATE boxes_question SET question_text = upper(question_text) WHERE id = NEW.id; END"
        )
    sandbox.run(add_expires())
    sandbox.fill(1, expires_date=START)
    assert sandbox.values("question_text")[-1] == "QUESTION 1?"
    assert "by_hand" in str(sandbox.schema())


def test_a_later_migration_is_not_folded_into_the_fill() -> None:
    from django.db.migrations.optimizer import MigrationOptimizer

    alter = migrations.AlterField("question", "expires_date", models.DateField())
    steps = three_steps()
    optimize = MigrationOptimizer().optimize
    assert optimize([add_expires(), alter], APP)[0].__class__ is AddRequiredField
    assert [type(op) for op in optimize(steps, APP)] == [AddNullableField, Populate, SetNotNull]
    remove = migrations.RemoveField("question", "expires_date")
    assert optimize([add_expires(), remove], APP) == []
    (created,) = optimize([question(), add_expires()], APP)
    assert [name for name, _ in created.fields][-1] == "expires_date"


def test_a_squashed_migration_makes_the_same_table(alias: str) -> None:
    from django.db.migrations.optimizer import MigrationOptimizer

    sandbox = MigrationSandbox(alias)
    sandbox.run(*three_steps())
    schema = sandbox.schema()
    sandbox.run(migrations.DeleteModel("Question"))
    squashed = MigrationOptimizer().optimize([question(), *three_steps()], APP)
    fresh = MigrationSandbox(alias)
    fresh.run(migrations.DeleteModel("Question"))
    fresh.run(*squashed, atomic=True)  # squashmigrations does not carry `atomic = False` over.
    assert fresh.schema() == schema
