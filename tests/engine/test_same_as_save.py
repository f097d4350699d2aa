"""Whatever way a value takes into the table, it is stored as `save()` stores it: bit for bit, on each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.signals import get_citext_oids, get_hstore_oids, register_type_handlers
from django.db import IntegrityError, connections, migrations, models
from django.db.backends.signals import connection_created
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Concat, Lower, TruncDate
from django.db.models.signals import post_save, pre_save
from django.db.transaction import atomic
from hypothesis import HealthCheck, Phase, example, find, given, settings
from hypothesis import strategies as st

from safemigrate import conf
from safemigrate.engine import engine as backfill
from safemigrate.exceptions import BadRows
from safemigrate.operations import AddRequiredField, Populate
from safemigrate.populate import FromRelated, PerBatch, PerRow
from tests.support import everyfield
from tests.support.everyfield import (
    APP,
    BAD,
    BAD_OF_MADE,
    BAD_ON_POSTGRESQL,
    KEYS,
    KINDS,
    MADE,
    POSTGRESQL,
    Bad,
    Kind,
)
from tests.support.sandbox import MigrationSandbox

pytestmark = pytest.mark.matrix

ROWS = everyfield.PAGES
BATCH = 4
EXAMPLES = 2
POSTGRESQLS = ["postgresql", "postgresql_old"]

#: Values written by a thread with a connection of its own, and by the one that computes them.
THREAD, NO_THREAD = ({"SAFEMIGRATE_WRITER_THREAD": value} for value in (True, False))
WORKERS = [{"SAFEMIGRATE_WORKERS": number} for number in (1, 2)]

#: A column as the database itself shows it, past drivers and fields.
RAW = {
    "postgresql": "{0}::text",
    "mysql": "HEX(CAST({0} AS BINARY))",
    "sqlite": "typeof({0}) || ' ' || quote({0}) || ' ' || hex({0})",
}

Populates = Callable[[dict[Any, Any]], Any]

#: How Python's values get there, with which settings; `values` are by primary key, in its order.
WAYS: dict[str, tuple[dict[str, Any], Populates]] = {
    "a function of one row": (THREAD, lambda values: lambda row: values[row.pk]),
    "PerBatch": (
        NO_THREAD,
        lambda values: PerBatch(lambda rows: [values[row.pk] for row in rows], only=["pk"]),
    ),
    "a function of no arguments": (NO_THREAD, lambda values: iter(values.values()).__next__),
}


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills of a dozen rows: no record of each, which would take the most time, and others at work soon."""
    monkeypatch.setattr(backfill, "new_observer", backfill.NullObserver)
    monkeypatch.setattr(backfill, "ALONE", 1)


@pytest.fixture
def types(alias: str) -> Iterator[None]:
    """The types that a PostgreSQL has to be given, as django.contrib.postgres makes them known to the driver."""
    connection = connections[alias]
    # psycopg2 keeps what it has registered for the whole process, by numbers that another server gives to other types.
    known = getattr(getattr(connection.Database, "extensions", None), "string_types", {})
    before = dict(known)
    for statement in everyfield.TYPES:
        run(connection, statement)
    forget_types()
    connection_created.connect(register_type_handlers)
    connection.close()
    yield
    connection_created.disconnect(register_type_handlers)
    for statement in everyfield.TYPES.values():
        run(connection, statement)
    forget_types()
    connection.close()
    known.clear()
    known.update(before)


def forget_types() -> None:
    get_hstore_oids.cache_clear()
    get_citext_oids.cache_clear()


