"""What is wrong with a class is said in words before it is run: by the system check, and by the command."""

from __future__ import annotations

from typing import Any

import pytest
from django import forms
from django.db.models import Count, F, Model, Q, Sum
from polls import backfills as of_polls
from polls.models import Choice, Question

from safemigrate.backfills import Backfill, registered
from safemigrate.backfills.problems import problems
from safemigrate.checks.configuration import check_backfills
from safemigrate.exceptions import InvalidBackfill


class Abstract(Model):
    class Meta:
        app_label = "polls"
        abstract = True


class WithFile(forms.Form):
    file = forms.FileField()


class Days(forms.Form):
    days = forms.IntegerField()


def row(self: Any, instance: Any) -> Any: ...
def batch(self: Any, rows: Any) -> Any: ...


async def later(self: Any, rows: Any) -> Any: ...


VALUES = {"vote_count": 0}

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"model": None, "values": VALUES},
        "it has no model. Name the one whose rows are to be done: model = Order",
    ),
    (
        {"model": "polls.Qestion", "values": VALUES},
        "there is no model 'polls.Qestion'. Did you mean polls.Question?",
    ),
    ({"model": "Question", "values": VALUES}, "Did you mean polls.Question? Name it as app.Model."),
    ({"model": Abstract, "values": VALUES}, "Abstract is abstract, so it has no table"),
    ({"model": 7, "values": VALUES}, "model is 7, which is no model"),
    ({}, "it does not say what is to be done to the rows. Give it one of values"),
    ({"values": VALUES, "batch": batch}, "it has values and batch(), of which one alone can be"),
    ({"row": row, "fields": ["url_name"], "batch": batch}, "it has row() and batch()"),
    ({"delete": True, "where": Q(pk=1), "values": VALUES}, "it has values and delete"),
    ({"delete": "all", "where": Q(pk=1)}, "delete is 'all': give True, or \"raw\""),
    ({"delete": True}, "it would delete every row of the table"),
    ({"values": {}}, "values is {}: give a dict"),
    ({"values": [("votes", 1)]}, "give a dict of field and value"),
    ({"values": {"vote_cuont": 1}}, "vote_cuont is no field of polls.Question. Did you mean vote_count?"),
    ({"values": {"id": 1}}, "id is the primary key"),
    ({"values": {"choice": 1}}, "choice of polls.Question has no column"),
    (
        {"values": {"vote_count": F("nowhere")}},
        "values cannot be asked of polls.Question: Cannot resolve keyword",
    ),
    ({"values": {"vote_count": Sum("choice__votes")}}, "Another table is read by a Subquery"),
    ({"values": {"vote_count": "many"}}, "values cannot be asked of polls.Question"),
    (
        {"values": {"url_name": str.lower}},
        "values gives a function for url_name: give an expression, or write row()",
    ),
    ({"values": VALUES, "wher": Q(pk=1)}, "it has no attribute wher. Did you mean where?"),
    ({"values": VALUES, "only_change": False}, "it has no attribute only_change. Did you mean only_changed?"),
    ({"row": row}, "row() has no fields to write"),
    ({"row": row, "fields": "url_name"}, "fields is a text: give a list, fields = ['url_name']"),
    ({"row": row, "fields": ["url"]}, "url is no field of polls.Question"),
    ({"values": VALUES, "fields": ["url_name"]}, "fields are those that row() writes, and there is no row()"),
    ({"row": lambda self: None, "fields": ["url_name"]}, "row takes (self); it is to be row(self, instance)"),
    ({"batch": later}, "batch is async"),
    ({"batch": batch, "queryset": lambda self, days: None}, "queryset takes (self, days)"),
    ({"values": VALUES, "where": {"pk": 1}}, "where is {'pk': 1}: give a Q"),
    ({"values": VALUES, "where": Q()}, "where is an empty Q()"),
    (
        {"values": VALUES, "where": Q(votes__gt=1)},
        "where cannot be asked of polls.Question: Cannot resolve keyword 'votes'",
    ),
    ({"values": VALUES, "where": Q(pk__in=[])}, "where is a condition that no row can fulfil"),
    ({"values": VALUES, "where": Q(pk=1), "queryset": lambda self: None}, "it has where and queryset()"),
    ({"values": VALUES, "form": "days"}, "form is 'days': give a class that inherits from django.forms.Form"),
    ({"values": VALUES, "form": WithFile}, "file of the form is a file"),
    (
        {"values": VALUES, "form": Days, "sensitive": ["day"]},
        "sensitive names day, which no form of it has. Did you mean days?",
    ),
    ({"values": VALUES, "sensitive": ["days"]}, "sensitive names days, which no form of it has."),
    ({"values": VALUES, "form": Days, "sensitive": "days"}, "sensitive is a text"),
    ({"values": VALUES, "batch_size": 0}, "batch_size is 0: give a whole number from 1 on"),
    ({"values": VALUES, "max_bad_rows": "many"}, "max_bad_rows is 'many'"),
    ({"values": VALUES, "databases": "archive"}, "databases is 'archive': give a list of aliases"),
    (
        {"values": VALUES, "databases": ["arhcive"]},
        "databases names arhcive, which DATABASES does not have. Did you mean archive?",
    ),
    ({"values": VALUES, "executor": "selery"}, "executor is 'selery'"),
    (
        {"values": VALUES, "throttles": ["safemigrate.throttles.Nise"]},
        "Did you mean safemigrate.throttles.Nice?",
    ),
    ({"values": VALUES, "throttles": "safemigrate.throttles.Nice"}, "throttles is a text: give a list"),
    (
        {"values": VALUES, "retry_on": TimeoutError},
        "retry_on is one exception: give a tuple, (TimeoutError,)",
    ),
    ({"values": VALUES, "retry_on": ("TimeoutError",)}, "give a tuple of exceptions"),
    ({"values": VALUES, "Meta": type("Meta", (), {"permission": "delete"})}, "Meta.permission is 'delete'"),
]


