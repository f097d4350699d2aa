"""Tables as they are: every sort of key, name, schema, manager, inheritance; cut into many ranges."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connections, migrations, models, transaction
from django.db.backends.signals import connection_created
from django.db.models import F, Value
from django.db.models.functions import Lower

from safemigrate.backends import for_connection
from safemigrate.exceptions import BadRows, InvalidPopulate
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.populate import FromRelated
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, Statements, month_later, question

pytestmark = pytest.mark.matrix

ROWS = 40
BATCH = 7
LATER = F("pub_date") + timedelta(days=30)
POPULATES: dict[str, Any] = {"by SQL": LATER, "by Python": lambda row: row.pub_date + MONTH}
KEY = ("id", models.BigAutoField(primary_key=True))


def add(populate: Any, model: str = "question", **options: Any) -> AddRequiredField:
    field = models.DateTimeField("expires at", **options)
    return AddRequiredField(model, "expires_date", field, populate, batch_size=BATCH)


def updates(sandbox: MigrationSandbox, operation: Any) -> list[str]:
    """Run it, and return the UPDATEs of all connections: a thread writes what Python made."""
    statements = Statements()

    def opened(connection: Any, **kwargs: Any) -> None:
        if statements not in connection.execute_wrappers:
            connection.execute_wrappers.append(statements)

    connection_created.connect(opened)
    try:
        with connections[sandbox.alias].execute_wrapper(statements):
            sandbox.run(operation)
    finally:
        connection_created.disconnect(opened)
    return statements.like("UPDATE")


@pytest.fixture(params=POPULATES)
def populate(request: pytest.FixtureRequest) -> Any:
    return POPULATES[request.param]


# Primary keys

KEYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "negative": (models.IntegerField(primary_key=True), {"id": lambda n: n - 20}),
    "sparse": (models.BigIntegerField(primary_key=True), {"id": lambda n: n**9 * (-1) ** n}),
    "backwards": (models.IntegerField(primary_key=True), {"id": lambda n: -n}),
    "UUID": (
        models.UUIDField(primary_key=True),
        {"id": lambda n: uuid.uuid5(uuid.NAMESPACE_URL, str(n))},
    ),
    "text": (
        models.CharField(max_length=40, primary_key=True),
        {"id": lambda n: ("Ä", "b", "B%", "_c", "'d")[n % 5] + str(n)},
    ),
    "date": (models.DateField(primary_key=True), {"id": lambda n: (START + timedelta(days=n**2)).date()}),
    "time": (models.DateTimeField(primary_key=True), {"id": lambda n: START + timedelta(microseconds=n)}),
    "decimal": (
        models.DecimalField(max_digits=9, decimal_places=3, primary_key=True),
        {"id": lambda n: f"{(-1) ** n * n / 8:.3f}"},
    ),
    "db_column": (models.IntegerField(primary_key=True, db_column="The Key"), {"id": lambda n: n}),
    "automatic": (models.AutoField(primary_key=True), {}),
    "small": (models.SmallAutoField(primary_key=True), {}),
}


@pytest.mark.parametrize("kind", KEYS)
def test_any_single_key(alias: str, kind: str, populate: Any) -> None:
    key, values = KEYS[kind]
    sandbox = MigrationSandbox(alias, question(key=("id", key)))
    sandbox.fill(ROWS, **values)
    texts = sandbox.values("question_text")
    assert len(updates(sandbox, add(populate))) >= ROWS // BATCH
    assert month_later(sandbox.rows())
    assert sandbox.values("question_text") == texts
    assert not sandbox.column("expires_date").nullable


COMPOSITE: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "integers": (
        [("tenant", models.IntegerField()), ("code", models.IntegerField())],
        {"tenant": lambda n: n % 3 - 1, "code": lambda n: n},
    ),
    "one tenant": (
        [("tenant", models.IntegerField()), ("code", models.IntegerField())],
        {"tenant": 1, "code": lambda n: n},
    ),
    "text and UUID": (
        [("tenant", models.CharField(max_length=20)), ("code", models.UUIDField())],
        {"tenant": lambda n: "Äb_%'"[n % 5], "code": lambda n: uuid.uuid5(uuid.NAMESPACE_URL, str(n))},
    ),
    "date and integer": (
        [("tenant", models.DateField()), ("code", models.IntegerField(db_column="No."))],
        {"tenant": lambda n: (START + timedelta(days=n % 4)).date(), "code": lambda n: -n},
    ),
}


def composite(alias: str, kind: str) -> MigrationSandbox:
    fields, values = COMPOSITE[kind]
    sandbox = MigrationSandbox(
        alias, question(key=("pk", models.CompositePrimaryKey("tenant", "code")), fields=fields)
    )
    sandbox.fill(ROWS, **values)
    return sandbox


@pytest.mark.parametrize("kind", COMPOSITE)
def test_a_composite_key(alias: str, kind: str, populate: Any) -> None:
    sandbox = composite(alias, kind)
    assert len(updates(sandbox, add(populate))) >= ROWS // BATCH
    assert month_later(sandbox.rows())
    assert not sandbox.column("expires_date").nullable


def test_a_composite_key_with_a_function_of_no_arguments_and_a_unique_field(alias: str) -> None:
    sandbox = composite(alias, "integers")
    token = models.UUIDField(unique=True)
    sandbox.run(AddRequiredField("question", "token", token, uuid.uuid4, batch_size=BATCH))
    assert len(set(sandbox.values("token"))) == ROWS


@pytest.mark.parametrize("kind", ["integers", "text and UUID"])
def test_rows_of_a_composite_key_that_get_no_value_are_named(alias: str, kind: str) -> None:
    sandbox = composite(alias, kind)
    bad = sandbox.rows()[ROWS // 2].pk
    with pytest.raises(BadRows) as caught:
        sandbox.run(add(lambda row: None if row.pk == bad else row.pub_date + MONTH))
    assert [row.key for row in caught.value.examples] == [bad]
    sandbox.state = sandbox.after(AddNullableField("question", "expires_date", models.DateTimeField()))
    assert sandbox.rows().filter(expires_date=None).count() == 1
    sandbox.run(
        Populate("question", "expires_date", lambda row: row.pub_date + MONTH),
        SetNotNull("question", "expires_date", models.DateTimeField("expires at")),
    )
    assert month_later(sandbox.rows())


def test_a_composite_key_over_several_fields(alias: str) -> None:
    sandbox = composite(alias, "text and UUID")
    state, votes = models.CharField(max_length=9), models.IntegerField()
    both = Populate(
        "question", ["state", "votes"], lambda row: {"state": row.tenant, "votes": 7}, batch_size=BATCH
    )
    sandbox.run(
        AddNullableField("question", "state", state),
        AddNullableField("question", "votes", votes),
        both,
        SetNotNull("question", "state", state),
        SetNotNull("question", "votes", votes),
    )
    assert sandbox.values("state") == sandbox.values("tenant")
    assert sandbox.values("votes") == [7] * ROWS


def test_a_key_that_is_a_foreign_key(alias: str, populate: Any) -> None:
    page = migrations.CreateModel("Page", [KEY])
    to_page = models.OneToOneField(f"{APP}.page", models.CASCADE, primary_key=True)
    sandbox = MigrationSandbox(alias, page, question(key=("page", to_page)))
    pages = sandbox.rows("Page").bulk_create([sandbox.model("Page")() for _ in range(ROWS)])
    keys = sandbox.values("pk", "Page")
    assert len(pages) == len(keys) == ROWS
    sandbox.fill(ROWS, page_id=lambda n: keys[n - 1])
    sandbox.run(add(populate))
    assert month_later(sandbox.rows())


# Inheritance


def with_child(alias: str) -> MigrationSandbox:
    parent = models.OneToOneField(
        f"{APP}.question",
        models.CASCADE,
        auto_created=True,
        parent_link=True,
        primary_key=True,
        serialize=False,
    )
    fields = [("question_ptr", parent), ("opens", models.DateTimeField())]
    sandbox = MigrationSandbox(
        alias, question(), migrations.CreateModel("Quiz", fields, bases=(f"{APP}.question",))
    )
    sandbox.fill(5)  # Questions that are no quizzes, so that the keys differ.
    for n in range(ROWS):
        hours = timedelta(hours=n)
        quiz = sandbox.model("Quiz")(question_text=f"Quiz {n}?", pub_date=START + hours, opens=START - hours)
        quiz.save(using=alias)
    return sandbox


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (FromRelated("question_ptr__pub_date"), lambda row: row.pub_date),
        (lambda row: row.pub_date + MONTH, lambda row: row.pub_date + MONTH),
        (F("opens"), lambda row: row.opens),
        (lambda: START, lambda row: START),
    ],
    ids=["FromRelated", "a row function", "an expression", "a function"],
)
def test_a_column_of_a_child(alias: str, given: Any, expected: Callable[[Any], Any]) -> None:
    sandbox = with_child(alias)
    assert len(updates(sandbox, add(given, "quiz"))) >= ROWS // BATCH
    assert all(row.expires_date == expected(row) for row in sandbox.rows("Quiz"))
    assert not sandbox.column("expires_date", "Quiz").nullable
    assert "expires_date" not in sandbox.schema()["columns"]


def test_a_column_of_a_parent(alias: str, populate: Any) -> None:
    sandbox = with_child(alias)
    sandbox.run(add(populate))
    assert sandbox.rows().count() == ROWS + 5
    assert month_later(sandbox.rows())
    assert month_later(sandbox.rows("Quiz"))


@pytest.mark.parametrize(
    "given", [LATER, F("pub_date"), Lower("question_text")], ids=["sum", "F", "function"]
)
def test_an_expression_on_a_column_of_the_parent_says_what_to_write(alias: str, given: Any) -> None:
    with pytest.raises(InvalidPopulate, match="FromRelated") as caught:
        with_child(alias).run(add(given, "quiz"))
    assert "expires_date" in str(caught.value)


def test_an_expression_that_goes_through_a_foreign_key_says_what_to_write(alias: str) -> None:
    page = migrations.CreateModel("Page", [KEY, ("opens", models.DateTimeField())])
    to_page = models.ForeignKey(f"{APP}.page", models.CASCADE, null=True)
    sandbox = MigrationSandbox(alias, page, question(fields=[("page", to_page)]))
    sandbox.fill(3)
    with pytest.raises(InvalidPopulate, match="FromRelated"):
        sandbox.run(add(F("page__opens")))


def test_an_expression_that_names_no_field_is_refused(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    with pytest.raises(InvalidPopulate, match="Cannot resolve keyword 'nowhere'"):
        sandbox.run(add(F("nowhere")))


# Names

TABLES = ["Roads_TABLE", "order", "a table", "it's", "boxes_question_" + "x" * 48]
COLUMNS = ["ExpiresAt", "select", "a column", "it's", "expires_" + "x" * 55]


@pytest.mark.parametrize("table", TABLES)
def test_names_of_tables(alias: str, table: str, populate: Any) -> None:
    sandbox = MigrationSandbox(alias, question(db_table=table))
    sandbox.fill(ROWS)
    before, schema = sandbox.state, sandbox.schema()
    operation = add(populate, db_index=True)
    sandbox.run(operation)
    assert month_later(sandbox.rows())
    ours = sandbox.schema()
    sandbox.undo(operation, before=before)
    assert sandbox.schema() == schema
    made = models.DateTimeField(default=START, db_index=True)
    sandbox.run(migrations.AddField("question", "expires_date", made, preserve_default=False))
    assert ours == sandbox.schema()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("unique", [False, True])
def test_names_of_columns(alias: str, column: str, unique: bool, populate: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(ROWS)
    before, schema = sandbox.state, sandbox.schema()
    operation = add(populate, db_column=column, unique=unique)
    sandbox.run(operation)
    assert month_later(sandbox.rows())
    assert not sandbox.column(column).nullable
    ours = sandbox.schema()
    sandbox.undo(operation, before=before)
    assert sandbox.schema() == schema
    sandbox.rows().delete()
    bare = models.DateTimeField(null=True, db_column=column)
    final = models.DateTimeField(db_column=column, unique=unique)
    sandbox.run(
        migrations.AddField("question", "expires_date", bare),
        migrations.AlterField("question", "expires_date", final),
    )
    assert ours == sandbox.schema()


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_names_that_postgresql_cuts(alias: str, populate: Any) -> None:
    table, column = "boxes_question_" + "x" * 60, "expires_" + "x" * 60
    sandbox = MigrationSandbox(alias, question(db_table=table))
    sandbox.fill(ROWS)
    before = sandbox.state
    for _ in range(2):
        sandbox.run(add(populate, db_column=column))
        assert month_later(sandbox.rows())
        assert not sandbox.column(column).nullable
        with pytest.raises(IntegrityError):
            sandbox.rows().update(expires_date=None)
        sandbox.state = before


SCHEMAS = ['"other"."question"', 'other"."question', 'Other"."The Question']


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.parametrize("table", SCHEMAS)
def test_a_table_in_another_schema(alias: str, table: str, populate: Any) -> None:
    schema = table.strip('"').split('"')[0]
    with connections[alias].cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{schema}"')
        # One of the same name that comes first: it is not the one that is meant.
        cursor.execute("CREATE TABLE question (id bigint, expires_date timestamptz, code text)")
    sandbox = MigrationSandbox(alias, question(db_table=table))
    sandbox.fill(ROWS)
    before = sandbox.state
    code, parent = models.CharField(max_length=40, unique=True), models.ForeignKey("self", models.CASCADE)
    operations = [
        add(populate, db_index=True),
        AddRequiredField("question", "code", code, lambda row: f"code {row.pk}"),
        AddRequiredField("question", "parent", parent, F("pk")),
        AddRequiredField("question", "votes", models.PositiveIntegerField(db_default=3), 7),
    ]
    for _ in range(2):
        sandbox.state = before
        sandbox.run(*operations)
        assert month_later(sandbox.rows())
    for name, value in {"expires_date": None, "code": "code 1", "parent_id": -1, "votes": -1}.items():
        with pytest.raises(IntegrityError):
            sandbox.rows().update(**{name: value})
    sandbox.undo(*operations, before=before)
    assert sandbox.column("expires_date") is None
    assert sandbox.column("code") is None


# Models that say how they are read


class Hiding(models.Manager):
    use_in_migrations = True

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(question_text__endswith="1?")


def test_a_manager_that_hides_rows(alias: str, populate: Any) -> None:
    create = question(base_manager_name="objects", default_manager_name="objects")
    create.managers = [("objects", Hiding())]
    sandbox = MigrationSandbox(alias, create)
    sandbox.fill(ROWS)
    model = sandbox.model()
    assert model._base_manager.using(alias).count() < ROWS
    sandbox.run(add(populate))
    assert sandbox.rows().count() == ROWS
    assert month_later(sandbox.rows())


@pytest.mark.parametrize("ordering", [["-pub_date"], ["page__title", "-pk"], ["?"]], ids=str)
def test_an_ordering(alias: str, ordering: list[str], populate: Any) -> None:
    page = migrations.CreateModel("Page", [KEY, ("title", models.CharField(max_length=9))])
    to_page = models.ForeignKey(f"{APP}.page", models.CASCADE, null=True)
    sandbox = MigrationSandbox(alias, page, question(fields=[("page", to_page)], ordering=ordering))
    sandbox.fill(ROWS)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(add(populate))
    assert month_later(sandbox.rows())
    assert not [text for text in statements.texts if "boxes_page" in text and "SELECT" in text[:7]]


def test_a_table_ordered_with_respect_to_another(alias: str, populate: Any) -> None:
    page = migrations.CreateModel("Page", [KEY])
    to_page = models.ForeignKey(f"{APP}.page", models.CASCADE)
    sandbox = MigrationSandbox(alias, page, question(fields=[("page", to_page)]))
    only = sandbox.rows("Page").create()
    sandbox.run(migrations.AlterOrderWithRespectTo("question", "page"))
    sandbox.fill(ROWS, page_id=only.pk, _order=lambda n: -n)
    sandbox.run(add(populate))
    assert month_later(sandbox.rows())


# Models without a table of their own


def test_an_unmanaged_model_is_left_alone(alias: str) -> None:
    nothing_happens(MigrationSandbox(alias, question(managed=False)))


def test_a_swapped_model_is_left_alone(alias: str, settings: Any) -> None:
    settings.ROADS_QUESTION = "polls.Question"
    nothing_happens(MigrationSandbox(alias, question(swappable="ROADS_QUESTION")))


def nothing_happens(sandbox: MigrationSandbox) -> None:
    statements = Statements()
    with connections[sandbox.alias].execute_wrapper(statements):
        sandbox.run(add(LATER))
    assert [text for text in statements.texts if not text.startswith("PRAGMA")] == []
    assert "expires_date" in sandbox.state.models[APP, "question"].fields
    assert "boxes_question" not in connections[sandbox.alias].introspection.table_names()


def test_a_proxy_has_no_columns_to_fill(alias: str) -> None:
    proxy = migrations.CreateModel("Poll", [], {"proxy": True}, bases=(f"{APP}.question",))
    sandbox = MigrationSandbox(alias, question(), proxy)
    sandbox.fill(3)
    with pytest.raises(InvalidPopulate, match="boxes.poll has no field 'pub_date'"):
        sandbox.run(Populate("poll", "pub_date", START))
    sandbox.run(add(LATER))
    assert all(row.expires_date for row in sandbox.rows("Poll"))


# SQLite's copy


CONSTRAINED: dict[str, Any] = {
    "constraints": [
        models.UniqueConstraint(fields=["question_text"], name="one_text"),
        models.UniqueConstraint(
            fields=["pub_date"], condition=models.Q(question_text="x"), name="one_x_a_time"
        ),
        models.CheckConstraint(condition=~models.Q(question_text=""), name="no_empty_text"),
    ],
    "indexes": [
        models.Index(fields=["-pub_date"], name="newest"),
        models.Index(Lower("question_text"), name="lower_text"),
        models.Index(fields=["pub_date"], condition=models.Q(question_text="x"), name="time_of_x"),
    ],
}


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_constraints_and_indexes_survive(alias: str, populate: Any) -> None:
    sandbox = MigrationSandbox(alias, question(**CONSTRAINED))
    sandbox.fill(ROWS)
    before, made = sandbox.state, definitions(sandbox)
    operation = add(populate)
    sandbox.run(operation)
    assert definitions(sandbox) == made
    assert month_later(sandbox.rows())
    for values in ({"question_text": "Question 1?"}, {"question_text": ""}):
        with pytest.raises(IntegrityError):
            sandbox.fill(1, **values, expires_date=START)
    sandbox.undo(operation, before=before)
    assert definitions(sandbox) == made
    assert sandbox.rows().count() == ROWS


def definitions(sandbox: MigrationSandbox) -> Any:
    """The table's indexes as they were written, and its constraints."""
    with sandbox.connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'boxes_question' AND type = 'index'"
        )
        indexes = set(cursor.fetchall())
        constraints = sandbox.connection.introspection.get_constraints(cursor, "boxes_question")
    return indexes, {name: c["columns"] for name, c in constraints.items() if c["check"] or c["unique"]}


