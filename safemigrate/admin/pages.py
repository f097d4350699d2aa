"""A run in HTML, in the reader's language, for the admin."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from safemigrate.models import BackfillEvent, BackfillRun
from safemigrate.runs.status import HELD, Status

STALLED = "stalled"
LABELS = {**dict(Status.choices), STALLED: gettext_lazy("stalled")}


def state(run: BackfillRun) -> str:
    """Return the status, or "stalled" where no process gives a sign of life."""
    return STALLED if run.is_stalled() else str(run.status)


def state_in_words(run: BackfillRun) -> str:
    return str(LABELS[state(run)])


def name(run: BackfillRun) -> str:
    words = {"number": run.pk, "label": run.label, "alias": run.place}
    return _("run %(number)s (%(label)s on %(alias)s)") % words


def badge(run: BackfillRun) -> SafeString:
    found = state(run)
    return format_html('<span class="run-state run-state-{}">{}</span>', found, LABELS[found])


def moving_badge(run: BackfillRun) -> SafeString:
    """Return the badge, marked for the script where the run may look different in a few seconds."""
    return format_html("<span data-moving>{}</span>", badge(run)) if is_moving(run) else badge(run)


def live(run: BackfillRun, name: str, shown: str) -> SafeString:
    """Return a cell of the list that the script brings up to date."""
    return format_html('<div id="run-{}-{}" data-live>{}</div>', run.pk, name, shown)


def ends_at(run: BackfillRun) -> str:
    """Return when it ends, as far as its pace shows; empty where no process is at work."""
    left = run.time_left if run.is_held() else None
    return "" if left is None else moment(timezone.now() + left)


def hint(run: BackfillRun) -> SafeString:
    """Return what to do about a run that hangs, shortly."""
    return (
        format_html("<br><small>{}</small>", _("start it again, or retry"))
        if run.is_stalled()
        else SafeString("")
    )


def progress(run: BackfillRun) -> SafeString:
    """Return a bar, and what it says in words."""
    percent = int(run.fraction * 100)
    return format_html(
        '<progress class="run-progress" max="100" value="{}" aria-label="{}">{} %</progress> '
        '<span class="run-rows"><strong>{}&nbsp;%</strong> {}</span>',
        percent,
        _("rows done"),
        percent,
        percent,
        rows(run),
    )


def rows(run: BackfillRun) -> str:
    words = {"done": number(run.rows_done), "total": number(run.rows_total)}
    if run.total_is_exact or run.is_over:
        return _("%(done)s of %(total)s") % words
    return _("%(done)s of about %(total)s") % words


def rate(run: BackfillRun) -> str:
    """Return rows per second; empty where no process is at work."""
    return number(round(run.rate)) if run.is_held() else ""


def time_left(run: BackfillRun) -> str:
    return span(run.time_left) if run.is_held() else ""


def span(length: timedelta | None) -> str:
    """Return a length of time as h:mm:ss, however many hours."""
    if length is None:
        return ""
    minutes, seconds = divmod(int(length.total_seconds()), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def number(value: float) -> str:
    return number_format(value, force_grouping=True)


def moment(at: datetime | None) -> str:
    """Return the moment to the second, in the time zone of the project."""
    if at is None:
        return ""
    here = timezone.localtime(at) if timezone.is_aware(at) else at
    return f"{date_format(here)} {date_format(here, 'H:i:s')}"


def event(happened: BackfillEvent) -> str:
    """Return what happened; a move between states in the reader's words."""
    words = happened.text.split(" → ")
    return " → ".join(str(LABELS.get(word, word)) for word in words)


