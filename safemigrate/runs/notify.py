"""A mail at the end of a run."""

from __future__ import annotations

import logging
from typing import Any

from django.core.mail import send_mail

from safemigrate.conf import get
from safemigrate.models import BackfillRun
from safemigrate.runs.status import Status

logger = logging.getLogger("safemigrate")


def send_mail_about(sender: Any, run: BackfillRun, **kwargs: Any) -> None:
    """Mail SAFEMIGRATE_NOTIFY that a run has ended. A mail server that fails is logged, and stops nothing."""
    people = get("SAFEMIGRATE_NOTIFY")
    if not people:
        return
    try:
        send_mail(subject(run), summary(run), None, people)
    except Exception:
        text = "No mail about run %s of %s could be sent to %s"
        logger.exception(text, run.pk, run.label, ", ".join(people), extra={"run": run.pk})


def subject(run: BackfillRun) -> str:
    """Return one line: how it ended, what, and where."""
    return f"Backfill {run.status}: {run}"


def summary(run: BackfillRun) -> str:
    """Return the facts of the run, one a line, and what to type next."""
    facts = [
        ("field", run.label),
        ("database", run.alias),
        ("status", run.status),
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
        return ["Every row had a value when it ended. To see it all:", f"    {_show(run)}"]
    return [
        "What is filled stays filled. To see it all, and to go on when the cause is gone:",
        f"    {_show(run)}",
        f"    {run.command}",
    ]


def _show(run: BackfillRun) -> str:
    return f"python manage.py backfill show {run.pk}"