@pytest.mark.parametrize("on_delete", [models.CASCADE, models.PROTECT, models.SET_NULL])
def test_rows_that_refer_to_the_table_stay(alias: str, on_delete: Any, populate: Any) -> None:
    parent = models.ForeignKey(f"{APP}.question", on_delete, null=True)
    choice = migrations.CreateModel("Choice", [KEY, ("question", parent)])
    sandbox = MigrationSandbox(alias, question(), choice)
    sandbox.fill(ROWS)
    keys = sandbox.values("pk")
    sandbox.rows("Choice").bulk_create([sandbox.model("Choice")(question_id=key) for key in keys])
    before, schema = sandbox.state, sandbox.schema("Choice")
    operation = add(populate, unique=True)
    sandbox.run(operation)
    assert month_later(sandbox.rows())
    sandbox.undo(operation, before=before)
    assert sandbox.values("question", "Choice") == keys
    assert sandbox.schema("Choice") == schema
    connections[alias].check_constraints(["boxes_choice"])
    with pytest.raises(IntegrityError), transaction.atomic(using=alias):
        sandbox.rows("Choice").update(question_id=Value(10**6))
    sandbox.rows("Choice").all().delete()


def test_many_to_many_rows_stay(alias: str, populate: Any) -> None:
    tag = migrations.CreateModel("Tag", [KEY])
    sandbox = MigrationSandbox(alias, tag, question(fields=[("tags", models.ManyToManyField(f"{APP}.tag"))]))
    sandbox.fill(ROWS)
    only = sandbox.rows("Tag").create()
    for row in sandbox.rows():
        row.tags.add(only.pk)
    sandbox.run(add(populate))
    assert month_later(sandbox.rows())
    assert sandbox.rows().filter(tags=only.pk).count() == ROWS


