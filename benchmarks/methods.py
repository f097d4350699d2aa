"""The ways that are measured side by side, each with the one that it is compared with."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import F, Q
from django.db.models.functions import Mod
from django.db.models.lookups import Exact

from benchmarks import peers, ways
from benchmarks.tables import Shape
from benchmarks.values import VALUES, Value
from benchmarks.ways import BATCH, MONTH, Table, Way
from safemigrate.populate import FromApps, FromRelated, PerBatch

FAST = ("postgresql", "mysql")
EXPRESSION, TEXT = F("pub_date") + MONTH, F("question_text")
HALF = Q(Exact(Mod(F("id"), 2), 0))
SMALL = (1_000, 10_000, 50_000)


@dataclass(frozen=True, kw_only=True)
class Method:
    """`run` is measured, after `prepare`, which is not.

    `base` names the method that it is compared with. One row in `share` is filled, where all would take too
    long. `everywhere` is measured with each driver and version of a database, the others with one. It is run
    so many `times`, of which the median counts, on a table that is too small for one. `required` says that
    the column is NOT NULL in the end.
    """

    title: str
    run: Way
    base: str
    kind: str = "datetime"
    ours: bool = False
    vendors: Sequence[str] = (*FAST, "sqlite")
    everywhere: bool = False
    prepare: Way = ways.add_column
    required: bool = False
    share: int = 1
    times: int = 1
    most_rows: int | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    needs: str = ""  # a package to be imported
    apps: Sequence[str] = ()  # beside ours, in INSTALLED_APPS

    def shaped(self, rows: int) -> Shape:
        return Shape(rows if self.most_rows is None else min(rows, self.most_rows), **self.shape)

    def table(self, shape: Shape) -> Table:
        return Table(shape, self.value, self.part(shape.rows))

    @property
    def value(self) -> Value:
        return VALUES[self.kind]

    def part(self, rows: int) -> int:
        """Return how many of so many rows are filled, in whole batches."""
        return max(rows // self.share // BATCH * BATCH, min(rows, BATCH)) if self.share > 1 else rows

    def count_wrong(self, table: Table) -> int:
        """Return how many rows are not as they are to be after the run; a column that may be NULL is one more."""
        left = table.rows - table.part
        wrong = abs(self.value.count_wrong(table.connection) - left)
        return wrong + (self.required and table.may_be_null())


def update(base: str, title: str, kind: str, **more: Any) -> Method:
    return Method(title=f"one UPDATE, {title}", run=ways.one_update, base=base, kind=kind, **more)


def ours(title: str, populate: Any, base: str = "update", **more: Any) -> Method:
    return Method(title=title, run=ways.ours(populate), base=base, ours=True, **more)


def loop(title: str, run: Way, **more: Any) -> Method:
    return Method(title=title, run=run, **{"base": "update"} | more)


def not_null(title: str, run: Way, prepare: Way = ways.add_filled_column, **more: Any) -> Method:
    return Method(
        title=f"NOT NULL: {title}", run=run, base="alter_field", prepare=prepare, required=True, **more
    )


def whole(title: str, run: Way, prepare: Way = ways.nothing, **more: Any) -> Method:
    return Method(title=title, run=run, kind="text", prepare=prepare, required=True, **more)


def constant(title: str, run: Way, **more: Any) -> Method:
    return Method(
        title=f"one value for all rows: {title}",
        run=run,
        base="plain_constant",
        kind="constant",
        prepare=ways.nothing,
        required=True,
        vendors=FAST,
        times=5,
        **more,
    )


def common(title: str, run: Way, **more: Any) -> Method:
    return Method(
        title=f"one value for 99 % of the rows: {title}",
        run=run,
        base="plain_common",
        kind="common",
        prepare=ways.nothing,
        required=True,
        vendors=FAST,
        **more,
    )


def backfill(title: str, every: int = 1, **attributes: Any) -> Method:
    return Method(
        title=f"Backfill: {title}",
        run=ways.backfill(**attributes),
        base="update",
        prepare=ways.add_column if every == 1 else ways.add_stale_column(every),
        ours=True,
        vendors=FAST,
    )


def delete(title: str, run: Way, **more: Any) -> Method:
    return Method(
        title=f"Backfill: {title}",
        run=run,
        base="delete",
        prepare=ways.add_filled_column,
        vendors=FAST,
        **more,
    )


#: It knows PostgreSQL, and psycopg 3.
DEFERRED: dict[str, Any] = {
    "vendors": ["postgresql"],
    "needs": "deferred_migrations",
    "apps": peers.DEFERRED_MIGRATIONS,
}

METHODS = {
    # One statement, by what is written into the column.
    "update": update("update", "timestamps", "datetime", everywhere=True),
    "update_orm": Method(
        title="one UPDATE, timestamps by the ORM",
        run=ways.one_update_of_the_orm,
        base="update_orm",
        vendors=["sqlite"],
        everywhere=True,
    ),
    "update_text": update("update_text", "texts", "text", everywhere=True),
    "update_uuid": update("update_uuid", "uuids", "uuid", everywhere=True),
    "update_related": update("update_related", "from a related row", "related", shape={"related": True}),
    # Ours, where the database computes the value.
    "expression": ours("`F() + timedelta`", EXPRESSION, vendors=FAST, everywhere=True),
    "expression_orm": ours(
        "`F() + timedelta`", EXPRESSION, "update_orm", vendors=["sqlite"], everywhere=True
    ),
    "expression_two": ours(
        "`F() + timedelta`, 2 workers", EXPRESSION, vendors=FAST, settings={"SAFEMIGRATE_WORKERS": 2}
    ),
    "expression_text": ours("`F()`", TEXT, "update_text", kind="text", everywhere=True),
    "uuid4": ours("`uuid.uuid4`", uuid.uuid4, "update_uuid", kind="uuid", everywhere=True),
    "related": ours(
        "`FromRelated`",
        FromRelated("poll__closes"),
        "update_related",
        kind="related",
        shape={"related": True},
    ),
    # Ours, where Python does.
    "own_uuid": ours(
        "a function of no arguments", ways.own_uuid, "update_uuid", kind="uuid", everywhere=True
    ),
    "row": ours("a function of one row, trivial", ways.trivial, everywhere=True),
    "row_alone": ours(
        "the same, no writer thread",
        ways.trivial,
        vendors=FAST,
        settings={"SAFEMIGRATE_WRITER_THREAD": False},
    ),
    "batch": ours("`PerBatch`, trivial", PerBatch(ways.months)),
    "row_slug": ours("a function of one row, `slugify`", ways.slug, "update_text", kind="slug"),
    "row_json": ours(
        "a function of one row, `json.loads`",
        ways.picked,
        "update_text",
        kind="picked",
        shape={"text": "json"},
    ),
    # Backfill classes: of all rows, those that have another value.
    "backfill": backfill("`values`, all rows differ", values={"expires_date": EXPRESSION}),
    "backfill_10": backfill("`values`, 10 % differ", 10, values={"expires_date": EXPRESSION}),
    "update_10": Method(
        title="Backfill: one UPDATE of the 10 % that differ",
        run=ways.one_update_of_null,
        base="update",
        prepare=ways.add_stale_column(10),
        vendors=FAST,
    ),
    "backfill_1": backfill("`values`, 1 % differ", 100, values={"expires_date": EXPRESSION}),
    "backfill_0": backfill("`values`, none differs", 0, values={"expires_date": EXPRESSION}),
    "backfill_row": backfill(
        "`row()`, trivial", fields=["expires_date"], row=lambda self, row: ways.trivial(row)
    ),
    "backfill_once": backfill(
        "`values`, each row once", values={"expires_date": EXPRESSION}, only_changed=False
    ),
    "delete": delete("one DELETE of half the rows", ways.one_delete),
    "backfill_delete": delete("`delete`", ways.backfill(where=HALF, delete="raw"), ours=True),
    "loop_of_deletes": delete("a loop of `delete()`, 1,000 rows each", ways.loop_of_deletes),
    # What people write.
    "loop": loop("a loop of `save()`", ways.each(ways.loop_of_save), everywhere=True, share=50),
    "bulk_update": loop("`bulk_update`", ways.each(ways.bulk_update), everywhere=True, share=20),
    "django_batches": loop(
        "the batches of Django's manual", ways.batches_of_django, base="update_uuid", kind="uuid", share=50
    ),
    "maintenance_task": loop(
        "django-maintenance-tasks, a `save()` each",
        peers.maintenance_task,
        prepare=peers.add_column_beside,
        vendors=FAST,
        share=50,
        needs="maintenance_tasks",
        apps=peers.MAINTENANCE_TASKS,
    ),
    "deferred_fill": loop(
        "django-deferred-migrations, `BackfillNotNull`",
        peers.deferred_fill("{pub_date} + interval '30 days'"),
        prepare=peers.add_column_beside,
        **DEFERRED,
    ),
    # NOT NULL alone.
    "alter_field": not_null("`AlterField`", ways.alter_field),
    "set_not_null": not_null("`SetNotNull`", ways.set_not_null, ours=True),
    "migration_tools": not_null(
        "django-pg-migration-tools",
        peers.migration_tools,
        vendors=["postgresql"],
        needs="django_pg_migration_tools",
    ),
    "zero_downtime": not_null(
        "django-pg-zero-downtime-migrations",
        ways.alter_field,
        vendors=["postgresql"],
        needs="django_zero_downtime_migrations",
        engine="django_zero_downtime_migrations.backends.postgres",
    ),
    "deferred_not_null": not_null(
        "django-deferred-migrations",
        peers.deferred_not_null,
        prepare=peers.add_filled_column_beside,
        **DEFERRED,
    ),
    # The whole operation, on a table of any size.
    "plain_operation": whole(
        "`AddField`, UPDATE, `AlterField`", ways.plain_operation, base="plain_operation", everywhere=True
    ),
    "operation": whole(
        "`AddRequiredField`", ways.operation(TEXT), base="plain_operation", ours=True, everywhere=True
    ),
    "deferred_operation": whole(
        "django-deferred-migrations",
        peers.deferred_operation("{question_text}"),
        base="plain_operation",
        prepare=peers.after_migrate(ways.nothing),
        **DEFERRED,
    ),
    "plain_constant": constant("`AddField` with a default", ways.plain_add_constant),
    "constant": constant("`AddRequiredField`", ways.operation(ways.CONSTANT), ours=True),
    "plain_common": common("`AddField` with a default, one UPDATE of the others", ways.plain_add_common),
    "common": common("`AddRequiredField`", ways.operation(ways.COMMON), ours=True),
    "common_rows": common(
        "`AddRequiredField` that writes each row",
        ways.operation(FromApps(lambda apps: ways.COMMON)),
        ours=True,
    ),
    "plain_0": whole(
        "no rows: `AddField`", ways.plain_add_field, base="plain_0", everywhere=True, most_rows=0, times=9
    ),
    "operation_0": whole(
        "no rows: `AddRequiredField`",
        ways.operation(TEXT),
        base="plain_0",
        ours=True,
        everywhere=True,
        most_rows=0,
        times=9,
    ),
}
for most in SMALL:
    size, base = f"{most:,} rows", f"plain_{most}"
    METHODS[base] = whole(
        f"{size}: `AddField`, UPDATE, `AlterField`", ways.plain_operation, base=base, most_rows=most
    )
    METHODS[f"operation_{most}"] = whole(
        f"{size}: `AddRequiredField`", ways.operation(TEXT), base=base, ours=True, most_rows=most
    )
for many in (0, 5):
    with_these, base = f"{many} secondary indexes", f"update_{many}_indexes"
    METHODS[base] = update(
        base, f"timestamps, {with_these}", "datetime", vendors=FAST, shape={"indexes": many}
    )
    METHODS[f"expression_{many}_indexes"] = ours(
        f"`F() + timedelta`, {with_these}", EXPRESSION, base, vendors=FAST, shape={"indexes": many}
    )
