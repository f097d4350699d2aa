"""The example's report: asked for in the admin, made by each executor, announced by mail."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from quopri import decodestring
from smtplib import SMTPServerDisconnected
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.conf.global_settings import STORAGES
from django.contrib.auth.models import Permission, User
from django.core import mail
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from polls import reports, tasks
from polls.models import Choice, Question
from polls.reports import Report

from tests.conftest import ROOT
from tests.example_polls.test_browser import PHONE, WEAK_CONTRASTS, ask, browser, give_up, log_in, page
from tools import demo
from tools.servers import MissingServer, Redis, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "page"]  # the fixtures

LIST, REPORTS = "/admin/polls/question/", "/admin/polls/question/reports/"
ASK = "/admin/polls/question/report/"
EXAMPLE = ROOT / "example_polls"
SECONDS = 30  # that a test waits for something before it fails


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Path:
    """Where the reports are kept."""
    kept = tmp_path / "reports"
    storage = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = STORAGES | {"reports": {"BACKEND": storage, "OPTIONS": {"location": kept}}}
    return kept


@pytest.fixture
def ada(db: None) -> User:
    return editor("ada", "ada@example.com")


@pytest.fixture
def client(ada: User) -> Client:
    return logged_in(ada)


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    try:
        server = Redis()
    except MissingServer as missing:
        give_up(str(missing))
    with server:
        yield server


@pytest.fixture
def apart(redis: Redis, settings: Any) -> None:
    """A queue without a worker."""
    use_rq(settings, redis.url)


def use_rq(settings: Any, url: str) -> None:
    pytest.importorskip("django_rq")
    settings.SAFEMIGRATE_EXECUTOR = "rq"
    settings.RQ_QUEUES = {"default": {"URL": url, "SERIALIZER": "rq.serializers.JSONSerializer"}}


def editor(name: str, address: str = "") -> User:
    """A user who may see the polls in the admin, and nothing else."""
    user = User.objects.create_user(name, address, is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_question"))
    return user


def logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def press(client: Client, key: str = "") -> str:
    """Press the button; return the page that comes, as text."""
    response = client.post(ASK, {"key": key or uuid4()}, follow=True)
    assert response.redirect_chain == [(REPORTS, 302)]
    return str(response.content.decode())


def only(user: User) -> Report:
    (report,) = reports.of(str(user.pk))
    return report


def made(report: Report) -> list[list[str]]:
    report.make()
    with report.open() as file:
        return lines(file.read())


def lines(content: bytes) -> list[list[str]]:
    return list(csv.reader(StringIO(content.decode("utf-8-sig"), newline="")))


def downloaded(client: Client, report: Report) -> Any:
    response = client.get(f"{REPORTS}{report.key}/")
    content = b"".join(response.streaming_content)
    response.close()
    return response, content


# What is in it


def test_every_poll_is_a_line(ada: User, settings: Any) -> None:
    settings.TIME_ZONE = "America/Sao_Paulo"
    asked = datetime(2026, 1, 31, 2, 30, tzinfo=timezone.utc)
    poll = Question.objects.create(
        question_text='Tea, or "coffee"?\nOr é?', pub_date=asked, expires_date=asked + timedelta(days=30)
    )
    for votes in (3, 4):
        poll.choice_set.create(choice_text="Yes", votes=votes)
    asked_now = ask("Silence?", days_ago=1)
    asked_now.choice_set.all().delete()
    head, first, second = made(Report("1", "a"))
    assert head == ["id", "question", "published", "expires", "expired", "votes"]
    assert first == [
        str(poll.pk),
        'Tea, or "coffee"?\nOr é?',
        "2026-01-30T23:30:00-03:00",
        "2026-03-01T23:30:00-03:00",
        "yes" if poll.is_expired() else "no",
        "7",
    ]
    assert (second[1], second[4:]) == ("Silence?", ["no", "0"])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_what_a_spreadsheet_would_compute_is_text(text: str) -> None:
    ask(text, days_ago=1)
    assert made(Report("1", "a"))[1][1] == f"'{text}"


@pytest.mark.slow
def test_it_has_every_poll_and_few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "BATCH", 500)

    def peak(rows: int) -> int:
        call_command("seed_polls", str(rows), "--choices", "1", verbosity=0)
        tracemalloc.start()
        Report("1", f"{rows}").make()
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    small, large = peak(1_000), peak(10_000)
    assert large < small * 1.5
    _, *table = made(Report("1", "again"))
    assert [int(row[0]) for row in table] == list(
        Question.objects.order_by("pk").values_list("pk", flat=True)
    )
    assert sum(int(row[5]) for row in table) == sum(Choice.objects.values_list("votes", flat=True))


# Asked for, and made at once


def test_inline_it_is_ready_when_the_page_comes(client: Client, ada: User) -> None:
    ask("Tea?", days_ago=1)
    html = press(client)
    assert "Your report is ready" in html
    report = only(ada)
    assert f'href="{REPORTS}{report.key}/"' in html
    response, content = downloaded(client, report)
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert re.search(
        r'attachment; filename="polls-\d{4}-\d\d-\d\d\.csv"', response.headers["Content-Disposition"]
    )
    assert "no-store" in response.headers["Cache-Control"]
    assert lines(content)[1][1] == "Tea?"


def test_a_small_one_comes_with_the_mail(client: Client, ada: User) -> None:
    ask("Chá ou café?", days_ago=1)
    press(client)
    (sent,) = mail.outbox
    assert sent.to == ["ada@example.com"]
    assert sent.subject == "Your report of all polls"
    assert f"http://testserver{REPORTS}{only(ada).key}/" in sent.body
    assert "It is attached" in sent.body
    ((name, content, kind),) = sent.attachments
    assert (name, kind) == ("polls.csv", "text/csv")
    assert lines(content.encode())[1][1] == "Chá ou café?"
    assert b"polls.csv" in sent.message().as_bytes()


def test_a_large_one_is_only_named_in_the_mail(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ATTACHED", 10)
    press(client)
    (sent,) = mail.outbox
    assert sent.attachments == []
    assert re.search(r"It has \d+.bytes, too much for a mail; for 7 days it is here:\nhttp://", sent.body)


def test_a_mail_server_that_is_away_loses_no_report(
    client: Client, ada: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: Any) -> int:
        raise SMTPServerDisconnected("Connection unexpectedly closed")

    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.EmailMessage.send", away)
        assert "Your report is ready" in press(client)
    assert "No mail could be sent to user" in caplog.text
    tasks.report(str(ada.pk), only(ada).key, "http://testserver/")  # Asked for again, it is announced.
    assert len(mail.outbox) == 1


# Asked for, and made later


def test_the_page_says_where_the_mail_goes(client: Client, ada: User, apart: None) -> None:
    assert "You get a mail at ada@example.com when the report is ready" in press(client)
    assert reports.of(str(ada.pk)) == []


def test_without_an_address_the_page_says_where_to_look(apart: None, db: None) -> None:
    html = press(logged_in(editor("grace")))
    assert "There is no mail address in your account" in html
    assert "the report will be here" in html


@pytest.mark.parametrize("atomic", [False, True])
def test_a_queue_that_is_away_is_said_in_plain_words(
    client: Client,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    atomic: bool,
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    use_rq(settings, f"redis://127.0.0.1:{free_port()}/0")
    html = press(client)
    assert "The report was not asked for" in html
    assert "Nothing is lost" in html
    assert "does not take jobs" in caplog.text
    assert mail.outbox == []


def test_an_executor_without_its_package_is_said_too(
    client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_rq(settings, "redis://127.0.0.1:1/0")
    monkeypatch.setattr("safemigrate.executors.rq.find_spec", lambda name: None)
    assert "The report was not asked for" in press(client)
    assert "pip install 'safemigrate[rq]'" in caplog.text


# Once, whatever happens


def test_pressed_twice_or_delivered_twice_it_is_one_report_and_one_mail(client: Client, ada: User) -> None:
    html = client.get(LIST).content.decode()
    (key,) = set(re.findall(r'name="key" value="([^"]+)"', html))
    press(client, key)
    press(client, key)
    tasks.report(str(ada.pk), key, "http://testserver/")
    assert only(ada).key == key
    assert len(mail.outbox) == 1


def test_the_next_page_asks_for_another_one(client: Client, ada: User) -> None:
    for _ in range(2):
        html = client.get(LIST).content.decode()
        press(client, re.findall(r'name="key" value="([^"]+)"', html)[0])
    assert len(reports.of(str(ada.pk))) == 2


def test_what_a_killed_worker_left_is_no_report(client: Client, ada: User) -> None:
    ask("Tea?", days_ago=1)
    key = str(uuid4())
    reports.storage().save(f"{ada.pk}/{key}.csv", ContentFile(b"id,que"))
    assert client.get(f"{REPORTS}{key}/").status_code == 302
    tasks.report(str(ada.pk), key, "http://testserver/")
    assert lines(downloaded(client, only(ada))[1])[1][1] == "Tea?"


def test_of_two_workers_at_once_the_quicker_ones_stays(folder: Path) -> None:
    quick, slow = Report("1", "a"), Report("1", "a")
    quick.make()
    ask("Tea?", days_ago=1)
    assert len(made(slow)) == 1
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["a.csv", "a.ready"]


def test_one_that_fails_is_told_and_can_be_made_again(
    ada: User, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(uuid4())
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(reports, "line", lambda poll: 1 / 0)
        ask("Tea?", days_ago=1)
        tasks.report(str(ada.pk), key, "http://testserver/")
    assert [sent.subject for sent in mail.outbox] == ["Your report of all polls could not be made"]
    assert reports.of(str(ada.pk)) == []
    tasks.report(str(ada.pk), key, "http://testserver/")
    assert len(mail.outbox) == 2
    assert only(ada).key == key


def test_whoever_may_no_longer_see_polls_gets_nothing(ada: User) -> None:
    key = str(uuid4())
    User.objects.filter(pk=ada.pk).update(is_active=False)
    tasks.report(str(ada.pk), key, "http://testserver/")
    tasks.report("4711", key, "http://testserver/")
    assert (reports.of(str(ada.pk)), mail.outbox) == ([], [])


# For whom, how long


def test_only_for_those_who_may_see_polls(db: None, ada: User, client: Client) -> None:
    press(client)
    stranger = logged_in(User.objects.create_user("stranger", is_staff=True))
    for path in (REPORTS, f"{REPORTS}{only(ada).key}/"):
        assert stranger.get(path).status_code == 403
        assert Client().get(path).headers["Location"].startswith("/admin/login/")
    assert stranger.post(ASK, {"key": uuid4()}).status_code == 403


def test_only_ones_own(client: Client, ada: User) -> None:
    press(client)
    other = logged_in(editor("grace"))
    response = other.get(f"{REPORTS}{only(ada).key}/", follow=True)
    assert "This report is not here" in response.content.decode()
    assert only(ada).key not in response.content.decode()


def test_only_by_post_with_the_token_and_the_key(client: Client, ada: User) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(ada)
    assert strict.post(ASK, {"key": uuid4()}).status_code == 403
    assert client.get(ASK).status_code == 405
    assert client.post(ASK, {"key": "../../etc"}).status_code == 400
    assert reports.of(str(ada.pk)) == []


def test_it_is_deleted_after_a_week(client: Client, ada: User, folder: Path) -> None:
    press(client)
    old = only(ada)
    for path in (folder / str(ada.pk)).iterdir():
        week_ago = time.time() - timedelta(days=7, minutes=1).total_seconds()
        os.utime(path, (week_ago, week_ago))
    press(client)
    assert only(ada).key != old.key
    assert "it was deleted" in client.get(f"{REPORTS}{old.key}/", follow=True).content.decode()


def test_a_clock_may_delete_too_where_there_are_none(folder: Path) -> None:
    tasks.forget_old_reports()
    assert not folder.exists()


# In the browser


@pytest.mark.browser
class TestInTheBrowser:
    @pytest.mark.slow
    def test_from_the_list_to_the_file(self, page: Page) -> None:
        ask("Tea?", days_ago=1)
        log_in(page, LIST)
        page.get_by_role("button", name="Report…").click()
        page.wait_for_url(f"**{REPORTS}")
        assert page.get_by_text("Your report is ready").is_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name=re.compile("^All polls, ")).click()
        assert lines(download.value.path().read_bytes())[1][1] == "Tea?"

    @pytest.mark.slow
    def test_by_keyboard(self, page: Page) -> None:
        log_in(page, REPORTS)
        page.get_by_role("button", name="Report…").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Your report is ready").wait_for()

    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_fits_a_phone_and_stands_out(self, page: Page, scheme: str) -> None:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(PHONE)
        log_in(page, LIST)
        page.get_by_role("button", name="Report…").click()
        for path in (REPORTS, LIST):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
            tools = "document.querySelector('.object-tools').query"
            assert page.evaluate(WEAK_CONTRASTS.replace("document.body.query", tools)) == [], path


# By a worker


class Example:
    """The example project as on a real machine: the site and a worker, each a process of its own."""

    def __init__(self, folder: Path, executor: str, broker: str) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if name not in demo.OURS}
        self.environment = inherited | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": f"sqlite:///{folder}/polls.sqlite3",
            "ARCHIVE_DATABASE_URL": f"sqlite:///{folder}/archive.sqlite3",
            "SAFEMIGRATE_EXECUTOR": executor,
            "CELERY_BROKER_URL": broker,
            "REDIS_URL": broker,
            "REPORTS_FOLDER": str(folder / "reports"),
            "DJANGO_SUPERUSER_PASSWORD": "analytical engine",
        }

    def prepare(self) -> None:
        for line in (
            "migrate -v 0",
            "seed_polls 50 -v 0",
            "createsuperuser --no-input --username ada --email ada@example.com -v 0",
        ):
            arguments = [sys.executable, "manage.py", *line.split()]
            subprocess.run(arguments, cwd=EXAMPLE, env=self.environment, check=True)

    def start(self, name: str, *arguments: str) -> Callable[[], str]:
        """Start a process that ends with the test; return what reads its output."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=EXAMPLE,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return log.read_text

    def serve(self) -> str:
        said = self.start("site", "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}")
        until(self._answers, said)
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


