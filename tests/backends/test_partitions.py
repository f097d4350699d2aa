"""PostgreSQL's partitioned tables: indexes and foreign keys on each partition, then on the whole."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.models import F

from safemigrate.backends import for_connection, get_backend
from safemigrate.backends.postgresql.partitions import tree
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from tests.support.sandbox import START, MigrationSandbox, Statements, question

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True),
]

ROWS = 60
COLUMNS = "id bigint NOT NULL, question_text varchar(200) NOT NULL, pub_date timestamptz NOT NULL"
TABLE = "boxes_question"


def by_month(table: str, parent: str, tail: str = "") -> list[str]:
    return [
        f"CREATE TABLE {table}_{number} PARTITION OF {parent} FOR VALUES FROM ('{start}') TO ('{end}') {tail}"
        for number, (start, end) in enumerate([("2026-01-01", "2026-01-02"), ("2026-01-02", "2026-02-01")])
    ]


def by_hash(table: str, parent: str) -> list[str]:
    return [
        f"CREATE TABLE {table}_{n} PARTITION OF {parent} FOR VALUES WITH (MODULUS 3, REMAINDER {n})"
        for n in range(3)
    ]


#: By what they are partitioned: with and without a primary key that holds the partition key.
TREES: dict[str, list[str]] = {
    "range": [f"CREATE TABLE {TABLE} ({COLUMNS}) PARTITION BY RANGE (pub_date)", *by_month(TABLE, TABLE)],
    "range, with the key": [
        f"CREATE TABLE {TABLE} ({COLUMNS}, PRIMARY KEY (id, pub_date)) PARTITION BY RANGE (pub_date)",
        *by_month(TABLE, TABLE),
    ],
    "hash": [
        f"CREATE TABLE {TABLE} ({COLUMNS}, PRIMARY KEY (id)) PARTITION BY HASH (id)",
        *by_hash(TABLE, TABLE),
    ],
    "partitions of one name": [
        f"CREATE TABLE {TABLE} ({COLUMNS}) PARTITION BY RANGE (pub_date)",
        "CREATE SCHEMA parts",
        *by_month(TABLE, TABLE)[:1],
        by_month(f"parts.{TABLE}", TABLE)[1].replace(f"{TABLE}_1", f"{TABLE}_0", 1),
    ],
    "sub-partitioned, in another schema": [
        f"CREATE TABLE {TABLE} ({COLUMNS}) PARTITION BY RANGE (pub_date)",
        "CREATE SCHEMA parts",
        *by_month("parts.old", TABLE, "PARTITION BY HASH (id)"),
        *by_hash("parts.old_0", "parts.old_0"),
        *by_hash("parts.old_1", "parts.old_1"),
        f'CREATE TABLE parts."The rest" PARTITION OF {TABLE} DEFAULT',
    ],
}

FIELDS: dict[str, tuple[Any, Any]] = {
    "plain": (models.DateTimeField(), F("pub_date") + timedelta(days=30)),
    "an index": (models.DateTimeField(db_index=True), F("pub_date") + timedelta(days=30)),
    "a text with two indexes": (models.SlugField(), "none"),
    "a check": (models.PositiveIntegerField(), 7),
    "a foreign key": (models.ForeignKey("boxes.Kind", models.CASCADE), 1),
}


def partitioned(alias: str, kind: str, rows: int = ROWS) -> MigrationSandbox:
    """Return the polls on a table that was partitioned behind Django's back."""
    kinds = migrations.CreateModel("Kind", [("id", models.BigAutoField(primary_key=True))])
    box = MigrationSandbox(alias, kinds)
    for_connection(connections[alias]).execute(*TREES[kind])
    box.state = box.after(question())
    box.rows("Kind").create(pk=1)
    box.fill(rows, id=lambda n: n, pub_date=lambda n: START + timedelta(hours=n))
    return box


def add(name: str, **options: Any) -> AddRequiredField:
    field, populate = FIELDS[name]
    return AddRequiredField("question", "new", field, populate, **options)


def problems(box: MigrationSandbox) -> list[Any]:
    """Return what is wrong on the table or a partition: NULL allowed, a constraint or an index not valid or single."""
    database: Any = for_connection(box.connection)
    found = []
    for table in tree(database, box.model()):
        found += database.fetch(
            "SELECT attrelid::regclass::text FROM pg_attribute WHERE attrelid = %s AND attname IN ('new', 'new_id') "
            "AND NOT attnotnull",
            [table.oid],
        )
        found += database.fetch(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s AND NOT convalidated", [table.oid]
        )
        found += database.fetch(
            "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON oid = indexrelid "
            "WHERE indrelid = %s AND NOT (indisvalid AND (relispartition OR %s))",
            [table.oid, table.parent is None],
        )
        found += database.fetch(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s AND contype = 'f' AND conparentid = 0 AND %s",
            [table.oid, table.parent is not None],
        )
    return found


