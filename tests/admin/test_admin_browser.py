"""The admin's pages of the runs in a real browser, and a fill that is controlled there while it works."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from safemigrate.models import BackfillRun
from safemigrate.runs import store
from safemigrate.runs.status import Status
from tests.example_polls.test_browser import PHONE, WEAK_CONTRASTS, ask, browser, log_in, page
from tests.support.processes import TABLE, Polls
from tools.screenshots import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from pytest_django.live_server_helper import LiveServer

__all__ = ["browser", "page"]  # the fixtures

pytestmark = pytest.mark.browser

LIST = "/admin/safemigrate/backfillrun/"
ROWS = int(os.environ.get("CONTROLLED_ROWS", "300000"))
SECONDS = 30  # that a test waits for something before it fails
STRICT = "default-src 'self'; img-src 'self' data:"


@pytest.fixture
def run(live_server: LiveServer) -> BackfillRun:
    return a_run()


def a_run(**facts: Any) -> BackfillRun:
    """A run that a process holds, as far as its record says."""
    now = timezone.now()
    made = {
        "app_label": "polls",
        "model_name": "Question",
        "field_names": "expires_date",
        "alias": "default",
        "status": Status.RUNNING,
        "started": now,
        "heartbeat": now,
        "open_key": "one",
        "lease_until": now + timedelta(minutes=5),
        "rows_done": 410_000,
        "rows_total": 1_000_000,
        "samples": [[float(n), n * 900] for n in range(60)],
        "output": "a long line of output " * 20,
        "process": 4119,
        "host": "web-1",
        "started_by": "grace",
    }
    record = BackfillRun.objects.create(**made | facts)
    record.events.create(text="queued → running", who="grace")
    return record


def address(run: BackfillRun) -> str:
    return f"{LIST}{run.pk}/change/"


def state(page: Page) -> str:
    return page.locator("#run-now .run-state").inner_text()


def until(holds: Callable[[], bool], what: str, terminal: Terminal) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited {SECONDS} s until {what}; the terminal: {terminal.lines}"
        assert terminal.process.poll() is None, f"it ended before {what}; the terminal: {terminal.lines}"
        time.sleep(0.05)


# What is seen


def test_from_the_list_to_a_run(page: Page, run: BackfillRun) -> None:
    log_in(page, LIST)
    row = page.get_by_role("row", name="expires_date")
    assert row.get_by_role("progressbar", name="rows done").get_attribute("value") == "41"
    assert "410,000 of about 1,000,000" in row.inner_text()
    row.get_by_role("link", name="polls.Question.expires_date").click()
    page.wait_for_url(f"**{address(run)}")
    assert page.get_by_role("status").inner_text() == "running"
    chart = page.get_by_role("img", name="Rows per second over the time at work")
    assert chart.is_visible()
    assert chart.locator("> path").last.evaluate("path => path.getTotalLength()") > 300


def test_the_page_moves_without_being_loaded_again(page: Page, run: BackfillRun) -> None:
    log_in(page, address(run))
    page.evaluate("window.loaded = 'once'")
    page.get_by_role("button", name="Pause").focus()
    BackfillRun.objects.update(rows_done=730_000, waiting_for="replica is 12 s behind")
    page.get_by_text("730,000 of about 1,000,000").wait_for()
    assert page.get_by_text("waiting: replica is 12 s behind").is_visible()
    assert page.evaluate("document.activeElement.id") == "run-pause"
    BackfillRun.objects.update(status=Status.SUCCEEDED, rows_done=1_000_000, lease_until=None)
    page.get_by_role("status").get_by_text("succeeded").wait_for()
    assert page.get_by_role("button", name="Pause").count() == 0
    assert page.evaluate("window.loaded") == "once"


def test_what_is_open_stays_open(page: Page, run: BackfillRun) -> None:
    BackfillRun.objects.update(traceback="Traceback: line 7", status=Status.QUEUED, lease_until=None)
    log_in(page, address(run))
    page.get_by_text("Show the traceback").click()
    BackfillRun.objects.update(traceback="Traceback: line 8")
    page.get_by_text("Traceback: line 8").wait_for()
    assert page.get_by_text("Traceback: line 8").is_visible()


def test_a_page_that_was_logged_out_meanwhile_asks_for_the_login(page: Page, run: BackfillRun) -> None:
    log_in(page, address(run))
    page.context.clear_cookies()
    page.wait_for_url("**/admin/login/**")


def test_the_page_keeps_to_a_strict_content_security_policy(page: Page, run: BackfillRun) -> None:
    refused: list[str] = []
    page.on(
        "console", lambda message: "Content Security Policy" in message.text and refused.append(message.text)
    )

    def stricter(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, headers=response.headers | {"content-security-policy": STRICT})

    log_in(page, LIST)
    page.route(f"**{LIST}**", stricter)
    for path in (LIST, address(run), f"{LIST}{run.pk}/cancel/"):
        page.goto(path)
    page.goto(address(run))
    BackfillRun.objects.update(rows_done=730_000)
    page.get_by_text("730,000 of about 1,000,000").wait_for()
    assert refused == []


# What is done


def test_pause_and_resume_by_keyboard(page: Page, run: BackfillRun) -> None:
    log_in(page, address(run))
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "run-pause":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.get_by_text(f"Run {run.pk} (polls.Question.expires_date on default): pausing").wait_for()
    page.get_by_role("button", name="Resume").focus()
    page.keyboard.press("Space")
    page.get_by_text(f"Run {run.pk} (polls.Question.expires_date on default): running").wait_for()
    assert [event.who for event in run.events.all()] == ["grace", "ada", "ada"]


def test_cancel_asks_and_can_be_taken_back(page: Page, run: BackfillRun) -> None:
    log_in(page, address(run))
    page.get_by_role("button", name="Cancel run…").click()
    page.get_by_role("heading", name="Cancel for good?").wait_for()
    page.get_by_role("button", name="No, take me back").click()
    page.wait_for_url(f"**{address(run)}")
    assert state(page) == "running"
    page.get_by_role("button", name="Cancel run…").click()
    page.get_by_role("button", name="Yes, cancel for good").click()
    page.wait_for_url(f"**{address(run)}")
    assert state(page) == "cancelling"


def test_cancel_from_the_list_asks_too(page: Page, run: BackfillRun) -> None:
    log_in(page, LIST)
    page.locator("#result_list tbody input[type=checkbox]").check()
    page.get_by_label("Action:").select_option("cancel")
    page.get_by_role("button", name=re.compile("^(Run|Go)$")).click()
    page.get_by_role("button", name="Yes, cancel for good").click()
    page.get_by_text(f"Run {run.pk} (polls.Question.expires_date on default): cancelling").wait_for()


def test_it_works_without_javascript(browser: Browser, live_server: LiveServer, run: BackfillRun) -> None:
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    page = context.new_page()
    log_in(page, address(run))
    BackfillRun.objects.update(rows_done=730_000)
    page.get_by_text("730,000 of about 1,000,000").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_text(": pausing").wait_for()
    page.get_by_role("button", name="Cancel run…").click()
    page.get_by_role("heading", name="Cancel for good?").wait_for()
    time.sleep(6)  # longer than a page of a run would stay
    page.get_by_role("button", name="Yes, cancel for good").click()
    page.get_by_text(": cancelling").wait_for()
    context.close()


# How it looks


def everything() -> list[str]:
    """The addresses of the list and of runs in every state, with all that a page may have on it."""
    paths = [LIST]
    for number, status in enumerate(Status):
        run = a_run(
            status=status,
            open_key=f"{number}",
            error="it broke " * 9,
            traceback="Traceback " * 20,
            bad_rows=[[7, "no text " * 20], ["x" * 60, "no text"]],
            waiting_for="replica is 12 s behind",
            lease_until=None,
        )
        paths.append(address(run))
    return [*paths, f"{LIST}{run.pk}/cancel/"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone(page: Page, live_server: LiveServer, scheme: str) -> None:
    paths = everything()
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    log_in(page, LIST)
    for path in paths:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


@pytest.mark.parametrize("theme", ["light", "dark", "dark by the system"])
def test_text_stands_out_from_what_is_behind_it(page: Page, live_server: LiveServer, theme: str) -> None:
    paths = everything()
    page.emulate_media(color_scheme="dark" if theme == "dark by the system" else "light")
    log_in(page, LIST)
    if theme in ("light", "dark"):
        page.evaluate(f"localStorage.setItem('theme', '{theme}')")
    for path in paths:
        page.goto(path)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == BEHIND[theme[:4]]
        assert page.evaluate(WEAK_CONTRASTS_OF_OURS) == [], path


WEAK_CONTRASTS_OF_OURS = WEAK_CONTRASTS.replace(
    "document.body.query", "document.querySelector('#content-main, #content').query"
)
BEHIND = {"ligh": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}


def test_a_mark_stands_out_in_both_themes(page: Page, live_server: LiveServer) -> None:
    """3 to 1, as WCAG 2 asks for what is no text."""
    everything()
    for scheme, behind in (("light", 1.0), ("dark", 0.006)):
        page.emulate_media(color_scheme=scheme)
        if scheme == "light":
            log_in(page, LIST)
        else:
            page.goto(LIST)
        lights = page.evaluate(MARKS)
        assert len(lights) >= len(Status)
        for light in lights:
            assert (max(light, behind) + 0.05) / (min(light, behind) + 0.05) >= 3


MARKS = """() => [...document.querySelectorAll(".run-state")].map(e => {
    const [r, g, b] = getComputedStyle(e, "::before").backgroundColor.match(/[\\d.]+/g).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
})"""


# A fill that is controlled while it works

LOGS = {
    "postgresql": [
        """CREATE FUNCTION polls_log() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO polls_filled SELECT id FROM changed; RETURN NULL; END'""",
        f"""CREATE TRIGGER polls_log AFTER UPDATE ON {TABLE} REFERENCING NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION polls_log()""",
    ],
    "sqlite": [
        f"CREATE TRIGGER polls_log AFTER UPDATE ON {TABLE} BEGIN INSERT INTO polls_filled VALUES (new.id); END",
    ],
}


