"""A run that goes on with another populate than it began with says so, before it goes on."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import pytest
from django.db import models
from django.db.models import F, Q, Value

from safemigrate.operations import AddNullableField, Populate
from safemigrate.populate import FromApps, FromRelated, PerBatch, PerRow
from safemigrate.populate.sources import fingerprint, resolve
from safemigrate.runs import store
from tests.runs.test_recorder import _recorded as _recorded  # noqa: PLC0414  an autouse fixture
from tests.runs.test_recorder import events, limited
from tests.support.sandbox import MigrationSandbox

pytestmark = pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
ONES: Any = lambda row: 1  # noqa: E731
TWOS: Any = lambda row: 2  # noqa: E731


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(30)
    sandbox.run(AddNullableField("question", "n", models.IntegerField()))
    return sandbox


def half(sandbox: MigrationSandbox, populate: Any) -> None:
    with limited(rows=10), pytest.raises(SystemExit):
        sandbox.run(Populate("question", "n", populate, batch_size=10))


@pytest.mark.parametrize(
    ("before", "after"), [(ONES, TWOS), (Value(1), Value(2)), (F("id") - F("id") + 1, TWOS), (1, 2)]
)
def test_it_says_how_many_have_the_first_value_and_how_to_set_them_back(
    sandbox: MigrationSandbox, before: Any, after: Any, caplog: pytest.LogCaptureFixture
) -> None:
    half(sandbox, before)
    caplog.clear()
    sandbox.run(Populate("question", "n", after))
    assert sandbox.values("n") == [1] * 10 + [2] * 20
    (said,) = [
        r.getMessage() for r in caplog.records if "another one than when the run began" in r.getMessage()
    ]
    quote = sandbox.connection.ops.quote_name
    assert "10 rows have their value by the first one and keep it" in said
    assert f"    UPDATE {quote('boxes_question')} SET {quote('n')} = NULL;\n" in said
    assert said in events(store.records().get())


@pytest.mark.parametrize("populate", [ONES, Value(1), 1])
def test_of_the_same_nothing_is_said(
    sandbox: MigrationSandbox, populate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    half(sandbox, populate)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    sandbox.run(Populate("question", "n", populate))
    assert sandbox.values("n") == [1] * 30
    assert caplog.records == []


def made(value: Any) -> Callable[[Any], Any]:
    return lambda row: value


SAME: list[tuple[Any, Any]] = [
    (lambda row: row.pk + 1, lambda row: row.pk + 1),
    (made(1), made(1)),
    (F("id") + 1, F("id") + 1),
    (FromRelated("site__name"), FromRelated("site__name")),
    (FromApps(lambda apps: F("id")), FromApps(lambda apps: F("id"))),
    (PerRow(ONES, only=["id"]), PerRow(ONES, only=["id"])),
    ("operator.index", operator.index),
]
OTHER: list[tuple[Any, Any]] = [
    (lambda row: row.pk + 1, lambda row: row.pk + 2),
    (lambda row: row.pk, lambda row: row.id),
    (made(1), made(2)),
    (F("id") + 1, F("id") + 2),
    (FromRelated("site__name"), FromRelated("site__code")),
    (FromApps(lambda apps: F("id")), FromApps(lambda apps: F("n"))),
    (PerRow(ONES, only=["id"]), PerRow(ONES, only=["n"])),
    (PerBatch(lambda rows: [1 for _ in rows]), PerBatch(lambda rows: [2 for _ in rows])),
    (lambda: 1, lambda: 2),
    (lambda apps, editor: 1, lambda apps, editor: 2),
    ("a", "b"),
]


@pytest.mark.parametrize(("one", "other", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in OTHER])
def test_what_tells_two_populates_apart(alias: str, one: Any, other: Any, same: bool) -> None:
    assert (fingerprint(resolve(one)) == fingerprint(resolve(other))) is same


def test_another_condition_is_another_populate(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    with limited(rows=10), pytest.raises(SystemExit):
        sandbox.run(Populate("question", "n", 1, batch_size=10, where=Q(n=None)))
    sandbox.run(Populate("question", "n", 1, batch_size=10, where=Q(n=None) & Q(pk__gt=5)))
    assert "another one than when the run began (it was changed)" in caplog.text
