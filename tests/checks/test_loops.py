"""Which functions write row after row, found from their source."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db.migrations import RunPython

from safemigrate.checks import loops

CHOICES = ["Yes", "No"]


def save_each(apps, schema_editor):
    Question = apps.get_model("polls", "Question")
    for question in Question.objects.all():
        question.question_text = "?"
        question.save(update_fields=["question_text"])


def save_while(apps, schema_editor):
    question = apps.get_model("polls.Question").objects.first()
    while question:
        question.save()
        question = question.next()


def save_in_comprehension(apps, schema_editor):
    [question.save() for question in apps.get_model(app_label="polls", model_name="Question").objects.all()]


def update_or_create_each(apps, schema_editor):
    for row in Path("rows.csv").read_text().splitlines():
        apps.get_model("polls", "Question").objects.update_or_create(question_text=row)


def update_each(apps, schema_editor):
    objects = apps.get_model("polls", "Question").objects
    for question in objects.all():
        objects.filter(pk=question.pk).update(question_text="?")


def bulk_update_each(apps, schema_editor):
    Question = apps.get_model("polls", "Question")
    for start in range(0, Question.objects.count(), 1000):
        Question.objects.bulk_update(Question.objects.all()[start : start + 1000], ["question_text"])


def save_gathered(apps, schema_editor):
    questions = []
    questions += apps.get_model("polls", "Question").objects.all()
    for question in questions:
        question.save()


def write(question):
    question.save()


def save_by_helper(apps, schema_editor):
    for question in apps.get_model("polls", "Question").objects.all():
        write(question)


def save_in_helper(apps, schema_editor):
    save_each(apps, schema_editor)


def with_an_argument(text, apps, schema_editor):
    save_each(apps, schema_editor)


class Saver:
    def __call__(self, apps, schema_editor):
        for question in apps.get_model("polls", "Question").objects.all():
            question.save()

    @classmethod
    def by_class(cls, apps, schema_editor):
        for question in apps.get_model("polls", "Question").objects.all():
            question.save()


LOOPS = [
    save_each,
    save_while,
    save_in_comprehension,
    update_or_create_each,
    update_each,
    bulk_update_each,
    save_gathered,
    save_by_helper,
    save_in_helper,
    partial(with_an_argument, "?"),
    Saver(),
    Saver.by_class,
    lambda apps, schema_editor: [row.save() for row in apps.get_model("polls", "Question").objects.all()],
]


@pytest.mark.parametrize("code", LOOPS, ids=lambda code: getattr(code, "__name__", "partial"))
def test_a_loop_that_writes_is_found_with_its_model(code: Callable[..., Any]) -> None:
    found = loops.find(code)
    assert found is not None
    assert found.models == {("polls", "question")}


def test_the_loop_is_said_to_be_where_it_is() -> None:
    found = loops.find(save_in_helper)
    assert found is not None
    assert found.function == "save_each"


def update_once(apps, schema_editor):
    apps.get_model("polls", "Question").objects.filter(question_text="").update(question_text="?")


def bulk_update_once(apps, schema_editor):
    Question = apps.get_model("polls", "Question")
    questions = list(Question.objects.all())
    for question in questions:
        question.question_text = "?"
    Question.objects.bulk_update(questions, ["question_text"])


def save_one(apps, schema_editor):
    question = apps.get_model("polls", "Question").objects.first()
    question.save()


def save_listed(apps, schema_editor):
    for text in ["Why?", "What?"]:
        apps.get_model("polls", "Question")(question_text=text).save()


def save_listed_by_name(apps, schema_editor):
    texts = {"a": ["Why?"], "b": ["What?"]}
    for _, group in sorted(texts.items()):
        for text in group:
            apps.get_model("polls", "Question").objects.update_or_create(question_text=text)


def save_listed_in_the_module(apps, schema_editor):
    for number, text in enumerate(CHOICES):
        apps.get_model("polls", "Choice").objects.update_or_create(pk=number, choice_text=text)


def update_dicts(apps, schema_editor):
    seen: dict[str, Any] = {}
    for question in apps.get_model("polls", "Question").objects.all():
        seen.update({question.pk: question})


def save_files(apps, schema_editor):
    for question in apps.get_model("polls", "Question").objects.all():
        question.picture.storage.save("name", question.picture)


@pytest.mark.parametrize(
    "code",
    [
        RunPython.noop,
        update_once,
        bulk_update_once,
        save_one,
        save_listed,
        save_listed_by_name,
        save_listed_in_the_module,
        update_dicts,
        save_files,
        print,
        eval("lambda apps, schema_editor: [row.save() for row in apps]"),
    ],
    ids=lambda code: getattr(code, "__qualname__", "partial"),
)
def test_what_writes_once_or_what_the_source_lists_is_no_such_loop(code: Callable[..., Any]) -> None:
    assert loops.find(code) is None
