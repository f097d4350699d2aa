from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone
from polls.models import Choice, Question

from safemigrate.exceptions import InvalidField, InvalidPopulate
from safemigrate.generator.autodetector import Addition
from safemigrate.generator.planner import Phase, from_default, phases_for
from safemigrate.generator.targets import RequiredField, find, find_all
from safemigrate.populate.expressions import Snippet

ADDITION = Addition("question_expires_date", (("polls", "0002_alter_question_pub_date"),))
EXPIRES = find("polls.Question.expires_date")


def new(field: models.Field[Any, Any]) -> models.Field[Any, Any]:
    field.set_attributes_from_name("fresh")
    return field


def test_one_phase_is_one_operation_for_each_field() -> None:
    text = find("polls.Question.question_text")
    populates = {EXPIRES: Snippet("Now()"), text: Snippet('"a"')}

    (phase,) = phases_for(populates, ADDITION, "0002_alter_question_pub_date", batch_size=500)

    assert phase.name == "0003_question_expires_date"
    assert phase.dependencies == (("polls", "0002_alter_question_pub_date"),)
    assert [call.name for call in phase.operations] == ["AddRequiredField"] * 2
    assert {key: source.code for key, source in phase.operations[0].arguments.items()} == {
        "model_name": '"question"',
        "name": '"expires_date"',
        "field": 'models.DateTimeField(verbose_name="expires at")',
        "populate": "Now()",
        "batch_size": "500",
    }


def test_three_phases_follow_one_another() -> None:
    phases = phases_for(
        {EXPIRES: Snippet("Now()")}, ADDITION, "0002_alter_question_pub_date", phases=3, name="grow"
    )

    assert [(phase.name, phase.dependencies[0][1]) for phase in phases] == [
        ("0003_grow_add", "0002_alter_question_pub_date"),
        ("0004_grow_fill", "0003_grow_add"),
        ("0005_grow_require", "0004_grow_fill"),
    ]
    assert names(phases) == [["AddNullableField"], ["Populate"], ["SetNotNull"]]
    assert [phase.note for phase in phases] == [
        "Deploy 1 of 3: migrate this before the new code runs anywhere.",
        "Deploy 2 of 3: migrate this at any time after the first; run again, it does no harm.",
        "Deploy 3 of 3: migrate this when no old code is left running.",
    ]


def names(phases: list[Phase]) -> list[list[str]]:
    return [[call.name for call in phase.operations] for phase in phases]


def effects(phases: list[Phase]) -> list[str]:
    return [phase.effect for phase in phases]


def test_what_can_be_guarded_is_until_all_columns_are_required() -> None:
    text = find("polls.Question.question_text")
    populates = {EXPIRES: Snippet("Now()"), text: Snippet("polls.populate.text")}

    phases = phases_for(populates, ADDITION, "0002_x", phases=3, guarded=[EXPIRES])

    assert names(phases) == [
        ["AddNullableField", "AddNullableField", "GuardWrites"],
        ["Populate", "Populate"],
        ["SetNotNull", "SetNotNull", "UnguardWrites"],
    ]
    guard, unguard = phases[0].operations[2], phases[2].operations[2]
    assert {key: source.code for key, source in guard.arguments.items()} == {
        "model_name": '"question"',
        "name": '"expires_date"',
        "populate": "Now()",
    }
    assert {key: source.code for key, source in unguard.arguments.items()} == {
        "model_name": '"question"',
        "name": '"expires_date"',
    }


def test_each_file_says_what_it_means_for_old_code() -> None:
    populates = {EXPIRES: Snippet("Now()")}
    fill = "Rows that were there before the first get their value, in committed batches."
    state = new(models.CharField(max_length=9, db_default="new"))

    assert effects(phases_for(populates, ADDITION, "0002_x", phases=3, guarded=[EXPIRES])) == [
        "Old and new code both work: the database fills the rows that old code inserts.",
        fill,
        "From then on an insert without the field fails.",
    ]
    assert effects(phases_for(populates, ADDITION, "0002_x", phases=3)) == [
        "Old and new code both work; rows that old code inserts stay NULL until the third.",
        fill,
        "It fills what is still NULL. From then on an insert without the field fails.",
    ]
    assert effects(
        phases_for({RequiredField(Question, state): Snippet('"new"')}, ADDITION, "0002_x", phases=3)
    ) == [
        "Old and new code both work: rows that old code inserts get the db_default.",
        fill,
        "",
    ]