def indexes(box: MigrationSandbox) -> set[int]:
    database: Any = for_connection(box.connection)
    rows = database.fetch(
        "SELECT i.oid FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_class t ON t.oid = indrelid "
        "JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname IN ('new', 'new_id') AND a.attnum = ANY (indkey) "
        "WHERE t.relkind IN ('r', 'p')"
    )
    return {name for (name,) in rows}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("rows", [ROWS, 0])
def test_a_field_of_any_kind_is_added_and_goes_again(alias: str, kind: str, name: str, rows: int) -> None:
    box = partitioned(alias, kind, rows)
    before, operation = box.state, add(name)
    box.run(operation)
    assert len(box.values("new")) == rows
    assert None not in box.values("new")
    assert not problems(box)
    tables = tree(for_connection(box.connection), box.model())  # type: ignore[arg-type]
    number = {"an index": 1, "a text with two indexes": 2, "a foreign key": 1}.get(name, 0)
    assert len(indexes(box)) == number * len(tables)
    box.undo(operation, before=before)
    assert box.column("new") is box.column("new_id") is None
    assert not indexes(box)
    box.run(operation)
    assert not problems(box)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", ["a text with two indexes", "a foreign key"])
def test_the_three_steps_go_back_one_by_one(alias: str, kind: str, name: str) -> None:
    box = partitioned(alias, kind)
    field, populate = FIELDS[name]
    steps = [
        AddNullableField("question", "new", field),
        Populate("question", "new", populate),
        SetNotNull("question", "new", field),
    ]
    states = []
    for step in steps:
        states.append(box.state)
        box.run(step)
    assert not problems(box)
    box.undo(steps[2], before=states[2])
    assert not indexes(box)
    assert (box.column("new") or box.column("new_id")).nullable
    box.run(steps[2])
    assert not problems(box)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["range", "sub-partitioned, in another schema"])
@pytest.mark.parametrize("name", ["an index", "a foreign key"])
def test_stopped_at_any_statement_the_next_run_ends_the_same(alias: str, kind: str, name: str) -> None:
    box = partitioned(alias, kind)
    before, operation = box.state, add(name)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        box.run(operation)
    # Not each of the larger one: the runs are long.
    for at in statements.stops[:: 1 if kind == "range" else 3]:
        box.undo(operation, before=before)
        with pytest.raises(Statements.Crash), connections[alias].execute_wrapper(Statements(stop_at=at)):
            box.run(operation)
            raise AssertionError(f"not stopped at statement {at}")
        connections[alias].close()
        box.run(operation)
        assert not problems(box), statements.texts[at]
        assert None not in box.values("new")


@pytest.mark.parametrize("name", ["an index", "a foreign key"])
def test_a_partition_that_is_made_meanwhile(alias: str, name: str) -> None:
    """It is made with what the whole has by then, and is not looked for any more."""
    box = partitioned(alias, "range")
    later = f"CREATE TABLE later PARTITION OF {TABLE} FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')"

    def make_it(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if "ON ONLY" in sql:
            for_connection(box.connection).execute(later)
        return result

    with connections[alias].execute_wrapper(make_it):
        box.run(add(name))
    assert not problems(box)


@pytest.mark.parametrize("kind", TREES)
def test_sizes_are_those_of_all_partitions(alias: str, kind: str) -> None:
    box = partitioned(alias, kind)
    database = for_connection(box.connection)
    assert database.estimated_rows(box.model()) > 0
    database.execute(f"ANALYZE {TABLE}")
    assert database.estimated_rows(box.model()) == ROWS
    table, _ = get_backend(box.connection).monitoring.size(box.model())
    assert table is not None
    assert table > 0


def test_a_composite_key_that_holds_the_partition_key(alias: str) -> None:
    box = MigrationSandbox(
        alias, migrations.CreateModel("Kind", [("id", models.BigAutoField(primary_key=True))])
    )
    for_connection(connections[alias]).execute(*TREES["range, with the key"])
    plain = question(key=("id", models.BigIntegerField()), fields=[("pk", key())])
    box.state = box.after(plain)
    box.fill(ROWS, id=lambda n: n)
    box.run(AddRequiredField("question", "new", models.SlugField(), lambda row: f"row-{row.id}"))
    assert sorted(box.values("new")) == sorted(f"row-{n}" for n in range(1, ROWS + 1))
    assert not problems(box)


def key() -> Any:
    return models.CompositePrimaryKey("id", "pub_date")
