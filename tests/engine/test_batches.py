"""A table cut into ranges of its primary key."""

from __future__ import annotations

import functools
import operator
import uuid
from typing import Any

import pytest
from django.db import connections, models

from safemigrate.engine.batches import Batches, Range, keys_of, null_in
from safemigrate.operations import AddNullableField
from tests.support.sandbox import MigrationSandbox, Statements, question

pytestmark = pytest.mark.matrix

KEYS: dict[str, Any] = {
    "negative": (models.IntegerField(primary_key=True), [-7, -3, 0, 4, 5]),
    "sparse": (models.BigIntegerField(primary_key=True), [1, 10**6, 10**12, 10**12 + 1, 2**62]),
    "uuid": (models.UUIDField(primary_key=True), [uuid.UUID(int=n << 100) for n in range(1, 6)]),
    "text": (models.CharField(max_length=9, primary_key=True), ["a", "aa", "b", "ba", "c"]),
}


def table(alias: str, kind: str, filled: tuple[int, ...] = ()) -> tuple[Batches, list[Any]]:
    """Five rows with keys of a kind; those at the places `filled` have their value."""
    field, keys = KEYS[kind]
    sandbox = MigrationSandbox(alias, question(key=("key", field)))
    sandbox.run(AddNullableField("question", "votes", models.IntegerField()))
    sandbox.fill(5, key=lambda n: keys[n - 1], votes=lambda n: 0 if n - 1 in filled else None)
    return Batches(sandbox.model(), alias, null_in(["votes"])), keys


@pytest.fixture(params=KEYS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ranges(batches: Batches, size: int) -> list[Range]:
    found, last = [], batches.last()
    batch = batches.next(batches.first_todo(), last, size, inclusive=True)
    while batch is not None:
        found.append(batch)
        batch = batches.next(batch.last, last, size)
    return found


@pytest.mark.parametrize(("size", "parts"), [(1, 5), (2, 3), (4, 2), (5, 1), (6, 1)])
def test_the_ranges_are_all_rows_once_and_in_order(alias: str, kind: str, size: int, parts: int) -> None:
    batches, keys = table(alias, kind)
    found = ranges(batches, size)
    assert len(found) == parts
    rows = [keys_of(batches.rows.filter(batch.condition).order_by("pk")) for batch in found]
    assert functools.reduce(operator.iadd, rows, []) == keys
    assert all(len(part) == size for part in rows[:-1])
    assert [batch.after for batch in found] == [False] + [True] * (parts - 1)


def test_the_ranges_begin_at_the_first_row_to_fill(alias: str, kind: str) -> None:
    batches, keys = table(alias, kind, filled=(0, 1, 3))
    assert batches.any_left()
    assert batches.first_todo() == keys[2]
    assert batches.remaining_keys(10) == [keys[2], keys[4]]
    assert batches.remaining_keys(1) == [keys[2]]
    assert ranges(batches, 10) == [Range(keys[2], keys[4])]


def test_with_nothing_to_fill_there_is_nothing(alias: str) -> None:
    batches, keys = table(alias, "negative", filled=(0, 1, 2, 3, 4))
    assert not batches.any_left()
    assert batches.first_todo() is None
    assert batches.remaining_keys(10) == []
    assert batches.last() == keys[-1]


def test_rows_that_come_in_behind_the_last_key_are_not_in_the_ranges(alias: str) -> None:
    batches, keys = table(alias, "negative")
    batch = batches.next(keys[3], keys[3], 10)
    assert batch is None
    assert batches.next(keys[1], keys[3], 10) == Range(keys[1], keys[3], after=True)


def test_a_range_is_halved_by_its_rows_to_fill(alias: str) -> None:
    batches, keys = table(alias, "negative", filled=(1,))
    whole = Range(keys[0], keys[4])
    assert batches.halves(whole) == [Range(keys[0], keys[2]), Range(keys[3], keys[4])]
    assert batches.halves(Range(keys[0], keys[1])) == [Range(keys[0], keys[0])]
    assert batches.halves(Range(keys[1], keys[1])) == []


def test_the_end_of_a_range_is_found_by_the_key_alone(alias: str) -> None:
    batches, keys = table(alias, "negative")
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        batches.next(keys[0], keys[4], 2)
    (statement,) = statements.texts
    assert "votes" not in statement
    assert "OFFSET 1" in statement


def test_a_composite_key_is_cut_by_all_its_parts(alias: str) -> None:
    key = ("pk", models.CompositePrimaryKey("shop", "place"))
    parts = [("shop", models.IntegerField()), ("place", models.IntegerField())]
    sandbox = MigrationSandbox(alias, question(key=key, fields=parts))
    sandbox.run(AddNullableField("question", "votes", models.IntegerField()))
    sandbox.fill(6, shop=lambda n: (n + 1) // 2, place=lambda n: n % 2)
    batches = Batches(sandbox.model(), alias, null_in(["votes"]))
    keys = [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    found = ranges(batches, 4)
    assert found == [Range((1, 0), (2, 1)), Range((2, 1), (3, 1), after=True)]
    rows = [keys_of(batches.rows.filter(batch.condition).order_by("pk")) for batch in found]
    assert functools.reduce(operator.iadd, rows, []) == keys