def facts(run: BackfillRun) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Return all else that is known of the run: headings, each with names and values."""
    what = ("backfill", "populate") if run.backfill else ("migration", "populate", "field_names")
    given = [(name.replace("_", " "), value) for name, value in run.shown_parameters.items()]
    where = ("executor", "not_before") if run.is_shared else ("host", "process", "executor")
    schema = ["schema"] if run.schema else []
    return [
        (_("Times"), _times(run)),
        (_("Who and where"), _named(run, "started_by", "attempts", *where)),
        (_("What"), [*_named(run, *what, "alias", *schema), *given, *_rows(run)]),
    ]


def _times(run: BackfillRun) -> list[tuple[str, Any]]:
    return [
        (_("time left"), time_left(run)),
        (_("ends at about"), ends_at(run)),
        (_("duration"), span(run.duration)),
        (_("time at work"), span(timedelta(seconds=run.seconds_running))),
        (_("time of waiting"), span(timedelta(seconds=run.seconds_waiting))),
        *_named(run, "created", "started", "heartbeat", "lease_until", "finished"),
    ]


def _rows(run: BackfillRun) -> list[tuple[str, Any]]:
    total = number(run.rows_total)
    return [
        (_("rows done"), number(run.rows_done)),
        (_("rows in all"), total if run.total_is_exact else _("about %(total)s") % {"total": total}),
        (_("rows per second, in the last 60 s"), rate(run)),
        (_("batch size"), number(run.batch_size) if run.batch_size else ""),
        *_named(run, "cursor"),
    ]


def _named(run: BackfillRun, *names: str) -> list[tuple[str, Any]]:
    return [(_title(name), _value(getattr(run, name))) for name in names]


def _title(name: str) -> str:
    field: Any = BackfillRun._meta.get_field(name)
    return str(field.verbose_name)


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return moment(value)
    return "" if value is None else value


def ranges(run: BackfillRun) -> list[tuple[Any, ...]]:
    """Return for each range that has not ended: number, worker, its ends, where it is, rows, attempt, error."""
    return [
        (
            part.number,
            part.worker if part.is_held() else _("nobody"),
            _("the end") if part.is_the_end else f"{part.first} … {part.last}",
            "" if part.cursor is None else part.cursor,
            number(part.rows_done),
            part.attempts,
            part.error,
        )
        for part in run.open_ranges
    ]


def is_moving(run: BackfillRun) -> bool:
    """May it look different in a few seconds?"""
    return run.status in HELD | {Status.QUEUED}


def advice(run: BackfillRun) -> str:
    """Return what to do before typing the command; empty where a process is at work, or none is needed."""
    if run.is_forgotten():
        words = {"queue": run.options.get("queue", ""), "executor": run.executor}
        return (
            _(
                "No worker is at work on it. See whether one listens to the queue %(queue)s of %(executor)s. "
                "What the queue has forgotten is enqueued again by:"
            )
            % words
        )
    if run.is_stalled():
        return _stalled(run)
    is_enqueued = run.is_shared and run.status == Status.QUEUED
    return "" if run.is_over or run.is_held() or is_enqueued else str(_NEXT[run.status])


def _stalled(run: BackfillRun) -> str:
    words = {"time": moment(run.heartbeat), "process": run.process, "host": run.host}
    first = _(
        "Its process, %(process)s on %(host)s, gives no sign of life; the last one was on %(time)s. "
        "Look there whether it is still at work."
    )
    return f"{first % words} {_NEXT_WHEN_STALLED[run.status]}"


_NEXT: dict[str, Any] = {
    Status.QUEUED: gettext_lazy("No process is at work on it. Start one, from a terminal or by cron:"),
    Status.PAUSED: gettext_lazy("No process waits for it. Resume it, then start one:"),
    Status.STOPPED: gettext_lazy("What is filled stays filled. To go on where it ended, start it again:"),
    Status.FAILED: gettext_lazy("What is filled stays filled. Mend the cause, then start it again:"),
}
_NEXT_WHEN_STALLED: dict[str, Any] = {
    Status.RUNNING: gettext_lazy(
        "Then type the same command again, or this one, and it goes on where it ended. "
        "Retry puts it in the queue for the next process that is started."
    ),
    Status.PAUSING: gettext_lazy("Pause it once more to keep it paused, or resume it and start it again:"),
    Status.CANCELLING: gettext_lazy("Cancel it once more to end it. The next fill is a new run:"),
}
