"""Every type of field that people add: filled by SQL and by Python, and in the end as Django makes it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, migrations, models
from django.db.models import F, Value
from django.db.models.functions import Concat

from safemigrate.exceptions import BadRows, OrphanRows
from safemigrate.operations import AddRequiredField
from safemigrate.populate import FromRelated
from tests.support.sandbox import APP, START, MigrationSandbox, question
from tests.support.sessions import is_mysql

pytestmark = pytest.mark.matrix

ROWS = 16
BATCH = 7
KEY = ("id", models.BigAutoField(primary_key=True))


class Celsius(models.Field):
    """Kept as tenths of a degree, used as a float."""

    def db_type(self, connection: Any) -> str:
        return "integer"

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return value if value is None or hasattr(value, "resolve_expression") else round(value * 10)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else value / 10


@dataclass
class Case:
    make: Callable[..., Any]
    value: Any
    options: dict[str, Any] = field(default_factory=dict)

    def field(self, **more: Any) -> Any:
        return self.make(**self.options, **more)


CASES: dict[str, Case] = {
    "DateTime": Case(models.DateTimeField, START),
    "DateTime with microseconds": Case(models.DateTimeField, START.replace(microsecond=123456)),
    "DateTime elsewhere": Case(
        models.DateTimeField, START.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    ),
    "Date": Case(models.DateField, dt.date(2026, 2, 28)),
    "Time": Case(models.TimeField, dt.time(23, 59, 58)),
    "Duration": Case(models.DurationField, dt.timedelta(days=3, seconds=4, microseconds=5)),
    "Char": Case(models.CharField, "Grüße, 100% 'it'", {"max_length": 40}),
    "empty Char": Case(models.CharField, "", {"max_length": 40, "blank": True}),
    "Char with choices": Case(models.CharField, "d", {"max_length": 1, "choices": [("d", "Draft")]}),
    "Slug": Case(models.SlugField, "a-slug"),
    "Text": Case(models.TextField, "line\nline" * 50),
    "Email": Case(models.EmailField, "a@example.com"),
    "URL": Case(models.URLField, "https://example.com/?a=1&b=%20"),
    "File": Case(models.FileField, "uploads/a.txt"),
    "True": Case(models.BooleanField, True),
    "False": Case(models.BooleanField, False),
    "Integer": Case(models.IntegerField, -7),
    "zero": Case(models.IntegerField, 0),
    "BigInteger": Case(models.BigIntegerField, 2**62),
    "SmallInteger": Case(models.SmallIntegerField, -32768),
    "PositiveInteger": Case(models.PositiveIntegerField, 5),
    "PositiveBigInteger": Case(models.PositiveBigIntegerField, 2**40),
    "PositiveSmallInteger": Case(models.PositiveSmallIntegerField, 5),
    "Decimal": Case(models.DecimalField, Decimal("-12.340"), {"max_digits": 9, "decimal_places": 3}),
    "Float": Case(models.FloatField, 0.1),
    "UUID": Case(models.UUIDField, uuid.UUID("12345678-1234-5678-1234-567812345678")),
    "JSON dict": Case(models.JSONField, {"a": None, "b": [1, "ü", {"c": True}], "d": "it's 100%"}),
    "JSON list": Case(models.JSONField, [None, 1, "x"]),
    "JSON empty dict": Case(models.JSONField, {}),
    "JSON number": Case(models.JSONField, 7),
    "JSON text": Case(models.JSONField, "null"),
    "JSON false": Case(models.JSONField, False),
    "Binary": Case(models.BinaryField, b"\x00\xff'%s\\"),
    "IP address": Case(models.GenericIPAddressField, "2001:db8::1"),
    "custom": Case(Celsius, 36.6),
    "db_column": Case(models.IntegerField, 7, {"db_column": "Other Name"}),
    "db_comment": Case(models.IntegerField, 7, {"db_comment": "what it's for"}),
    "db_index": Case(models.CharField, "x", {"max_length": 40, "db_index": True}),
    "db_index on Text": Case(models.SlugField, "x", {"max_length": 90, "db_index": False}),
    "db_default": Case(models.IntegerField, 7, {"db_default": 3}),
    "db_default of False": Case(models.BooleanField, True, {"db_default": False}),
    "db_default of a text": Case(models.CharField, "x", {"max_length": 40, "db_default": "it's"}),
    "auto_now": Case(models.DateTimeField, START, {"auto_now": True}),
    "auto_now_add": Case(models.DateField, START.date(), {"auto_now_add": True}),
}


def never() -> Any:
    raise AssertionError("a default of the field must not fill old rows")


def filled(alias: str, **options: Any) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias, question(**options))
    sandbox.fill(ROWS)
    return sandbox


def add(field_: Any, populate: Any) -> AddRequiredField:
    return AddRequiredField("question", "new", field_, populate, batch_size=BATCH)


def raw(sandbox: MigrationSandbox, column: str = "new", model: str = "Question") -> list[Any]:
    """The column as the driver gives it, past all that the field does on the way."""
    quote = sandbox.connection.ops.quote_name
    table = sandbox.model(model)._meta.db_table
    with sandbox.connection.cursor() as cursor:
        cursor.execute(f"SELECT {quote(column)} FROM {quote(table)}")
        return [plainly(value) for (value,) in cursor.fetchall()]


def plainly(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def save_one(sandbox: MigrationSandbox, **values: Any) -> Any:
    row = sandbox.model()(question_text="saved", pub_date=START, **values)
    row.save(using=sandbox.alias)
    return row


# Each type


@pytest.mark.parametrize("way", ["by SQL", "by Python"])
@pytest.mark.parametrize("name", CASES)
def test_old_rows_hold_what_save_would_have_stored(alias: str, name: str, way: str) -> None:
    case, sandbox = CASES[name], filled(alias)
    sandbox.run(add(case.field(), case.value if way == "by SQL" else lambda row: case.value))
    assert list(map(plainly, sandbox.values("new"))) == [case.value] * ROWS
    column = case.field().db_column or "new"
    assert not sandbox.column(column).nullable
    row = save_one(sandbox, new=case.value)
    sandbox.rows().filter(pk=row.pk).update(new=case.value)  # Where auto_now had its say.
    assert len(set(map(repr, raw(sandbox, column)))) == 1


@pytest.mark.parametrize("name", CASES)
def test_the_table_ends_as_django_makes_it(alias: str, name: str) -> None:
    case, sandbox = CASES[name], filled(alias)
    before, operation = sandbox.state, add(case.field(), case.value)
    sandbox.run(operation)
    ours, definition = (
        sandbox.schema(),
        column_definition(sandbox, "question", case.field().db_column or "new"),
    )
    sandbox.undo(operation, before=before)
    sandbox.run(migrations.AddField("question", "new", plain(case), preserve_default=False))
    theirs, left = sandbox.schema(), column_definition(sandbox, "question", case.field().db_column or "new")
    if is_mysql(alias):
        # UNSIGNED does what Django adds a CHECK for, by a copy of the table; and it leaves a DEFAULT behind.
        for schema in (ours, theirs):
            schema["constraints"] = [each for each in schema["constraints"] if "'check': True" not in each]
        if "db_default" not in case.options:
            left = left._replace(default=definition.default, extra=definition.extra)
    assert ours == theirs
    assert definition == left


def plain(case: Case) -> Any:
    """The field as makemigrations writes it, with a one-off default where the database gives none."""
    return case.field() if "db_default" in case.options else case.field(default=case.value)


def column_definition(sandbox: MigrationSandbox, model: str, column: str) -> Any:
    """Type, default, collation, comment: what the schema says of one column beside NOT NULL."""
    table = sandbox.model(model)._meta.db_table
    with sandbox.connection.cursor() as cursor:
        for info in sandbox.connection.introspection.get_table_description(cursor, table):
            if info.name == column:
                return info
    raise AssertionError(f"no column {column}")


def in_two_steps(make: Callable[..., Any]) -> list[Any]:
    """The way on which Django names constraints the same on every database."""
    bare = make()
    bare.null, bare._unique, bare.db_index = True, False, False
    return [migrations.AddField("question", "new", bare), migrations.AlterField("question", "new", make())]


@pytest.mark.parametrize("options", [{"db_index": True}, {"unique": True}, {"db_default": START}], ids=str)
def test_backwards_the_table_is_as_before(alias: str, options: dict[str, Any]) -> None:
    sandbox = filled(alias)
    before, schema = sandbox.state, sandbox.schema()
    operation = add(models.DateTimeField(**options), F("pub_date"))
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    assert sandbox.schema() == schema


# Expressions


@pytest.mark.parametrize(
    ("make", "populate", "expected"),
    [
        (
            models.DateTimeField,
            F("pub_date") + dt.timedelta(days=1),
            lambda r: r.pub_date + dt.timedelta(days=1),
        ),
        (
            lambda: models.CharField(max_length=99),
            Concat("question_text", Value("!")),
            lambda r: r.question_text + "!",
        ),
        (models.BigIntegerField, F("pk") * 2, lambda r: r.pk * 2),
        (
            lambda: models.DecimalField(max_digits=12, decimal_places=2),
            F("pk") * Decimal("0.5"),
            lambda r: r.pk / 2,
        ),
        (
            models.BooleanField,
            models.Q(question_text__endswith="1?"),
            lambda r: r.question_text.endswith("1?"),
        ),
        (models.JSONField, Value({"a": [None]}, models.JSONField()), lambda r: {"a": [None]}),
        (models.UUIDField, Value(uuid.UUID(int=7)), lambda r: uuid.UUID(int=7)),
        (Celsius, Value(36.6, Celsius()), lambda r: 36.6),
    ],
)
def test_an_expression_fills(alias: str, make: Any, populate: Any, expected: Callable[[Any], Any]) -> None:
    sandbox = filled(alias)
    sandbox.run(add(make(), populate))
    assert [row.new for row in sandbox.rows()] == [expected(row) for row in sandbox.rows()]


# What each option brings with it


def test_unique_is_enforced(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.UUIDField(unique=True), uuid.uuid4))
    values = sandbox.values("new")
    assert len(set(values)) == ROWS
    with pytest.raises(IntegrityError):
        save_one(sandbox, new=values[3])


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: models.UUIDField(unique=True, **more),
        lambda **more: models.SlugField(unique=True, **more),
        lambda **more: models.CharField(max_length=40, unique=True, **more),
        lambda **more: models.BigIntegerField(unique=True, **more),
        lambda **more: models.EmailField(unique=True, db_column="Mail", **more),
    ],
)
def test_a_unique_field_ends_as_django_makes_it(alias: str, make: Any) -> None:
    sandbox = filled(alias)
    before = sandbox.state
    numbered = make().get_internal_type() == "BigIntegerField"
    operation = add(make(), F("pk") if numbered else lambda row: uuid.UUID(int=row.pk).hex)
    sandbox.run(operation)
    schema = sandbox.schema()
    assert not sandbox.column(make().db_column or "new").nullable
    sandbox.undo(operation, before=before)
    sandbox.rows().delete()
    sandbox.run(*in_two_steps(make))
    assert schema == sandbox.schema()


def test_a_check_is_enforced(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.PositiveIntegerField(), 1))
    with pytest.raises(DatabaseError), sandbox.connection.cursor() as cursor:
        cursor.execute("UPDATE boxes_question SET new = -1")


def test_an_index_is_there(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.IntegerField(db_index=True), 1))
    with sandbox.connection.cursor() as cursor:
        constraints = sandbox.connection.introspection.get_constraints(cursor, "boxes_question")
    assert [c["columns"] for c in constraints.values() if c["index"] and c["columns"] == ["new"]]


@pytest.mark.parametrize(
    ("make", "default"),
    [
        (lambda: models.IntegerField(db_default=3), 3),
        (lambda: models.CharField(max_length=40, db_default="it's"), "it's"),
        (lambda: models.BooleanField(db_default=False), False),
        (lambda: models.IntegerField(db_default=Value(3) + 4), 7),
    ],
)
def test_rows_that_come_in_later_have_the_default_of_the_database(
    alias: str, make: Any, default: Any
) -> None:
    sandbox = filled(alias)
    own = {int: 11, str: "own", bool: True}[type(default)]
    sandbox.run(add(make(), own))
    assert sandbox.values("new") == [own] * ROWS
    with sandbox.connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO boxes_question (question_text, pub_date) VALUES ('by old code', '2026-01-01 00:00:00')"
        )
    assert sandbox.values("new") == [*[own] * ROWS, default]


@pytest.mark.parametrize("default", [3, never])
@pytest.mark.parametrize("populate", [7, lambda: 7, lambda row: 7])
def test_the_default_of_the_field_fills_no_old_row(alias: str, default: Any, populate: Any) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.IntegerField(default=default), populate))
    assert sandbox.values("new") == [7] * ROWS


@pytest.mark.parametrize("name", ["auto_now", "auto_now_add"])
@pytest.mark.parametrize("populate", [F("pub_date"), lambda row: row.pub_date])
def test_auto_now_moves_in_no_column(alias: str, name: str, populate: Any) -> None:
    updated = models.DateTimeField(auto_now=True)
    sandbox = filled(alias, fields=[("updated", updated)])
    before = sandbox.values("updated")
    sandbox.run(add(models.DateTimeField(**{name: True}), populate))
    assert sandbox.values("updated") == before
    assert sandbox.values("new") == sandbox.values("pub_date")


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_a_comment_of_the_database_is_kept(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.IntegerField(db_comment="what it's for"), 1))
    assert column_definition(sandbox, "question", "new").comment == "what it's for"


COLLATIONS = {"default": "nocase", "postgresql": "C", "postgresql_old": "C", "mariadb": "utf8mb4_bin"}


@pytest.mark.parametrize("populate", ["x", lambda row: "x"])
def test_a_collation_is_kept(alias: str, populate: Any) -> None:
    sandbox = filled(alias)
    before = sandbox.state

    def made(**more: Any) -> Any:
        return models.CharField(max_length=40, db_collation=COLLATIONS[alias], db_index=True, **more)

    operation = add(made(), populate)
    sandbox.run(operation)
    ours, definition = sandbox.schema(), column_definition(sandbox, "question", "new")
    assert definition.collation == COLLATIONS[alias]
    sandbox.undo(operation, before=before)
    sandbox.run(migrations.AddField("question", "new", made(default="x"), preserve_default=False))
    assert (ours, definition) == (sandbox.schema(), column_definition(sandbox, "question", "new"))


def test_a_text_that_is_too_long_is_a_bad_row(alias: str) -> None:
    sandbox = filled(alias)
    operation = add(models.CharField(max_length=5), lambda row: "short" if row.pk % 2 else "longer")
    if alias == "default":
        sandbox.run(operation)  # SQLite does not know how long a text may be.
        return
    with pytest.raises(BadRows) as caught:
        sandbox.run(operation)
    assert caught.value.count == len([key for key in sandbox.values("pk") if key % 2 == 0])


def test_a_value_that_the_field_cannot_make_sense_of_is_a_bad_row(alias: str) -> None:
    sandbox = filled(alias)
    third = sandbox.values("pk")[2]
    with pytest.raises(BadRows, match=f"{third}: .*no number") as caught:
        sandbox.run(add(models.IntegerField(), lambda row: "no number" if row.pk == third else 1))
    assert caught.value.count == 1


# Relations


def with_pages(alias: str) -> MigrationSandbox:
    page = migrations.CreateModel("Page", [KEY, ("code", models.CharField(max_length=9, unique=True))])
    sandbox = MigrationSandbox(alias, page, question(fields=[("rank", models.IntegerField())]))
    sandbox.rows("Page").bulk_create([sandbox.model("Page")(code=f"page {n}") for n in range(1, ROWS + 1)])
    sandbox.fill(ROWS, rank=lambda n: n)
    return sandbox


def to_page(**options: Any) -> Any:
    return models.ForeignKey(f"{APP}.page", models.CASCADE, **options)


def pages(sandbox: MigrationSandbox) -> dict[int, Any]:
    return dict(enumerate(sandbox.rows("Page"), 1))


@pytest.mark.parametrize("way", ["key", "instance", "value"])
def test_a_foreign_key(alias: str, way: str) -> None:
    sandbox = with_pages(alias)
    by_rank = pages(sandbox)
    populate: Any = {
        "key": lambda row: by_rank[row.rank].pk,
        "instance": lambda row: by_rank[row.rank],
        "value": by_rank[1].pk,
    }[way]
    sandbox.run(add(to_page(), populate))
    expected = [by_rank[1 if way == "value" else n].pk for n in range(1, ROWS + 1)]
    assert sandbox.values("new") == expected
    assert not sandbox.column("new_id").nullable
    if alias != "default":
        with pytest.raises(IntegrityError):
            save_one(sandbox, rank=0, new_id=10**9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"db_constraint": False},
        {"db_index": False},
        {"db_column": "Page"},
        {"to_field": "code"},
        {"db_constraint": False, "db_index": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [models.ForeignKey, models.OneToOneField])
def test_a_relation_ends_as_django_makes_it(alias: str, make: Any, options: dict[str, Any]) -> None:
    if make is models.OneToOneField:
        options = {key: value for key, value in options.items() if key != "db_index"}
    sandbox = with_pages(alias)
    by_rank, before = pages(sandbox), sandbox.state

    def made(**more: Any) -> Any:
        return make(f"{APP}.page", models.CASCADE, **options, **more)

    operation = add(made(), lambda row: by_rank[row.rank])
    sandbox.run(operation)
    assert sandbox.values("new") == [
        page.code if "to_field" in options else page.pk for page in by_rank.values()
    ]
    ours = sandbox.schema()
    sandbox.undo(operation, before=before)
    sandbox.rows().delete()
    kept = {key: value for key, value in options.items() if key != "db_index"}
    bare = models.ForeignKey(f"{APP}.page", models.CASCADE, null=True, **kept | {"db_index": False})
    as_django = [migrations.AddField("question", "new", made(default="1"), preserve_default=False)]
    if make is models.OneToOneField:
        as_django = [
            migrations.AddField("question", "new", bare),
            migrations.AlterField("question", "new", made()),
        ]
    sandbox.run(*as_django)
    assert ours == sandbox.schema()


def test_a_relation_to_the_table_itself(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(models.ForeignKey("self", models.CASCADE, related_name="+"), F("pk")))
    assert sandbox.values("new") == sandbox.values("pk")
    with pytest.raises(IntegrityError), sandbox.connection.cursor() as cursor:
        cursor.execute("UPDATE boxes_question SET new_id = -1")


def test_a_relation_to_the_table_itself_by_instance(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(
        add(models.OneToOneField(f"{APP}.question", models.CASCADE, related_name="+"), lambda row: row)
    )
    assert sandbox.values("new") == sandbox.values("pk")


def test_a_relation_copied_from_a_related_row(alias: str) -> None:
    sandbox = with_pages(alias)
    sandbox.run(add(to_page(), F("rank") - F("rank") + Value(sandbox.values("pk", "Page")[2])))
    sandbox.run(
        AddRequiredField(
            "question", "again", to_page(related_name="+", to_field="code"), FromRelated("new__code")
        )
    )
    assert sandbox.values("again") == ["page 3"] * ROWS


def test_a_key_that_refers_to_nothing_stops_before_the_column_is_required(alias: str) -> None:
    sandbox = with_pages(alias)
    before = sandbox.state
    bad = sandbox.values("pk")[4]
    first = pages(sandbox)[1]
    with pytest.raises(OrphanRows):
        sandbox.run(add(to_page(), lambda row: 10**6 if row.pk == bad else first))
    with sandbox.connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE boxes_question SET new_id = {sandbox.values('pk', 'Page')[0]} WHERE id = {bad}"
        )
    sandbox.state = before
    sandbox.run(add(to_page(), first.pk))
    assert sandbox.values("new") == [sandbox.values("pk", "Page")[0]] * ROWS
    assert not sandbox.column("new_id").nullable


# PostgreSQL alone


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.parametrize(
    "populate", [["a", "b,c", ""], [], lambda row: ["a", "b,c", ""], lambda row: [], list]
)
def test_an_array(alias: str, populate: Any) -> None:
    from django.contrib.postgres.fields import ArrayField

    sandbox = filled(alias)
    sandbox.run(add(ArrayField(models.CharField(max_length=9)), populate))
    value = populate if isinstance(populate, list) else [] if populate is list else populate(None)
    assert sandbox.values("new") == [value] * ROWS
    assert not sandbox.column("new").nullable


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.parametrize("populate", [[[1, 2], [3, 4]], lambda row: [[1, 2], [3, 4]]])
def test_an_array_of_arrays(alias: str, populate: Any) -> None:
    from django.contrib.postgres.fields import ArrayField

    sandbox = filled(alias)
    sandbox.run(add(ArrayField(ArrayField(models.SmallIntegerField())), populate))
    assert sandbox.values("new") == [[[1, 2], [3, 4]]] * ROWS


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.parametrize("make", ["DateTimeRangeField", "IntegerRangeField"])
def test_a_range(alias: str, make: str) -> None:
    from django.contrib.postgres import fields

    value = (START, START + dt.timedelta(days=1)) if make.startswith("Date") else (1, 5)
    sandbox = filled(alias)
    sandbox.run(add(getattr(fields, make)(), lambda row: value))
    assert {(new.lower, new.upper) for new in sandbox.values("new")} == {value}
