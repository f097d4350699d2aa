"""How a run is announced: by mail, by signals, in the log; and what the pages say of it."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import product
from typing import Any, ClassVar

import django
import pymysql
import pytest
from django.conf import settings
from django.core import mail
from django.core.management import call_command
from django.db import connections, models
from django.db.models import F
from django.utils import timezone

from safemigrate import signals
from safemigrate.exceptions import BadRows, Interrupted
from safemigrate.management import report
from safemigrate.models import BackfillRun
from safemigrate.operations import AddNullableField, Populate
from safemigrate.runs import notify, scheduler, status, store
from tests.conftest import ROOT
from tests.support.sandbox import MONTH, MigrationSandbox

EXPIRES = models.DateTimeField("expires at")
LATER = F("pub_date") + MONTH
NOTIFY = ["ops@example.com", "dba@example.com"]


@pytest.fixture
def sandbox(alias: str, settings: Any) -> MigrationSandbox:
    settings.SAFEMIGRATE_NOTIFY = NOTIFY
    settings.SAFEMIGRATE_BATCH_SIZE = 10
    sandbox = MigrationSandbox(alias)
    sandbox.fill(30)
    sandbox.run(AddNullableField("question", "expires_date", EXPIRES))
    return sandbox


def fill(sandbox: MigrationSandbox, populate: Any) -> None:
    sandbox.run(Populate("question", "expires_date", populate))


class Heard:
    """Receives every signal and writes down what came."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches: list[tuple[int, float]] = []
        self.errors: list[Any] = []

    def listen(self) -> Iterator[Heard]:
        for name in signals.__all__:
            getattr(signals, name).connect(self, weak=False, dispatch_uid=name)
        yield self
        for name in signals.__all__:
            getattr(signals, name).disconnect(dispatch_uid=name)

    def __call__(self, sender: Any, signal: Any, run: BackfillRun, **kwargs: Any) -> None:
        assert sender is BackfillRun
        (name,) = [name for name in signals.__all__ if getattr(signals, name) is signal]
        self.names.append(name)
        if name == "batch_done":
            self.batches.append((kwargs["rows"], kwargs["seconds"]))
        if name == "run_failed":
            self.errors.append(kwargs["error"])


@pytest.fixture
def heard() -> Iterator[Heard]:
    yield from Heard().listen()


def test_a_run_that_ends_well_sends_a_mail_with_what_it_did(sandbox: MigrationSandbox) -> None:
    fill(sandbox, LATER)
    (sent,) = mail.outbox
    assert sent.to == NOTIFY
    assert sent.subject == f"Backfill succeeded: boxes.Question.expires_date on {sandbox.alias}"
    assert "30 of 30" in sent.body
    assert f"python manage.py backfill show {store.records()[0].pk}" in sent.body


def test_a_run_that_fails_sends_one_with_the_error_and_what_to_type(sandbox: MigrationSandbox) -> None:
    with pytest.raises(BadRows):
        fill(sandbox, lambda row: None)
    (sent,) = mail.outbox
    assert sent.subject.startswith("Backfill failed: ")
    assert re.search(r"bad rows: +30", sent.body)
    assert "the function returned None" in sent.body
    line = f"python manage.py backfill run boxes.Question.expires_date --database {sandbox.alias}"
    assert line in sent.body


def test_a_run_that_was_stopped_sends_none(sandbox: MigrationSandbox) -> None:
    def stop(row: Any) -> Any:
        raise Interrupted(130)

    with pytest.raises(Interrupted):
        fill(sandbox, stop)
    assert mail.outbox == []
    assert store.records()[0].status == status.Status.STOPPED


