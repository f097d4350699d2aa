"""A user runs, tries, watches and controls the backfills of an app by `manage.py backfill`."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django import forms
from django.core.management import call_command, load_command_class
from django.core.management.base import CommandError
from django.db import connections
from django.db.models import F, Q
from polls import backfills as of_polls
from polls.models import Choice, Question

import safemigrate
from safemigrate import tasks
from safemigrate.backfills import Backfill
from safemigrate.engine.batches import Range
from safemigrate.exceptions import InvalidParameters, NotFinished, NothingToRun
from safemigrate.operations import RequireBackfill
from safemigrate.runs import store
from safemigrate.runs.lookup import BackfillJob
from safemigrate.runs.status import Status
from tests.engine.test_engine import another, run
from tests.support.deliveries import Queue, all_ranges, kept_messages, the_run  # noqa: F401
from tests.support.processes import Polls

pytestmark = pytest.mark.matrix

ROWS = 900


@pytest.fixture(name="polls")
def full_polls(place: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Polls:
    """Questions with one answer each, of as many votes as their number."""
    polls = Polls(**place, rows=ROWS)
    settings.SAFEMIGRATE_RUNS_DATABASE = polls.alias
    call_command("migrate", "safemigrate", database=polls.alias, verbosity=0)
    call_command("migrate", "polls", database=polls.alias, verbosity=0)
    keys = Question._base_manager.using(polls.alias).values_list("pk", flat=True)
    Choice._base_manager.using(polls.alias).bulk_create([Choice(question_id=key, votes=key) for key in keys])
    for kind in (of_polls.RecountVotes, of_polls.SlugifyQuestions, of_polls.PurgeClosedPolls):
        monkeypatch.setattr(kind, "databases", [polls.alias])
    store.records().delete()
    return polls


def backfill(*arguments: str) -> str:
    out = io.StringIO()
    call_command("backfill", *arguments, stdout=out)
    return out.getvalue()


def questions(polls: Polls) -> Any:
    return Question._base_manager.using(polls.alias)


def test_the_three_of_the_example(polls: Polls) -> None:
    assert (
        backfill("run", "polls.RecountVotes")
        == f"polls.RecountVotes on {polls.alias}: every row is done, 900 of them now.\n"
    )
    assert questions(polls).filter(vote_count=F("pk")).count() == ROWS
    backfill("run", "polls.slugifyquestions")
    assert questions(polls).get(pk=3).url_name == "question-1"
    assert not questions(polls).filter(url_name="").exists()
    backfill("run", "polls.PurgeClosedPolls", "--set", "days=0")
    expired = questions(polls).count()
    assert expired == 0
    assert Choice._base_manager.using(polls.alias).count() == 0
    assert {run.status for run in store.records()} == {Status.SUCCEEDED}
    said = backfill("show", str(the_run().pk))
    assert "backfill:   polls.PurgeClosedPolls\n" in said
    assert "parameters: days=0\n" in said


def test_a_dry_run_shows_rows_before_and_after_and_changes_nothing(polls: Polls) -> None:
    said = backfill("run", "polls.RecountVotes", "--dry-run")
    assert said.startswith(
        f"Would do {ROWS:,} rows of polls.RecountVotes on {polls.alias} by values for vote_count.\n"
    )
    assert "\nkey  vote_count\n3    0 → 3\n6    0 → 6\n" in said
    said = backfill("run", "polls.PurgeClosedPolls", "--set", "days=0", "--dry-run")
    assert "\n3 → deleted  " in said
    assert questions(polls).filter(vote_count=0).count() == ROWS
    assert not store.records().exists()


def tried(polls: Polls, monkeypatch: pytest.MonkeyPatch, label: str, **attributes: Any) -> tuple[str, str]:
    """Change a class of the example, try it, and return what is said and the error, which may be ""."""
    kind = getattr(of_polls, label)
    for name, value in attributes.items():
        monkeypatch.setattr(kind, name, value, raising=False)
    out = io.StringIO()
    try:
        call_command("backfill", "run", f"polls.{label}", "--dry-run", stdout=out)
    except CommandError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def test_a_dry_run_says_what_is_deleted_along(polls: Polls) -> None:
    said = backfill("run", "polls.PurgeClosedPolls", "--set", "days=0", "--dry-run")
    assert "\nDeleted with these 10: 10 polls.Choice.\n" in said
    assert questions(polls).count() == ROWS


def test_a_dry_run_ends_with_an_error_where_rows_would_be_bad(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(self: Any, instance: Any) -> Any:
        if instance.pk % 2:
            raise ValueError("odd")
        return " a" if instance.pk == 6 else ""

    said, error = tried(polls, monkeypatch, "SlugifyQuestions", row=row)
    assert "bad: ValueError: odd" in said
    assert (
        "bad: it still fulfils (AND: ('url_name', '')) after it was written, so the run would not end" in said
    )
    assert "'' → ' a'" in said
    assert error == "9 of the rows that were tried would be bad rows."


def test_a_dry_run_looks_at_foreign_keys(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    said, error = tried(polls, monkeypatch, "RecountVotes", model=Choice, values={"question": 999_999})
    assert "bad: IntegrityError: " in said
    assert error == "10 of the rows that were tried would be bad rows."


class OfDays(forms.Form):
    days = forms.IntegerField()


def test_a_run_that_is_not_over_is_not_taken_by_one_with_other_parameters(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = of_polls.RecountVotes
    monkeypatch.setattr(kind, "form", OfDays, raising=False)
    monkeypatch.setattr(kind, "only_changed", False, raising=False)
    given = ("run", "polls.RecountVotes", "--set")
    backfill(*given, "days=1", "--max-rows", "200", "--batch-size", "100")
    with pytest.raises(CommandError) as refused:
        backfill(*given, "days=2")
    begun, said = the_run(), str(refused.value)
    assert f"run {begun.pk}, 200 rows done" in said
    assert f"--database {polls.alias} --set days=1\n" in said
    assert f"backfill cancel {begun.pk}" in said
    assert (begun.rows_done, begun.parameters) == (200, {"days": "1"})
    backfill(*given, "days=1")
    assert (the_run().pk, the_run().rows_done, the_run().status) == (begun.pk, ROWS, Status.SUCCEEDED)
    again = backfill(*given, "days=2")
    assert f"was done by run {begun.pk}, at 2" in again
    assert "This is another run: each row is done once more." in again
    assert the_run().rows_done == ROWS


def test_the_options_of_all_commands_may_stand_behind_the_action() -> None:
    parser = load_command_class("safemigrate", "backfill").create_parser("manage.py", "backfill")
    options = parser.parse_args(
        ["list", "--no-color", "-v", "2", "--traceback", "--settings", "tests.settings"]
    )
    assert (options.settings, options.verbosity, options.traceback) == ("tests.settings", 2, True)
    assert parser.parse_args(["-v", "3", "list"]).verbosity == 3


def test_the_list_has_those_that_never_ran(polls: Polls) -> None:
    backfill("run", "polls.RecountVotes")
    said = backfill("list")
    assert "polls.RecountVotes" in said.partition("Never run yet:")[0]
    assert "polls.RecountVotes" not in said.partition("Never run yet:")[2]
    assert "polls.PurgeClosedPolls  Polls that expired a number of days ago are deleted" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["polls.RecountVote"], "There is no backfill polls.RecountVote. Did you mean polls.RecountVotes?"),
        (["polls.PurgeClosedPolls"], "days: This field is required."),
        (["polls.PurgeClosedPolls", "--set", "days"], "--set days: give it as --set name=value."),
        (["polls.PurgeClosedPolls", "--set", "days=1", "--set", "days=2"], "--set days stands twice."),
        (["polls.Question.expires_date", "--set", "days=1"], "--set is for the parameters of a backfill"),
        (["polls.RecountVotes", "--database", "nowhere"], "DATABASES has no alias nowhere"),
        (
            ["polls.RecountVotes", "--database", "archive"],
            "polls.RecountVotes is not for the database archive",
        ),
        (["polls"], "is not of the form app.Model.field"),
    ],
)
@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_what_cannot_be_meant_is_refused(polls: Polls, arguments: list[str], text: str) -> None:
    with pytest.raises(CommandError) as refused:
        backfill("run", *arguments)
    assert text in str(refused.value)


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_what_is_sensitive_is_not_shown(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    class Key(forms.Form):
        key = forms.CharField()

    monkeypatch.setattr(of_polls.RecountVotes, "form", Key, raising=False)
    monkeypatch.setattr(of_polls.RecountVotes, "sensitive", ["key"], raising=False)
    backfill("run", "polls.RecountVotes", "--set", "key=secret of the house")
    said = backfill("show", str(the_run().pk)) + backfill("list") + the_run().command
    assert "secret" not in said
    assert "key=********" in said
    assert the_run().parameters["key"] == "secret of the house"


def test_workers_share_it_and_know_its_parameters(polls: Polls) -> None:
    said = backfill("run", "polls.PurgeClosedPolls", "--set", "days=0", "--executor", "celery")
    assert "enqueued in safemigrate of celery" in said
    Queue.deliver_all()
    assert questions(polls).count() == 0
    assert (the_run().status, the_run().rows_done) == (Status.SUCCEEDED, ROWS)
    assert len(all_ranges()) >= 3


def test_workers_recount_and_slugify(polls: Polls) -> None:
    for label in ("polls.RecountVotes", "polls.SlugifyQuestions"):
        backfill("run", label, "--executor", "celery", "--workers", "2")
        Queue.deliver_all()
    assert questions(polls).filter(vote_count=F("pk")).exclude(url_name="").count() == ROWS


def test_verify_counts_what_is_left(polls: Polls) -> None:
    with pytest.raises(CommandError):
        backfill("verify", "polls.RecountVotes")
    backfill("run", "polls.RecountVotes")
    assert "0 rows" in backfill("verify", "polls.RecountVotes")


def test_a_migration_waits_for_it(polls: Polls) -> None:
    gate = RequireBackfill("polls.RecountVotes")
    with connections[polls.alias].schema_editor(atomic=False) as editor:
        with pytest.raises(NotFinished, match="backfill run polls.RecountVotes --database"):
            gate.database_forwards("polls", editor, None, None)  # type: ignore[arg-type]
        assert not safemigrate.is_finished("polls.RecountVotes", using=polls.alias)
        backfill("run", "polls.RecountVotes")
        gate.database_forwards("polls", editor, None, None)  # type: ignore[arg-type]
        assert safemigrate.is_finished("polls.RecountVotes", using=polls.alias)
        with pytest.raises(NothingToRun, match="Did you mean polls.RecountVotes"):
            RequireBackfill("polls.RecountVote").database_forwards("polls", editor, None, None)  # type: ignore[arg-type]


class Votes(forms.Form):
    votes = forms.IntegerField(min_value=1)


class SetVotes(Backfill):
    model = Question
    form = Votes
    fields = ["vote_count"]

    @classmethod
    def label(cls) -> str:
        return "polls.SetVotes"

    def row(self, instance: Question) -> int:
        return int(self.cleaned_data["votes"])


def test_a_migration_waits_for_the_parameters_that_it_names(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safemigrate.backfills, "find", lambda label: SetVotes)
    monkeypatch.setattr(SetVotes, "databases", [polls.alias])

    def wait(**parameters: object) -> None:
        gate = RequireBackfill("polls.SetVotes", parameters)
        with connections[polls.alias].schema_editor(atomic=False) as editor:
            gate.database_forwards("polls", editor, None, None)  # type: ignore[arg-type]

    with pytest.raises(
        NotFinished, match=r"yet with votes=3, and[^\n]*\n.*polls.SetVotes --set votes=3 --da"
    ):
        wait(votes=3)
    backfill("run", "polls.SetVotes", "--set", "votes=3")
    wait(votes=3)
    wait(votes="3")
    wait()
    with pytest.raises(NotFinished):
        wait(votes=4)
    assert not safemigrate.is_finished("polls.SetVotes", {"votes": 4}, using=polls.alias)
    with pytest.raises(InvalidParameters, match="has no parameter vote"):
        wait(vote=3)


def test_each_worker_is_made_ready_and_who_enqueues_is_not(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rated(SetVotes):
        rate = 0

        def before(self) -> None:
            self.rate = 10

        def row(self, instance: Question) -> int:
            assert self.rate, "before() was not called"
            return int(self.cleaned_data["votes"]) * self.rate

    called: list[str] = []
    before = Rated.before
    monkeypatch.setattr(Rated, "before", lambda self: (called.append("before"), before(self)))
    monkeypatch.setattr(safemigrate.backfills, "find", lambda label: Rated)
    monkeypatch.setattr(Rated, "databases", [polls.alias])
    backfill("run", "polls.SetVotes", "--set", "votes=3", "--executor", "celery", "--workers", "2")
    assert called == []
    Queue.deliver_all()
    assert called
    assert the_run().status == Status.SUCCEEDED
    assert questions(polls).filter(vote_count=30).count() == ROWS


class ReadsReplica:
    """As the router of Django's manual for a primary and its replicas."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "archive"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_workers_read_no_replica(polls: Polls, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}.ReadsReplica"]
    backfill("run", "polls.SlugifyQuestions", "--executor", "celery", "--workers", "2")
    Queue.deliver_all()
    assert the_run().status == Status.SUCCEEDED
    assert questions(polls).exclude(url_name="").count() == ROWS
    assert "queued → running" in backfill("show", str(the_run().pk))


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
@pytest.mark.parametrize("where", [Q(), Q(question=None)])
def test_of_a_condition_that_joins_no_other_table_is_locked(
    polls: Polls, where: Q, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfChoices(Backfill):
        model = Choice
        fields = ["choice_text"]

        def row(self, instance: Choice) -> str:
            return "done"

    OfChoices.where = Q(choice_text="") & (Q(question__question_text__gt="") | where)
    batches = BackfillJob(OfChoices(using=polls.alias)).target.batches
    keys = batches.keys(Range(0, 10**9))
    with another(polls.alias) as site:
        site.set_autocommit(False)
        run(site, "SELECT 1 FROM polls_question FOR UPDATE")
        run(site, "SELECT 1 FROM polls_choice WHERE id = %s FOR UPDATE", keys[0])
        free, locked = batches.round_locked(Range(keys[0], keys[-1]))
    assert locked == keys[:1]
    assert [key for part in free for key in part.keys] == keys[1:]


def test_a_clock_starts_it(polls: Polls) -> None:
    tasks.run_backfill("polls.PurgeClosedPolls", {"days": 0})
    assert questions(polls).count() == 0
    assert the_run().status == Status.SUCCEEDED


def test_a_clock_starts_it_once_at_a_time(polls: Polls, settings: Any) -> None:
    settings.SAFEMIGRATE_EXECUTOR = "celery"
    tasks.run_backfill("polls.RecountVotes")
    tasks.run_backfill("polls.RecountVotes")
    assert store.records().count() == 1
    Queue.deliver_all()
    assert questions(polls).filter(vote_count=F("pk")).count() == ROWS


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_one_that_has_an_empty_table_is_finished(polls: Polls, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(Backfill):
        model = Question

        def batch(self, rows: Any) -> None: ...

    monkeypatch.setattr(safemigrate.backfills, "find", lambda label: Once)
    assert not safemigrate.is_finished("polls.Once", using=polls.alias)
    questions(polls).filter(Q()).delete()
    assert safemigrate.is_finished("polls.Once", using=polls.alias)


def test_parameters_that_newer_code_refuses_end_the_run(
    polls: Polls, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill("run", "polls.PurgeClosedPolls", "--set", "days=0", "--executor", "celery")

    class Weeks(forms.Form):
        weeks = forms.IntegerField()

    monkeypatch.setattr(of_polls.PurgeClosedPolls, "form", Weeks)
    Queue.deliver_all()
    assert (the_run().status, questions(polls).count()) == (Status.FAILED, ROWS)
    assert "has no parameter days" in the_run().error
