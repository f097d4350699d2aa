"""A field that is there as null=True is made required: forwards, backwards, twice, under old code that knows it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connections, migrations, models
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.models import F, Value
from django.db.models.functions import Concat, Upper

from safemigrate.backends import for_connection
from safemigrate.exceptions import (
    DuplicateValues,
    InTransaction,
    InvalidField,
    InvalidPopulate,
    NullsRemain,
)
from safemigrate.operations import (
    AddNullableField,
    GuardWrites,
    Populate,
    RequireField,
    SetNotNull,
    UnguardWrites,
)
from safemigrate.populate import PerRow, Suffix
from tests.operations.test_guards import SERVERS, AtEach, triggers
from tests.operations.test_operations import stop_at_each
from tests.support.sandbox import APP, MigrationSandbox, Statements, question
from tests.support.sessions import another, run

CODE = models.CharField(max_length=50)


def nullable(field: models.Field[Any, Any]) -> Any:
    clone: Any = field.clone()
    clone.null = True
    return clone


def with_code(
    alias: str, field: Any = None, rows: int = 6, value: Callable[[int], Any] = str
) -> MigrationSandbox:
    """A table whose every second row has no code."""
    sandbox = MigrationSandbox(alias, question(fields=[("code", field or nullable(CODE))]))
    sandbox.fill(rows, code=lambda n: value(n) if n % 2 else None)
    return sandbox


def require(populate: Any = "", field: Any = CODE, **options: Any) -> RequireField:
    return RequireField("question", "code", field, populate, **options)


def write_null(sandbox: MigrationSandbox) -> None:
    """What code does that knows the field as nullable: an insert, and a save of an instance loaded before."""
    with another(sandbox.alias) as other:
        run(
            other,
            "INSERT INTO boxes_question (question_text, pub_date, code) VALUES ('Old?', '2026-01-01 12:00:00', NULL)",
        )
        run(other, "UPDATE boxes_question SET code = NULL, question_text = 'Stale?' WHERE id = 1")


def test_rows_without_a_value_get_one_and_the_others_keep_theirs(alias: str) -> None:
    sandbox = with_code(alias, rows=2_500)
    sandbox.run(require(Concat(Value("no "), "id", output_field=models.CharField())))
    assert sandbox.values("code") == [str(n) if n % 2 else f"no {n}" for n in range(1, 2_501)]
    assert not sandbox.column("code").nullable
    assert triggers(alias) == []


POPULATES: dict[str, tuple[Any, Any, Any]] = {
    "a constant": (CODE, "new", "new"),
    "an empty text": (CODE, "", ""),
    "an expression": (CODE, Upper("question_text"), "QUESTION 2?"),
    "a function of a row": (CODE, lambda row: row.question_text[:8], "Question"),
    "a number": (models.IntegerField(), 0, 0),
    "a truth": (models.BooleanField(), False, False),
    "JSON": (models.JSONField(), dict, {}),
}


@pytest.mark.parametrize("kind", POPULATES)
def test_each_kind_of_populate(alias: str, kind: str) -> None:
    field, populate, expected = POPULATES[kind]
    sandbox = with_code(alias, nullable(field), rows=2, value=lambda n: expected)
    sandbox.run(require(populate, field))
    assert sandbox.values("code") == [expected, expected]
    assert not sandbox.column("code").nullable


def test_the_end_is_that_of_django_s_own_operation(alias: str) -> None:
    field = models.CharField(max_length=50, db_index=True, unique=True)
    sandbox = with_code(alias, nullable(field))
    sandbox.run(migrations.AlterField("question", "code", nullable(field)), require(F("id"), field))
    ours, state = sandbox.schema(), sandbox.state
    for_connection(connections[alias])
    with connections[alias].schema_editor() as editor:
        editor.delete_model(sandbox.model())
    other = MigrationSandbox(alias, question(fields=[("code", nullable(field))]))
    other.run(migrations.AlterField("question", "code", field))
    assert other.schema() == ours
    assert other.state == state


@pytest.mark.parametrize(
    "field",
    [
        CODE,
        models.CharField(max_length=50, db_index=True),
        models.CharField(max_length=50, unique=True),
        models.PositiveIntegerField(),
        models.ForeignKey(f"{APP}.question", models.CASCADE),
    ],
    ids=["plain", "index", "unique", "check", "foreign key"],
)
def test_backwards_the_table_is_as_it_was_and_the_values_stay(alias: str, field: Any) -> None:
    sandbox = with_code(alias, nullable(field), value=lambda n: n if not field.remote_field else None)
    before, schema = sandbox.state, sandbox.schema()
    operation = require(F("id"), field)
    sandbox.run(operation)
    values = sandbox.values("code")
    assert None not in values
    sandbox.undo(operation, before=before)
    assert sandbox.schema() == schema
    assert sandbox.values("code") == values
    sandbox.run(operation)
    assert not sandbox.column("code_id" if field.remote_field else "code").nullable


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CODE, models.CharField(max_length=50, db_index=True)),
        (CODE, models.CharField(max_length=50, unique=True)),
        (
            models.ForeignKey(f"{APP}.question", models.CASCADE, db_constraint=False, db_index=False),
            models.ForeignKey(f"{APP}.question", models.CASCADE),
        ),
    ],
    ids=["index", "unique", "foreign key"],
)
def test_what_the_column_lacked_is_made_and_taken_back(alias: str, before: Any, after: Any) -> None:
    sandbox = with_code(alias, nullable(before), value=lambda n: None if after.remote_field else n)
    start, schema = sandbox.state, sandbox.schema()
    operation = require(F("id"), after)
    sandbox.run(operation)
    made = sandbox.schema()
    assert made["constraints"] != schema["constraints"]
    sandbox.undo(operation, before=start)
    assert sandbox.schema() == schema
    sandbox.run(require(F("id"), before), migrations.AlterField("question", "code", after))
    if not (
        alias == "mariadb" and after.remote_field
    ):  # There Django makes one more index than AddField does.
        assert sandbox.schema() == made


def test_an_index_under_an_older_name_is_not_made_twice(alias: str) -> None:
    field = models.CharField(max_length=50, db_index=True)
    sandbox = MigrationSandbox(alias, question(fields=[("tag", nullable(field))]))
    sandbox.fill(4)
    sandbox.run(migrations.RenameField("question", "tag", "code"))
    indexes = indexes_of(sandbox)
    sandbox.run(require("", field))
    assert indexes_of(sandbox) == indexes


def indexes_of(sandbox: MigrationSandbox) -> list[str]:
    return [each for each in sandbox.schema()["constraints"] if "'index': True" in each]


def test_run_twice_changes_nothing(alias: str) -> None:
    sandbox = with_code(alias)
    before = sandbox.state
    sandbox.run(require("new"))
    schema, values = sandbox.schema(), sandbox.values("code")
    sandbox.state = before
    sandbox.run(require("other"))
    assert sandbox.schema() == schema
    assert sandbox.values("code") == values
    assert triggers(alias) == []


def test_an_empty_table(alias: str) -> None:
    sandbox = with_code(alias, rows=0)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(require("new"))
    assert not sandbox.column("code").nullable
    assert not statements.like("UPDATE")
    assert "guard" not in "".join(statements.texts)


def test_without_a_populate_it_proves_and_requires(alias: str) -> None:
    sandbox = with_code(alias)
    before, schema = sandbox.state, sandbox.schema()
    with pytest.raises(
        NullsRemain, match=r"3 rows of boxes\.Question\.code .* The first keys: 2, 4, 6\. .* give Req"
    ):
        sandbox.run(require(None))
    assert sandbox.schema() == schema
    sandbox.rows().filter(code=None).update(code="mine")
    sandbox.state = before
    sandbox.run(require(None))
    assert not sandbox.column("code").nullable


def test_a_populate_of_an_earlier_migration_is_not_run_by_one_without(alias: str) -> None:
    sandbox = with_code(alias)
    sandbox.run(Populate("question", "code", "first"))
    sandbox.rows().filter(pk=2).update(code=None)
    with pytest.raises(NullsRemain, match="1 rows"):
        sandbox.run(require(None))


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
@pytest.mark.parametrize(
    ("field", "populate", "expected"),
    [
        (CODE, "", {""}),
        (CODE, Value("x"), {"x"}),
        (models.UUIDField(), uuid.uuid4, None),
        (CODE, Upper("question_text"), {"OLD?", "STALE?", "QUESTION 2?", "QUESTION 4?", "QUESTION 6?"}),
    ],
    ids=["constant", "value", "uuid", "expression"],
)
def test_code_that_knows_the_field_writes_null_before_during_and_after(
    alias: str, field: Any, populate: Any, expected: set[Any] | None
) -> None:
    sandbox = with_code(alias, nullable(field), value=lambda n: None)
    write_null(sandbox)
    writes: list[int] = []

    def write() -> None:
        write_null(sandbox)
        writes.append(1)

    with connections[alias].execute_wrapper(AtEach(write)):
        sandbox.run(require(populate, field, keep_guard=True))
    write_null(sandbox)
    assert len(writes) > 2
    values = sandbox.values("code")
    assert None not in values
    assert not sandbox.column("code").nullable
    assert expected is None or set(values) <= expected | {"QUESTION 3?", "QUESTION 5?"}
    sandbox.run(UnguardWrites("question", "code"))
    assert triggers(alias) == []
    with pytest.raises(DatabaseError):
        write_null(sandbox)


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_default_of_the_database_s_own_stays(alias: str) -> None:
    sandbox = with_code(alias)
    run(connections[alias], "ALTER TABLE boxes_question ALTER COLUMN code SET DEFAULT 'by hand'")
    before = sandbox.state
    operation = require("")
    sandbox.run(operation)
    assert sandbox.column("code").has_default
    sandbox.undo(operation, before=before)
    assert sandbox.column("code").has_default


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_sqlite_cannot_keep_a_guard_and_says_so(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = with_code(alias)
    sandbox.run(require("", keep_guard=True))
    assert "the guard could not be kept" in caplog.text
    assert "Writes of NULL fail from now on" in caplog.text
    assert triggers(alias) == []


def test_in_three_files_code_that_writes_null_goes_on_until_the_third(alias: str) -> None:
    sandbox = with_code(alias, value=lambda n: None)
    sandbox.run(GuardWrites("question", "code", "new"))
    write_null(sandbox)
    assert sandbox.values("code").count("new") == 2
    sandbox.run(Populate("question", "code", "new"))
    write_null(sandbox)
    sandbox.run(SetNotNull("question", "code", CODE), UnguardWrites("question", "code"))
    assert set(sandbox.values("code")) == {"new"}
    assert triggers(alias) == []
    with pytest.raises(DatabaseError):
        write_null(sandbox)


def test_a_column_that_was_added_by_us_has_no_index_yet(alias: str) -> None:
    field = models.CharField(max_length=50, db_index=True)
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(AddNullableField("question", "code", field))
    before, schema = sandbox.state, sandbox.schema()
    operation = require("new", field)
    sandbox.run(operation)
    assert any("'code'" in each and "'index': True" in each for each in sandbox.schema()["constraints"])
    sandbox.undo(operation, before=before)
    assert sandbox.schema() == schema


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (models.CharField(max_length=60), "max_length"),
        (models.TextField(), "type"),
        (models.CharField(max_length=50, db_default="x"), "db_default"),
        (models.CharField(max_length=50, db_column="other"), "db_column"),
    ],
    ids=str,
)
def test_any_other_change_of_the_column_is_refused(alias: str, after: Any, what: str) -> None:
    sandbox = with_code(alias)
    schema = sandbox.schema()
    with pytest.raises(
        InvalidField, match=rf"RequireField only makes .* in: .*{what}.* by migrations\.AlterField"
    ):
        sandbox.run(require("", after))
    assert sandbox.schema() == schema


def test_a_lost_index_is_a_change_of_its_own(alias: str) -> None:
    sandbox = with_code(alias, models.CharField(max_length=50, db_index=True, null=True))
    with pytest.raises(InvalidField, match="in: db_index"):
        sandbox.run(require(""))


def test_what_is_only_python_s_may_change_with_it(alias: str) -> None:
    sandbox = with_code(alias)
    field = models.CharField(
        "Code", max_length=50, blank=True, default="", choices=[("", "none"), ("1", "one")]
    )
    sandbox.run(require("", field))
    assert not sandbox.column("code").nullable
    assert sandbox.model()._meta.get_field("code").default == ""


def test_values_that_are_to_be_unique(alias: str) -> None:
    field = models.CharField(max_length=50, unique=True)
    sandbox = with_code(alias, value=lambda n: "same")
    with pytest.raises(DuplicateValues, match="'same' in 3 rows"):
        sandbox.run(require(F("id"), field))
    assert sandbox.column("code").nullable
    sandbox.rows().update(code=None)
    sandbox.rows().filter(pk=1).update(code="same")
    sandbox.run(require(PerRow(lambda row: "same", unique=Suffix("-")), field))
    assert len(set(sandbox.values("code"))) == 6


@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_a_transaction_is_refused(alias: str) -> None:
    sandbox = with_code(alias)
    with pytest.raises(InTransaction, match=r"RequireField (?s:.*) atomic = False"):
        sandbox.run(require(""), atomic=True)


def test_a_guard_needs_a_populate() -> None:
    with pytest.raises(InvalidPopulate, match="keep_guard needs a populate"):
        require(None, keep_guard=True)


def test_sqlmigrate_shows_and_touches_nothing(alias: str) -> None:
    sandbox = with_code(alias)
    schema, values = sandbox.schema(), sandbox.values("code")
    shown = sandbox.sql(require("new"))
    assert sandbox.schema() == schema
    assert sandbox.values("code") == values
    assert "NOT NULL" in shown
    assert "TRIGGER" in shown
    assert "fill code by 'new'" in shown


def test_squashed_the_table_is_made_with_the_column_required(alias: str) -> None:
    operations = [question(fields=[("code", nullable(CODE))]), require("new")]
    squashed = MigrationOptimizer().optimize(operations, APP)
    assert len(squashed) == 1
    sandbox = MigrationSandbox(alias, *squashed)
    assert not sandbox.column("code").nullable


def test_written_and_read_again_it_is_the_same() -> None:
    operation = require(Upper("question_text"), batch_size=10, keep_guard=True)
    name, args, kwargs = operation.deconstruct()
    again = RequireField(*args, **kwargs)
    assert (name, again.deconstruct()) == ("RequireField", operation.deconstruct())
    assert require(None).deconstruct()[2].keys() == {"model_name", "name", "field"}
    assert operation.migration_name_fragment == "question_code_require"
    assert "Make field code of question required" in operation.describe()


STOPPED: dict[str, tuple[Any, Any, Any]] = {
    "a constant": (CODE, CODE, "new"),
    "an expression": (CODE, CODE, Upper("question_text")),
    "an index": (CODE, models.CharField(max_length=50, db_index=True), "new"),
    "unique": (models.UUIDField(), models.UUIDField(unique=True), uuid.uuid4),
    "a foreign key": (
        models.ForeignKey(f"{APP}.question", models.CASCADE, db_constraint=False),
        models.ForeignKey(f"{APP}.question", models.CASCADE),
        F("pk"),
    ),
}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", STOPPED)
def test_stopped_at_some_statements_the_next_run_ends_the_same(alias: str, kind: str) -> None:
    before, after, populate = STOPPED[kind]
    stop_at_each(alias, require(populate, after), 1, 5, fields=[("code", nullable(before))])


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["sqlite", *SERVERS], indirect=True)
@pytest.mark.parametrize("kind", STOPPED)
def test_stopped_at_any_statement_the_next_run_ends_the_same(alias: str, kind: str) -> None:
    before, after, populate = STOPPED[kind]
    stop_at_each(alias, require(populate, after), fields=[("code", nullable(before))])


def test_where_a_guard_cannot_be_it_says_so_once(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = with_code(alias)
    with caplog.at_level(logging.INFO, "safemigrate"):
        sandbox.run(require(lambda row: row.question_text))
    assert not sandbox.column("code").nullable
    assert caplog.text.count("is not guarded") == 0


@pytest.mark.parametrize("operation", [SetNotNull, RequireField], ids=["SetNotNull", "RequireField"])
@pytest.mark.parametrize(
    "field",
    [models.CharField(max_length=50, db_index=True), models.CharField(max_length=50, unique=True)],
    ids=["index", "unique"],
)
def test_a_change_between_the_steps_does_not_lose_the_index(alias: str, field: Any, operation: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(AddNullableField("question", "code", field), Populate("question", "code", F("id")))
    changed = nullable(field)
    changed.help_text = "Which?"
    sandbox.run(migrations.AlterField("question", "code", changed))
    sandbox.run(operation("question", "code", field))
    made = sandbox.schema()
    other = with_code_added(alias, sandbox, field)
    assert other == made


def with_code_added(alias: str, sandbox: MigrationSandbox, field: Any) -> dict[str, Any]:
    """The table as it is where all steps follow one another."""
    with connections[alias].schema_editor() as editor:
        editor.delete_model(sandbox.model())
    fresh = MigrationSandbox(alias)
    fresh.fill(3)
    fresh.run(AddNullableField("question", "code", field), Populate("question", "code", F("id")))
    fresh.run(SetNotNull("question", "code", field))
    return fresh.schema()