def test_a_mail_server_that_fails_stops_nothing(
    sandbox: MigrationSandbox, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": smtp, "OPTIONS": {"host": "127.0.0.1", "port": 1}}}
    else:
        settings.EMAIL_BACKEND, settings.EMAIL_HOST, settings.EMAIL_PORT = smtp, "127.0.0.1", 1
    fill(sandbox, LATER)
    assert None not in sandbox.values("expires_date")
    assert "No mail about run" in caplog.text


def test_nobody_is_told_where_nobody_wants_it(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_NOTIFY = []
    fill(sandbox, LATER)
    assert mail.outbox == []


class Receiver(BaseHTTPRequestHandler):
    """A chat that answers with an error first."""

    posts: ClassVar[list[tuple[dict[str, Any], bytes]]] = []
    failures: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).posts.append((dict(self.headers), body))
        self.send_response(503 if len(self.posts) <= self.failures else 204)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def chat(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Receiver]]:
    Receiver.posts.clear()
    monkeypatch.setattr(Receiver, "failures", 1)
    monkeypatch.setattr(notify, "PAUSE", 0.01)
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        settings.SAFEMIGRATE_WEBHOOK = f"http://127.0.0.1:{server.server_port}/hook"
        settings.SAFEMIGRATE_WEBHOOK_SECRET = "between us"
        yield Receiver
        server.shutdown()


def posted() -> None:
    """Wait for what is being posted."""
    for thread in threading.enumerate():
        if thread.name == "safemigrate webhook":
            thread.join()


def test_it_is_posted_as_json_signed_and_tried_again(sandbox: MigrationSandbox, chat: type[Receiver]) -> None:
    fill(sandbox, LATER)
    posted()
    (_, refused), (headers, body) = chat.posts
    assert refused == body
    facts = json.loads(body)
    assert facts["text"].startswith(f"Backfill succeeded: boxes.Question.expires_date on {sandbox.alias}\n")
    assert (facts["event"], facts["run"]["rows_done"]) == ("succeeded", 30)
    (code,) = re.findall(r"```python\n(import hashlib.*?)```", page("how-to/notifications.md"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "receiver.py", "exec"), names)
    assert names["is_genuine"](body, headers["X-Safemigrate-Signature"], "between us")
    assert not names["is_genuine"](body, headers["X-Safemigrate-Signature"], "another")