def test_one_phase_keeps_its_guard_where_that_is_wanted() -> None:
    (phase,) = phases_for({EXPIRES: Snippet("Now()")}, ADDITION, "0002_x", keep_guard=True)

    assert phase.operations[0].arguments["keep_guard"].code == "True"


@pytest.mark.parametrize(
    ("field", "code", "meaning"),
    [
        (models.IntegerField(default=3), "3", "its default, 3, in every old row"),
        (
            models.UUIDField(default=uuid.uuid4, unique=True),
            "uuid.uuid4",
            "its default, uuid.uuid4, called once for each old row",
        ),
        (
            models.DateTimeField(default=timezone.now),
            "django.utils.timezone.now",
            "its default, django.utils.timezone.now, called once for each old row",
        ),
        (models.JSONField(default=dict), "dict", "its default, dict, called once for each old row"),
        (
            models.DateTimeField(db_default=Now()),
            "django.db.models.functions.datetime.Now()",
            "its db_default, django.db.models.functions.datetime.Now(), in every old row",
        ),
        (models.CharField(db_default="a"), '"a"', 'its db_default, "a", in every old row'),
        (
            models.BooleanField(default=False, db_default=True),
            "False",
            "its default, False, in every old row",
        ),
        (
            models.DurationField(default=dt.timedelta(days=1)),
            "datetime.timedelta(days=1)",
            "its default, datetime.timedelta(days=1), in every old row",
        ),
    ],
)
def test_the_default_serves(field: models.Field[Any, Any], code: str, meaning: str) -> None:
    found = from_default(new(field))

    assert found is not None
    assert (found[0].code, found[1]) == (code, meaning)


def test_a_default_that_looks_like_a_dotted_path_stays_a_value() -> None:
    found = from_default(new(models.CharField(max_length=20, default="example.com")))

    assert found is not None
    assert found[0] == Snippet('models.Value("example.com")', frozenset({"from django.db import models"}))


def test_without_a_default_there_is_nothing() -> None:
    assert from_default(new(models.IntegerField())) is None


def test_a_lambda_as_default_is_refused() -> None:
    with pytest.raises(InvalidPopulate) as caught:
        from_default(new(models.IntegerField(default=lambda: 3)))

    assert str(caught.value) == (
        "The default of fresh cannot be written into a migration: Cannot serialize function: lambda\n"
        "Write it as a function with a name, at the top level of a module, or give --populate."
    )


def test_a_constant_default_of_a_unique_field_is_refused() -> None:
    with pytest.raises(InvalidPopulate, match="fresh is unique, and 3 would be the same in every row"):
        from_default(new(models.IntegerField(default=3, unique=True)))


def test_each_label_counts_once_and_in_any_case() -> None:
    assert find_all(["polls.question.expires_date", "polls.Question.expires_date"]) == [EXPIRES]
    assert find("polls.Choice.question_id") == RequiredField(Choice, Choice._meta.get_field("question"))
    assert (EXPIRES.model, EXPIRES.label) == (Question, "polls.Question.expires_date")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            "polls.Question",
            "'polls.Question' is not of the form app.Model.field, as in polls.Question.expires_date.",
        ),
        ("pols.Question.x", "There is no app pols. Did you mean polls?"),
        ("elsewhere.Question.x", "There is no app elsewhere. Is it in INSTALLED_APPS?"),
        ("polls.Qestion.x", "The app polls has no model Qestion. Did you mean Question?"),
        ("polls.Question.expire_date", "polls.Question has no field expire_date. Did you mean expires_date?"),
        (
            "polls.Question.colour",
            "polls.Question has no field colour. Add it to the model first; the command reads it from there.",
        ),
        (
            "polls.Question.choice",
            "polls.Question.choice has no column of its own, so there is nothing to fill.",
        ),
        (
            "auth.User.groups",
            (
                "auth.User.groups (ManyToManyField) cannot be added by safemigrate: a many-to-many field "
                "is a table "
                "of its own, not a column. Use migrations.AddField.\nRun: python manage.py makemigrations "
                "auth"
            ),
        ),
        (
            "auth.User.last_login",
            (
                "auth.User.last_login (DateTimeField) cannot be added by safemigrate: it is null=True, so "
                "old rows "
                "need no value. Remove null=True to make it required, or use migrations.AddField.\n"
                "Run: python manage.py makemigrations auth"
            ),
        ),
    ],
)
def test_a_label_that_cannot_be_meant_is_refused(label: str, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        find(label)

    assert str(caught.value) == message