@pytest.mark.parametrize(("attributes", "text"), BAD, ids=[text[:40] for _attributes, text in BAD])
def test_a_bad_class_is_refused_in_words(attributes: dict[str, Any], text: str) -> None:
    kind = type("Bad", (Backfill,), {"model": Question, **attributes})
    found = problems(kind)
    assert any(text in line for line in found), found
    assert all(line.startswith(f"{kind.label()}: ") for line in found)


@pytest.mark.parametrize(
    "attributes",
    [
        {"values": {"question": 3}, "model": Choice},
        {"values": {"vote_count": F("vote_count") + 1}, "only_changed": False},
        {"model": "polls.Question", "delete": "raw", "where": Q(choice=None)},
        {"batch": batch, "rows": lambda self: [], "_wher": 1, "factor": 3},
        {"batch": batch, "queryset": lambda self: Question._base_manager.annotate(n=Count("choice"))},
    ],
)
def test_a_good_one_is_not(attributes: dict[str, Any]) -> None:
    assert problems(type("Good", (Backfill,), {"model": Question, **attributes})) == []


def test_those_of_the_example_are_found_and_right() -> None:
    assert list(registered()) == ["polls.PurgeClosedPolls", "polls.RecountVotes", "polls.SlugifyQuestions"]
    assert check_backfills() == []
    assert registered()["polls.RecountVotes"].summary() == (
        "Questions whose number of votes is not that of their choices."
    )


def test_the_check_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_polls.RecountVotes, "values", {"vote_cuont": 0})
    (found,) = check_backfills()
    assert (found.id, found.obj) == ("safemigrate.E002", "polls.RecountVotes")
    assert "Did you mean vote_count?" in found.msg


def test_two_of_one_name_are_refused() -> None:
    twice = type("RecountVotes", (Backfill,), {"__module__": "polls.backfills.more", "model": Question})
    try:
        with pytest.raises(InvalidBackfill, match=r"Two backfills are called polls\.RecountVotes"):
            registered()
        (found,) = check_backfills()
        assert "rename one of them" in found.msg
    finally:
        twice.__module__ = "elsewhere"
