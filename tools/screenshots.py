"""Take the pictures of the admin that stand in the documentation: `make screenshots`.

The runs shown are made up and always the same, and so is the clock.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from math import sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django

from tools.browser import chromium

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"
NOW = datetime(2026, 11, 20, 14, 5, 30, tzinfo=timezone.utc)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LIST = "/admin/safemigrate/backfillrun/"

TRACEBACK = """\
Traceback (most recent call last):
  File "polls/populate.py", line 12, in slug
    return slugify(question.question_text)[:50]
safemigrate.exceptions.BadRows: 2 rows of polls.Question.slug on default got no value, so the column was not made
required. All other rows are filled.
"""


def main() -> None:
    with TemporaryDirectory() as folder:
        set_up(Path(folder))
        IMAGES.mkdir(exist_ok=True)
        with served() as url, chromium() as browser:
            for name, path, size, scheme in shots():
                context = browser.new_context(base_url=url, viewport=size, color_scheme=scheme)
                take(context.new_page(), path, IMAGES / f"{name}.png")
                context.close()


def set_up(folder: Path) -> None:
    """Make the example's database in the folder, with an administrator and runs."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
    os.environ["DATABASE_URL"] = f"sqlite:///{folder / 'default.sqlite3'}"
    sys.path.insert(0, str(ROOT / "example_polls"))
    django.setup()
    logging.getLogger("django.request").setLevel(logging.ERROR)  # a browser asks for a favicon
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.utils import timezone as clock

    call_command("migrate", verbosity=0)
    clock.now = lambda: NOW
    User.objects.create_superuser("admin", password="admin")
    for facts, happened in made_up():
        record(facts, happened)


def record(facts: dict[str, Any], happened: list[tuple[int, str, str]]) -> None:
    """Write a run down with its events (seconds after its start, what, who)."""
    from safemigrate.models import BackfillRun

    run = BackfillRun.objects.create(**{"app_label": "polls", "host": "web-1"} | facts)
    for seconds, text, who in happened:
        run.events.create(at=run.started + timedelta(seconds=seconds), text=text, who=who)


def made_up() -> Iterator[tuple[dict[str, Any], list[tuple[int, str, str]]]]:
    yield (
        finished(days=3, alias="default"),
        [(0, "queued → running", "deploy"), (94, "running → succeeded", "")],
    )
    yield failed(), [(0, "queued → running", "ada"), (41, "running → failed", "")]
    yield stalled(), [(0, "queued → running", "cron")]
    yield (
        running(),
        [
            (0, "queued → running", "ada"),
            (25, "running → pausing", "grace"),
            (25, "pausing → paused", ""),
            (47, "paused → running", "grace"),
        ],
    )


def finished(*, days: int, alias: str) -> dict[str, Any]:
    started = NOW - timedelta(days=days)
    return {
        **question("expires_date", alias, "0003_question_expires_date", "F(pub_date) + 30 days"),
        "status": "succeeded",
        "started_by": "deploy",
        "rows_done": 1_204_311,
        "rows_total": 1_204_311,
        "created": started,
        "started": started,
        "finished": started + timedelta(seconds=94),
        "samples": samples(94, 12_800),
        "total_is_exact": True,
        "attempts": 1,
        "process": 812,
    }


def failed() -> dict[str, Any]:
    started = NOW - timedelta(hours=5)
    return {
        **question("slug", "default", "0004_question_slug", "polls.populate.slug"),
        "status": "failed",
        "started_by": "ada",
        "rows_done": 412_882,
        "rows_total": 412_884,
        "created": started,
        "started": started,
        "finished": started + timedelta(seconds=41),
        "samples": samples(41, 10_100),
        "total_is_exact": True,
        "attempts": 1,
        "seconds_running": 41,
        "batch_size": 3_100,
        "heartbeat": started + timedelta(seconds=41),
        "cursor": 413_020,
        "process": 2217,
        "error": "2 rows of polls.Question.slug on default got no value",
        "traceback": TRACEBACK,
        "bad_rows": [
            [20_817, "ValueError: no text to make a slug of"],
            [398_004, "its value came out as NULL"],
        ],
    }


def stalled() -> dict[str, Any]:
    started, seen = NOW - timedelta(minutes=41), NOW - timedelta(minutes=12)
    return {
        **question("votes_open", "archive", "0005_question_votes_open", "True"),
        "status": "running",
        "started_by": "cron",
        "rows_done": 9_300_000,
        "rows_total": 24_000_000,
        "created": started,
        "started": started,
        "heartbeat": seen,
        "lease_until": seen,
        "host": "jobs-2",
        "samples": samples(240, 5_300),
        "attempts": 2,
        "process": 31_077,
    }


def running() -> dict[str, Any]:
    started = NOW - timedelta(seconds=160)
    return {
        **question("expires_date", "archive", "0003_question_expires_date", "F(pub_date) + 30 days"),
        "status": "running",
        "started_by": "ada",
        "rows_done": 1_790_412,
        "rows_total": 4_000_000,
        "created": started,
        "started": started,
        "heartbeat": NOW,
        "lease_until": NOW + timedelta(seconds=15),
        "seconds_running": 138,
        "seconds_waiting": 22,
        "samples": samples(138, 12_974),
        "total_is_exact": True,
        "attempts": 1,
        "process": 4119,
        "batch_size": 3_400,
        "cursor": 1_790_990,
        "output": "waiting: run 4 was paused by grace; to go on: python manage.py backfill resume 4",
    }


def question(field: str, alias: str, migration: str, populate: str) -> dict[str, Any]:
    return {
        "model_name": "Question",
        "field_names": field,
        "alias": alias,
        "migration": f"polls.{migration}",
        "populate": populate,
        "open_key": f"{alias} {field}",
    }


def samples(seconds: int, rate: float) -> list[list[float]]:
    """Return rows done after each second, at about this rate."""
    rows, found = 0.0, [[0.0, 0.0]]
    for second in range(1, seconds + 1):
        rows += rate * (1 + 0.12 * sin(second / 5) + 0.06 * sin(second * 2.3))
        found.append([float(second), round(rows)])
    return found


@contextmanager
def served() -> Iterator[str]:
    """Serve the site on a free port."""
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.test.testcases import LiveServerThread

    thread = LiveServerThread("127.0.0.1", StaticFilesHandler)
    thread.start()
    thread.is_ready.wait()
    if thread.error:
        raise thread.error
    try:
        yield f"http://{thread.host}:{thread.port}"
    finally:
        thread.terminate()


def shots() -> Iterator[tuple[str, str, dict[str, int], str]]:
    """Return name, address, size and colours of each picture."""
    at_work, broken = f"{LIST}4/change/", f"{LIST}2/change/"
    yield "runs", LIST, DESKTOP, "light"
    yield "run", at_work, DESKTOP, "light"
    yield "run-dark", at_work, DESKTOP, "dark"
    yield "run-failed", broken, DESKTOP, "light"
    yield "run-phone", at_work, PHONE, "light"


def take(page: Any, path: str, image: Path) -> None:
    page.goto(f"/admin/login/?next={path}")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**{path}")
    page.locator("#nav-sidebar").evaluate_all("found => found.forEach(each => each.remove())")
    page.screenshot(path=image, full_page=True, animations="disabled")
    print(image.relative_to(ROOT))


if __name__ == "__main__":
    main()
