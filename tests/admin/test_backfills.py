"""The backfills of the apps in the admin: who sees and starts them, what a trial shows, and what is never done."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django import forms
from django.utils import timezone
from polls import backfills as of_polls
from polls.models import Choice, Question

from safemigrate import backfills
from safemigrate.backfills import Backfill
from safemigrate.runs import store
from safemigrate.runs import worker as workers
from safemigrate.runs.status import Status
from tests.admin.test_model_admin import LIST, a_run, admin, page, person, shown
from tests.support.deliveries import Queue, kept_messages  # noqa: F401

pytestmark = pytest.mark.django_db(databases=["default", "archive"])

ALL = f"{LIST}backfills/"
RECOUNT, PURGE = f"{ALL}polls.RecountVotes/", f"{ALL}polls.PurgeClosedPolls/"


@pytest.fixture(autouse=True)
def _polls() -> None:
    for number in range(3):
        question = Question.objects.create(
            question_text=f"Question {number}?",
            pub_date=timezone.now(),
            expires_date=timezone.now() - timedelta(days=9),
        )
        Choice.objects.create(question=question, choice_text="yes", votes=number + 5)


def html(response: Any) -> str:
    return str(response.content.decode())


def test_the_list_of_runs_leads_to_them_and_they_to_their_last_run() -> None:
    client = admin()
    run = a_run(Status.SUCCEEDED, backfill="polls.RecountVotes", lease_until=None)
    assert ALL in html(client.get(LIST))
    response = client.get(ALL)
    text = shown(response)
    assert (
        "polls.RecountVotes Questions whose number of votes is not that of their choices. default, archive"
        in text
    )
    assert page(run) in html(response)
    assert all(address in html(response) for address in (RECOUNT, PURGE))


def test_who_may_start_them() -> None:
    for rights, seen, asked in (((), 403, 403), (("view",), 200, 302), (("start",), 403, 403)):
        client = person(*rights)
        assert (client.get(ALL).status_code, client.get(RECOUNT).status_code) == (seen, asked)
        assert client.post(RECOUNT, {"database": "default", "start": "1"}).status_code == 403
        if asked == 302:
            text = shown(client.get(RECOUNT, follow=True))
            assert "polls.RecountVotes: it takes the permission safemigrate.start_backfillrun." in text
    client = person("view", "start")
    assert client.get(RECOUNT).status_code == 200
    assert RECOUNT in html(client.get(ALL))
    assert not store.records().exists()


def test_a_class_may_ask_for_one_more_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meta:
        permission = "polls.delete_question"

    monkeypatch.setattr(of_polls.RecountVotes, "Meta", Meta)
    refused = person("view", "start").get(RECOUNT, follow=True)
    assert "takes the permission polls.delete_question." in shown(refused)
    assert person("view", "start", "polls.delete_question").get(RECOUNT).status_code == 200


def test_it_is_tried_first_and_nothing_is_changed() -> None:
    client = admin()
    first = html(client.get(PURGE))
    assert "backfill-start" not in first
    response = client.post(PURGE, {"database": "default", "given-days": "3", "try": "1"})
    assert "Question 0?" in shown(response)
    assert "→ deleted" in shown(response)
    assert "The table has about 3 rows." in shown(response)
    assert Question.objects.count() == 3
    assert not store.records().exists()


def test_a_hook_that_raises_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(self: Any) -> None:
        raise ValueError("no rates")

    monkeypatch.setattr(of_polls.RecountVotes, "before", before)
    response = admin().post(RECOUNT, {"database": "default", "try": "1"})
    assert "before() of polls.RecountVotes raised ValueError: no rates, so no row was tried." in shown(
        response
    )


def test_a_get_never_does_anything() -> None:
    admin().get(PURGE, {"database": "default", "given-days": "3", "start": "1"})
    assert Question.objects.count() == 3


def test_what_is_wrong_is_said_beside_its_field() -> None:
    response = admin().post(PURGE, {"database": "default", "given-days": "many", "start": "1"})
    assert "Enter a whole number." in shown(response)
    response = admin_again(response).post(PURGE, {"database": "elsewhere", "given-days": "3", "start": "1"})
    assert "elsewhere is not one of the available choices" in shown(response)


def admin_again(response: Any) -> Any:
    return response.client


def test_without_a_queue_the_command_is_shown() -> None:
    client = admin()
    response = client.post(PURGE, {"database": "default", "given-days": "3", "try": "1"})
    command = "python manage.py backfill run polls.PurgeClosedPolls --database default --set days=3"
    assert command in shown(response)
    assert "backfill-start" not in html(response)
    response = client.post(PURGE, {"database": "default", "given-days": "3", "start": "1"})
    assert "No queue is configured" in shown(response)
    assert Question.objects.count() == 3


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_it_is_started_by_the_queue_in_the_persons_name(settings: Any) -> None:
    settings.SAFEMIGRATE_EXECUTOR = "celery"
    client = admin()
    tried = client.post(RECOUNT, {"database": "default", "try": "1"})
    assert "backfill-start" in html(tried)
    assert "0 → 5" in shown(tried)
    response = client.post(RECOUNT, {"database": "default", "start": "1"}, follow=True)
    run = store.records().get()
    assert f"Run {run.pk} (polls.RecountVotes on default) was started." in shown(response)
    assert (run.status, run.started_by, run.executor) == (Status.QUEUED, "ada", "celery")
    assert "No worker is at work on it" not in shown(response)
    assert [(event.text, event.who) for event in run.events.all()] == [("queued", "ada")]
    again = client.post(RECOUNT, {"database": "default", "start": "1"}, follow=True)
    assert again.status_code == 200
    Queue.deliver_all()
    assert sorted(Question.objects.values_list("vote_count", flat=True)) == [5, 6, 7]
    assert store.find(run.pk).status == Status.SUCCEEDED
    assert store.records().count() == 1
    begun = run.events.get(text="queued → running")
    assert begun.who == workers.name()


def test_what_no_worker_takes_in_a_while_is_said() -> None:
    now = timezone.now()
    run = a_run(Status.QUEUED, executor="celery", lease_until=None, enqueued_at=now)
    client = admin()
    assert "No worker is at work on it" not in shown(client.get(page(run)))
    store.records().update(enqueued_at=now - timedelta(seconds=11))
    assert "No worker is at work on it" in shown(client.get(page(run)))


class Suffix(forms.Form):
    token = forms.CharField()


class AddSuffix(Backfill):
    model = Question
    form = Suffix
    sensitive = ("token",)
    fields = ("question_text",)

    @classmethod
    def label(cls) -> str:
        return "polls.AddSuffix"

    def row(self, instance: Question) -> str:
        return f"{instance.question_text} new"


def test_a_trial_shows_where_long_values_differ_and_asks_for_a_secret_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backfills, "registered", lambda: {"polls.AddSuffix": AddSuffix})
    monkeypatch.setattr(backfills, "find", lambda label: AddSuffix)
    Question.objects.update(question_text="Which colour? " * 13)
    address = f"{ALL}polls.AddSuffix/"
    client = admin()
    first = html(client.get(address))
    assert 'type="password" name="given-token"' in first
    assert "type it again" not in first
    response = client.post(address, {"database": "default", "given-token": "s3cret", "try": "1"})
    assert "colour? new" in shown(response)
    assert "It is not sent back to you: type it again to start." in shown(response)
    assert "s3cret" not in html(response)
    assert "polls.AddSuffix --database default --set 'token=********'" in shown(response)
    assert "a mail that it sends is really sent" in shown(response)


def test_a_class_that_is_wrong_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_polls.RecountVotes, "values", {"vote_cuont": 0})
    response = admin().post(RECOUNT, {"database": "default", "try": "1"})
    assert "Did you mean vote_count?" in shown(response)


def test_what_is_not_there_is_not_found() -> None:
    assert admin().get(f"{ALL}polls.Nothing/").status_code == 404


def test_bad_rows_come_as_csv_that_no_spreadsheet_computes() -> None:
    run = a_run(Status.FAILED, bad_rows=[[7, "ValueError: no"], ["=cmd()", "+1"]], lease_until=None)
    response = admin().get(f"{LIST}{run.pk}/bad-rows.csv")
    assert html(response) == "key,reason\r\n7,ValueError: no\r\n'=cmd(),'+1\r\n"
    assert person().get(f"{LIST}{run.pk}/bad-rows.csv").status_code == 403


def test_the_list_is_narrowed_by_person_and_executor() -> None:
    a_run(started_by="ada", executor="celery"), a_run(started_by="bob")
    client = admin()
    for query, count in (
        ("by=ada", 1),
        ("executor__exact=celery", 1),
        ("executor__exact=inline", 1),
        ("by=eve", 0),
    ):
        assert html(client.get(f"{LIST}?{query}")).count('name="_selected_action"') == count, query


def test_the_parameters_of_a_run_stand_on_its_page() -> None:
    run = a_run(
        backfill="polls.PurgeClosedPolls",
        parameters={"days": "3", "key": "secret", "_sensitive": ["key"]},
        lease_until=None,
    )
    text = shown(admin().get(page(run)))
    assert "Days 3" in text
    assert "secret" not in text


def test_the_pace_of_a_run_is_changed_by_who_may() -> None:
    run = a_run(held=True)
    address = f"{LIST}{run.pk}/set/"
    assert person("view").post(address, {"batch_size": "300"}).status_code == 403
    assert "run-pace" not in html(person("view").get(page(run)))
    client = person("view", "set")
    assert "run-pace" in html(client.get(page(run)))
    client.get(address, {"batch_size": "300"})
    assert store.find(run.pk).options == {}
    response = client.post(address, {"batch_size": "300", "rows_per_second": ""}, follow=True)
    assert "the pace is changed" in shown(response)
    assert store.find(run.pk).options["set"] == {"batch_size": 300}
    assert "batch size: 300, rows per second: as before" in shown(response)
    assert "greater than or equal to 1" in shown(client.post(address, {"batch_size": "0"}, follow=True))
    client.post(address, {"batch_size": "", "rows_per_second": "50"})
    assert store.find(run.pk).options["set"] == {"rows_per_second": 50}
