"""Populate(nulls="leave"), whose field stays nullable, and Populate(reverse=...), what it does backwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.management import call_command
from django.db import models
from django.db.migrations.writer import OperationWriter
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Concat, NullIf, Substr

from safemigrate.exceptions import (
    BadRows,
    InTransaction,
    InvalidPopulate,
    NotFinished,
    NothingToRun,
    NullsRemain,
)
from safemigrate.operations import Populate, RequireBackfill, SetNotNull
from safemigrate.populate import PerRow, Suffix
from safemigrate.runs import store
from safemigrate.runs.status import Status
from tests.operations.test_guards import SERVERS
from tests.support.sandbox import APP, MigrationSandbox, Statements, question

ROWS = 40
PHONE = ("phone", models.CharField(max_length=40, null=True))
STATE = ("state", models.CharField(max_length=40, default="new"))


def third(row: Any) -> str | None:
    return None if row.pk % 3 == 0 else f"+{row.pk}"


LEAVES: dict[str, Any] = {
    "an expression": NullIf(Concat(Value("+"), Substr("question_text", 10)), Value("+7?")),
    "a function of a row": third,
}


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    made = MigrationSandbox(alias, question(fields=[PHONE, STATE]))
    made.fill(ROWS, phone=lambda n: "kept" if n <= 5 else None, state="new")
    return made


@pytest.fixture(autouse=True)
def runs(alias: str, settings: Any) -> Iterator[Any]:
    """The runs are kept in the database of the rows."""
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    call_command("migrate", "safemigrate", database=alias, verbosity=0)
    store.records().delete()
    yield store.records
    if store.is_kept():
        store.records().delete()


@pytest.fixture
def unrecorded(runs: Any, alias: str) -> None:
    call_command("migrate", "safemigrate", "zero", database=alias, verbosity=0)


def expected(kind: str) -> list[str | None]:
    empty = (lambda n: n == 7) if kind == "an expression" else (lambda n: n % 3 == 0)
    tail = "?" if kind == "an expression" else ""
    return ["kept" if n <= 5 else None if empty(n) else f"+{n}{tail}" for n in range(1, ROWS + 1)]


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("kind", LEAVES)
def test_a_row_without_a_value_stays_null(
    sandbox: MigrationSandbox, kind: str, batch_size: int | None
) -> None:
    sandbox.run(Populate("question", "phone", LEAVES[kind], nulls="leave", batch_size=batch_size))
    assert sandbox.values("phone") == expected(kind)


@pytest.mark.parametrize("kind", LEAVES)
def test_the_pass_is_remembered_with_the_run(sandbox: MigrationSandbox, runs: Any, kind: str) -> None:
    operation = Populate("question", "phone", LEAVES[kind], nulls="leave")
    before = sandbox.after()
    sandbox.run(operation)
    (run,) = runs()
    assert (run.status, run.bad_rows) == (Status.SUCCEEDED, [])
    sandbox.rows().filter(pk=20).update(phone=None)
    sandbox.run(operation)
    assert sandbox.rows().get(pk=20).phone is None
    assert runs().count() == 1
    # A populate that is another one, and a migration that was reversed, are passes of their own.
    sandbox.run(Populate("question", "phone", lambda row: "other" if row.pk == 20 else None, nulls="leave"))
    assert sandbox.rows().get(pk=20).phone == "other"
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    sandbox.rows().filter(pk=20).update(phone=None)
    sandbox.run(operation)
    assert sandbox.rows().get(pk=20).phone == expected(kind)[19]


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_without_a_table_of_runs_each_call_is_one_pass(sandbox: MigrationSandbox, unrecorded: None) -> None:
    operation = Populate("question", "phone", third, nulls="leave")
    sandbox.run(operation)
    sandbox.rows().filter(pk=20).update(phone=None)
    sandbox.run(operation)
    assert sandbox.values("phone") == expected("a function of a row")


def test_a_row_that_raises_is_bad_and_the_next_call_comes_to_it(sandbox: MigrationSandbox, runs: Any) -> None:
    healed: list[int] = []

    def raising(row: Any) -> str | None:
        if row.pk == 11 and not healed:
            raise ValueError("no such prefix")
        return third(row)

    operation = Populate("question", "phone", raising, nulls="leave")
    with pytest.raises(BadRows) as caught:
        sandbox.run(operation)
    text = str(caught.value)
    assert text.startswith("1 rows of boxes.Question.phone on ")
    assert "11: ValueError: no such prefix" in text
    assert "required" not in text
    healed.append(1)
    sandbox.run(operation)
    assert sandbox.values("phone") == expected("a function of a row")


def test_killed_in_the_middle_it_goes_on_where_it_was(sandbox: MigrationSandbox, runs: Any) -> None:
    asked: list[int] = []

    def noted(row: Any) -> str | None:
        asked.append(row.pk)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return third(row)

    operation = Populate("question", "phone", noted, nulls="leave", batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run(operation)
    stopped = asked[-1]
    sandbox.run(operation)
    assert sandbox.values("phone") == expected("a function of a row")
    again = asked[20:]
    assert min(again) > stopped - 5
    assert len(again) == len(set(again))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEAVES)
def test_stopped_after_every_change_and_run_again_it_ends_the_same(
    sandbox: MigrationSandbox, runs: Any, kind: str
) -> None:
    """There and back; what stops it may be the record of the run too, which is in the same database."""
    operation = Populate(
        "question", "phone", LEAVES[kind], nulls="leave", reverse=Value("gone"), batch_size=15
    )
    before, (there, back) = sandbox.after(), (Statements(), Statements())
    with sandbox.connection.execute_wrapper(there):
        sandbox.run(operation)
    with sandbox.connection.execute_wrapper(back):
        sandbox.undo(operation, before=before)
    for at in range(max(len(there.stops), len(back.stops))):
        sandbox.rows().update(phone=None)
        sandbox.rows().filter(question_text__in=[f"Question {n}?" for n in range(1, 6)]).update(phone="kept")
        for statements, do in (
            (there, lambda: sandbox.run(operation)),
            (back, lambda: sandbox.undo(operation, before=before)),
        ):
            stop = Statements(stop_at=statements.stops[min(at, len(statements.stops) - 1)])
            with suppress(Statements.Crash), sandbox.connection.execute_wrapper(stop):
                do()
            sandbox.connection.close()
            do()
            assert sandbox.values("phone") == (expected(kind) if statements is there else ["gone"] * ROWS)
        store.records().delete()


def test_several_fields_of_which_one_has_no_value(sandbox: MigrationSandbox) -> None:
    def both(row: Any) -> dict[str, Any]:
        return {"phone": third(row), "state": "seen"}

    sandbox.run(Populate("question", ["phone", "state"], both, nulls="leave"))
    assert sandbox.values("phone") == expected("a function of a row")
    assert sandbox.values("state") == ["new"] * 5 + ["seen"] * (ROWS - 5)


def test_a_gate_behind_it_goes_on_once_the_pass_was_made(sandbox: MigrationSandbox, runs: Any) -> None:
    gate = RequireBackfill("boxes.Question.phone")
    with pytest.raises(NotFinished):
        sandbox.run(gate)
    sandbox.run(Populate("question", "phone", third, nulls="leave"), gate)
    assert sandbox.values("phone") == expected("a function of a row")


def test_it_does_not_make_a_field_required(sandbox: MigrationSandbox) -> None:
    with pytest.raises(NullsRemain):
        sandbox.run(
            Populate("question", "phone", third, nulls="leave"),
            SetNotNull("question", "phone", models.CharField(max_length=40)),
        )


def test_what_a_path_leads_to_is_not_imported_for_a_table_without_rows(sandbox: MigrationSandbox) -> None:
    sandbox.rows().delete()
    sandbox.run(Populate("question", "phone", "gone.module.phone", nulls="leave", reverse="gone.module.back"))
    assert not store.records().exists()


def test_what_makes_no_sense_is_refused_in_words(sandbox: MigrationSandbox) -> None:
    with pytest.raises(InvalidPopulate, match="nulls can be 'leave'"):
        Populate("question", "phone", third, nulls="skip")
    with pytest.raises(InvalidPopulate, match="only without a where"):
        Populate("question", "phone", third, nulls="leave", where=Q(phone=""))
    with pytest.raises(InvalidPopulate, match="is not nullable"):
        sandbox.run(Populate("question", "state", third, nulls="leave"))
    with pytest.raises(InvalidPopulate, match="reverse cannot be unique"):
        Populate("question", "state", third, reverse=PerRow(third, unique=Suffix("-")))


# Backwards


REVERSES: dict[str, tuple[Any, Any]] = {
    "a value": (Value("old"), lambda n: "old"),
    "NULL": (Value(None), lambda n: None),
    "an expression": (
        Case(When(phone="kept", then=Value("was")), default=F("phone")),
        lambda n: "was" if n <= 5 else f"+{n}",
    ),
    "a function of a row": (
        lambda row: None if row.pk > 3 else "first",
        lambda n: "first" if n <= 3 else "kept" if n <= 5 else f"+{n}",
    ),
    "a function of none": (lambda: "none", lambda n: "none"),
}


@pytest.mark.parametrize("kind", REVERSES)
def test_backwards_each_row_gets_what_reverse_says(sandbox: MigrationSandbox, kind: str) -> None:
    reverse, value = REVERSES[kind]
    operation = Populate("question", "phone", lambda row: f"+{row.pk}", reverse=reverse, batch_size=7)
    before = sandbox.after()
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    assert sandbox.values("phone") == [value(n) for n in range(1, ROWS + 1)]
    sandbox.run(operation)  # Forwards again it fills what is NULL.
    assert None not in sandbox.values("phone")


def test_backwards_it_may_be_a_function_of_apps_and_schema_editor(sandbox: MigrationSandbox) -> None:
    def back(apps: Any, schema_editor: Any) -> None:
        rows = apps.get_model(APP, "Question")._base_manager.using(schema_editor.connection.alias)
        rows.exclude(phone="kept").update(phone=None)

    operation = Populate("question", "phone", lambda row: f"+{row.pk}", reverse=back)
    before, values = sandbox.after(), sandbox.values("phone")
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    assert sandbox.values("phone") == values


def test_backwards_only_rows_that_differ_are_written(sandbox: MigrationSandbox) -> None:
    operation = Populate("question", "state", Value("x"), where=Q(pk=1, state="new"), reverse=Value("new"))
    before = sandbox.after()
    sandbox.run(operation)
    statements = Statements()
    with sandbox.connection.execute_wrapper(statements):
        sandbox.undo(operation, before=before)
        written = len(statements.like("UPDATE `boxes", 'UPDATE "boxes'))
        sandbox.undo(operation, before=before)
    assert sandbox.values("state") == ["new"] * ROWS
    assert written == len(statements.like("UPDATE `boxes", 'UPDATE "boxes')) == 1


def test_killed_on_the_way_back_each_row_is_done_once(sandbox: MigrationSandbox) -> None:
    sandbox.rows().update(state="n")
    asked: list[int] = []

    def longer(row: Any) -> str:
        asked.append(row.pk)
        if len(asked) == 18:
            raise KeyboardInterrupt
        return f"{row.state}!"

    operation = Populate("question", "state", Value("n"), where=Q(state="?"), reverse=longer, batch_size=5)
    before = sandbox.after()
    sandbox.run(operation)
    with pytest.raises(KeyboardInterrupt):
        sandbox.undo(operation, before=before)
    sandbox.undo(operation, before=before)
    assert sandbox.values("state") == ["n!"] * ROWS


def test_a_fill_that_follows_a_way_back_that_was_killed_does_not_take_up_its_place(
    sandbox: MigrationSandbox,
) -> None:
    def back(row: Any) -> None:
        if row.pk == 30:
            raise KeyboardInterrupt

    operation = Populate("question", "phone", lambda row: f"+{row.pk}", reverse=back, batch_size=5)
    before = sandbox.after()
    sandbox.run(operation)
    with pytest.raises(KeyboardInterrupt):
        sandbox.undo(operation, before=before)
    (stopped,) = [run for run in store.records() if run.status != Status.SUCCEEDED]
    assert (
        stopped.command
        == f"python manage.py migrate boxes --database {sandbox.alias}, with the migration before it"
    )
    sandbox.rows().filter(pk__in=[2, 35]).update(phone=None)
    sandbox.run(operation)
    assert None not in sandbox.values("phone")
    assert [run.status for run in store.records()] == [Status.SUCCEEDED, Status.CANCELLED, Status.SUCCEEDED]


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_without_a_table_of_runs_only_what_the_rows_show_can_go_back(
    sandbox: MigrationSandbox, unrecorded: None
) -> None:
    shown = Populate("question", "state", Value("x"), where=Q(pk=1), reverse=Value("old"))
    before = sandbox.after()
    sandbox.undo(shown, before=before)
    assert sandbox.values("state") == ["old"] * ROWS
    hidden = Populate("question", "state", Value("x"), where=Q(pk=1), reverse=lambda row: row.state * 2)
    with pytest.raises(NothingToRun, match="only its run knows which are done"):
        sandbox.undo(hidden, before=before)


def undone(apps: Any, schema_editor: Any) -> None:
    apps.get_model(APP, "Question")._base_manager.using(schema_editor.connection.alias).update(phone=None)


@pytest.mark.parametrize(
    "reverse",
    [Value(None), lambda row: None, undone, None],
    ids=["an expression", "a function of a row", "apps", "none"],
)
def test_after_any_way_back_the_pass_is_made_anew(sandbox: MigrationSandbox, reverse: Any) -> None:
    operation = Populate("question", "phone", third, nulls="leave", reverse=reverse)
    before = sandbox.after()
    for _ in range(2):
        sandbox.run(operation)
        assert sandbox.values("phone")[5:] == expected("a function of a row")[5:]
        sandbox.undo(operation, before=before)
        with pytest.raises(NotFinished):
            sandbox.rows().update(phone=None)
            sandbox.run(RequireBackfill("boxes.Question.phone"))


def test_after_a_way_back_that_finds_nothing_to_write_too(sandbox: MigrationSandbox) -> None:
    operation = Populate("question", "phone", lambda row: None, nulls="leave", reverse=Value(None))
    before = sandbox.after()
    sandbox.rows().update(phone=None)
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    with pytest.raises(NotFinished):
        sandbox.run(RequireBackfill("boxes.Question.phone"))


def test_on_an_empty_table_nothing_is_recorded(sandbox: MigrationSandbox) -> None:
    sandbox.rows().delete()
    operation = Populate("question", "phone", third, nulls="leave", reverse=Value(None))
    before = sandbox.after()
    sandbox.run(operation)
    sandbox.undo(operation, before=before)
    assert not store.records().exists()


def test_backwards_in_a_transaction_is_refused_only_where_there_is_something_to_do(
    sandbox: MigrationSandbox,
) -> None:
    before = sandbox.after()
    with sandbox.connection.schema_editor(atomic=True) as editor:
        Populate("question", "phone", third).database_backwards(APP, editor, before, before)
    if not sandbox.connection.features.can_rollback_ddl:
        return  # Django opens no transaction there.
    with pytest.raises(InTransaction), sandbox.connection.schema_editor(atomic=True) as editor:
        Populate("question", "phone", third, reverse=Value(None)).database_backwards(
            APP, editor, before, before
        )


def test_the_way_back_is_printed_by_sqlmigrate(sandbox: MigrationSandbox) -> None:
    operation = Populate("question", "phone", third, reverse=Value("back"))
    state = sandbox.after()
    with sandbox.connection.schema_editor(atomic=False, collect_sql=True) as editor:
        operation.database_backwards(APP, editor, state, state)
    text = "\n".join(editor.collected_sql)
    assert "UPDATE" in text
    assert "back" in text


def test_it_is_written_into_a_migration_and_read_again() -> None:
    operation = Populate("question", "phone", F("state"), nulls="leave", reverse=Value(None))
    text, _imports = OperationWriter(operation).serialize()
    assert "nulls='leave'" in text
    assert "reverse=models.Value(None)" in text
    assert operation.describe().endswith("; backwards by Value(None)")
