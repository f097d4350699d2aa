"""The runs in the admin: who sees them, who controls them, and that nothing else can be done."""

from __future__ import annotations

import ast
import gettext
import re
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.translation.template import templatize
from polls.models import Question

import safemigrate
from safemigrate.admin import chart, pages
from safemigrate.models import BackfillRun, rate
from safemigrate.runs import store
from safemigrate.runs.status import HELD, OVER, Status
from tests.support.sessions import another
from tests.support.sessions import run as sql

pytestmark = pytest.mark.django_db(databases=["default", "archive"])

PACKAGE = Path(safemigrate.__file__).parent
LIST = "/admin/safemigrate/backfillrun/"
ACTIONS = ["pause", "resume", "retry", "cancel"]
#: A state in which each may be asked, and the one that comes of it where no process holds the run.
FROM_TO = {
    "pause": (Status.QUEUED, Status.PAUSED),
    "resume": (Status.PAUSED, Status.QUEUED),
    "retry": (Status.FAILED, Status.QUEUED),
    "cancel": (Status.STOPPED, Status.CANCELLED),
}
SCRIPT = "<script>alert(1)</script>"


def a_run(status: str = Status.RUNNING, *, held: bool = False, alias: str = "default", **facts: Any) -> Any:
    """A run in this state, on which a process is at work or none is."""
    number = store.records().count()
    now = timezone.now()
    made = {
        "app_label": "polls",
        "model_name": "Question",
        "field_names": "expires_date",
        "open_key": None if status in OVER else str(number),
        "started": now - timedelta(minutes=5),
        "heartbeat": now,
        "lease_until": now + timedelta(minutes=1) if held else None,
        "process": 4119,
        "host": "web-1",
        "rows_done": 410_000,
        "rows_total": 1_000_000,
    }
    return store.records().create(status=status, alias=alias, **made | facts)


def person(*rights: str) -> Client:
    """A user who may log in to the admin, with these permissions: "view", "polls.view_question"."""
    user = User.objects.create_user(f"user {User.objects.count()}", is_staff=True)
    for right in rights:
        app, _, name = right.rpartition(".")
        codename = name if app else f"{name}_backfillrun"
        user.user_permissions.add(
            Permission.objects.get(codename=codename, content_type__app_label=app or "safemigrate")
        )
    client = Client()
    client.force_login(user)
    return client


def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    return client


def page(run: Any) -> str:
    return reverse("admin:safemigrate_backfillrun_change", args=[run.pk])


def button(run: Any, asked: str) -> str:
    return reverse(f"admin:safemigrate_backfillrun_{asked}", args=[run.pk])


def buttons(html: str) -> set[str]:
    return set(re.findall(r'<button id="run-(\w+)"', html))


def shown(response: Any) -> str:
    """The text of a page."""
    html = re.sub(r"<(script|style|head).*?</\1>", " ", response.content.decode(), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def now(run: Any) -> Any:
    return store.find(run.pk)


# Who may see


def test_a_person_without_a_permission_sees_nothing() -> None:
    run, client = a_run(), person()
    assert client.get(LIST).status_code == 403
    assert client.get(page(run)).status_code == 403


def test_a_stranger_is_sent_to_the_login() -> None:
    run = a_run()
    for address in (LIST, page(run), *(button(run, asked) for asked in ACTIONS)):
        response = Client().post(address)
        assert response["Location"].startswith("/admin/login/")
    assert now(run).status == Status.RUNNING


def test_viewing_is_no_steering() -> None:
    run, client = a_run(held=True), person("view")
    assert client.get(LIST).status_code == 200
    response = client.get(page(run))
    assert response.status_code == 200
    assert buttons(response.content.decode()) == set()
    assert "run-delete" not in response.content.decode()


def test_nothing_can_be_added_or_changed() -> None:
    run, client = a_run(), admin()
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}add/", {"status": "succeeded"}).status_code == 403
    assert client.post(page(run), {"status": "succeeded"}).status_code == 403
    assert now(run).status == Status.RUNNING


