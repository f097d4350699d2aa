from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from polls.models import Choice, Question

from safemigrate.exceptions import InvalidExpression
from safemigrate.populate.expressions import double_quoted, read


def new(field: models.Field[Any, Any], name: str = "fresh") -> models.Field[Any, Any]:
    field.set_attributes_from_name(name)
    return field


def text(max_length: int = 20, **options: Any) -> models.Field[Any, Any]:
    return new(models.CharField(max_length=max_length, **options))


def error(typed: str, model: Any = Question, field: Any = None) -> str:
    with pytest.raises(InvalidExpression) as caught:
        read(typed, model, field or text())
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "code", "imports"),
    [
        (
            "F('pub_date')+timedelta( days=30 )",
            'F("pub_date") + timedelta(days=30)',
            {"from django.db.models import F", "from datetime import timedelta"},
        ),
        (
            'Concat("question_text", Value(" "), Lower("question_text"))',
            'Concat("question_text", Value(" "), Lower("question_text"))',
            {
                "from django.db.models import Value",
                "from django.db.models.functions import Concat",
                "from django.db.models.functions import Lower",
            },
        ),
        (
            (
                "models.Case(models.When(models.Q(pk__gt=3) & ~models.Q(pub_date__year=2026), then=1), "
                "default=2)"
            ),
            (
                "models.Case(models.When(models.Q(pk__gt=3) & ~models.Q(pub_date__year=2026), then=1), "
                "default=2)"
            ),
            {"from django.db import models"},
        ),
        ("functions.Now()", "functions.Now()", {"from django.db.models import functions"}),
        ("uuid.uuid4", "uuid.uuid4", {"import uuid"}),
        ("uuid4", "uuid4", {"from uuid import uuid4"}),
        ("timezone.now", "timezone.now", {"from django.utils import timezone"}),
        ('Decimal("1.5")', 'Decimal("1.5")', {"from decimal import Decimal"}),
        ("dict", "dict", set()),
        ("'draft'", '"draft"', set()),
        ("''", '""', set()),
        ("-1", "-1", set()),
        ("True", "True", set()),
        ('Value("example.com")', 'Value("example.com")', {"from django.db.models import Value"}),
    ],
)
def test_the_source_is_normalised_and_brings_its_imports(typed: str, code: str, imports: set[str]) -> None:
    source = read(typed, Question, text())

    assert (source.code, source.imports) == (code, imports)


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("datetime(2026, 1, 1)", "datetime.datetime(2026, 1, 1)"),
        ("datetime.datetime(2026, 1, 1)", "datetime.datetime(2026, 1, 1)"),
        ("datetime.date(2026, 1, 1)", "datetime.date(2026, 1, 1)"),
        (
            "datetime(2026, 1, 1, tzinfo=timezone.utc)",
            "datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)",
        ),
    ],
)
def test_datetime_is_the_module_or_the_class_as_its_use_says(typed: str, code: str) -> None:
    source = read(typed, Question, new(models.DateTimeField()))

    assert (source.code, source.imports) == (code, {"import datetime"})