def test_a_function_is_refused_where_the_key_is_not_unique_in_the_table(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(managed=False))
    database = for_connection(sandbox.connection)
    number = {"sqlite": "integer", "postgresql": "bigint", "mysql": "bigint"}[sandbox.connection.vendor]
    moment = {"sqlite": "datetime", "postgresql": "timestamptz", "mysql": "datetime(6)"}[
        sandbox.connection.vendor
    ]
    database.execute(
        f"CREATE TABLE boxes_question (id {number} NOT NULL, question_text varchar(200) NOT NULL, "
        f"pub_date {moment} NOT NULL)"
    )
    rows = ", ".join(f"({n}, '{text}', '2026-01-01')" for n, text in [(1, "a"), (1, "b"), (2, "c")])
    database.execute(f"INSERT INTO boxes_question VALUES {rows}")
    sandbox.state.models[APP, "question"].options["managed"] = True
    sandbox.state.reload_model(APP, "question")
    field = models.CharField(max_length=200)
    with pytest.raises(InvalidPopulate, match=r"no unique index of boxes_question covers the primary key"):
        sandbox.run(AddRequiredField("question", "code", field, lambda row: row.question_text))
    sandbox.run(AddRequiredField("question", "code", field, F("question_text")))
    assert database.fetch("SELECT code FROM boxes_question ORDER BY code") == [("a",), ("b",), ("c",)]