def test_a_run_that_is_not_there_is_no_error() -> None:
    client = admin()
    assert client.get(f"{LIST}77/change/").status_code == 302
    assert client.get(f"{LIST}x/change/").status_code == 302
    assert client.post(f"{LIST}77/pause/").status_code == 404


# Who may control


@pytest.mark.parametrize("asked", ACTIONS)
def test_each_button_needs_its_own_permission(asked: str) -> None:
    before, after = FROM_TO[asked]
    run = a_run(before)
    others = person("view", *(other for other in ACTIONS if other != asked))
    assert asked not in buttons(others.get(page(run)).content.decode())
    assert others.post(button(run, asked), {"confirm": "yes"}).status_code == 403
    assert now(run).status == before
    allowed = person("view", asked)
    assert buttons(allowed.get(page(run)).content.decode()) == {asked}
    assert allowed.post(button(run, asked), {"confirm": "yes"}).status_code == 302
    assert now(run).status == after


@pytest.mark.parametrize("asked", ACTIONS)
def test_who_may_not_see_it_may_not_steer_it(asked: str) -> None:
    run = a_run(FROM_TO[asked][0])
    assert person(asked).post(button(run, asked), {"confirm": "yes"}).status_code == 403
    assert now(run).status == FROM_TO[asked][0]


@pytest.mark.parametrize("asked", ACTIONS)
def test_the_list_has_the_same_actions(asked: str) -> None:
    before, after = FROM_TO[asked]
    run, other = a_run(before), a_run(before, alias="archive")
    form = {"action": asked, "_selected_action": [run.pk], "confirm": "yes"}
    person("view").post(LIST, form)
    assert now(run).status == before
    person("view", asked).post(LIST, form)
    assert now(run).status == after
    assert now(other).status == before


@pytest.mark.parametrize("asked", ACTIONS)
def test_who_did_it_is_written_down(asked: str) -> None:
    run = a_run(FROM_TO[asked][0])
    admin().post(button(run, asked), {"confirm": "yes"})
    event = run.events.get()
    assert (event.who, event.text) == ("ada", " → ".join(FROM_TO[asked]))