def until(holds: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


WORKERS = {
    "celery": "-m celery --app mysite worker --queues default --pool solo --without-gossip --without-mingle",
    "rq": "manage.py rqworker default --serializer rq.serializers.JSONSerializer",
    "tasks": "manage.py db_worker --queue-name default",
}


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("executor", WORKERS)
def test_a_worker_makes_it_and_the_person_gets_a_mail(
    executor: str, tmp_path: Path, redis: Redis, browser: Browser
) -> None:
    example = Example(tmp_path, executor, redis.url)
    with example.stack:
        example.prepare()
        url = example.serve()
        page = browser.new_page(base_url=url)
        example.stack.callback(page.context.close)
        page.goto(LIST)
        page.get_by_label("Username").fill("ada")
        page.get_by_label("Password").fill("analytical engine")
        page.get_by_role("button", name="Log in").click()
        if executor == "celery":
            redis.halt()
            page.get_by_role("button", name="Report…").click()
            page.get_by_text("The report was not asked for").wait_for()
            redis.go_on()
        page.get_by_role("button", name="Report…").click()
        page.get_by_text("You get a mail at ada@example.com when the report is ready").wait_for()
        assert page.get_by_role("link", name=re.compile("^All polls, ")).count() == 0
        said = example.start("worker", *WORKERS[executor].split())
        until(lambda: "To: ada@example.com" in said() and "\n---" in said(), said)
        printed = decodestring(said().encode()).decode(errors="replace")
        (address,) = re.findall(rf"^{url}{REPORTS}\S+$", printed, re.MULTILINE)
        page.reload()
        assert page.get_by_role("link", name=re.compile("^All polls, ")).count() == 1
        with page.expect_download() as download:
            page.evaluate("address => { location.href = address }", address)
        assert len(lines(download.value.path().read_bytes())) == 51


# Before the field


VISIT = """
from django.contrib.auth.models import User
from django.test import Client
from polls import reports
client = Client(headers={"host": "localhost"})
client.force_login(User.objects.create_superuser("ada"))
print(client.post("/admin/polls/question/report/", {"key": "6dd0a2f8-2a4c-4b0e-8a9e-0c7c3b1f7a11"}).status_code)
print(reports.of("1")[0].open().read().decode("utf-8-sig").splitlines()[0])
"""


@pytest.mark.slow
def test_the_project_before_the_field_makes_reports_too(tmp_path: Path) -> None:
    project = tmp_path / "before"
    demo.copy_project_before(project)
    path = project / "polls/reports.py"
    path.write_text(demo.without_lines(path.read_text(), demo.WORD))
    inherited = {name: value for name, value in os.environ.items() if name not in demo.OURS}
    for arguments in (["migrate", "-v", "0"], ["seed_polls", "20"], ["shell", "-v", "0", "-c", VISIT]):
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=project,
            env=inherited | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["302", "id,question,published,votes"]


def test_the_list_has_the_button_for_those_who_may_only_look(client: Client) -> None:
    html = client.get(reverse("admin:polls_question_changelist")).content.decode()
    assert ">Report…</button>" in html
    assert ">Report…</button>" not in client.get(f"{LIST}?_popup=1").content.decode()
