"""Backfills on tables with other keys, columns of other types, and queries of every kind."""

from __future__ import annotations

import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, migrations, models
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet

from safemigrate.backfills import Backfill
from safemigrate.exceptions import InvalidBackfill
from safemigrate.models import BackfillRun
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.status import Status
from tests.support.sandbox import MigrationSandbox, Statements, question

ROWS = 60
KEYS: dict[str, Any] = {
    "uuid": (
        models.UUIDField(primary_key=True, default=uuid.uuid4),
        lambda n: uuid.UUID(int=n * 7919 % 2**64),
    ),
    "text": (models.CharField(max_length=40, primary_key=True), lambda n: f"Key {n:03} of é"),
    "negative": (models.IntegerField(primary_key=True), lambda n: n - 30),
    "decimal": (
        models.DecimalField(max_digits=8, decimal_places=2, primary_key=True),
        lambda n: Decimal(n) / 4,
    ),
    "date": (models.DateField(primary_key=True), lambda n: date(2026, 1, 1) + timedelta(days=n)),
}


@pytest.fixture(autouse=True)
def _kept(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    settings.SAFEMIGRATE_BATCH_SIZE = 7
    call_command("migrate", "safemigrate", database=alias, verbosity=0)


def run(kind: type[Backfill], alias: str) -> BackfillRun:
    BackfillJob(kind(using=alias)).run()
    return BackfillRun._default_manager.using(alias).order_by("-pk")[0]


@pytest.mark.matrix
@pytest.mark.parametrize("key", KEYS)
def test_any_key_that_can_be_ordered_will_do(alias: str, key: str) -> None:
    field, value = KEYS[key]
    box = MigrationSandbox(
        alias, question(key=("key", field), fields=[("votes", models.IntegerField(default=0))])
    )
    box.fill(ROWS, key=value)
    seen: list[Any] = []

    class Once(Backfill):
        model = box.model()

        def batch(self, rows: QuerySet[Any]) -> None:
            seen.extend(rows.values_list("pk", flat=True))

    class Twice(Backfill):
        model = box.model()
        fields = ["votes"]

        def row(self, instance: Any) -> int:
            return instance.votes + 1

    class Values(Backfill):
        model = box.model()
        values = {"votes": F("votes") * 0 + 5}

    class Purge(Backfill):
        model = box.model()
        where = Q(votes=5)
        delete = True

    assert run(Once, alias).rows_done == ROWS
    assert len(seen) == len(set(seen)) == ROWS
    run(Twice, alias)
    assert set(box.values("votes")) == {1}
    run(Values, alias)
    assert set(box.values("votes")) == {5}
    run(Purge, alias)
    assert box.rows().count() == 0


def test_a_composite_key(alias: str) -> None:
    key = models.CompositePrimaryKey("tenant", "place")
    fields = [
        ("tenant", models.IntegerField()),
        ("place", models.IntegerField()),
        ("votes", models.IntegerField(default=0)),
    ]
    box = MigrationSandbox(alias, question(key=("pk", key), fields=fields))
    box.fill(ROWS, tenant=lambda n: n % 4, place=lambda n: n)

    class Once(Backfill):
        model = box.model()

        def batch(self, rows: QuerySet[Any]) -> None:
            rows.update(votes=F("votes") + 1)

    class Rows(Backfill):
        model = box.model()
        where = Q(votes=1)
        fields = ["votes"]

        def row(self, instance: Any) -> int:
            return 2

    run(Once, alias)
    assert set(box.values("votes")) == {1}
    run(Rows, alias)
    assert set(box.values("votes")) == {2}


NOON = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)
TYPES: dict[str, tuple[Any, Any, Any]] = {
    "json": (models.JSONField(null=True), {"b": [1, None], "a": "é"}, {"b": [2], "a": "é"}),
    "datetime": (models.DateTimeField(null=True), NOON, NOON + timedelta(microseconds=1)),
    "date": (models.DateField(null=True), date(2026, 1, 2), date(2026, 1, 3)),
    "time": (models.TimeField(null=True), time(1, 2, 3, 4), time(1, 2, 3, 5)),
    "duration": (models.DurationField(null=True), timedelta(days=3, seconds=1), timedelta(0)),
    "decimal": (
        models.DecimalField(max_digits=9, decimal_places=3, null=True),
        Decimal("1.250"),
        Decimal("1.251"),
    ),
    "float": (models.FloatField(null=True), 0.1, 0.2),
    "boolean": (models.BooleanField(null=True), True, False),
    "uuid": (models.UUIDField(null=True), uuid.UUID(int=1), uuid.UUID(int=2)),
    "binary": (models.BinaryField(null=True), b"\x00\xff%s", b""),
    "text": (models.TextField(null=True), "Ä %s \\ ' ", "ä %s \\ '"),
    "ip": (models.GenericIPAddressField(null=True), "10.0.0.1", "10.0.0.2"),
    "char": (models.CharField(max_length=9, null=True), "a", "a "),
}