@pytest.mark.django_db(transaction=True)
def test_a_move_is_not_seen_before_who_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the process that is to pause says on its terminal that another user paused it."""
    run, seen = a_run(Status.QUEUED), []

    def look(*arguments: Any) -> None:
        with another("default") as other:
            seen.extend(sql(other, f"SELECT status FROM {BackfillRun._meta.db_table}"))

    monkeypatch.setattr(store, "note", look)
    store.pause(run.pk, "ada")
    assert seen == [("queued",)]
    assert now(run).status == Status.PAUSED


@pytest.mark.parametrize("asked", ACTIONS)
def test_a_get_changes_nothing(asked: str) -> None:
    run = a_run(FROM_TO[asked][0])
    client = admin()
    assert client.get(button(run, asked), {"confirm": "yes"}).status_code in (200, 302)
    client.get(LIST, {"action": asked, "_selected_action": run.pk, "confirm": "yes"})
    assert now(run).status == FROM_TO[asked][0]
    assert not run.events.exists()


@pytest.mark.parametrize("asked", ACTIONS)
def test_a_form_of_another_site_changes_nothing(asked: str) -> None:
    run = a_run(FROM_TO[asked][0])
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("ada"))
    assert client.post(button(run, asked), {"confirm": "yes"}).status_code == 403
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', client.get(page(run)).content.decode())
    assert now(run).status == FROM_TO[asked][0]
    assert token
    client.post(button(run, asked), {"confirm": "yes", "csrfmiddlewaretoken": token[1]})
    assert now(run).status == FROM_TO[asked][1]


def test_a_process_at_work_is_asked_and_not_cut_off() -> None:
    run = a_run(held=True)
    response = admin().post(button(run, "pause"), follow=True)
    assert now(run).status == Status.PAUSING
    assert f"Run {run.pk} (polls.Question.expires_date on default): pausing" in shown(response)


# Cancelling asks once more


def test_cancelling_asks_first() -> None:
    run, client = a_run(held=True), admin()
    question = client.post(button(run, "cancel"))
    assert question.status_code == 200
    assert "This ends them for good" in shown(question)
    assert now(run).status == Status.RUNNING
    client.post(button(run, "cancel"), {"confirm": "yes"})
    assert now(run).status == Status.CANCELLING


def test_cancelling_from_the_list_asks_first_and_names_each() -> None:
    chosen = [a_run(held=True), a_run(Status.STOPPED, alias="archive")]
    client = admin()
    form = {"action": "cancel", "_selected_action": [run.pk for run in chosen]}
    question = client.post(LIST, form)
    for run in chosen:
        assert f"run {run.pk} (polls.Question.expires_date on {run.alias})" in shown(question)
        assert now(run).status == run.status
    hidden = dict.fromkeys(["action", "_selected_action", "confirm"])
    html = question.content.decode()
    for name in hidden:
        hidden[name] = re.findall(rf'name="{name}" value="(\w+)"', html)
    client.post(LIST, hidden)
    assert [now(run).status for run in chosen] == [Status.CANCELLING, Status.CANCELLED]


# What is legal now


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
@pytest.mark.parametrize("status", list(Status))
def test_what_the_page_offers_is_what_can_be_done(status: str, held: bool) -> None:
    client = admin()
    for asked in ACTIONS:
        run = a_run(status, held=held)
        offered = asked in buttons(client.get(page(run)).content.decode())
        response = client.post(button(run, asked), {"confirm": "yes"}, follow=True)
        assert response.status_code == 200
        assert offered == (now(run).status != status), asked
        if not offered:
            assert f"it is {pages.state_in_words(run)}." in shown(response)
        run.delete()


def test_a_move_that_is_not_legal_any_more_is_told() -> None:
    run = a_run(Status.SUCCEEDED)
    response = admin().post(button(run, "pause"), follow=True)
    message = f"Run {run.pk} (polls.Question.expires_date on default) cannot be paused: it is succeeded."
    assert message in shown(response)


# Deleting


def test_only_a_run_that_is_over_can_be_deleted() -> None:
    client = person("view", "delete")
    for status in Status:
        run = a_run(status)
        assert ("run-delete" in client.get(page(run)).content.decode()) == (status in OVER)
        code = client.post(f"{LIST}{run.pk}/delete/", {"post": "yes"}).status_code
        assert code == (302 if status in OVER else 403)
        assert store.records().filter(pk=run.pk).exists() == (status not in OVER)


def test_runs_are_deleted_together_with_their_events_if_all_are_over() -> None:
    over, open_ = a_run(Status.SUCCEEDED), a_run(Status.FAILED)
    over.events.create(text="running → succeeded")
    client = person("view", "delete")
    form = {"action": "delete_selected", "post": "yes"}
    both = client.post(LIST, form | {"_selected_action": [over.pk, open_.pk]})
    assert f"run {open_.pk} (polls.Question.expires_date on default) is not over yet" in shown(both)
    assert store.records().count() == 2
    question = client.post(LIST, {"action": "delete_selected", "_selected_action": [over.pk]})
    assert "Are you sure" in shown(question)
    client.post(LIST, form | {"_selected_action": [over.pk]})
    assert list(store.records()) == [open_]


def test_who_may_not_delete_does_not() -> None:
    run, client = a_run(Status.SUCCEEDED), person("view")
    assert client.post(f"{LIST}{run.pk}/delete/", {"post": "yes"}).status_code == 403
    client.post(LIST, {"action": "delete_selected", "post": "yes", "_selected_action": [run.pk]})
    assert store.records().exists()


# The list


def test_the_list_says_how_each_run_is() -> None:
    samples = [[float(second), second * 2_000] for second in range(61)]
    a_run(held=True, samples=samples, started_by="grace", alias="archive")
    text = shown(admin().get(LIST))
    for part in (
        *("polls. Question. expires_date", "archive", "running", "grace", "2,000", "0:04:55", "0:05:00"),
        "41 % 410,000 of about 1,000,000",
    ):
        assert part in text.replace("\xa0", " "), part


def test_a_list_of_many_takes_no_more_queries_than_one_of_few() -> None:
    client, counts = admin(), []
    for number in (1, 20):
        for _ in range(number):
            a_run(held=True).events.create(text="queued → running", who="ada")
        with CaptureQueriesContext(connections["default"]) as queries:
            assert client.get(LIST).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1]
    assert not any("traceback" in query["sql"] for query in queries)


def rows(client: Client, query: str) -> int:
    return client.get(f"{LIST}?{query}").context["cl"].result_count


def test_the_list_is_filtered() -> None:
    a_run(held=True), a_run(alias="archive"), a_run(Status.FAILED, model_name="Choice")
    client = admin()
    assert rows(client, "state=running") == 2
    assert rows(client, "state=stalled") == 1
    assert rows(client, "state=failed") == 1
    assert rows(client, "alias=archive") == 1
    assert rows(client, "model=polls.Choice") == 1
    assert rows(client, "model=polls.Question&state=failed") == 0
    assert rows(client, "_facets=True") == 3


@pytest.mark.parametrize(
    "words",
    ["slug", "polls.Question.slug", "polls.0004_question_slug", "0004", "no text to make", "question SLUG"],
)
def test_the_list_is_searched(words: str) -> None:
    a_run()
    found = a_run(
        Status.FAILED, field_names="slug", migration="polls.0004_question_slug", error="no text to make"
    )
    assert [run.pk for run in admin().get(LIST, {"q": words}).context["cl"].result_list] == [found.pk]


# One that hangs


def test_a_run_that_hangs_is_called_so_and_what_to_do_is_said() -> None:
    seen = timezone.now() - timedelta(minutes=9)
    run = a_run(heartbeat=seen, lease_until=seen, alias="archive")
    client = admin()
    assert "stalled start it again, or retry" in shown(client.get(LIST))
    text = shown(client.get(page(run)))
    assert "Its process, 4119 on web-1, gives no sign of life" in text
    assert "python manage.py backfill run polls.Question.expires_date --database archive" in text
    assert buttons(client.get(page(run)).content.decode()) == {"pause", "retry", "cancel"}


@pytest.mark.parametrize("status", sorted(HELD - {Status.PAUSED}))
def test_whatever_it_was_about_to_do_it_hangs(status: str) -> None:
    run = a_run(status)
    assert pages.state(run) == "stalled"
    assert pages.advice(run)


def test_several_fields_are_run_again_by_the_first() -> None:
    assert "polls.Question.a --database" in a_run(field_names="a+b").command


@pytest.mark.parametrize("status", list(Status))
def test_what_to_do_is_said_where_something_is_to_be_done(status: str) -> None:
    assert bool(pages.advice(a_run(status))) == (status not in OVER)
    if status not in OVER:
        assert pages.advice(a_run(status, held=True)) == ""


# One run


def test_the_page_says_everything() -> None:
    run = a_run(
        Status.FAILED,
        migration="polls.0003_question_expires_date",
        populate="F(pub_date) + 30 days",
        batch_size=3_400,
        cursor="7f0c",
        attempts=3,
        started_by="grace",
        seconds_running=75.4,
        seconds_waiting=3_700,
        error="it broke",
        traceback="Traceback: line 7",
        output="the last line",
        total_is_exact=True,
    )
    run.events.create(text="queued → running", who="grace")
    text = shown(admin().get(page(run)))
    for part in (
        *("failed", "polls.0003_question_expires_date", "F(pub_date) + 30 days", "3,400", "7f0c"),
        *("Attempts 3", "grace", "Process 4119", "web-1", "inline", "410,000 of 1,000,000", "it broke"),
        *("Traceback: line 7", "the last line", "queued → running grace", "0:01:15", "1:01:40"),
    ):
        assert part in text, part


def test_what_it_waits_for_is_said() -> None:
    run = a_run(held=True, waiting_for="replica is 12 s behind")
    assert "running waiting: replica is 12 s behind" in shown(admin().get(page(run)))


def test_the_traceback_is_folded() -> None:
    html = admin().get(page(a_run(Status.FAILED, traceback="Traceback: line 7"))).content.decode()
    assert re.search(r"<details [^>]*>(?:(?!</details>).)*Traceback: line 7", html, re.DOTALL)
    assert "<details open" not in html


@pytest.mark.parametrize("status", list(Status))
def test_a_page_that_may_change_loads_itself_again(status: str) -> None:
    run, client = a_run(status), admin()
    moves = status in HELD | {Status.QUEUED}
    html = client.get(page(run)).content.decode()
    assert ('http-equiv="refresh"' in html) == ("data-moving" in html) == moves
    assert "refresh" not in client.post(button(run, "cancel")).content.decode()


def test_nothing_on_the_page_needs_a_weaker_content_security_policy() -> None:
    """No script, style or handler of ours stands in the page itself."""
    html = admin().get(page(a_run(held=True, samples=[[0, 0], [1, 9]]))).content.decode()
    content = html.partition('<div id="content-main"')[2].partition("</main>")[0]
    assert content
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", content)


@pytest.mark.parametrize(
    "name",
    [
        "error",
        "traceback",
        "output",
        "populate",
        "waiting_for",
        "started_by",
        "host",
        "migration",
        "field_names",
    ],
)
def test_a_text_is_shown_and_not_run(name: str) -> None:
    run, client = a_run(**{name: SCRIPT}), admin()
    for html in (client.get(page(run)), client.get(LIST), client.post(button(run, "cancel"))):
        assert SCRIPT not in html.content.decode()
    assert SCRIPT in shown_raw(client.get(page(run))).replace(".<wbr>", ".")


def shown_raw(response: Any) -> str:
    return unescape(response.content.decode())


def test_events_and_bad_rows_are_shown_and_not_run() -> None:
    run = a_run(bad_rows=[[SCRIPT, SCRIPT]])
    run.events.create(text=SCRIPT, who=SCRIPT)
    html = admin().get(page(run)).content.decode()
    assert SCRIPT not in html
    assert unescape(html).count(SCRIPT) == 4


# Bad rows


def links(client: Client, run: Any) -> list[str]:
    return re.findall(r'href="(/admin/polls/question/[^"]*/change/)"', client.get(page(run)).content.decode())


def test_a_bad_row_leads_to_its_own_page() -> None:
    question = Question.objects.create(
        question_text="Why?", pub_date=timezone.now(), expires_date=timezone.now()
    )
    run, client = a_run(bad_rows=[[question.pk, "no text"]]), admin()
    assert client.get(links(client, run)[0]).status_code == 200


def test_who_may_not_see_the_row_gets_no_link() -> None:
    run = a_run(bad_rows=[[7, "no text"]])
    assert links(person("view"), run) == []
    assert links(person("view", "polls.view_question"), run) == ["/admin/polls/question/7/change/"]


@pytest.mark.parametrize(
    "facts",
    [{"alias": "archive"}, {"model_name": "Choice"}, {"model_name": "Gone"}, {"app_label": "gone"}],
    ids=["on another database", "model not in the admin", "no such model", "no such app"],
)
def test_there_is_no_link_where_there_is_no_page(facts: dict[str, str]) -> None:
    client = admin()
    html = client.get(page(a_run(**facts, bad_rows=[["a/b", "no text"], [[1, 2], "composite"]])))
    assert html.status_code == 200
    assert "a/b no text" in shown(html)
    assert "<td><a" not in html.content.decode().partition('<div id="content-main"')[2]


# Where the runs are kept


def test_runs_are_read_and_steered_where_they_are_kept(settings: Any) -> None:
    here = a_run(Status.QUEUED)
    settings.SAFEMIGRATE_RUNS_DATABASE = "archive"
    there = a_run(Status.QUEUED, field_names="slug", pk=here.pk)
    over = a_run(Status.SUCCEEDED, field_names="votes")
    over.events.using("archive").create(run_id=over.pk, text="running → succeeded")
    client = admin()
    text = shown(client.get(LIST))
    assert "slug" in text
    assert "expires_date" not in text
    assert "slug" in shown(client.get(page(there)))
    client.post(button(there, "pause"))
    client.post(LIST, {"action": "resume", "_selected_action": [there.pk]})
    client.post(LIST, {"action": "cancel", "_selected_action": [there.pk], "confirm": "yes"})
    assert now(there).status == Status.CANCELLED
    assert there.events.using("archive").count() == 3
    client.post(f"{LIST}{over.pk}/delete/", {"post": "yes"})
    client.post(LIST, {"action": "delete_selected", "post": "yes", "_selected_action": [there.pk]})
    assert not store.records().exists()
    left = BackfillRun.objects.using("default").get()
    assert (left.status, left.events.count()) == (Status.QUEUED, 0)


# The chart


def test_too_little_makes_no_chart() -> None:
    assert chart.rate_chart([]) == chart.rate_chart([[3.0, 100]]) == ""
    assert chart.rate_chart([[3.0, 100], [3.0, 200]]) == ""
    assert "Nothing is measured yet." in shown(admin().get(page(a_run())))


def test_two_samples_make_a_line() -> None:
    assert [span.rate for span in chart.spans([[0, 0], [2, 100]])] == [50]
    svg = chart.rate_chart([[0, 0], [2, 100]])
    assert "2 seconds at work; slowest 50, fastest 50, last 50 rows per second." in svg
    assert "rows per second</text>" in svg
    assert "seconds at work</text>" in svg


def test_many_samples_stay_inside() -> None:
    samples = [[float(second), second**2 * 7] for second in range(0, 50_000, 209)]
    svg = chart.rate_chart(samples)
    assert "hours at work</text>" in svg
    path = re.search(r'<path d="([^"]+)"/></svg>', svg)
    assert path
    found = [float(number) for number in re.findall(r"[VH](\d+\.\d)", path[1])]
    assert len(found) == 2 * (len(samples) - 1)
    assert min(found) >= 0
    assert max(found) <= chart.WIDTH


def test_the_chart_agrees_with_the_rate_of_the_run() -> None:
    samples = [[0.0, 0], [60.0, 12_000]]
    assert chart.spans(samples)[0].rate == rate(samples)


@pytest.mark.parametrize("highest", [0, 0.004, 1, 7, 12.5, 99, 100, 101, 12_971, 2_000_000])
def test_the_numbers_on_an_axis_are_few_and_reach_far_enough(highest: float) -> None:
    found = chart.ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-9)
    assert 2 <= len(found) <= 7


# In other languages

LOCALES = [path / "LC_MESSAGES" for path in sorted((PACKAGE / "locale").iterdir())]
EACH_LOCALE = pytest.mark.parametrize("locale", LOCALES, ids=[path.parent.name for path in LOCALES])
QUOTED = re.compile(r'^(msgid|msgstr) ((?:".*"\n)+)', re.MULTILINE)


def translations(locale: Path) -> dict[str, str]:
    texts = [
        ast.literal_eval(f"({quoted})")
        for _, quoted in QUOTED.findall((locale / "django.po").read_text(encoding="utf-8") + "\n")
    ]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def marked() -> set[str]:
    """All texts of the package that are to be translated."""
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    sources += [
        line.strip()
        for path in PACKAGE.rglob("*.html")
        for line in re.findall(
            r"gettext\(u?.*?\)(?= |$)", templatize(path.read_text(encoding="utf-8")), re.MULTILINE
        )
    ]
    return {
        node.args[0].value
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in {"_", "gettext", "gettext_lazy"} and isinstance(node.args[0], ast.Constant)
    }


@EACH_LOCALE
def test_every_text_is_translated(locale: Path) -> None:
    found = translations(locale)
    assert set(found) - {""} == marked()
    assert [text for text, translated in found.items() if not translated] == []
    for text, translated in found.items():
        assert set(re.findall(r"%\(\w+\)s", text)) == set(re.findall(r"%\(\w+\)s", translated))
    assert "fuzzy" not in (locale / "django.po").read_text(encoding="utf-8")


@EACH_LOCALE
def test_the_compiled_translation_is_up_to_date(locale: Path) -> None:
    with (locale / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    assert {text: compiled.gettext(text) for text in translations(locale) if text} == {
        text: translated for text, translated in translations(locale).items() if text
    }


SPOKEN = {
    "pt-br": (
        ["execuções", "travada", "410.000 de cerca de 1.000.000", "linhas/s", "situação"],
        ["Pausar", "Tentar de novo", "Cancelar execução…", "não dá sinal de vida", "na fila → em andamento"],
        "Não é possível retomar a execução",
    ),
    "es": (
        ["ejecuciones", "sin señales", "410 000 de unas 1 000 000", "filas/s", "estado"],
        ["Pausar", "Reintentar", "Cancelar ejecución…", "no da señales de vida", "en cola → en curso"],
        "No se puede reanudar la ejecución",
    ),
    "de": (
        ["Läufe", "ohne Lebenszeichen", "410.000 von etwa 1.000.000", "Zeilen/s", "Status"],
        [
            "Anhalten",
            "Erneut versuchen",
            "Lauf abbrechen…",
            "gibt kein Lebenszeichen",
            "in der Warteschlange → läuft",
        ],
        "kann nicht fortgesetzt werden",
    ),
    "fr": (
        ["exécutions", "sans signe de vie", "410 000 sur environ 1 000 000", "lignes/s", "état"],
        [
            "Suspendre",
            "Réessayer",
            "Annuler l\N{RIGHT SINGLE QUOTATION MARK}exécution…",
            "aucun signe de vie",
            "en file → en cours",
        ],
        "Impossible de reprendre l\N{RIGHT SINGLE QUOTATION MARK}exécution",
    ),
}


@pytest.mark.parametrize("language", SPOKEN)
def test_the_pages_speak_it(language: str, settings: Any) -> None:
    settings.LANGUAGE_CODE = language
    run, client = a_run(lease_until=timezone.now()), admin()
    run.events.create(text="queued → running", who="ada")
    with translation.override(language):
        listed, detail = shown(client.get(LIST)), shown(client.get(page(run)))
    text = shown(client.post(button(run, "resume"), follow=True))
    in_list, in_detail, refused = SPOKEN[language]
    plain = listed.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    for part in in_list:
        assert part.lower() in plain.lower(), part
    for part in in_detail:
        assert part in detail, part
    assert refused in text


# The runs' database


def test_where_the_runs_cannot_be_read_the_index_says_why(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = a_run().pk
    client = admin()
    monkeypatch.setattr(store, "_has_table", lambda: False)
    for page in (LIST, f"{LIST}{key}/change/"):
        answer = client.get(page, follow=True)
        assert answer.redirect_chain == [("/admin/", 302)]
        assert "which has no table for them yet: python manage.py migrate safemigrate" in unescape(
            answer.content.decode()
        )
    assert person().get(LIST).status_code == 403


def test_each_colour_of_a_theme_has_one_that_serves_where_the_theme_does_not_have_it() -> None:
    css = (PACKAGE / "static/safemigrate/runs.css").read_text(encoding="utf-8")
    used = re.findall(r"var\(--[a-z-]+(,?)", css)
    assert used
    assert set(used) == {","}
