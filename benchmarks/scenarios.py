"""The ways to add the field that are compared, and what stands in their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.obstacles import Autovacuum, Obstacle, Reader, RowLock
from benchmarks.sites import BEFORE, EXPIRES, KNOWN_EXPIRES, NULLABLE, PHONE, Column, Site

NAME = "0003_question_expires_date"

MIGRATION = """\
from datetime import timedelta

from django.db import migrations, models
from django.db.models import F
from safemigrate.operations import AddRequiredField, RequireField


def update(apps, schema_editor):
    Question = apps.get_model("polls", "Question")
    Question.objects.update(expires_date=F("pub_date") + timedelta(days=30))


def loop(apps, schema_editor):
    Question = apps.get_model("polls", "Question")
    for question in Question.objects.all():
        question.expires_date = question.pub_date + timedelta(days=30)
        question.save()


class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = [("polls", "{before}")]
    operations = [{operations}]
"""

OPERATION = """
        AddRequiredField(
            "question", "expires_date", models.DateTimeField("expires at"),
            F("pub_date") + timedelta(days=30){more},
        ),
    """
REQUIRE = OPERATION.replace("AddRequiredField", "RequireField")
ADD = """
        migrations.AddField("question", "expires_date", models.DateTimeField("expires at", null=True)),"""
NAIVE = (
    ADD
    + """
        migrations.RunPython({function}),
        migrations.AlterField("question", "expires_date", models.DateTimeField("expires at")),
    """
)


def one_file(operations: str, *, atomic: bool = False) -> Callable[[Site], str]:
    """Return what writes a migration of these operations, and gives its name."""

    def write(site: Site) -> str:
        site.write_migration(NAME, MIGRATION.format(atomic=atomic, before=BEFORE, operations=operations))
        return NAME

    return write


def required(site: Site) -> str:
    """Write the migration that makes the field required which old code knows as nullable."""
    name = "0004_question_expires_date_required"
    operations = REQUIRE.format(more=", keep_guard=True")
    site.write_migration(name, MIGRATION.format(atomic=False, before=NULLABLE, operations=operations))
    return name


def phone(site: Site) -> str:
    """Have the command write the migration, as a stranger would."""
    site.must(
        site.new,
        *("add_required_field", "polls.Question.phone", "--populate", "Value('')"),
        "--keep-guard",
    )
    (written,) = (site.new / "polls/migrations").glob("0004_*.py")
    return written.stem


def three_files(site: Site) -> str:
    """Write the three files as a person would, and give the name of the second."""
    populate = "F('pub_date') + timedelta(days=30)"
    site.must(
        site.new, "add_required_field", "polls.Question.expires_date", "--populate", populate, "--phases", "3"
    )
    (second,) = (site.new / "polls/migrations").glob("0004_*.py")
    return second.stem


@dataclass(frozen=True)
class Scenario:
    """A migration to be run under traffic: `write` makes it and gives its name.

    Where old code knows the `column`, it is there as null=True, half of the rows are NULL, and old code writes NULL
    into it.
    """

    title: str
    write: Callable[[Site], str]
    obstacle: type[Obstacle] = Obstacle
    fills: bool = True
    column: Column = EXPIRES
    most_rows: int | None = None
    vendors: tuple[str, ...] = ("postgresql", "mysql")


LOOP_ROWS = 30_000
KEPT = one_file(OPERATION.format(more=", keep_guard=True"))

SCENARIOS = {
    "nothing": Scenario("an empty migration, for comparison", one_file(""), fills=False),
    "keep_guard": Scenario("`AddRequiredField(keep_guard=True)`", KEPT),
    "phases": Scenario("`--phases 3`, files 1 and 2", three_files),
    "plain": Scenario("`AddRequiredField`", one_file(OPERATION.format(more=""))),
    "update_atomic": Scenario(
        "naive, one UPDATE, atomic", one_file(NAIVE.format(function="update"), atomic=True)
    ),
    "update": Scenario("naive, one UPDATE, not atomic", one_file(NAIVE.format(function="update"))),
    "loop_atomic": Scenario(
        "naive, loop of `save()`, atomic",
        one_file(NAIVE.format(function="loop"), atomic=True),
        most_rows=LOOP_ROWS,
    ),
    "loop": Scenario(
        "naive, loop of `save()`, not atomic", one_file(NAIVE.format(function="loop")), most_rows=LOOP_ROWS
    ),
    "reader": Scenario("`AddRequiredField(keep_guard=True)` behind a 5 s reader", KEPT, Reader),
    "reader_naive": Scenario(
        "plain `AddField(null=True)` behind a 5 s reader", one_file(ADD), Reader, fills=False
    ),
    "row_lock": Scenario(
        "`AddRequiredField(keep_guard=True)` beside a row that is locked for 6 s", KEPT, RowLock
    ),
    "require": Scenario(
        "`RequireField(keep_guard=True)`, old code writes NULL", required, column=KNOWN_EXPIRES
    ),
    "require_row_lock": Scenario(
        "`RequireField(keep_guard=True)`, old code writes NULL, beside a row that is locked for 6 s",
        required,
        RowLock,
        column=KNOWN_EXPIRES,
    ),
    "phone": Scenario(
        "`add_required_field polls.Question.phone --populate \"Value('')\" --keep-guard`, old code writes NULL",
        phone,
        column=PHONE,
    ),
    "autovacuum": Scenario(
        "`AddRequiredField(keep_guard=True)` behind a slow autovacuum",
        KEPT,
        Autovacuum,
        vendors=("postgresql",),
    ),
}