class Terminal:
    """A `migrate` as a user started it, and what it prints."""

    def __init__(self, polls: Polls, *, nice: float) -> None:
        """`nice` times as long as a batch takes, it waits after the batch."""
        self.process, self.lines = polls.start(SAFEMIGRATE_TEST_NICE=str(nice)), []
        self.readers = [
            threading.Thread(target=self._read, args=(pipe,))
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self.lines.append(line.decode())

    def says(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def wait(self) -> int:
        for reader in self.readers:
            reader.join()
        return int(self.process.wait())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()


@pytest.fixture
def polls(
    alias: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polls]:
    """Full polls; each update of a row is logged. Users, sessions and runs are in an SQLite file of their own."""
    request.getfixturevalue("settings").ALLOWED_HOSTS = ["127.0.0.1"]
    default = connections["default"]
    default.close()
    monkeypatch.setitem(default.settings_dict, "NAME", str(tmp_path / "default.sqlite3"))
    call_command("migrate", database="default", verbosity=0)
    environment = request.getfixturevalue("environment") | {
        "DJANGO_SETTINGS_MODULE": "tests.support.controlled_settings"
    }
    polls = Polls(alias, environment, ROWS)
    with polls.connection.cursor() as cursor:
        for statement in ["CREATE TABLE polls_filled (id bigint)", *LOGS[polls.connection.vendor]]:
            cursor.execute(statement)
    yield polls
    polls.connection.close()
    default.close()


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("alias", ["sqlite", "postgresql"], indirect=True)
def test_a_fill_is_watched_paused_resumed_killed_and_started_again(polls: Polls, browser: Browser) -> None:
    with served() as url, ExitStack() as stack:
        first = Terminal(polls, nice=15)
        stack.callback(first.kill)
        run = the_run(first)
        page = browser.new_page(base_url=url)
        stack.callback(page.context.close)
        log_in(page, address(run))
        sees_it_move(page)
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("status").get_by_text("paused", exact=True).wait_for()
        until(lambda: first.says(f"run {run.pk} was paused by ada"), "the terminal says so", first)
        filled = polls.filled()
        time.sleep(1)
        assert polls.filled() == filled
        page.get_by_role("button", name="Resume").click()
        sees_it_move(page)
        first.kill()
        assert filled < polls.filled() < ROWS
        page.get_by_role("status").get_by_text("stalled", exact=True).wait_for()
        page.get_by_text(f"Its process, {first.process.pid} on").wait_for()
        again = Terminal(polls, nice=1)
        stack.callback(again.kill)
        page.get_by_role("status").get_by_text("running", exact=True).wait_for()
        page.get_by_role("status").get_by_text("succeeded").wait_for(timeout=300_000)
        assert again.wait() == 0, again.lines
    assert_every_row_was_filled_once(polls)
    ended = store.find(run.pk)
    assert (ended.status, ended.attempts, ended.process) == (Status.SUCCEEDED, 2, again.process.pid)
    assert [event.who for event in ended.events.all() if event.who == "ada"] == ["ada"] * 2


def the_run(terminal: Terminal) -> BackfillRun:
    until(lambda: store.records().filter(rows_done__gt=0).exists(), "a run is recorded", terminal)
    return store.records().get()


def sees_it_move(page: Page) -> None:
    before = page.locator("#run-progress").inner_text()
    page.wait_for_function(
        "before => document.querySelector('#run-progress').innerText !== before",
        arg=before,
        timeout=SECONDS * 1000,
    )


def assert_every_row_was_filled_once(polls: Polls) -> None:
    polls.assert_ended_well()
    with polls.connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*), COUNT(DISTINCT id) FROM polls_filled")
        assert cursor.fetchone() == (polls.rows, polls.rows)


# The backfills of the apps


BACKFILLS = f"{LIST}backfills/"


def test_a_backfill_is_tried_and_its_command_shown(page: Page, live_server: LiveServer) -> None:
    question = ask("What is left to do?", days_ago=1)
    log_in(page, LIST)
    page.get_by_role("link", name="Backfills").click()
    page.get_by_role("row", name="polls.SlugifyQuestions").get_by_role("link", name="Run…").click()
    page.get_by_role("button", name="Try it on ten rows").click()
    table = page.locator("#backfill-trial")
    assert "→ what-is-left-to-do" in table.inner_text()
    assert (
        "backfill run polls.SlugifyQuestions --database default"
        in page.locator("#backfill-command").inner_text()
    )
    question.refresh_from_db()
    assert question.url_name == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_of_the_backfills_fit_a_phone_and_can_be_read(
    page: Page, live_server: LiveServer, scheme: Any
) -> None:
    ask("What is left to do?", days_ago=1)
    log_in(page, BACKFILLS)
    page.emulate_media(color_scheme=scheme)
    for path in (BACKFILLS, f"{BACKFILLS}polls.PurgeClosedPolls/"):
        page.goto(path)
        if "Purge" in path:
            page.get_by_label("Days").fill("0")
            page.get_by_role("button", name="Try it on ten rows").click()
            page.locator("#trial-heading").wait_for()
        assert page.evaluate(WEAK_CONTRASTS_OF_OURS) == []
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.set_viewport_size({"width": 1280, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        if shots := os.environ.get("SHOTS"):
            page.screenshot(path=f"{shots}/{scheme}-{len(path)}.png")


def test_the_list_moves_without_being_loaded_again(page: Page, run: BackfillRun) -> None:
    log_in(page, LIST)
    page.evaluate("window.loaded = 'once'")
    BackfillRun.objects.update(rows_done=730_000)
    page.get_by_text("730,000 of about 1,000,000").wait_for()
    BackfillRun.objects.update(status=Status.SUCCEEDED, rows_done=1_000_000, lease_until=None)
    page.locator("#result_list").get_by_text("succeeded").wait_for()
    assert page.evaluate("window.loaded") == "once"