def test_nothing_in_the_text_is_called(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("calls = []\ndef value():\n    calls.append(1)\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for typed in ("trap.value", '"trap.value"'):
        assert read(typed, Question, text()).code == '"trap.value"'
    for typed in ("trap.value()", "Value(trap.value())", "Concat(Value('a'), trap.value())"):
        with pytest.raises(InvalidExpression, match=r"Name the function without parentheses: trap\.value\n"):
            read(typed, Question, text())

    import trap  # type: ignore[import-not-found]

    assert trap.calls == []


def test_a_dotted_path_inside_an_expression_is_imported(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def slug(row):\n    return 'a'\n")
    monkeypatch.syspath_prepend(tmp_path)

    source = read('PerRow(mine.slug, only=["question_text"], unique=Suffix("-"))', Question, text())

    assert source.code == 'PerRow(mine.slug, only=["question_text"], unique=Suffix("-"))'
    assert source.imports == {
        "import mine",
        "from safemigrate.populate import PerRow",
        "from safemigrate.populate import Suffix",
    }


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "F('pub_dat')",
            "polls.Question has no field pub_dat. Did you mean pub_date?\n    F('pub_dat')\n      ^",
        ),
        ("F('a' + 1", "--populate is not Python: '(' was never closed\n    F('a' + 1\n     ^"),
        ("", "--populate is empty. Write an empty string as '\"\"'."),
        ("None", "None is what old rows have already, and fresh is to be required."),
        ("len(a)", "len is computed by Python, not by the database: write Length.\n    len(a)\n    ^"),
        ("Concta('a')", "Concta is not a known name. Did you mean Concat?\n    Concta('a')\n    ^"),
        (
            "draught",
            "draught is not a known name. A text as the value has quotes: '\"draught\"'.\n    draught\n    ^",
        ),
        (
            "slugify(question_text)",
            (
                "slugify is not a function of the database that is known here. For one of Python's, "
                "write a function of one row into polls/populate.py, and name it: polls.populate.slugify\n"
                "    slugify(question_text)\n    ^"
            ),
        ),
        (
            "pub_date + timedelta(days=30)",
            'pub_date is a field of Question: write F("pub_date")\n    pub_date + timedelta(days=30)\n    ^',
        ),
        (
            "pub_date.year",
            'pub_date is a field of Question: write F("pub_date")',
        ),
        ("true", "true is not Python. Did you mean True?\n    true\n    ^"),
        ("2024-01-01", "2024-01-01 is not Python: a date is written date(2024, 1, 1)"),
        ("2024-10-11", "2024-10-11 is not Python: a date is written date(2024, 10, 11)"),
        (
            "2024-01-01 08:30",
            "2024-01-01 08:30 is not Python: a datetime is written datetime(2024, 1, 1, 8, 30)",
        ),
        ("Now", "Now is a class: write Now(), with what it needs in between.\n    Now\n    ^"),
        ("functions", "functions is a module, not a value: write functions.something.\n    functions\n    ^"),
        ("models.Valeu(1)", "models has no Valeu. Did you mean Value?\n    models.Valeu(1)\n    ^"),
        (
            "F('pk').__class__",
            "__class__ is private and cannot stand in --populate.\n    F('pk').__class__\n    ^",
        ),
        (
            "uuid.uuid4()",
            (
                "uuid.uuid4() is called once, and every row would get the same value: write uuid.uuid4, "
                "without "
                "the parentheses, to have it called for each row.\n    uuid.uuid4()\n    ^"
            ),
        ),
        (
            "timezone.now() + timedelta(days=1)",
            (
                "timezone.now() is called whenever the migration is loaded: write Now(), which the database "
                "computes.\n    timezone.now() + timedelta(days=1)\n    ^"
            ),
        ),
        (
            "lambda: 1",
            (
                "A lambda is not allowed: give a function of your own, in a module, by its dotted path.\n"
                "    lambda: 1\n    ^"
            ),
        ),
        (
            "Case(When(F('pk') > 3, then=1))",
            (
                "A comparison is computed by Python, not by the database: write Q(votes__gt=3).\n"
                "    Case(When(F('pk') > 3, then=1))\n              ^"
            ),
        ),
        (
            "[x for x in 'abc']",
            (
                "ListComp cannot stand in --populate: give a function by its dotted path.\n"
                "    [x for x in 'abc']\n    ^"
            ),
        ),
        (
            "Concat('question_text', ' - ')",
            (
                "polls.Question has no field  - . Concat takes a text for a field's name; a text itself is "
                "Value(\" - \").\n    Concat('question_text', ' - ')\n                            ^"
            ),
        ),
        (
            "Case(When(pub_dat__year=1, then=1))",
            (
                "polls.Question has no field pub_dat. Did you mean pub_date?\n"
                "    Case(When(pub_dat__year=1, then=1))\n              ^"
            ),
        ),
        (
            "F('choice')",
            (
                "choice is not a column of polls.Question: count or look it up with a function, or "
                "FromApps.\n"
                "    F('choice')\n      ^"
            ),
        ),
        (
            "FromRelated('pub_date')",
            (
                'FromRelated("pub_date") names no relation: write "relation__field", or F("pub_date").\n'
                "    FromRelated('pub_date')\n                ^"
            ),
        ),
        (
            "PerRow('polls.models.f')",
            (
                "PerRow needs a function: write its dotted path without quotes.\n"
                "    PerRow('polls.models.f')\n           ^"
            ),
        ),
        (
            "poll.populate.fresh",
            (
                "poll.populate.fresh cannot be imported: No module named 'poll'\n"
                'If the text itself is the value for every row, write Value("poll.populate.fresh").'
            ),
        ),
        (
            "polls.models.Questio",
            (
                "polls.models.Questio cannot be imported: polls.models has no Questio. Did you mean "
                "Question?\n"
                'If the text itself is the value for every row, write Value("polls.models.Questio").'
            ),
        ),
    ],
)
def test_the_error_says_what_where_and_what_to_write(typed: str, message: str) -> None:
    assert error(typed) == message


