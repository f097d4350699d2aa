"""A run in words, for the terminal, and as JSON, for programs."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.db import Error
from django.utils import timezone

from safemigrate.models import BackfillRange, BackfillRun
from safemigrate.runs import store
from safemigrate.runs.status import OVER, Status

HEADINGS = ["id", "field", "database", "status", "rows", "of", "done", "rows/s", "left", "started", "by"]
RIGHT = {"id", "rows", "of", "done", "rows/s", "left"}
PLAIN = (
    *(
        "id",
        "migration",
        "populate",
        "alias",
        "schema",
        "executor",
        "status",
        "cursor",
        "rows_done",
        "rows_total",
    ),
    *("total_is_exact", "batch_size", "attempts", "host", "process", "started_by", "seconds_running"),
    *("seconds_waiting", "waiting_for", "error"),
)
#: The bad rows, and the last lines of a traceback, that are shown.
SHOWN, LINES = 100, 20
TIMES = ["created", "started", "heartbeat", "lease_until", "finished"]


def state(run: BackfillRun) -> str:
    """Return the status, or "stalled" where no process gives a sign of life."""
    return "stalled" if run.is_stalled() else str(run.status)


def row(run: BackfillRun) -> list[str]:
    """Return the cells under HEADINGS."""
    about = "" if run.total_is_exact or run.is_over else "~"
    return [
        str(run.pk),
        run.label,
        run.place,
        state(run),
        f"{run.rows_done:,}",
        f"{about}{run.rows_total:,}",
        f"{run.fraction:.0%}",
        f"{run.rate:,.0f}" if run.is_held() else "",
        span(run.time_left) if run.is_held() else "",
        moment(run.started),
        run.started_by,
    ]


def progress_of(label: str, alias: str) -> tuple[str, bool]:
    """Return how far the open run of app.Model.field is, "" without one, and whether it is stalled."""
    run = _open_run(label, alias)
    return (_far(run), run.is_stalled()) if run is not None else ("", False)


def filled_elsewhere(label: str, alias: str) -> str:
    """Return how far the run of app.Model.field is that a process is at just now, "" without one.

    Not the run of a queue's workers, for which no process waits, nor one that is paused, which may be for long.
    """
    run = _open_run(label, alias)
    at_work = run is not None and run.status == Status.RUNNING and not run.is_shared and store.is_taken(run)
    return _far(run) if run is not None and at_work else ""


def _far(run: BackfillRun) -> str:
    return f"run {run.pk}, {run.rows_done:,} of about {run.rows_total:,} rows"


def _open_run(label: str, alias: str) -> BackfillRun | None:
    app_label, model_name, names = label.split(".", 2)
    named = {
        "app_label": app_label,
        "model_name__iexact": model_name,
        "field_names": names,
        **store.where(alias),
    }
    with suppress(Error):
        found: BackfillRun | None = store.records().filter(**named).exclude(status__in=OVER).first()
        return found
    return None


def as_dict(run: BackfillRun, *, full: bool = False) -> dict[str, Any]:
    """Return the run for JSON: times in ISO 8601, spans in seconds; `full` with output, bad rows and events."""
    found: dict[str, Any] = {name: getattr(run, name) for name in PLAIN}
    found |= {"label": run.label, "state": state(run), "rows_per_second": round(run.rate, 1)}
    found |= {"seconds_left": run.time_left.total_seconds() if run.time_left is not None else None}
    found |= {name: _iso(getattr(run, name)) for name in TIMES}
    found["bad_rows"] = len(run.bad_rows)
    if full:
        found["bad_rows"] = [{"key": key, "reason": reason} for key, reason in run.bad_rows]
        found["ranges"] = [_range(part) for part in run.open_ranges]
        found["output"], found["traceback"] = run.output.splitlines(), run.traceback
        found["events"] = [
            {"at": _iso(e.at), "text": e.text, "who": e.who} for e in run.events.using(store.database())
        ]
    return found


def page(run: BackfillRun) -> str:
    """Return all that is known of the run, one fact a line."""
    facts = [
        ("backfill" if run.backfill else "field", run.label),
        ("database", run.place),
        ("status", f"{state(run)}{f', waiting: {run.waiting_for}' if run.waiting_for else ''}"),
        ("rows", f"{run.rows_done:,} of {'' if run.total_is_exact else 'about '}{run.rows_total:,}"),
        ("rows/s", f"{run.rate:,.0f} (last 60 s), batches of {run.batch_size:,}"),
        ("left", span(run.time_left)),
        ("time", f"{run.seconds_running:,.0f} s at work, {run.seconds_waiting:,.0f} s waiting"),
        ("migration", run.migration),
        ("populate" if run.migration else "does", run.populate),
        ("parameters", ", ".join(f"{name}={value}" for name, value in run.shown_parameters.items())),
        ("each row", _how_often(run)),
        (
            "started",
            f"{moment(run.started) or 'not yet'}, by {run.started_by or '?'}, attempt {run.attempts}",
        ),
        ("process", "" if run.is_shared else f"{run.process} on {run.host} ({run.executor})"),
        ("queue", f"{run.options['queue']} of {run.executor}" if run.is_shared and run.options else ""),
        ("starts at", moment(run.not_before) if run.status == Status.QUEUED else ""),
        ("ranges", _ranges(run)),
        ("heartbeat", moment(run.heartbeat)),
        ("finished", moment(run.finished)),
        ("cursor", "" if run.cursor is None else str(run.cursor)),
        ("bad rows", _bad_rows(run)),
        ("error", run.error),
        ("traceback", _below(_last_lines(run.traceback))),
        ("output", _below(run.output)),
        ("events", "".join(f"\n  {_event(event)}" for event in run.events.using(store.database()))),
    ]
    lines = [f"{name + ':':<11} {text}" for name, text in facts if text]
    return "\n".join([f"Run {run.pk}", *lines, *_advice(run)])


def _how_often(run: BackfillRun) -> str:
    """Return how often a row is done, of a run that nothing but its cursor says how far it is."""
    if not run.is_cursor:
        return ""
    if run.alias == store.database():
        return "once"
    return f"once; twice where a process is killed, as runs are kept in another database ({store.database()})"


def _bad_rows(run: BackfillRun) -> str:
    more = len(run.bad_rows) - SHOWN
    lines = [f"{key}: {reason}" for key, reason in run.bad_rows[:SHOWN]]
    lines += [f"and {more:,} more"] if more > 0 else []
    lines += [f"all of them, as CSV: python manage.py backfill show {run.pk} --bad-rows"] if lines else []
    return "".join(f"\n  {line}" for line in lines)


def _last_lines(text: str) -> str:
    lines = text.splitlines()
    left_out = len(lines) - LINES
    more = [f"({left_out:,} lines before these: backfill show --json)"] if left_out > 0 else []
    return "\n".join([*more, *lines[-LINES:]])


def _ranges(run: BackfillRun) -> str:
    """Return how many have ended, and each that has not, with the worker that holds it."""
    if not run.is_shared:
        return ""
    ended = run.ranges.using(run._state.db).exclude(ended=None).count()
    return f"{ended:,} have ended" + "".join(f"\n  {_line(part)}" for part in run.open_ranges)


def _line(part: BackfillRange) -> str:
    what = "the end" if part.is_the_end else f"{part.first} to {part.last}{_at(part)}"
    who = f"held by {part.worker}" if part.is_held() else "free"
    later = f", tried again at {moment(part.not_before)}" if part.not_before else ""
    error = f": {part.error}" if part.error else ""
    return f"{part.number}: {what}; {who}, attempt {part.attempts}{later}{error}"


def _at(part: BackfillRange) -> str:
    return "" if part.cursor is None else f", at {part.cursor}"


def _range(part: BackfillRange) -> dict[str, Any]:
    plain = ("number", "first", "last", "cursor", "rows_done", "seconds", "attempts", "worker", "error")
    times = {name: _iso(getattr(part, name)) for name in ("lease_until", "not_before")}
    return {name: getattr(part, name) for name in plain} | times


def span(length: timedelta | None) -> str:
    """Return a length of time as h:mm:ss, however many hours."""
    if length is None:
        return ""
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def moment(at: datetime | None) -> str:
    """Return a moment in the time zone of the project."""
    if at is None:
        return ""
    return f"{timezone.localtime(at) if timezone.is_aware(at) else at:%Y-%m-%d %H:%M:%S}"


def _advice(run: BackfillRun) -> list[str]:
    if run.is_forgotten():
        return [
            "",
            f"No worker is at work on it. See whether one listens to the queue {run.options.get('queue')}.",
            "What the queue has forgotten is enqueued again by:",
            f"    {run.next_command}",
        ]
    if not run.is_stalled():
        return []
    return [
        "",
        "Its process gives no sign of life. Look on its host whether it is there; then go on where it ended:",
        f"    {run.command}",
    ]


def _event(event: Any) -> str:
    return f"{moment(event.at)} {event.text}{f' ({event.who})' if event.who else ''}"


def _below(text: str) -> str:
    return "".join(f"\n  {line}" for line in text.splitlines())


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
