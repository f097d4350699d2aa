"""The rows of a Backfill are done: by values, a function of a row or of a batch, or deleted; on every database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django import forms
from django.core.management import call_command
from django.db import OperationalError, connections, models
from django.db.models import F, OuterRef, Q, QuerySet, Subquery, Value, signals
from django.db.models.functions import Lower, Now, Random, Upper

from safemigrate.backfills import Backfill
from safemigrate.exceptions import (
    AlreadyRunning,
    BadRows,
    InvalidBackfill,
    InvalidParameters,
    NothingToRun,
    TooManyRetries,
)
from safemigrate.models import BackfillEvent, BackfillRun
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.recorder import RunRecorder
from safemigrate.runs.status import Status
from tests.conftest import cleaned
from tests.engine.test_engine import another
from tests.engine.test_engine import run as execute
from tests.support.sandbox import START, MigrationSandbox, Statements, question

pytestmark = pytest.mark.matrix

ROWS = 1_500


@pytest.fixture(autouse=True)
def _small_batches(settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SIZE = 200


@pytest.fixture
def box(alias: str, settings: Any) -> MigrationSandbox:
    """Questions with a number of votes, which is NULL in every third one, on a database that keeps the runs too."""
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    call_command("migrate", "safemigrate", database=alias, verbosity=0)
    fields = [
        ("votes", models.IntegerField(null=True)),
        ("price", models.DecimalField(max_digits=8, decimal_places=2, null=True)),
        ("slug", models.CharField(max_length=60, default="")),
    ]
    box = MigrationSandbox(alias, question(fields=fields))
    box.fill(ROWS, votes=lambda n: None if n % 3 == 0 else n)
    return box


@pytest.fixture
def run(box: MigrationSandbox) -> Callable[..., None]:
    def run(kind: type[Backfill], **parameters: Any) -> None:
        kind.model = box.model()
        BackfillJob(kind(parameters, using=box.alias)).run()

    return run


def newest(box: MigrationSandbox) -> BackfillRun:
    return BackfillRun._default_manager.using(box.alias).order_by("-pk").first()


def updates(box: MigrationSandbox, do: Callable[[], None]) -> list[str]:
    statements = Statements()
    with connections[box.alias].execute_wrapper(statements):
        do()
    return [text for text in statements.texts if text.startswith("UPDATE") and "boxes_question" in text]


# By values


def test_values_are_written_where_they_differ_and_a_second_run_writes_nothing(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Recompute(Backfill):
        values = {"votes": F("id") * 2}

    box.rows().filter(pk__lte=1_000).update(votes=F("id") * 2)
    run(Recompute)
    assert box.rows().filter(votes=F("id") * 2).count() == ROWS
    assert (newest(box).status, newest(box).rows_done) == (Status.SUCCEEDED, ROWS - 1_000)
    assert newest(box).label.endswith("Recompute")
    assert updates(box, lambda: run(Recompute)) == []


def test_with_where_only_its_rows_are_written(box: MigrationSandbox, run: Callable[..., None]) -> None:
    class Zero(Backfill):
        where = Q(votes=None)
        values = {"votes": 0}

    run(Zero)
    assert box.values("votes") == [0 if n % 3 == 0 else n for n in range(1, ROWS + 1)]


def test_a_text_that_differs_in_case_alone_is_written(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Lowered(Backfill):
        values = {"question_text": Lower("question_text")}

    run(Lowered)
    assert all(text.startswith("question") for text in box.values("question_text"))
    assert newest(box).rows_done == ROWS


def test_what_the_column_rounds_is_done_once(box: MigrationSandbox, run: Callable[..., None]) -> None:
    class Thirds(Backfill):
        values = {"price": F("id") / Value(Decimal("3.0"), output_field=models.DecimalField())}

    run(Thirds)
    assert newest(box).status == Status.SUCCEEDED
    assert box.rows().filter(price=None).count() == 0
    assert updates(box, lambda: run(Thirds)) == []


def test_null_is_told_from_a_value(box: MigrationSandbox, run: Callable[..., None]) -> None:
    class Forget(Backfill):
        values = {"votes": None, "slug": "gone"}

    run(Forget)
    assert set(box.values("votes")) == {None}
    assert set(box.values("slug")) == {"gone"}
    assert newest(box).rows_done == ROWS


def test_a_subquery_may_read_the_table_itself(box: MigrationSandbox, run: Callable[..., None]) -> None:
    before = box.rows().filter(pk=OuterRef("pk") - 1).values("id")

    class Previous(Backfill):
        values = {"votes": Subquery(before[:1])}

    run(Previous)
    assert box.values("votes") == [None, *range(1, ROWS)]


def test_values_without_only_changed_are_written_to_each_row_once(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Count(Backfill):
        only_changed = False
        values = {"votes": F("votes") + 1}

    box.rows().update(votes=0)
    run(Count)
    assert set(box.values("votes")) == {1}
    assert newest(box).is_cursor


@pytest.mark.parametrize("value", [Random() * 1_000, Now()], ids=["random", "now"])
def test_values_that_are_others_each_time_are_refused(
    box: MigrationSandbox, run: Callable[..., None], value: Any
) -> None:
    class Endless(Backfill):
        values = {"pub_date" if isinstance(value, Now) else "votes": value}

    with pytest.raises(InvalidBackfill, match=r"would never end: of 20 rows .* only_changed = False"):
        run(Endless)
    assert box.values("pub_date")[0] == START + timedelta(hours=1)
    assert not BackfillRun._default_manager.using(box.alias).exists()


def test_a_condition_that_the_values_do_not_end_is_refused(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Endless(Backfill):
        where = Q(pk__gt=0)
        only_changed = False
        values = {"votes": 7}

    with pytest.raises(InvalidBackfill, match="20 still fulfil the condition"):
        run(Endless)
    assert 7 not in box.values("votes")[7:]


# By a function of one row


def test_a_function_of_a_row_gives_a_value_a_dict_or_none(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Slugs(Backfill):
        where = Q(slug="")
        fields = ["slug", "votes"]

        def row(self, instance: Any) -> Any:
            if instance.pk % 5 == 0:
                return None
            return {"slug": f"q-{instance.pk}"} if instance.pk % 2 else {"slug": "even", "votes": 2}

    run(Slugs)
    for key, slug, votes in box.rows().values_list("pk", "slug", "votes"):
        old = None if key % 3 == 0 else key
        expected = ("", old) if key % 5 == 0 else (f"q-{key}", old) if key % 2 else ("even", 2)
        assert (slug, votes) == expected
    assert newest(box).status == Status.SUCCEEDED


def test_without_a_condition_each_row_is_done_once(box: MigrationSandbox, run: Callable[..., None]) -> None:
    seen = []

    class Once(Backfill):
        fields = ["slug"]

        def row(self, instance: Any) -> Any:
            seen.append(instance.pk)
            return "done" if instance.pk % 2 else None

    run(Once)
    assert seen == list(range(1, ROWS + 1))
    assert (newest(box).rows_done, newest(box).is_cursor) == (ROWS, True)


def test_a_row_that_raises_is_a_bad_row_and_is_tried_again_by_the_next_run(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    broken = {7, 500, ROWS}
    seen: list[int] = []

    class Fragile(Backfill):
        fields = ["slug"]

        def row(self, instance: Any) -> Any:
            seen.append(instance.pk)
            if instance.pk in broken:
                raise ValueError("no such service")
            return "done"

    with pytest.raises(BadRows, match="3 rows of .*Fragile .* could not be done") as raised:
        run(Fragile)
    assert "ValueError: no such service" in str(raised.value)
    assert box.rows().filter(slug="done").count() == ROWS - 3
    assert [key for key, _reason in newest(box).bad_rows] == [7, 500, ROWS]
    assert newest(box).status == Status.FAILED
    broken.clear()
    seen.clear()
    run(Fragile)
    assert seen == [7, 500, ROWS]
    assert (newest(box).status, newest(box).rows_done) == (Status.SUCCEEDED, ROWS)
    assert BackfillRun._default_manager.using(box.alias).count() == 1


def test_what_passes_is_tried_again(box: MigrationSandbox, run: Callable[..., None], settings: Any) -> None:
    failures = iter([1, 1])

    class Patient(Backfill):
        fields = ["slug"]
        retry_on = (TimeoutError,)

        def row(self, instance: Any) -> Any:
            if instance.pk == 300 and next(failures, None):
                raise TimeoutError("the service is busy")
            return "done"

    run(Patient)
    assert set(box.values("slug")) == {"done"}
    settings.SAFEMIGRATE_RETRIES = 1

    class Always(Backfill):
        retry_on = (TimeoutError,)

        def batch(self, rows: Any) -> None:
            raise TimeoutError("the service is away")

    with pytest.raises(TooManyRetries, match="the service is away"):
        run(Always)
    assert newest(box).rows_done == 0


def test_more_bad_rows_than_the_class_allows_end_the_run(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Bad(Backfill):
        fields = ["slug"]
        max_bad_rows = 5

        def row(self, instance: Any) -> Any:
            raise ValueError("no")

    with pytest.raises(BadRows, match="more than 5 rows"):
        run(Bad)


def test_a_function_that_does_not_end_the_condition_stops_after_the_first_batch(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Endless(Backfill):
        where = Q(slug="")
        fields = ["slug", "votes"]

        def row(self, instance: Any) -> Any:
            return {"votes": 7}

    with pytest.raises(BadRows, match="more than 100 rows") as caught:
        run(Endless)
    assert "it still fulfils (AND: ('slug', '')) after it was written" in str(caught.value)
    assert box.rows().filter(votes=7).count() <= 600

    class Leaves(Endless):
        def row(self, instance: Any) -> Any:
            return None if instance.pk < ROWS else {"slug": "last"}

    run(Leaves)
    assert box.rows().exclude(slug="").count() == 1


# By a function of a batch, and deleted


def test_a_function_is_given_the_rows_of_each_batch(box: MigrationSandbox, run: Callable[..., None]) -> None:
    sizes = []

    class Batches(Backfill):
        def batch(self, rows: QuerySet[Any]) -> None:
            assert connections[self.using].in_atomic_block
            sizes.append(rows.count())
            rows.update(slug="seen")

    run(Batches)
    assert (sum(sizes), max(sizes)) == (ROWS, 200)
    assert set(box.values("slug")) == {"seen"}


def test_beside_another_writer_no_batch_is_done_twice(
    box: MigrationSandbox, run: Callable[..., None], settings: Any
) -> None:
    """SQLite would let a transaction that has read not write any more where another one has written since."""
    settings.SAFEMIGRATE_BATCH_SIZE = 20
    seen: list[int] = []

    class Note(Backfill):
        def batch(self, rows: QuerySet[Any]) -> None:
            seen.extend(row.pk for row in rows)
            time.sleep(0.01)
            rows.update(slug="seen")

    with writing(box) as written:
        run(Note)
    assert written
    assert sorted(seen) == sorted(box.values("pk"))


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_rows_that_refer_to_those_of_a_batch_come_in_meanwhile(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    execute(
        box.connection,
        "CREATE TABLE boxes_answer (question_id bigint NOT NULL REFERENCES boxes_question)",
    )
    with another(box.alias) as site:
        execute(site, "SET lock_timeout = '1s'")

        class Answered(Backfill):
            fields = ["slug"]

            def row(self, instance: Any) -> str:
                execute(site, "INSERT INTO boxes_answer VALUES (%s)", instance.pk)
                return "answered"

        run(Answered)
    assert execute(box.connection, "SELECT count(*) FROM boxes_answer") == [(ROWS,)]
    assert set(box.values("slug")) == {"answered"}


@contextmanager
def writing(box: MigrationSandbox) -> Iterator[list[int]]:
    """Write one row of another table, as the site does, again and again until the end."""
    written, over = list[int](), threading.Event()
    event = BackfillEvent._base_manager.using(box.alias)
    run = BackfillRun._base_manager.using(box.alias).create(backfill="boxes.Other", alias="other")

    def write() -> None:
        while not over.wait(0.003):
            event.create(run_id=run.pk, text="the site")
            written.append(1)
        connections[box.alias].close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        over.set()
        writer.join()


def test_a_batch_that_fails_is_halved_and_rolled_back_wholly(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Increments(Backfill):
        def batch(self, rows: QuerySet[Any]) -> None:
            rows.update(votes=F("votes") + 1)
            if any(row.pk == 777 for row in rows):
                raise ValueError("not this one")

    box.rows().update(votes=0)
    with pytest.raises(BadRows, match="777: ValueError: not this one"):
        run(Increments)
    assert box.rows().get(pk=777).votes == 0
    assert box.rows().exclude(pk=777).filter(votes=1).count() == ROWS - 1


def test_rows_of_a_query_are_done_once_each(box: MigrationSandbox, run: Callable[..., None]) -> None:
    seen: list[int] = []

    class From(forms.Form):
        first = forms.IntegerField()

    class Chosen(Backfill):
        form = From

        def queryset(self) -> QuerySet[Any]:
            return box.model()._base_manager.filter(pk__gte=self.cleaned_data["first"])

        def batch(self, rows: QuerySet[Any]) -> None:
            seen.extend(rows.values_list("pk", flat=True))

    run(Chosen, first="1000")
    assert seen == list(range(1_000, ROWS + 1))
    assert newest(box).parameters == {"first": "1000"}


@pytest.mark.parametrize("way", [True, "raw"])
def test_rows_are_deleted(box: MigrationSandbox, run: Callable[..., None], way: Any) -> None:
    class Purge(Backfill):
        where = Q(votes=None)
        delete = way

    run(Purge)
    assert box.rows().count() == ROWS - ROWS // 3
    assert (newest(box).rows_done, newest(box).status) == (ROWS // 3, Status.SUCCEEDED)


@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_rows_that_nothing_follows_are_deleted_by_one_statement_for_each_batch(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Purge(Backfill):
        where = Q(votes=None)
        delete = True

    statements = Statements()
    with box.connection.execute_wrapper(statements):
        run(Purge)
    (delete, *_) = statements.like("DELETE")
    assert "IS NULL" in delete
    assert not [sql for sql in statements.like("SELECT") if "FOR UPDATE" in sql]


def test_what_listens_to_a_deletion_is_told_of_each_row(
    box: MigrationSandbox, run: Callable[..., None]
) -> None:
    class Purge(Backfill):
        where = Q(votes=None)
        delete = True

    heard: list[Any] = []

    def hear(instance: Any, **_: Any) -> None:
        heard.append(instance.pk)

    signals.post_delete.connect(hear, sender=box.model())
    try:
        run(Purge)
    finally:
        signals.post_delete.disconnect(hear, sender=box.model())
    assert len(set(heard)) == len(heard) == ROWS // 3
    assert newest(box).rows_done == ROWS // 3


def test_a_condition_on_another_table_has_each_row_once(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = alias
    call_command("migrate", "safemigrate", database=alias, verbosity=0)
    from django.db import migrations

    answer = migrations.CreateModel(
        "Answer",
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("question", models.ForeignKey("boxes.Question", models.CASCADE, related_name="answers")),
            ("good", models.BooleanField(default=True)),
        ],
    )
    box = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(default=0))]), answer)
    box.fill(600)
    made = box.model("Answer")
    keys = box.values("id")[::2]
    made._base_manager.using(alias).bulk_create([made(question_id=key) for key in keys for _ in range(3)])

    class Joined(Backfill):
        model = box.model()
        where = Q(answers__good=True, votes=0)
        fields = ["votes"]

        def row(self, instance: Any) -> int:
            return instance.votes + 1

    class Written(Backfill):
        model = box.model()
        where = Q(answers__good=True)
        values = {"question_text": Upper("question_text")}

    class Deleted(Backfill):
        model = box.model()
        where = Q(answers__good=True)
        delete = True

    BackfillJob(Joined(using=alias)).run()
    assert box.rows().filter(votes=1).count() == 300
    assert box.rows().filter(votes=0).count() == 300
    BackfillJob(Written(using=alias)).run()
    assert sum(text.startswith("QUESTION") for text in box.values("question_text")) == 300
    BackfillJob(Deleted(using=alias)).run()
    assert box.rows().count() == 300
    assert made._base_manager.using(alias).count() == 0


# Around it


def test_hooks_are_called_before_and_after(box: MigrationSandbox, run: Callable[..., None]) -> None:
    said: list[str] = []

    class Hooked(Backfill):
        fields = ["slug"]

        def before(self) -> None:
            said.append("before")

        def row(self, instance: Any) -> str:
            said.append("row") if instance.pk == 1 else None
            return "x"

        def after(self) -> None:
            said.append("after")

    run(Hooked)
    assert said == ["before", "row", "after"]


def test_one_that_is_at_work_already_calls_no_hook(box: MigrationSandbox, run: Callable[..., None]) -> None:
    said: list[str] = []

    class Hooked(Backfill):
        fields = ["slug"]

        @classmethod
        def label(cls) -> str:
            return "boxes.Hooked"

        def before(self) -> None:
            said.append("before")

        def row(self, instance: Any) -> str:
            if instance.pk == 1:
                with pytest.raises(AlreadyRunning):
                    run(Hooked)
            return "x"

    run(Hooked)
    assert said == ["before"]


def test_the_answer_of_a_save_in_another_database_is_lost(
    box: MigrationSandbox, run: Callable[..., None], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
    save, calls, seen = RunRecorder.save, iter(range(1_000)), list[int]()

    def losing(self: RunRecorder, *arguments: Any) -> None:
        save(self, *arguments)
        if next(calls) in (1, 4):
            raise OperationalError("the connection is gone")

    class Note(Backfill):
        def batch(self, rows: QuerySet[Any]) -> None:
            seen.extend(rows.values_list("pk", flat=True))

    monkeypatch.setattr(RunRecorder, "save", losing)
    with cleaned("archive"):
        run(Note)
        record = BackfillRun._default_manager.using("archive").get()
        assert (record.status, record.rows_done) == (Status.SUCCEEDED, ROWS)
    assert seen == list(box.values("pk"))


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_connection_to_the_runs_that_is_lost_is_made_anew(
    box: MigrationSandbox, run: Callable[..., None], settings: Any
) -> None:
    settings.SAFEMIGRATE_RUNS_DATABASE = "postgresql"
    seen: list[int] = []

    class Note(Backfill):
        def batch(self, rows: QuerySet[Any]) -> None:
            seen.extend(rows.values_list("pk", flat=True))
            if len(seen) == 200:
                (pid,) = execute(connections["postgresql"], "SELECT pg_backend_pid()")[0]
                with another("postgresql") as other:
                    execute(other, "SELECT pg_terminate_backend(%s, 5000)", pid)

    with cleaned("postgresql"):
        call_command("migrate", "safemigrate", database="postgresql", verbosity=0)
        run(Note)
        record = BackfillRun._default_manager.using("postgresql").get()
        assert (record.status, record.rows_done) == (Status.SUCCEEDED, ROWS)
    assert seen == list(box.values("pk"))


def test_an_empty_table_is_silent(box: MigrationSandbox, run: Callable[..., None]) -> None:
    class Nothing(Backfill):
        def before(self) -> None:
            raise AssertionError

        def batch(self, rows: Any) -> None:
            raise AssertionError

    box.rows().delete()
    run(Nothing)
    assert not BackfillRun._default_manager.using(box.alias).exists()


def test_a_position_that_cannot_be_kept_is_refused(
    box: MigrationSandbox, run: Callable[..., None], settings: Any
) -> None:
    class Once(Backfill):
        def batch(self, rows: Any) -> None:
            raise AssertionError

    with connections[box.alias].cursor() as cursor:
        for table in ("safemigrate_backfillevent", "safemigrate_backfillrange", "safemigrate_backfillrun"):
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        with pytest.raises(NothingToRun, match="does each row once, and only its run knows which are done"):
            run(Once)
    finally:
        with connections[box.alias].cursor() as cursor:
            for table in (
                "safemigrate_backfillrun",
                "safemigrate_backfillrange",
                "safemigrate_backfillevent",
            ):
                cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


class Days(forms.Form):
    days = forms.IntegerField(min_value=1)
    word = forms.CharField(required=False)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "days: This field is required"),
        ({"days": "0"}, "days: Ensure this value is greater than or equal to 1"),
        ({"days": "many"}, "days: Enter a whole number"),
        ({"day": "3"}, "has no parameter day. Did you mean days. It takes: days, word"),
    ],
)
def test_parameters_are_those_of_the_form(parameters: dict[str, str], text: str) -> None:
    class Purge(Backfill):
        form = Days
        delete = True

    with pytest.raises(InvalidParameters, match=text):
        Purge(parameters)
    purge = Purge({"days": "3"})
    assert purge.cleaned_data == {"days": 3, "word": ""}
    with pytest.raises(
        InvalidParameters, match=r"has no field of this name. Did you mean days\? It has: days, word"
    ):
        purge.cleaned_data["day"]


def test_parameters_without_a_form_are_refused() -> None:
    class Plain(Backfill):
        delete = True

    with pytest.raises(InvalidParameters, match="takes no parameters"):
        Plain({"days": "3"})