def test_the_caret_counts_letters_and_not_bytes() -> None:
    assert error("Value('é') + Qu").endswith("\n    Value('é') + Qu\n                 ^")


def test_another_table_is_reached_by_from_related_alone() -> None:
    typed = "F('question__pub_date')"

    assert error(typed, Choice) == (
        "question__pub_date is in another table, which an UPDATE cannot join: use "
        "FromRelated(\"question__pub_date\").\n    F('question__pub_date')\n      ^"
    )
    assert (
        read("FromRelated('question__pub_date')", Choice, text()).code == 'FromRelated("question__pub_date")'
    )
    assert "polls.Question has no field pub_dat. Did you mean pub_date?" in error(
        "FromRelated('question__pub_dat')", Choice
    )


@pytest.mark.parametrize(
    "typed", ["F('question')", "F('question_id')", "F('question__pk')", "F('question__id')"]
)
def test_the_own_key_of_a_relation_needs_no_join(typed: str) -> None:
    assert read(typed, Choice, text()).code == typed.replace("'", '"')


def test_the_new_field_cannot_fill_itself() -> None:
    field: Any = Question._meta.get_field("expires_date")

    assert error("F('expires_date')", field=field) == (
        "expires_date is the field that is to be filled: it has no value yet.\n    F('expires_date')\n      ^"
    )


def test_a_constant_must_be_a_value_of_the_field() -> None:
    assert error("'abc'", field=new(models.IntegerField())) == (
        "'abc' is no value for fresh (IntegerField): “abc” value must be an integer."
    )
    assert error("'abcd'", field=text(max_length=3)) == (
        "'abcd' is no value for fresh (CharField): Ensure this value has at most 3 characters (it has 4)."
    )


def test_a_unique_field_takes_no_constant() -> None:
    assert error("'a'", field=text(unique=True)) == (
        "fresh is unique, and 'a' would be the same in every row. Give an expression or a function "
        "that differs "
        "from row to row, such as uuid.uuid4."
    )
    assert read("uuid.uuid4", Question, new(models.UUIDField(unique=True))).code == "uuid.uuid4"


@pytest.mark.parametrize(
    ("code", "quoted"),
    [
        ("f('a', b'c')", 'f("a", b"c")'),
        ("'say \"hi\"'", "'say \"hi\"'"),
        ("'it\\'s'", "'it\\'s'"),
        ("'' + ''", '"" + ""'),
        ("f('é', 'b')", 'f("é", "b")'),
    ],
)
def test_quotes_are_doubled_only_where_the_meaning_stays(code: str, quoted: str) -> None:
    assert double_quoted(code) == quoted
    assert eval(quoted, {"f": lambda *a: a}) == eval(code, {"f": lambda *a: a})


def test_a_call_is_known_by_the_function_and_not_by_its_spelling() -> None:
    assert "would get the same value" in error("uuid4()", field=new(models.UUIDField()))


def test_a_value_that_is_none_of_the_choices_is_refused() -> None:
    kind = text(max_length=1, choices=[("a", "A"), ("b", "B")])
    assert "it is none of the choices 'a', 'b'" in error('"z"', field=kind)
    assert read('"a"', Question, kind).code == '"a"'
