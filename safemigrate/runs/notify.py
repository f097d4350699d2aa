"""A mail, and a post to a webhook, at the end of a run, and when it is seen to be stalled."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
import urllib.request
from http.client import HTTPException
from typing import Any

from django.core.mail import send_mail
from django.core.serializers.json import DjangoJSONEncoder

from safemigrate.conf import get
from safemigrate.models import BackfillRun
from safemigrate.runs.status import Status
from safemigrate.runs.summary import as_dict, state

logger = logging.getLogger("safemigrate")

SIGNATURE = "X-Safemigrate-Signature"
#: How often a post is tried, and the seconds that a try, and the first pause, may take.
TRIES, TIMEOUT, PAUSE = 3, 5.0, 1.0


def send_mail_about(sender: Any, run: BackfillRun, **kwargs: Any) -> None:
    """Mail SAFEMIGRATE_NOTIFY that a run has ended, or is stalled. A mail server that fails stops nothing."""
    people = get("SAFEMIGRATE_NOTIFY")
    if not people:
        return
    try:
        send_mail(subject(run), summary(run), None, people)
    except Exception:
        text = "No mail about run %s of %s could be sent to %s"
        logger.exception(text, run.pk, run.label, ", ".join(people), extra={"run": run.pk})


def post_about(sender: Any, run: BackfillRun, **kwargs: Any) -> None:
    """Post the same as JSON to SAFEMIGRATE_WEBHOOK, in a thread; what fails is tried again, and stops nothing."""
    address, secret = get("SAFEMIGRATE_WEBHOOK"), get("SAFEMIGRATE_WEBHOOK_SECRET")
    if address is None:
        return
    facts = {"text": f"{subject(run)}\n{summary(run)}", "event": state(run), "run": as_dict(run)}
    body = json.dumps(facts, cls=DjangoJSONEncoder).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "safemigrate"}
    if secret:
        headers[SIGNATURE] = signature(body, secret)
    request = urllib.request.Request(address, body, headers)  # noqa: S310  the setting takes http and https alone
    threading.Thread(target=_post, args=(request, run.pk, run.label), name="safemigrate webhook").start()


def signature(body: bytes, secret: str) -> str:
    """Return what a receiver computes from the body, and compares with the header by hmac.compare_digest."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _post(request: urllib.request.Request, run: int, label: str) -> None:
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310
                return
        except (OSError, HTTPException) as error:
            if attempt == TRIES - 1:
                text = "No word about run %s of %s could be posted to SAFEMIGRATE_WEBHOOK: %s"
                logger.error(text, run, label, error, extra={"run": run})
            else:
                time.sleep(PAUSE * 2**attempt)


def subject(run: BackfillRun) -> str:
    """Return one line: how it ended, what, and where."""
    return f"Backfill {state(run)}: {run}"


def summary(run: BackfillRun) -> str:
    """Return the facts of the run, one a line, and what to type next."""
    facts = [
        ("field", run.label),
        ("database", run.place),
        ("status", state(run)),
        ("rows", f"{run.rows_done:,} of {'' if run.total_is_exact else 'about '}{run.rows_total:,}"),
        ("time", f"{run.seconds_running:,.0f} s at work, {run.seconds_waiting:,.0f} s waiting"),
        ("rate", f"{_rate(run):,.0f} rows/s"),
        ("bad rows", f"{len(run.bad_rows):,}" if run.bad_rows else ""),
        ("migration", run.migration),
        ("started", f"by {run.started_by or '?'} on {run.host or run.executor}, attempt {run.attempts}"),
        ("error", run.error),
    ]
    lines = [f"{name + ':':<11} {text}" for name, text in facts if text]
    return "\n".join([f"Run {run.pk}", *lines, "", *_next(run)]) + "\n"


def _rate(run: BackfillRun) -> float:
    """Return rows per second over all of its time at work: a mail comes when the last 60 s are past."""
    return run.rows_done / run.seconds_running if run.seconds_running else 0.0


def _next(run: BackfillRun) -> list[str]:
    if run.status == Status.SUCCEEDED:
        done = "was done" if run.is_cursor or run.backfill else "had a value"
        return [f"Every row {done} when it ended. To see it all:", f"    {_show(run)}"]
    return [
        "What is filled stays filled. To see it all, and to go on when the cause is gone:",
        f"    {_show(run)}",
        f"    {run.next_command}",
    ]


def _show(run: BackfillRun) -> str:
    return f"python manage.py backfill show {run.pk}"