def test_a_webhook_that_is_away_is_logged_and_stops_nothing(
    sandbox: MigrationSandbox, chat: type[Receiver], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.SAFEMIGRATE_WEBHOOK = "http://127.0.0.1:1/"
    with pytest.raises(BadRows):
        fill(sandbox, lambda row: None)
    posted()
    assert "could be posted to SAFEMIGRATE_WEBHOOK" in caplog.text
    assert chat.posts == []


def test_a_run_that_its_process_left_is_announced_once(
    sandbox: MigrationSandbox, heard: Heard, chat: type[Receiver]
) -> None:
    def stop(row: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(sandbox, stop)
    mail.outbox.clear()
    # As a kill would have left it.
    store.records().update(status=status.Status.RUNNING, lease_until=timezone.now(), process=None)
    scheduler.requeue()
    scheduler.requeue()
    posted()
    assert heard.names.count("run_stalled") == 1
    (sent,) = mail.outbox
    assert sent.subject == f"Backfill stalled: boxes.Question.expires_date on {sandbox.alias}"
    assert json.loads(chat.posts[-1][1])["event"] == "stalled"
    fill(sandbox, LATER)
    assert heard.names[-1] == "run_finished"


def test_a_report_for_others_names_what_they_need_and_no_secret(
    sandbox: MigrationSandbox, settings: Any
) -> None:
    settings.SAFEMIGRATE_WEBHOOK_SECRET = "between us"
    with pytest.raises(BadRows):
        fill(sandbox, lambda row: {}["ada@example.com"])
    out = io.StringIO()
    call_command("backfill", "report", str(store.records()[0].pk), stdout=out)
    text = out.getvalue()
    assert f"Django {django.get_version()}, Python " in text
    assert f"{sandbox.alias}: " in text
    assert "SAFEMIGRATE_BATCH_SIZE = 10" in text
    assert "SAFEMIGRATE_NOTIFY = (set)" in text
    assert "of: boxes.Question.expires_date" in text
    assert "error: 30 rows of boxes.Question.expires_date" in text
    assert "raised by: engine.py line " in text
    for secret in ("between us", "@example.com", store.records()[0].host, store.person()):
        assert secret not in text


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("Key (email)=(boss@sales.example) already exists.", ["boss", "sales"]),
        ("ValueError: no account of sales@site.example here", ["sales", "site.example"]),
        ("Duplicate entry 'Ada' for key 'name'", ["Ada"]),
        ('connection to server at "10.0.0.5", port 5432 failed', ["10.0.0.5"]),
        ("2 rows are locked by other sessions; blocked by: 77 (ada, UPDATE t SET a = 1)", ["ada", "UPDATE"]),
        ("run 9 was paused by ada; to go on: python manage.py backfill resume 9", ["ada;"]),
    ],
)
def test_a_report_shows_nothing_of_rows_and_people(text: str, secrets: list[str]) -> None:
    shown = report.masked(text)
    assert "(...)" in shown
    assert [secret for secret in secrets if secret in shown] == []


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_a_report_is_given_where_a_server_is_away(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the name of the server would be asked of it too."""
    pymysql.install_as_MySQLdb()
    away = {**connections["default"].settings_dict, "ENGINE": "django.db.backends.mysql"}
    away |= {"HOST": "127.0.0.1", "PORT": "1", "USER": "ada", "PASSWORD": "x", "OPTIONS": {}}
    monkeypatch.setitem(connections.settings, "away", away)
    monkeypatch.setitem(settings.DATABASES, "away", away)
    try:
        text = report.report()
    finally:
        del connections["away"]
    assert "away: django.db.backends.mysql by " in text
    assert "which cannot be reached: OperationalError" in text
    assert "127.0.0.1" not in text


def test_the_signals_of_a_run_that_ends_well(sandbox: MigrationSandbox, heard: Heard) -> None:
    fill(sandbox, LATER)
    assert heard.names == ["run_started", *["batch_done"] * 3, "run_finished"]
    assert [rows for rows, _ in heard.batches] == [10, 10, 10]
    assert all(seconds > 0 for _, seconds in heard.batches)


def test_the_signals_of_a_run_that_fails_or_is_stopped(sandbox: MigrationSandbox, heard: Heard) -> None:
    with pytest.raises(BadRows) as raised:
        fill(sandbox, lambda row: None)
    assert heard.names[-1] == "run_failed"
    assert heard.errors == [raised.value]

    def stop(row: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(sandbox, stop)
    assert heard.names[-1] == "run_stopped"


def test_a_receiver_that_raises_is_logged_and_stops_nothing(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a receiver of theirs")

    signals.batch_done.connect(broken)
    try:
        fill(sandbox, LATER)
    finally:
        signals.batch_done.disconnect(broken)
    assert None not in sandbox.values("expires_date")
    assert "a receiver of theirs" in caplog.text


def test_what_is_logged_says_which_run_it_is(
    sandbox: MigrationSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="safemigrate"):
        fill(sandbox, LATER)
    run = store.records()[0]
    begun, *_, ended = [record for record in caplog.records if hasattr(record, "rows_total")]
    assert begun.run == ended.run == run.pk  # type: ignore[attr-defined]
    assert (begun.label, begun.alias) == ("boxes.Question.expires_date", sandbox.alias)  # type: ignore[attr-defined]
    assert (ended.status, ended.rows) == ("succeeded", 30)  # type: ignore[attr-defined]
    batches = [record for record in caplog.records if "rows in" in record.message]
    assert [record.rows for record in batches] == [10, 10, 10]  # type: ignore[attr-defined]


# The pages


def page(path: str) -> str:
    return (ROOT / "docs" / path).read_text(encoding="utf-8")


def test_every_signal_is_documented() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page("reference/signals.md"), re.MULTILINE) == [
        "run_started",
        "batch_done",
        "run_finished",
        "run_failed",
        "run_stopped",
        "run_stalled",
        "run_queued",
    ]
    assert set(signals.__all__) == set(
        re.findall(r"^\| `(\w+)` \|", page("reference/signals.md"), re.MULTILINE)
    )


def test_every_move_is_documented() -> None:
    rows = re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \| \S", page("explanation/runs.md"), re.MULTILINE)
    shown = [pair for row in rows for pair in product(*(cell.split(", ") for cell in row))]
    moves = {(source.value, str(target)) for source, targets in status.MOVES.items() for target in targets}  # type: ignore[attr-defined]
    assert sorted(shown) == sorted({("from", "to")} | moves)
