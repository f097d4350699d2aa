"""The kinds of populate: recognized, run on every database, written as source, refused in words."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.db.models import F, OuterRef, Subquery, Value
from django.db.models.functions import Concat, Upper

from safemigrate.backends import for_connection
from safemigrate.engine.uniqueness import Deduplicator
from safemigrate.exceptions import BadRows, InvalidPopulate
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.populate import FromApps, FromRelated, PerBatch, PerRow, Suffix
from safemigrate.populate.sources import CHOICES, AsWritten, InDatabase, InPython, check, resolve
from tests.support import sample_populates as samples
from tests.support.sandbox import APP, MigrationSandbox, Statements, question

pytestmark = pytest.mark.matrix

ROWS = 23
BATCH = 7
KEY = ("id", models.BigAutoField(primary_key=True))
CODE = models.CharField(max_length=200)
UNIQUE = models.CharField(max_length=200, unique=True)


def add(populate: Any, field: Any = CODE) -> AddRequiredField:
    return AddRequiredField("question", "code", field, populate, batch_size=BATCH)


def nullable(*, votes: bool = False) -> list[Any]:
    """Step 1 of `code`, and of `votes` where it is to be new as well."""
    fields = {"code": CODE} | ({"votes": models.IntegerField()} if votes else {})
    return [AddNullableField("question", name, field) for name, field in fields.items()]


def filled(alias: str, **values: Any) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(ROWS, **values)
    return sandbox


def site_and_page() -> list[Any]:
    site = models.ForeignKey(f"{APP}.site", models.CASCADE, null=True)
    page = models.ForeignKey(f"{APP}.page", models.CASCADE, null=True)
    return [
        migrations.CreateModel("Site", [KEY, ("name", models.CharField(max_length=20))]),
        migrations.CreateModel("Page", [KEY, ("title", models.CharField(max_length=20)), ("site", site)]),
        question(fields=[("page", page)]),
    ]


def on_pages(alias: str) -> MigrationSandbox:
    """Questions on five pages of two sites, which are not in the order of their keys."""
    sandbox = MigrationSandbox(alias, *site_and_page())
    sites = [sandbox.rows("Site").create(name=f"Site {n}") for n in range(2)]
    pages = [sandbox.rows("Page").create(title=f"Page {n}", site=sites[n % 2]) for n in range(5)]
    sandbox.fill(ROWS, page=lambda n: pages[n * 3 % 5])
    return sandbox


def texts(sandbox: MigrationSandbox) -> list[str]:
    return [text.upper() for text in sandbox.values("question_text")]


# Each kind on every database


def test_a_value(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add("draft"))
    assert sandbox.values("code") == ["draft"] * ROWS


@pytest.mark.parametrize("value", ["", "v1", "Dr. Who", "1.5", "a.b c", ".hidden", "100%", "it's"])
def test_a_text_that_no_path_looks_like_is_a_value(alias: str, value: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(value))
    assert sandbox.values("code") == [value] * ROWS


def test_value_says_that_a_text_with_a_dot_is_meant_as_it_is(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(Value("tests.support.sample_populates.new_code")))
    assert sandbox.values("code") == ["tests.support.sample_populates.new_code"] * ROWS


def test_an_expression(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(Upper(Concat("question_text", Value("!")))))
    assert sandbox.values("code") == [f"{text}!" for text in texts(sandbox)]


def test_a_function_of_no_arguments_is_called_once_per_row(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(AddRequiredField("question", "token", models.UUIDField(), uuid.uuid4, batch_size=BATCH))
    tokens = sandbox.values("token")
    assert len(set(tokens)) == ROWS
    assert {token.version for token in tokens} == {4}


def test_a_function_of_no_arguments_reads_nothing_but_keys(alias: str) -> None:
    sandbox, statements = filled(alias), Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(*nullable(), Populate("question", "code", samples.new_code, batch_size=BATCH))
    assert not [text for text in statements.like("SELECT") if "pub_date" in text]


def test_a_function_of_one_row(alias: str) -> None:
    sandbox = filled(alias)
    sandbox.run(add(samples.from_text))
    assert sandbox.values("code") == texts(sandbox)


def test_a_function_of_one_row_gets_the_historical_model(alias: str) -> None:
    sandbox, seen = filled(alias), []

    def note(row: Any) -> str:
        seen.append((type(row).__module__, row._state.db))
        return "x"

    sandbox.run(add(note))
    assert seen == [("__fake__", alias)] * ROWS


def test_a_function_of_apps_and_schema_editor_runs_once(alias: str) -> None:
    sandbox, calls = filled(alias), []

    def fill(apps: Any, schema_editor: Any) -> None:
        calls.append(schema_editor.connection.alias)
        samples.fill_codes(apps, schema_editor)

    before = sandbox.state
    sandbox.run(add(fill))
    assert calls == [alias]
    assert sandbox.values("code") == texts(sandbox)
    sandbox.state = before
    sandbox.run(add(fill))
    assert calls == [alias]


def test_a_function_of_apps_and_schema_editor_must_leave_no_null(alias: str) -> None:
    sandbox = filled(alias)

    def all_but_two(apps: Any, schema_editor: Any) -> None:
        model = apps.get_model(APP, "question")
        rows = model.objects.using(schema_editor.connection.alias)
        rows.filter(pk__in=keys[2:]).update(code="x")

    keys = sandbox.values("pk")
    with pytest.raises(
        BadRows, match=f"2 rows of boxes.Question.code on {alias} are still NULL after"
    ) as caught:
        sandbox.run(add(all_but_two))
    assert caught.value.count == 2
    assert f"The first keys: {keys[0]}, {keys[1]}." in str(caught.value)
    sandbox.state = sandbox.after(*nullable())
    assert sandbox.column("code").nullable


def test_from_related_one_hop(alias: str) -> None:
    sandbox = on_pages(alias)
    sandbox.run(add(FromRelated("page__title")))
    assert sandbox.values("code") == sandbox.values("page__title")


def test_from_related_two_hops(alias: str) -> None:
    sandbox = on_pages(alias)
    sandbox.run(add(FromRelated("page__site__name")))
    assert sandbox.values("code") == sandbox.values("page__site__name")


@pytest.mark.parametrize("path", ["page__site", "page__site_id", "page__site__pk"])
def test_from_related_copies_a_foreign_key(alias: str, path: str) -> None:
    sandbox = on_pages(alias)
    site = models.ForeignKey(f"{APP}.site", models.CASCADE)
    sandbox.run(AddRequiredField("question", "site", site, FromRelated(path), batch_size=BATCH))
    assert sandbox.values("site") == sandbox.values("page__site")


@pytest.mark.parametrize("path", ["page__title", "page__site__name"])
def test_from_related_reports_rows_whose_path_ends_in_null(alias: str, path: str) -> None:
    sandbox = on_pages(alias)
    keys = sandbox.values("pk")
    sandbox.rows().filter(pk__in=keys[:3]).update(page=None)
    with pytest.raises(BadRows, match="its value came out as NULL") as caught:
        sandbox.run(add(FromRelated(path)))
    assert [bad.key for bad in caught.value.examples] == keys[:3]
    sandbox.state = sandbox.after(*nullable())
    assert sandbox.values("code").count(None) == 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere__title", "Question has no field named 'nowhere'"),
        ("page__nowhere", "Cannot resolve keyword 'nowhere' into field"),
        ("page__site__nowhere", "Cannot resolve keyword 'nowhere'|Unsupported lookup 'nowhere'"),
        ("question_text__length", "question_text is not a foreign key of boxes.Question"),
    ],
)
def test_from_related_on_a_wrong_path(alias: str, path: str, words: str) -> None:
    with pytest.raises(InvalidPopulate, match=words) as caught:
        on_pages(alias).run(add(FromRelated(path)))
    assert str(caught.value).startswith(f"FromRelated('{path}'): ")


def test_from_related_does_not_go_backwards(alias: str) -> None:
    sandbox = on_pages(alias)
    op = AddRequiredField("page", "code", CODE, FromRelated("question__question_text"))
    with pytest.raises(InvalidPopulate, match="question is not a foreign key of boxes.Page"):
        sandbox.run(op)


def test_from_apps(alias: str) -> None:
    sandbox = on_pages(alias)
    sandbox.run(add(FromApps(samples.page_title)))
    assert sandbox.values("code") == sandbox.values("page__title")


def test_from_apps_sees_the_models_as_they_were(alias: str) -> None:
    sandbox = on_pages(alias)

    def newest(apps: Any) -> Subquery:
        others = apps.get_model(APP, "question").objects.filter(page=OuterRef("page"))
        return Subquery(others.order_by("-pk").values("question_text")[:1])

    operation = AddRequiredField("question", "code", CODE, FromApps(newest), batch_size=BATCH)
    sandbox.run(operation)
    last = dict(sandbox.rows().values_list("page", "question_text"))
    assert sandbox.values("code") == [last[page] for page in sandbox.values("page")]


def test_per_row_reads_only_what_it_names(alias: str) -> None:
    sandbox, statements = filled(alias), Statements()
    with connections[alias].execute_wrapper(statements):
        sandbox.run(add(PerRow(samples.from_text, only=["question_text"])))
    assert sandbox.values("code") == texts(sandbox)
    assert [text for text in statements.like("SELECT") if "question_text" in text]
    assert not [text for text in statements.like("SELECT") if "pub_date" in text]


@pytest.mark.parametrize("only", [(), ("page__title", "page"), ("page__title",)])
def test_per_row_reads_related_rows_along(alias: str, only: tuple[str, ...]) -> None:
    sandbox = on_pages(alias)

    def selects(**reading: Any) -> list[str]:
        statements, before = Statements(), sandbox.state
        with connections[alias].execute_wrapper(statements):
            sandbox.run(add(PerRow(lambda row: row.page.title, **reading)))
        assert sandbox.values("code") == sandbox.values("page__title")
        sandbox.undo(add("x"), before=before)
        return [text for text in statements.like("SELECT") if f"FROM {quoted(alias, 'boxes_page')}" in text]

    assert len(selects()) == ROWS
    assert selects(select_related=["page"], only=only) == []


def quoted(alias: str, name: str) -> str:
    return connections[alias].ops.quote_name(name)


def test_prepare_runs_once_and_its_result_is_passed_on(alias: str) -> None:
    sandbox, calls = on_pages(alias), []

    def prepare(apps: Any, on: str) -> dict[Any, str]:
        calls.append(on)
        return samples.titles(apps, on)

    sandbox.run(add(PerRow(samples.title_in, prepare=prepare)))
    assert calls == [alias]
    assert sandbox.values("code") == sandbox.values("page__title")


def test_per_batch(alias: str) -> None:
    sandbox, sizes = filled(alias), []

    def batch(rows: list[Any]) -> list[str]:
        sizes.append(len(rows))
        return samples.all_from_text(rows)

    sandbox.run(add(PerBatch(batch)))
    assert sandbox.values("code") == texts(sandbox)
    assert sum(sizes) == ROWS
    assert max(sizes) == BATCH


def test_per_batch_with_prepare_and_one_bad_value(alias: str) -> None:
    sandbox = on_pages(alias)

    def batch(rows: list[Any], prepared: dict[Any, str]) -> Any:
        return (None if row.pk == third else prepared[row.page_id] for row in rows)

    third = sandbox.values("pk")[2]
    with pytest.raises(BadRows) as caught:
        sandbox.run(add(PerBatch(batch, prepare=samples.titles)))
    assert [str(bad) for bad in caught.value.examples] == [f"{third}: the function returned None"]


def test_per_batch_must_return_a_value_for_each_row(alias: str) -> None:
    sandbox = filled(alias)

    def short(rows: list[Any]) -> list[str]:
        return ["x"] * (len(rows) - 1)

    with pytest.raises(
        InvalidPopulate, match="short got 7 rows and returned 6 values. PerBatch needs one value"
    ):
        sandbox.run(add(PerBatch(short)))
    sandbox.state = sandbox.after(*nullable())
    assert sandbox.values("code") == [None] * ROWS


def test_per_batch_that_raises_is_split_to_the_row_at_fault(alias: str) -> None:
    sandbox = filled(alias)
    third = sandbox.values("pk")[2]

    def picky(rows: list[Any]) -> list[str]:
        if any(row.pk == third for row in rows):
            raise LookupError("no value for one of them")
        return samples.all_from_text(rows)

    with pytest.raises(BadRows, match=f"{third}: LookupError: no value for one of them") as caught:
        sandbox.run(add(PerBatch(picky)))
    assert caught.value.count == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests.support.sample_populates.A_VALUE", lambda text: "draft"),
        ("tests.support.sample_populates.AN_EXPRESSION", lambda text: text + text),
        ("tests.support.sample_populates.from_text", str.upper),
        ("tests.support.sample_populates.fill_codes", str.upper),
    ],
)
def test_a_dotted_path_to_any_kind(alias: str, path: str, expected: Callable[[str], str]) -> None:
    sandbox = filled(alias)
    sandbox.run(add(path))
    assert sandbox.values("code") == [expected(text) for text in sandbox.values("question_text")]


def test_returning_an_expression_is_a_bad_row(alias: str) -> None:
    sandbox = filled(alias)
    with pytest.raises(BadRows, match="returned an expression; give the expression itself as populate"):
        sandbox.run(add(lambda row: F("question_text")))


# Values made unique by a suffix


def test_equal_values_are_numbered(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(300, question_text="Same")
    unique = PerRow(lambda row: row.question_text, unique=Suffix("-"))
    sandbox.run(AddRequiredField("question", "code", UNIQUE, unique, batch_size=41))
    assert sandbox.values("code") == ["Same", *(f"Same-{n}" for n in range(2, 301))]


def test_equal_values_cost_no_more_the_more_there_are(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], Deduplicator._taken

    def counting(self: Deduplicator, forms: Sequence[str]) -> set[str]:
        asked.append(len(forms))
        return real(self, forms)

    monkeypatch.setattr(Deduplicator, "_taken", counting)
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3_000, question_text=lambda n: f"Base {n % 3}")
    unique = PerRow(lambda row: row.question_text, unique=Suffix("-"))
    sandbox.run(AddRequiredField("question", "code", UNIQUE, unique, batch_size=100))
    assert sandbox.values("code")[-3:] == ["Base 1-1000", "Base 2-1000", "Base 0-1000"]
    assert sum(asked) < 4 * 3_000


def test_a_number_that_was_freed_is_given_again(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(40, question_text="Same")
    sandbox.run(AddNullableField("question", "code", UNIQUE))
    keys = sandbox.values("pk")
    rows, field = sandbox.rows(), sandbox.model()._meta.get_field("code")
    deduplicator = Deduplicator(rows, field, Suffix("-"), for_connection(sandbox.connection).same_text)
    assert deduplicator.unique(["Same"] * 30)[-1] == "Same-30"  # None of them is written.
    assert deduplicator.unique(["Same", "Same"]) == ["Same", "Same-2"]
    rows.filter(pk=keys[0]).update(code="Same")
    rows.filter(pk=keys[1]).update(code="Same-2")
    assert deduplicator.unique(["Same"]) == ["Same-3"]


def test_numbered_values_fit_into_the_column(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(120, question_text="Questions")
    field = models.SlugField(max_length=8, unique=True)
    unique = PerRow(lambda row: row.question_text, unique=Suffix("--"))
    sandbox.run(AddRequiredField("question", "code", field, unique, batch_size=BATCH))
    codes = sandbox.values("code")
    assert codes[:2] == ["Question", "Quest--2"]
    assert codes[-1] == "Que--120"
    assert len(set(codes)) == 120


def test_values_that_exist_already_are_not_taken(alias: str) -> None:
    sandbox = filled(alias, question_text=lambda n: "Same" if n % 2 else "Other")
    sandbox.run(AddNullableField("question", "code", UNIQUE))
    keys = sandbox.values("pk")
    for number, own in {0: "Same-2", 20: "Same", 21: "Other-3"}.items():
        sandbox.rows().filter(pk=keys[number]).update(code=own)
    unique = PerRow(lambda row: row.question_text, unique=Suffix("-"))
    sandbox.run(
        Populate("question", "code", unique, batch_size=BATCH), SetNotNull("question", "code", UNIQUE)
    )
    codes = sandbox.values("code")
    assert (codes[0], codes[20], codes[21]) == ("Same-2", "Same", "Other-3")
    assert len(set(codes)) == ROWS
    assert codes[2] == "Same-3"


@pytest.mark.parametrize(
    "alike",
    [
        ("café", "cafe", "CAFE", "Café", "cafe ", "CAFÉ"),
        ("straße", "strasse", "strase", "STRASSE"),
        ("ﬁne", "fine", "FINE"),
        ("Œuvre", "œuvre", "oeuvre"),
        ("Ångström", "angstrom", "Angstrøm"),
        ("x", "X", "x-2", "X-2", "x-3"),
    ],
)
def test_values_that_only_the_database_holds_equal_are_told_apart(alias: str, alike: tuple[str, ...]) -> None:
    sandbox = filled(alias, question_text=lambda n: alike[n % len(alike)])
    unique = PerRow(lambda row: row.question_text, unique=Suffix("-"))
    sandbox.run(add(unique, UNIQUE))
    assert None not in sandbox.values("code")
    for text, code in zip(sandbox.values("question_text"), sandbox.values("code"), strict=True):
        assert code.startswith(text)


def test_unique_needs_a_field_that_is_unique(alias: str) -> None:
    sandbox = filled(alias)
    with pytest.raises(InvalidPopulate, match="the field is not unique=True, so nothing would keep them so"):
        sandbox.run(add(PerRow(samples.from_text, unique=Suffix("-"))))


# Several fields in one pass


def two_new(populate: Any) -> list[Any]:
    return [
        *nullable(votes=True),
        Populate("question", ["code", "votes"], populate, batch_size=BATCH),
        SetNotNull("question", "code", CODE),
        SetNotNull("question", "votes", models.IntegerField()),
    ]


TWO_NEW: dict[str, Any] = {
    "expressions": {"code": Upper("question_text"), "votes": Value(3) + 4},
    "a row function": lambda row: {"code": row.question_text.upper(), "votes": 7},
    "functions": {"code": samples.from_text, "votes": lambda: 7},
    "an expression and a function": {"code": Upper("question_text"), "votes": lambda row: len("sevenof")},
    "per batch": PerBatch(lambda rows: [{"code": samples.from_text(row), "votes": 7} for row in rows]),
}


@pytest.mark.parametrize("kind", TWO_NEW)
def test_several_fields(alias: str, kind: str) -> None:
    sandbox = filled(alias)
    sandbox.run(*two_new(TWO_NEW[kind]))
    assert sandbox.values("code") == texts(sandbox)
    assert sandbox.values("votes") == [7] * ROWS


@pytest.mark.parametrize("kind", TWO_NEW)
def test_several_fields_keep_what_the_application_wrote(alias: str, kind: str) -> None:
    sandbox = filled(alias)
    sandbox.run(*nullable(votes=True))
    keys = sandbox.values("pk")
    sandbox.rows().filter(pk=keys[1]).update(code="own")
    sandbox.rows().filter(pk=keys[2]).update(votes=1)
    sandbox.rows().filter(pk=keys[3]).update(code="own", votes=1)
    sandbox.run(Populate("question", ["code", "votes"], TWO_NEW[kind], batch_size=BATCH))
    expected = texts(sandbox)
    assert sandbox.values("code") == [expected[0], "own", expected[2], "own", *expected[4:]]
    assert sandbox.values("votes") == [7, 7, 1, 1, *[7] * (ROWS - 4)]


REWRITING: dict[str, Any] = {
    "expressions": {"code": Upper("question_text"), "votes": F("votes") + 100},
    "a row function": samples.code_and_votes,
    "mixed": {"code": samples.from_text, "votes": F("votes") + 100},
}


def with_votes(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(default=0))]))
    sandbox.fill(ROWS, votes=lambda n: n)
    sandbox.run(*nullable())
    return sandbox


@pytest.mark.parametrize("kind", REWRITING)
def test_a_column_that_has_values_is_rewritten_once(alias: str, kind: str) -> None:
    sandbox = with_votes(alias)
    own = sandbox.values("pk")[4]
    sandbox.rows().filter(pk=own).update(code="own")
    rewrite = Populate("question", ["code", "votes"], REWRITING[kind], batch_size=BATCH)
    for _ in range(2):
        sandbox.run(rewrite)
        expected = [n if n == 5 else n + 100 for n in range(1, ROWS + 1)]
        assert sandbox.values("votes") == expected
        assert sandbox.rows().get(pk=own).code == "own"


@pytest.mark.slow
@pytest.mark.parametrize("kind", REWRITING)
def test_stopped_at_any_statement_a_column_is_still_rewritten_once(alias: str, kind: str) -> None:
    sandbox = with_votes(alias)
    rewrite = Populate("question", ["code", "votes"], REWRITING[kind], batch_size=BATCH)
    stop_at, stopped = 0, True
    while stopped:
        for row in range(1, ROWS + 1):
            sandbox.rows().filter(question_text=f"Question {row}?").update(code=None, votes=row)
        stopped = crashes(sandbox, rewrite, stop_at)
        sandbox.run(rewrite)
        assert sandbox.values("votes") == [n + 100 for n in range(1, ROWS + 1)]
        stop_at += 2
    assert stop_at > 6


def crashes(sandbox: MigrationSandbox, operation: Any, stop_at: int) -> bool:
    try:
        with connections[sandbox.alias].execute_wrapper(Statements(stop_at=stop_at)):
            sandbox.run(operation)
    except Statements.Crash:
        connections[sandbox.alias].close()
        return True
    return False


def test_a_rewritten_column_is_read_as_it_was_by_the_others(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(default=0))]))
    sandbox.fill(ROWS, votes=lambda n: n)
    score = models.IntegerField()
    both = {"votes": F("votes") + 100, "score": F("votes") * 10}
    sandbox.run(
        AddNullableField("question", "score", score),
        Populate("question", ["score", "votes"], both, batch_size=BATCH),
    )
    assert sandbox.values("score") == [n * 10 for n in range(1, ROWS + 1)]
    assert sandbox.values("votes") == [n + 100 for n in range(1, ROWS + 1)]


def test_a_row_function_that_leaves_a_field_out_is_a_bad_row(alias: str) -> None:
    sandbox = filled(alias)
    with pytest.raises(BadRows, match=r"returned \{'code': 'x'\}, not a dict of code, votes"):
        sandbox.run(*two_new(lambda row: {"code": "x"}))


# Refused when the migration is loaded


def three(one: Any, two: Any, three: Any) -> None: ...


def keyword_only(row: Any, *, given: Any) -> None: ...


def any_number(*rows: Any) -> None: ...


REFUSED: dict[str, tuple[Any, str]] = {
    "None": (None, f"None is no value: it is what the column must not hold. {CHOICES}"),
    "three arguments": (three, f"three is a function of 3 arguments. {CHOICES}"),
    "keyword-only": (keyword_only, f"keyword_only is a function with other arguments. {CHOICES}"),
    "any number": (any_number, f"any_number is a function with other arguments. {CHOICES}"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_kind_is_refused_when_it_is_loaded(kind: str) -> None:
    populate, words = REFUSED[kind]
    for make in (add, lambda populate: Populate("question", "code", populate)):
        with pytest.raises(InvalidPopulate) as caught:
            make(populate)
        assert str(caught.value) == words


def test_model_objects_are_refused() -> None:
    from polls.models import Question

    for populate, name in ((Question(), "Question"), (Question.objects.all(), "QuestionQuerySet")):
        with pytest.raises(InvalidPopulate) as caught:
            add(populate)
        assert str(caught.value) == (
            f"{name} objects cannot be written into a migration. Give the primary key, or FromApps with a "
            f"Subquery. {CHOICES}"
        )


@pytest.mark.parametrize(
    ("populate", "words"),
    [
        ({"code": 1}, "The dict has 'code', the operation fills 'code', 'votes': they must be the same."),
        ({}, "The dict has nothing, the operation fills 'code', 'votes': they must be the same."),
        (
            {"code": 1, "votes": 2, "more": 3},
            "The dict has 'code', 'votes', 'more', the operation fills 'code', 'votes': they must be the same.",
        ),
        (
            7,
            (
                "Several fields (code, votes) need a dict by field, or a function of one row that returns one; "
                "7 is neither."
            ),
        ),
        (
            {"code": samples.fill_codes, "votes": 1},
            "code: fill_codes(apps, schema_editor) cannot be one of several. Populate that field by itself.",
        ),
        (
            {"code": PerRow(samples.title_in, prepare=samples.titles), "votes": 1},
            "code: title_in(row) cannot be one of several. Populate that field by itself.",
        ),
        (
            PerRow(samples.from_text, unique=Suffix("-")),
            "unique=Suffix(...) works on one field at a time. Populate that field by itself.",
        ),
        ({"code": None, "votes": 1}, f"None is no value: it is what the column must not hold. {CHOICES}"),
    ],
)
def test_several_fields_refuse(populate: Any, words: str) -> None:
    with pytest.raises(InvalidPopulate) as caught:
        Populate("question", ["code", "votes"], populate)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: FromRelated("page"),
            (
                "FromRelated('page'): give the way to a related row's field with two underscores between the names, "
                'as in FromRelated("page__site").'
            ),
        ),
        (
            lambda: PerRow(samples.new_code),
            "PerRow needs a function f(row); new_code takes other arguments.",
        ),
        (
            lambda: PerRow(samples.from_text, prepare=samples.titles),
            "PerRow needs a function f(row, prepared); from_text takes other arguments.",
        ),
        (
            lambda: PerRow(samples.title_in, prepare=samples.from_text),
            "PerRow's prepare needs a function prepare(apps, alias); from_text takes other arguments.",
        ),
        (lambda: PerRow("x"), "PerRow needs a function f(row), not 'x'."),
        (
            lambda: PerBatch(samples.title_in),
            "PerBatch needs a function f(row); title_in takes other arguments.",
        ),
        (
            lambda: FromApps(samples.title_in),
            "FromApps needs a function f(apps); title_in takes other arguments.",
        ),
        (
            lambda: PerRow(samples.from_text, only="question_text"),
            'only must be a list of names: only=["question_text"].',
        ),
        (
            lambda: PerRow(samples.from_text, unique="-"),
            "unique must be Suffix(\"-\") or another Suffix, not '-'.",
        ),
    ],
)
def test_a_kind_that_is_written_wrongly_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidPopulate) as caught:
        make()
    assert str(caught.value) == words


@pytest.mark.parametrize("size", [0, -1, "7", 1.5])
def test_a_batch_size_is_a_number_of_rows(size: Any) -> None:
    with pytest.raises(InvalidPopulate, match="batch_size must be a number of rows"):
        Populate("question", "code", "x", batch_size=size)


# Distinguished, without a database


class Counter:
    def __call__(self, row: Any) -> int:
        return row.pk

    def method(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("populate", "kind"),
    [
        (0, InDatabase),
        (False, InDatabase),
        ("draft", InDatabase),
        ({"a": 1}, InDatabase),
        ([], InDatabase),
        (F("pub_date"), InDatabase),
        (Value("a.b"), InDatabase),
        (FromRelated("page__site"), InDatabase),
        (FromApps(lambda apps: F("pk")), InDatabase),
        (uuid.uuid4, InPython),
        (dict, InPython),
        (list, InPython),
        (Counter().method, InPython),
        (functools.partial(samples.from_text, None), InPython),
        (lambda: 1, InPython),
        (lambda row: 1, InPython),
        (lambda row, step=2: 1, InPython),
        (Counter(), InPython),
        (PerRow(samples.from_text), InPython),
        (PerBatch(samples.all_from_text), InPython),
        (samples.fill_codes, AsWritten),
        (lambda apps, schema_editor, more=None: None, AsWritten),
        ("tests.support.sample_populates.A_VALUE", InDatabase),
        ("tests.support.sample_populates.new_code", InPython),
        ("tests.support.sample_populates.fill_codes", AsWritten),
    ],
)
def test_resolve_tells_the_kinds_apart(populate: Any, kind: type) -> None:
    check(populate, ["value"])
    assert type(resolve(populate)) is kind


def test_a_function_of_no_arguments_needs_keys_only() -> None:
    for populate, keys_only in ((dict, True), (lambda row: 1, False), (Counter(), False)):
        source = resolve(populate)
        assert isinstance(source, InPython)
        assert source.keys_only is keys_only


def test_a_function_that_raises_spoils_only_its_own_row() -> None:
    source = resolve(lambda row: 1 / row)
    assert isinstance(source, InPython)
    good, bad = source.compute([1, 0], None)
    assert good == (1,)
    assert isinstance(bad, ZeroDivisionError)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.nowhere.f", r'write Value\("tests.nowhere.f"\)'),
        (
            "tests.support.sample_populates.nowhere",
            r'write Value\("tests.support.sample_populates.nowhere"\)',
        ),
        ("nowhere.at_all", "No module named 'nowhere'"),
        (
            "tests.support.sample_populates.A_PATH",
            r'is again a dotted path \("tests.support.sample_populates.A_VALUE"\). Give that one.',
        ),
        ("tests.support.sample_populates.NOTHING", "None is no value"),
    ],
)
def test_a_dotted_path_is_looked_up_late_and_refused_in_words(path: str, words: str) -> None:
    check(path, ["value"])
    with pytest.raises(InvalidPopulate, match=words):
        resolve(path)


# Written as source, executed, run


KINDS: dict[str, Any] = {
    "a value": "draft",
    "a value with a dot": Value("a.b"),
    "an expression": Upper(Concat("question_text", Value("!"))),
    "of no arguments": samples.new_code,
    "of one row": samples.from_text,
    "of apps and schema_editor": samples.fill_codes,
    "FromRelated": FromRelated("page__title"),
    "FromApps": FromApps(samples.page_title),
    "PerRow": PerRow(samples.title_in, only=["page"], select_related=["page"], prepare=samples.titles),
    "PerBatch": PerBatch(samples.all_from_text, only=("question_text",)),
    "a dotted path": "tests.support.sample_populates.from_text",
}

PHASES: dict[str, Callable[[], list[Any]]] = {
    "three steps": lambda: [
        AddNullableField("question", "code", UNIQUE),
        Populate(
            "question",
            "code",
            PerRow(samples.from_text, unique=Suffix("_")),
            batch_size=BATCH,
            elidable=True,
        ),
        SetNotNull("question", "code", UNIQUE),
    ],
    "a dict": lambda: two_new({"code": samples.from_text, "votes": Value(3) + 4}),
    "a list of operations": lambda: [
        AddNullableField("question", "code", CODE),
        Populate("question", "code", "x"),
        SetNotNull("question", "code", CODE),
    ],
} | {kind: (lambda kind=kind: [add(KINDS[kind])]) for kind in KINDS}


def written(operations: list[Any]) -> list[Any]:
    """Return the operations as a migration file gives them back."""
    migration = migrations.Migration("0002_code", APP)
    migration.operations = operations
    source = MigrationWriter(migration, include_header=False).as_string()
    names: dict[str, Any] = {}
    exec(compile(source, "0002_code.py", "exec"), names)
    return names["Migration"].operations


def taken_apart(operations: list[Any]) -> Any:
    return MigrationAutodetector(ProjectState(), ProjectState()).deep_deconstruct(operations)


@pytest.mark.parametrize("phase", PHASES)
def test_a_written_migration_means_the_same(phase: str) -> None:
    operations = PHASES[phase]()
    assert taken_apart(written(operations)) == taken_apart(operations)


@pytest.mark.parametrize("phase", PHASES)
def test_a_written_migration_runs(alias: str, phase: str) -> None:
    sandbox = on_pages(alias)
    sandbox.run(*written(PHASES[phase]()))
    assert len([code for code in sandbox.values("code") if code]) == ROWS
    assert not sandbox.column("code").nullable


def test_defaults_are_not_written() -> None:
    (operation,) = written([Populate("question", "code", "x")])
    assert operation.deconstruct()[2] == {"model_name": "question", "name": "code", "populate": "x"}
    assert "batch_size" not in AddRequiredField("question", "code", CODE, "x").deconstruct()[2]
