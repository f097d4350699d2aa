"""What is run: one statement, an operation of ours, of others, or what people write."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib import import_module
from typing import Any

from django.db import connections, models, transaction
from django.db.migrations import AddField, AlterField, RemoveField, RunPython
from django.db.models import Case, F, Q, When
from django.utils.text import slugify

from benchmarks.applying import applied
from benchmarks.seeds import TABLE
from benchmarks.tables import Shape
from benchmarks.values import Value
from safemigrate.backfills import Backfill
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull

ALIAS = "default"
MONTH = timedelta(days=30)
BATCH = 1_000
CONSTANT = "open"


class Table:
    """The table of one run, and the state of its migrations as they go; `part` is how many rows are filled."""

    def __init__(self, shape: Shape, value: Value, part: int) -> None:
        self.connection: Any = connections[ALIAS]
        self.value, self.rows, self.part = value, shape.rows, part
        self.state = shape.state()

    @property
    def model(self) -> Any:
        return self.state.apps.get_model("polls", "Question")

    def apply(self, *operations: Any, atomic: bool = False) -> None:
        self.state = applied(ALIAS, self.state, *operations, atomic=atomic)

    def execute(self, statement: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)

    def may_be_null(self) -> bool:
        with self.connection.cursor() as cursor:
            columns = self.connection.introspection.get_table_description(cursor, TABLE)
        return any(column.null_ok for column in columns if column.name == self.value.name)


Way = Callable[[Table], None]


# Before a run


def nothing(table: Table) -> None:
    pass


def add_column(table: Table) -> None:
    table.apply(AddNullableField("question", table.value.name, table.value.field))


def add_filled_column(table: Table) -> None:
    add_column(table)
    table.execute(table.value.statement(table.connection.vendor))


# One statement


def one_update(table: Table) -> None:
    table.execute(table.value.statement(table.connection.vendor))


def one_update_of_null(table: Table) -> None:
    table.execute(f"{table.value.statement(table.connection.vendor)} WHERE {table.value.name} IS NULL")


def one_update_of_the_orm(table: Table) -> None:
    table.model._base_manager.update(expires_date=F("pub_date") + MONTH)


# Ours


def ours(populate: Any) -> Way:
    return lambda table: table.apply(Populate("question", table.value.name, populate))


def trivial(question: Any) -> Any:
    return question.pub_date + MONTH


def slug(question: Any) -> Any:
    return slugify(question.question_text.rstrip("."))


def picked(question: Any) -> Any:
    return json.loads(question.question_text)["title"]


def months(questions: Any) -> list[Any]:
    return [question.pub_date + MONTH for question in questions]


def own_uuid() -> uuid.UUID:
    """Return what uuid.uuid4() returns, by a function that no server can know."""
    return uuid.UUID(int=random.getrandbits(128), version=4)


# Backfill classes


def backfill(**attributes: Any) -> Way:
    """Return what runs a Backfill class with these attributes."""

    def run(table: Table) -> None:
        kind = type("Measured", (Backfill,), {"model": table.model, **attributes})
        import_module("safemigrate.runs.lookup").BackfillJob(kind(using=ALIAS)).run()

    return run


def add_stale_column(every: int) -> Way:
    """Return what adds the column with its values, but for one row in so many, which is NULL; 0: for none."""

    def prepare(table: Table) -> None:
        add_filled_column(table)
        if every:
            table.execute(f"UPDATE {TABLE} SET {table.value.name} = NULL WHERE id % {every} = 0")

    return prepare


def one_delete(table: Table) -> None:
    table.execute(f"DELETE FROM {TABLE} WHERE id % 2 = 0")


def loop_of_deletes(table: Table) -> None:
    """Delete the first thousand again and again, as is often written."""
    rows = table.model.objects.annotate(half=F("id") % 2).filter(half=0)
    while keys := list(rows.values_list("pk", flat=True)[:BATCH]):
        table.model.objects.filter(pk__in=keys).delete()


# What people write


def each(function: Callable[[Table, Any], None]) -> Way:
    """Return what runs the function as RunPython does, in one transaction, as migrations have it by default."""

    def act(table: Table) -> None:
        table.apply(
            RunPython(lambda apps, editor: function(table, apps.get_model("polls", "Question"))), atomic=True
        )

    return act


def loop_of_save(table: Table, model: Any) -> None:
    for question in model.objects.all()[: table.part]:
        question.expires_date = question.pub_date + MONTH
        question.save()


def bulk_update(table: Table, model: Any) -> None:
    questions = list(model.objects.all()[: table.part])
    for question in questions:
        question.expires_date = question.pub_date + MONTH
    model.objects.bulk_update(questions, ["expires_date"], batch_size=BATCH)


def batches_of_django(table: Table) -> None:
    """The loop of "Non-atomic migrations" in Django's documentation, ended after a part of the rows."""
    model = table.model
    for _ in range(table.part // BATCH):
        with transaction.atomic():
            for row in model.objects.filter(token__isnull=True)[:BATCH]:
                row.token = uuid.uuid4()
                row.save()


# NOT NULL


def alter_field(table: Table) -> None:
    table.apply(AlterField("question", table.value.name, table.value.field))


def set_not_null(table: Table) -> None:
    table.apply(SetNotNull("question", table.value.name, table.value.field))


# The whole operation


def operation(populate: Any) -> Way:
    return lambda table: table.apply(
        AddRequiredField("question", table.value.name, table.value.field, populate)
    )


def plain_operation(table: Table) -> None:
    """Add, update and alter, as short as Django has it; in one transaction, where the database can."""
    name, field = table.value.name, table.value.field
    nullable = field.clone()
    nullable.null = True
    table.apply(
        AddField("question", name, nullable),
        RunPython(lambda apps, editor: one_update(table)),
        AlterField("question", name, field),
        atomic=True,
    )


def plain_add_constant(table: Table) -> None:
    field = table.value.field.clone()
    field.default = CONSTANT
    table.apply(AddField("question", table.value.name, field, preserve_default=False), atomic=True)


EARLY = Q(pub_date__lt=datetime(2024, 1, 8, 10, 40, tzinfo=timezone.utc))
COMMON = Case(When(EARLY, then=models.Value("closed")), default=models.Value(CONSTANT))


def plain_add_common(table: Table) -> None:
    plain_add_constant(table)
    table.model._base_manager.filter(EARLY).update(title="closed")


def plain_add_field(table: Table) -> None:
    field = models.CharField(max_length=200, default="")
    table.apply(AddField("question", table.value.name, field, preserve_default=False), atomic=True)


def drop_column(table: Table) -> None:
    table.apply(RemoveField("question", table.value.name))