@pytest.mark.matrix
@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_each_type_is_written_once_and_told_from_another(alias: str, kind: str) -> None:
    field, wanted, other = TYPES[kind]
    box = MigrationSandbox(alias, question(fields=[("value", field)]))
    box.fill(9, value=lambda n: (None, wanted, other)[n % 3])

    class Written(Backfill):
        model = box.model()
        values = {"value": wanted}

    class Forgotten(Backfill):
        model = box.model()
        values = {"value": None}

    assert run(Written, alias).rows_done == 6
    assert [bytes(value) if kind == "binary" else value for value in box.values("value")] == [wanted] * 9
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        BackfillJob(Written(using=alias)).run()
    assert [text for text in statements.texts if text.startswith("UPDATE") and "boxes_" in text] == []
    assert run(Forgotten, alias).rows_done == 9
    assert box.values("value") == [None] * 9


def answers(alias: str) -> tuple[MigrationSandbox, Any]:
    """Questions, of which every second one has three answers, the fourth ones good ones."""
    answer = migrations.CreateModel(
        "Answer",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("question", models.ForeignKey("boxes.Question", models.CASCADE, related_name="answers")),
            ("good", models.BooleanField()),
        ],
    )
    best = ("best", models.ForeignKey("boxes.Answer", models.SET_NULL, null=True, related_name="+"))
    box = MigrationSandbox(
        alias,
        question(fields=[("votes", models.IntegerField(default=0))]),
        answer,
        migrations.AddField("question", *best),
    )
    box.fill(40)
    made = box.model("Answer")
    rows = [
        made(question_id=key, good=key % 4 == 0) for key in box.values("id") if key % 2 == 0 for _ in range(3)
    ]
    made._base_manager.using(alias).bulk_create(rows)
    return box, made


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Q(answers__good=True), 10),
        (~Q(answers__good=True), 30),
        (Q(answers=None), 20),
        (Q(answers__good=True) | Q(pk__lte=3), 13),
        (Q(answers__good=False, pk__gt=20), 5),
    ],
)
@pytest.mark.parametrize("way", ["values", "row", "batch", "delete"])
def test_a_condition_on_related_rows(alias: str, condition: Q, expected: int, way: str) -> None:
    box, _answer = answers(alias)
    expected = box.rows().filter(condition).distinct().count()

    class Chosen(Backfill):
        model = box.model()
        where = condition & Q(votes=0)

    def row(self: Any, instance: Any) -> int:
        return 1

    def batch(self: Any, rows: Any) -> None:
        rows.update(votes=1)

    attributes = {
        "values": {"values": {"votes": 1}},
        "row": {"row": row, "fields": ["votes"]},
        "batch": {"batch": batch},
        "delete": {"delete": True},
    }[way]
    record = run(type("Chosen", (Chosen,), attributes), alias)
    assert (record.rows_done, record.status) == (expected, Status.SUCCEEDED)
    left = box.rows().count() if way == "delete" else box.rows().filter(votes=0).count()
    assert left == 40 - expected


def test_a_foreign_key_is_written_as_a_key_an_instance_or_an_expression(alias: str) -> None:
    box, answer = answers(alias)
    one = answer._base_manager.using(alias).order_by("pk")[0]
    first = answer._base_manager.filter(question=OuterRef("pk")).order_by("pk").values("pk")[:1]
    for value in (one.pk, one, models.Subquery(first), None):

        class Best(Backfill):
            model = box.model()
            values = {"best": value}

        assert run(Best, alias).status == Status.SUCCEEDED
        assert BackfillJob(Best(using=alias)).is_finished()
    assert box.values("best") == [None] * 40


def test_queries_of_several_kinds(alias: str) -> None:
    box, answer = answers(alias)
    model = box.model()
    queries = {
        "annotated": model._base_manager.annotate(n=Count("answers")).filter(n=3),
        "ordered": model._base_manager.order_by("-votes", "pk").filter(pk__gt=10),
        "exists": model._base_manager.filter(Exists(answer._base_manager.filter(question=OuterRef("pk")))),
        "deferred": model._base_manager.only("pk"),
    }
    for query in queries.values():
        seen: list[int] = []

        class Chosen(Backfill):
            def queryset(self, query: Any = query) -> QuerySet[Any]:
                return query  # type: ignore[no-any-return]

            def batch(self, rows: QuerySet[Any], seen: Any = seen) -> None:
                seen.extend(rows.values_list("pk", flat=True))

        run(Chosen, alias)
        assert sorted(seen) == sorted(query.using(alias).values_list("pk", flat=True))
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda rows: rows[:5], "is cut by a slice"),
        (lambda rows: rows.distinct(), "has distinct()"),
        (lambda rows: rows.values("pk"), "returns no instances"),
        (lambda rows: rows.union(rows), "is a union"),
        (lambda rows: [], "returns a list"),
        (lambda rows: None, "returns None"),
    ],
)
def test_a_query_that_cannot_be_gone_through_is_refused_in_words(alias: str, make: Any, text: str) -> None:
    box = MigrationSandbox(alias)
    box.fill(9)

    class Chosen(Backfill):
        model = box.model()

        def queryset(self) -> QuerySet[Any]:
            return make(box.model()._base_manager.all())

        def batch(self, rows: QuerySet[Any]) -> None: ...

    with pytest.raises(InvalidBackfill, match=f"queryset.*{text}".replace("(", r"\(").replace(")", r"\)")):
        BackfillJob(Chosen(using=alias)).run()