def run(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def properties(function: Any, *strategies: Any, first: Sequence[Any] = ()) -> Any:
    """Return the function as a property test with few examples, the same ones each time."""
    test = given(*strategies)(function)
    for arguments in first:
        test = example(*arguments)(test)
    return settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(test)


# Tables


def table(
    alias: str, *fields: tuple[str, Any], key: Sequence[tuple[str, Any]] = (), **options: Any
) -> MigrationSandbox:
    """A table Row with these fields, and one that relations may refer to."""
    key = key or [("id", models.BigAutoField(primary_key=True))]
    page = migrations.CreateModel("Page", everyfield.page_fields())
    sandbox = MigrationSandbox(alias, page, migrations.CreateModel("Row", [*key, *fields], **options))
    sandbox.rows("Page").bulk_create(everyfield.pages(sandbox.model("Page")))
    return sandbox


def full(alias: str, *fields: tuple[str, Any]) -> MigrationSandbox:
    sandbox = table(alias, *fields)
    sandbox.rows("Row").bulk_create([sandbox.model("Row")() for _ in range(ROWS)])
    return sandbox


def twins(make: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Two equal columns: one for `save()`, one for the fill."""
    return [("saved", make(null=True)), ("filled", make(null=True))]


def save_one(sandbox: MigrationSandbox, key: Any, **values: Any) -> None:
    model = sandbox.model("Row")
    attributes = {model._meta.get_field(name).attname: value for name, value in values.items()}
    model(pk=key, **attributes).save(using=sandbox.alias, update_fields=list(values))


def save(sandbox: MigrationSandbox, values: dict[Any, Any]) -> None:
    sandbox.rows("Row").update(saved=None)
    with atomic(sandbox.alias):
        for key, value in values.items():
            save_one(sandbox, key, saved=value)


def fill(sandbox: MigrationSandbox, populate: Any, name: Any = "filled") -> None:
    sandbox.run(Populate("row", name, populate, batch_size=BATCH))


def raw(sandbox: MigrationSandbox, *names: str) -> list[tuple[Any, ...]]:
    model, quote = sandbox.model("Row"), sandbox.connection.ops.quote_name
    keys = [field.column for field in getattr(model._meta, "pk_fields", [model._meta.pk])]
    form = RAW[sandbox.connection.vendor]
    columns = [form.format(quote(model._meta.get_field(name).column)) for name in names]
    with sandbox.connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(columns)} FROM {quote(model._meta.db_table)} ORDER BY {', '.join(map(quote, keys))}"
        )
        return list(cursor.fetchall())


def check_same(sandbox: MigrationSandbox, way: Any, filled: str = "filled") -> None:
    for by_save, by_fill in raw(sandbox, "saved", filled):
        assert by_save is not None
        assert by_fill == by_save, way


def check_every_way(sandbox: MigrationSandbox, values: dict[Any, Any]) -> None:
    for way, (chosen, populate) in WAYS.items():
        sandbox.rows("Row").update(filled=None)
        with conf.changed(**chosen):
            fill(sandbox, populate(values))
        check_same(sandbox, way)


# Each kind of field


def check_kind(alias: str, kind: Kind) -> None:
    sandbox = full(alias, *twins(kind.make))
    keys = sandbox.values("pk", "Row")

    def same(given: list[Any]) -> None:
        values = dict(zip(keys, given, strict=True))
        save(sandbox, values)
        check_every_way(sandbox, values)

    always = kind.example(ROWS)
    properties(same, kind.rows(ROWS), first=[[always]] if always else [])()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_field_by_each_way(alias: str, kind: str) -> None:
    check_kind(alias, KINDS[kind])


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
@pytest.mark.parametrize("kind", POSTGRESQL)
def test_each_kind_of_field_of_postgresql_by_each_way(alias: str, kind: str) -> None:
    check_kind(alias, POSTGRESQL[kind])


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
@pytest.mark.parametrize("kind", MADE)
def test_each_kind_of_field_of_a_type_of_ones_own_by_each_way(alias: str, types: None, kind: str) -> None:
    check_kind(alias, MADE[kind])


# The same without a row read: one value for all, and a copy of another column


def check_in_database(alias: str, kind: Kind) -> None:
    sandbox = full(alias, *twins(kind.make))
    keys = sandbox.values("pk", "Row")
    for value in [] if kind.unique else kind.always or [found(kind.values)]:
        save(sandbox, dict.fromkeys(keys, value))
        sandbox.rows("Row").update(filled=None)
        fill(sandbox, value)
        check_same(sandbox, value)
        if sandbox.connection.vendor == "sqlite":
            check_whole_road(sandbox, kind, value)
    save(sandbox, dict(zip(keys, kind.example(ROWS) or found(kind.rows(ROWS)), strict=True)))
    check_whole_road(sandbox, kind, F("saved"))


def check_whole_road(sandbox: MigrationSandbox, kind: Kind, populate: Any) -> None:
    """By one copy of the table on SQLite, step by step elsewhere."""
    before, operation = sandbox.state, AddRequiredField("row", "made", kind.make(), populate)
    sandbox.run(operation)
    assert not sandbox.column(sandbox.model("Row")._meta.get_field("made").column, "Row").nullable
    check_same(sandbox, populate, "made")
    sandbox.undo(operation, before=before)


def found(strategy: Any) -> Any:
    chosen = settings(max_examples=1, phases=[Phase.generate], database=None, derandomize=True)
    return find(strategy, lambda value: True, settings=chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_field_by_the_database(alias: str, kind: str) -> None:
    check_in_database(alias, KINDS[kind])


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
@pytest.mark.parametrize("kind", POSTGRESQL)
def test_each_kind_of_field_of_postgresql_by_the_database(alias: str, kind: str) -> None:
    check_in_database(alias, POSTGRESQL[kind])


# What save() refuses


def check_refused(alias: str, bad: Bad) -> None:
    sandbox = full(alias, *twins(bad.make))
    keys = sandbox.values("pk", "Row")
    values = dict(zip(keys, [*bad.values, *[bad.good] * ROWS], strict=False))
    refused = {key for key, value in values.items() if is_refused(sandbox, key, value)}
    # Not a function of no arguments: it is called again for a row whenever a batch is halved.
    for chosen in (THREAD, NO_THREAD):
        sandbox.rows("Row").update(filled=None)
        with conf.changed(**chosen):
            assert refused_by(sandbox, PerRow(lambda row: values[row.pk], only=["pk"])) == refused, chosen
        for key, (by_save, by_fill) in zip(keys, raw(sandbox, "saved", "filled"), strict=True):
            assert by_fill == (NULLS[alias] if key in refused else by_save), values[key]


NULLS = {"default": "null NULL "}
NULLS |= dict.fromkeys(["postgresql", "postgresql_old", "mariadb"])


def is_refused(sandbox: MigrationSandbox, key: Any, value: Any) -> bool:
    try:
        with atomic(sandbox.alias):
            save_one(sandbox, key, saved=value)
    except Exception:  # noqa: BLE001  whatever it is: the fill is to pass over this row too
        return True
    return sandbox.rows("Row").filter(pk=key, saved__isnull=True).exists()  # Such as NaN on SQLite.


def refused_by(sandbox: MigrationSandbox, populate: Any) -> set[Any]:
    try:
        fill(sandbox, populate)
    except BadRows as error:
        return {row.key for row in error.examples}
    return set()


@pytest.mark.parametrize("kind", BAD)
def test_what_save_refuses_is_a_bad_row(alias: str, kind: str) -> None:
    check_refused(alias, BAD[kind])


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
@pytest.mark.parametrize("kind", BAD_ON_POSTGRESQL)
def test_what_save_refuses_on_postgresql_is_a_bad_row(alias: str, kind: str) -> None:
    check_refused(alias, BAD_ON_POSTGRESQL[kind])


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
@pytest.mark.parametrize("kind", BAD_OF_MADE)
def test_what_save_refuses_of_a_type_of_ones_own_is_a_bad_row(alias: str, types: None, kind: str) -> None:
    check_refused(alias, BAD_OF_MADE[kind])


# Each kind of key


def check_keys(sandbox: MigrationSandbox, strategy: Any) -> None:
    def same(keys: list[dict[str, Any]]) -> None:
        sandbox.rows("Row").delete()
        for number, key in enumerate(keys):
            # Texts that differ may be the same key to a collation.
            with suppress(IntegrityError), atomic(sandbox.alias):
                sandbox.rows("Row").create(**key, number_of_row=number)
        values = {row.pk: f"value of {row.number_of_row}" for row in sandbox.rows("Row")}
        assert values
        save(sandbox, values)
        check_every_way(sandbox, values)

    properties(same, st.lists(strategy, min_size=8, max_size=ROWS))()


NUMBERED = ("number_of_row", models.IntegerField())


def short_text(**options: Any) -> Any:
    return models.CharField(max_length=80, **options)


@pytest.mark.parametrize("key", KEYS)
def test_each_kind_of_key(alias: str, key: str) -> None:
    sandbox = table(alias, NUMBERED, *twins(short_text), key=KEYS[key].fields())
    check_keys(sandbox, KEYS[key].values)


def test_a_key_that_points_to_the_parent_model(alias: str) -> None:
    link = models.OneToOneField(
        f"{APP}.page", models.CASCADE, parent_link=True, auto_created=True, primary_key=True, serialize=False
    )
    sandbox = table(alias, NUMBERED, *twins(short_text), key=[("page_ptr", link)], bases=(f"{APP}.page",))
    row, pages = sandbox.model("Row"), sandbox.rows("Page")
    for number, page in enumerate(pages):
        child = row(page_ptr=page, number_of_row=number)
        child.save_base(raw=True, using=alias)
    values = {each.pk: f"value of {each.number_of_row}" for each in sandbox.rows("Row")}
    assert len(values) == ROWS
    save(sandbox, values)
    check_every_way(sandbox, values)


# Several fields in one pass

PAIRS = [("Char", "JSON"), ("DateTime", "Decimal"), ("Binary", "Float"), ("UUID", "get_placeholder")]
COLUMNS = ["one", "two", "old"]


def several(one: Kind, two: Kind, name: Callable[[str], str] = str) -> list[tuple[str, Any]]:
    return [
        (name("one"), one.make(null=True)),
        (name("two"), two.make(null=True)),
        (name("old"), models.IntegerField(default=-1)),
    ]


def by_save(name: str) -> str:
    return f"{name}_by_save"


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_several_fields_some_of_them_filled_already_and_one_rewritten(
    alias: str, pair: tuple[str, str]
) -> None:
    one, two = (KINDS[name] for name in pair)
    sandbox = full(alias, *several(one, two), *several(one, two, by_save))
    keys = sandbox.values("pk", "Row")
    row = st.fixed_dictionaries({"one": one.values, "two": two.values, "old": st.integers(0, 99)})
    has = st.fixed_dictionaries({"one": st.none() | one.values, "two": st.none() | two.values})

    def same(given: list[Any], there: list[Any]) -> None:
        values, before = dict(zip(keys, given, strict=True)), dict(zip(keys, there, strict=True))
        save_what_is_missing(sandbox, values, before)
        for way, populate in ways_of_several(sandbox, values).items():
            begin_again(sandbox, before)
            fill(sandbox, populate, COLUMNS)
            for made in raw(sandbox, *COLUMNS, *map(by_save, COLUMNS)):
                assert made[:3] == made[3:], way

    properties(
        same, st.lists(row, min_size=ROWS, max_size=ROWS), st.lists(has, min_size=ROWS, max_size=ROWS)
    )()


def ways_of_several(sandbox: MigrationSandbox, values: dict[Any, Any]) -> dict[str, Any]:
    def part(name: str) -> Any:
        return lambda row: values[row.pk][name]

    def case(name: str) -> Any:
        field = sandbox.model("Row")._meta.get_field(name)
        return Case(*(When(pk=key, then=Value(row[name], output_field=field)) for key, row in values.items()))

    return {
        "a function of one row": lambda row: values[row.pk],
        "PerBatch": PerBatch(lambda rows: [values[row.pk] for row in rows]),
        "functions": {name: part(name) for name in COLUMNS},
        "a function and expressions": {"one": part("one"), "two": case("two"), "old": part("old")},
    }


def begin_again(sandbox: MigrationSandbox, before: dict[Any, Any], name: Callable[[str], str] = str) -> None:
    sandbox.rows("Row").update(**{name("one"): None, name("two"): None, name("old"): -1})
    for key, there in before.items():
        save_one(sandbox, key, **{name(each): value for each, value in there.items() if value is not None})


def save_what_is_missing(sandbox: MigrationSandbox, values: dict[Any, Any], before: dict[Any, Any]) -> None:
    begin_again(sandbox, before, by_save)
    for key, row in values.items():
        there = before[key]
        missing = {name for name, value in there.items() if value is None}
        if missing:
            save_one(sandbox, key, **{by_save(name): row[name] for name in (*missing, "old")})


# Expressions: what the database computes against what Python does

PLAIN = st.text("abcXYZ '\"\\%{},.", max_size=20)
DAYS = timedelta(days=30, hours=5, microseconds=7)
EXPRESSIONS: dict[str, tuple[Callable[..., Any], Any, Callable[[Any], Any]]] = {
    "a later moment": (models.DateTimeField, F("at") + DAYS, lambda row: row.at + DAYS),
    "a date": (models.DateField, TruncDate("at"), lambda row: row.at.date()),
    "lower": (short_text, Lower("name"), lambda row: row.name.lower()),
    "joined": (
        short_text,
        Concat("name", Value(" 100 % 'it''s' \\ "), "name"),
        lambda row: f"{row.name} 100 % 'it''s' \\ {row.name}",
    ),
    "coalesce": (short_text, Coalesce("maybe", Value("none")), lambda row: row.maybe or "none"),
    "a sum": (models.BigIntegerField, F("number") * 2 + 1, lambda row: row.number * 2 + 1),
    "a choice": (
        models.BooleanField,
        Case(When(number__gt=5, then=True), default=False),
        lambda row: row.number > 5,
    ),
    "a related row": (short_text, FromRelated("page__title"), lambda row: row.page.title),
    "a related key": (models.UUIDField, FromRelated("page__code"), lambda row: row.page.code),
}
READ = st.fixed_dictionaries(
    {
        "at": st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc)),  # noqa: DTZ001
        "name": PLAIN,
        "maybe": st.none() | PLAIN.filter(bool),
        "number": st.integers(-(2**40), 2**40) | st.integers(0, 9),
        "page_id": st.sampled_from(everyfield.NUMBERS),
    }
)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_the_database_computes(alias: str, name: str) -> None:
    make, populate, compute = EXPRESSIONS[name]
    sandbox = table(
        alias,
        ("at", models.DateTimeField()),
        ("name", short_text()),
        ("maybe", short_text(null=True)),
        ("number", models.BigIntegerField()),
        ("page", models.ForeignKey(f"{APP}.page", models.CASCADE)),
        *twins(make),
    )
    before = sandbox.state

    def same(rows: list[dict[str, Any]]) -> None:
        sandbox.rows("Row").delete()
        sandbox.rows("Row").bulk_create([sandbox.model("Row")(**row) for row in rows])
        save(sandbox, {row.pk: compute(row) for row in sandbox.rows("Row").select_related("page")})
        for chosen in WORKERS:
            sandbox.rows("Row").update(filled=None)
            with conf.changed(**chosen):
                fill(sandbox, populate)
            check_same(sandbox, chosen)
        operation = AddRequiredField("row", "made", make(), populate)
        sandbox.run(operation)
        check_same(sandbox, "the whole sandbox", "made")
        sandbox.undo(operation, before=before)

    properties(same, st.lists(READ, min_size=1, max_size=ROWS))()


# Where a fill is not a save


def test_no_pre_save_has_its_say(alias: str) -> None:
    """A fill writes what the populate says: pre_save (auto_now, an automatic slug) would write what it likes."""
    sandbox = full(alias, *twins(lambda **options: everyfield.Touched(max_length=40, **options)))
    keys = sandbox.values("pk", "Row")
    values = {key: f"value of {key}" for key in keys}
    save(sandbox, values)
    assert set(sandbox.values("saved", "Row")) == {"by pre_save"}
    for way, (_, populate) in WAYS.items():
        sandbox.rows("Row").update(filled=None)
        fill(sandbox, populate(values))
        assert sandbox.values("filled", "Row") == list(values.values()), way


def test_no_signal_is_sent(alias: str) -> None:
    """What listens to a save may send mail, and would for each old row; historical models have no listeners."""
    sandbox, sent = full(alias, *twins(short_text)), []

    def listen(sender: Any, **rest: Any) -> None:
        sent.append(sender)

    pre_save.connect(listen)
    post_save.connect(listen)
    try:
        fill(sandbox, lambda row: "x")
        assert sent == []
        save_one(sandbox, sandbox.values("pk", "Row")[0], saved="x")
        assert len(sent) == 2
    finally:
        pre_save.disconnect(listen)
        post_save.disconnect(listen)


@pytest.mark.parametrize("alias", POSTGRESQLS, indirect=True)
def test_a_text_in_an_array_that_is_too_long_is_refused_and_not_cut(alias: str) -> None:
    """save() sends an array with a cast to varchar(5)[], by which the server cuts its texts and says nothing."""
    sandbox = full(alias, *twins(lambda **options: ArrayField(models.CharField(max_length=5), **options)))
    keys = sandbox.values("pk", "Row")
    save(sandbox, {key: ["longer"] for key in keys})
    assert sandbox.values("saved", "Row") == [["longe"]] * ROWS
    assert refused_by(sandbox, lambda row: ["longer"] if row.pk == keys[0] else ["short"]) == {keys[0]}


def test_a_zero_below_zero_is_a_zero(alias: str) -> None:
    """psycopg2 sends -0.0 as a number without a sign, an array keeps it: the two are equal to each database."""
    sandbox = full(alias, *twins(models.FloatField))
    values = dict.fromkeys(sandbox.values("pk", "Row"), -0.0)
    save(sandbox, values)
    for way, (_, populate) in WAYS.items():
        sandbox.rows("Row").update(filled=None)
        fill(sandbox, populate(values))
        assert sandbox.rows("Row").filter(filled=F("saved")).count() == ROWS, way
