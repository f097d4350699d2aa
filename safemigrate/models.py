"""The runs, as they are kept: what a fill did, does, and shall do next."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from shlex import quote

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from safemigrate.connections import schema_of
from safemigrate.runs.heartbeat import is_gone
from safemigrate.runs.status import HELD, OVER, Status

#: Under this name stand the names of the parameters that are not to be shown; and what stands in their place.
SENSITIVE, HIDDEN = "_sensitive", "********"
#: Within this time a worker that listens takes what was enqueued.
TAKEN_WITHIN = timedelta(seconds=10)


class BackfillRun(models.Model):
    """One fill of one field (or several in one pass) on one database.

    `open_key` is unique while the run is not over, and NULL afterwards: at most one run of a field on an
    alias is open. `token` grows with each process that takes the run; only the one that holds the newest
    may write. It holds it until `lease_until`, which its heartbeat moves on.
    """

    app_label = models.CharField(_("app"), max_length=100)
    model_name = models.CharField(_("model"), max_length=100)
    field_names = models.CharField(_("field"), max_length=500, help_text=_("several are separated by +"))
    alias = models.CharField(_("database"), max_length=100)
    # Of a tenant, with django-tenants; the runs may be kept in a schema that all tenants share.
    schema = models.CharField(_("schema"), max_length=63, blank=True, default="", editable=False)
    # Of a Backfill: its label, what it was given, and what says which rows are left.
    backfill = models.CharField(_("backfill"), max_length=200, blank=True, default="")
    parameters = models.JSONField(_("parameters"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    is_cursor = models.BooleanField(default=False, editable=False)
    migration = models.CharField(_("migration"), max_length=255, blank=True)
    populate = models.TextField(_("populate"), blank=True)
    fingerprint = models.CharField(max_length=80, blank=True, editable=False)
    executor = models.CharField(_("executor"), max_length=20, default="inline")
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.QUEUED)
    open_key = models.CharField(max_length=255, null=True, unique=True, editable=False)  # noqa: DJ001  see above

    cursor = models.JSONField(_("cursor"), null=True, encoder=DjangoJSONEncoder)
    rows_done = models.BigIntegerField(_("rows done"), default=0)
    rows_total = models.BigIntegerField(_("rows in all"), default=0)
    total_is_exact = models.BooleanField(_("counted"), default=False)
    batch_size = models.PositiveIntegerField(_("batch size"), default=0)
    bad_rows = models.JSONField(_("bad rows"), default=list, encoder=DjangoJSONEncoder)
    samples = models.JSONField(default=list, editable=False)

    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    token = models.PositiveBigIntegerField(default=0, editable=False)
    lease_until = models.DateTimeField(_("held until"), null=True)
    host = models.CharField(_("host"), max_length=255, blank=True)
    process = models.PositiveIntegerField(_("process"), null=True)
    machine = models.CharField(max_length=200, blank=True, editable=False)
    started_by = models.CharField(_("started by"), max_length=150, blank=True)

    created = models.DateTimeField(_("created"), default=timezone.now)
    started = models.DateTimeField(_("started"), null=True)
    heartbeat = models.DateTimeField(_("heartbeat"), null=True)
    finished = models.DateTimeField(_("finished"), null=True)
    seconds_running = models.FloatField(_("seconds at work"), default=0)
    seconds_waiting = models.FloatField(_("seconds of waiting"), default=0)
    waiting_for = models.CharField(_("waiting"), max_length=500, blank=True)

    # Of a run that the workers of a queue share:
    options = models.JSONField(_("options"), default=dict, blank=True)
    last_key = models.JSONField(null=True, encoder=DjangoJSONEncoder, editable=False)
    not_before = models.DateTimeField(_("starts at"), null=True)
    next_run = models.JSONField(_("afterwards"), null=True)
    enqueued_at = models.DateTimeField(null=True, editable=False)
    enqueue_attempts = models.PositiveIntegerField(default=0, editable=False)

    error = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    output = models.TextField(_("last lines of output"), blank=True)

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        ordering = ["-created", "-pk"]
        default_permissions = ("view", "delete")
        permissions = [
            ("pause_backfillrun", _("Can pause a run")),
            ("resume_backfillrun", _("Can resume a run")),
            ("cancel_backfillrun", _("Can cancel a run")),
            ("retry_backfillrun", _("Can retry a run")),
            ("start_backfillrun", _("Can start a backfill")),
            ("set_backfillrun", _("Can change the pace of a run")),
        ]
        indexes = [models.Index(fields=["status", "alias"], name="safemigrate_run_status")]

    def __str__(self) -> str:
        return f"{self.label} on {self.place}"

    @property
    def place(self) -> str:
        """The database, and a tenant's schema on it."""
        return f"{self.alias}, schema {self.schema}" if self.schema else self.alias

    @property
    def label(self) -> str:
        return self.backfill or f"{self.app_label}.{self.model_name}.{self.field_names}"

    @property
    def job_label(self) -> str:
        """What `backfill run` is given for it: of several fields, the first."""
        return self.label.partition("+")[0]

    @property
    def command(self) -> str:
        """The line to type that goes on with it."""
        if self.is_cursor and not (self.backfill or self.migration):  # It went the way back of a migration.
            return f"python manage.py migrate {self.app_label} --database {self.alias}, with the migration before it"
        by = "" if self.executor == "inline" else f" --executor {self.executor}"
        given = "".join(f" --set {quote(f'{name}={value}')}" for name, value in self.shown_parameters.items())
        schema = f" --schemas {self.schema}" if self.schema else ""
        return f"python manage.py backfill run {self.job_label} --database {self.alias}{schema}{given}{by}"

    @property
    def shown_parameters(self) -> dict[str, object]:
        """What it was given, without what is not to be shown."""
        hidden = self.parameters.get(SENSITIVE, [])
        given = {name: value for name, value in self.parameters.items() if name != SENSITIVE}
        return {name: HIDDEN if name in hidden else value for name, value in given.items()}

    @property
    def next_command(self) -> str:
        """The line to type where no process is at work on it."""
        waits = self.is_shared and self.status in HELD | {Status.QUEUED}
        return "python manage.py backfill requeue" if waits else self.command

    def set_to(self, name: str) -> int | None:
        """What a person has set for it: its batch size, its rows per second, its workers."""
        found = self.options.get("workers") if name == "workers" else self.options.get("set", {}).get(name)
        return None if found is None else int(found)

    @property
    def is_shared(self) -> bool:
        """Do the workers of a queue share it?"""
        return self.executor != "inline"

    @property
    def open_ranges(self) -> list[BackfillRange]:
        """The ranges that have been cut and have not ended, the first 100, of a run that workers share."""
        return list(self.ranges.using(self._state.db).filter(ended=None)[:100]) if self.is_shared else []

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def is_held(self, now: datetime | None = None) -> bool:
        """Does a process hold the run, as far as its heartbeat, and this machine, show?"""
        alive = self.lease_until is not None and self.lease_until > (now or timezone.now())
        return alive and not (self.process and is_gone(self.process, self.machine))

    def is_stalled(self, now: datetime | None = None) -> bool:
        """Should a process be at work on the run, and gives no sign of life?"""
        return self.status in HELD - {Status.PAUSED} and not self.is_held(now)

    def is_forgotten(self, now: datetime | None = None) -> bool:
        """Should workers of a queue be at work on it, and none is? One that was just enqueued is given a moment."""
        now = now or timezone.now()
        early = self.not_before is not None and self.not_before > now
        fresh = self.enqueued_at is not None and self.enqueued_at > now - TAKEN_WITHIN
        waits = self.status == Status.QUEUED and not fresh
        return self.is_shared and not early and (self.is_stalled(now) or waits)

    @property
    def rate(self) -> float:
        """Rows per second over the last 60 s of work."""
        return rate(self.samples)

    @property
    def fraction(self) -> float:
        if self.status == Status.SUCCEEDED:
            return 1.0
        return min(self.rows_done / self.rows_total, 1.0) if self.rows_total else 0.0

    @property
    def time_left(self) -> timedelta | None:
        if self.is_over or not self.rate:
            return None
        return timedelta(seconds=round(max(self.rows_total - self.rows_done, 0) / self.rate))

    @property
    def duration(self) -> timedelta | None:
        if self.started is None:
            return None
        return (self.finished or timezone.now()) - self.started


class BackfillRange(models.Model):
    """A part of a run that workers share: the rows with first <= key <= last, or first < key where `after` is set.

    One worker holds it at a time, until `lease_until`; `token` grows with each that takes it, and only the
    newest may write. The range whose `last` is NULL is the end of the run: what is left anywhere in the table.
    """

    run = models.ForeignKey(BackfillRun, models.CASCADE, related_name="ranges", verbose_name=_("run"))
    number = models.PositiveIntegerField(_("number"))
    first = models.JSONField(_("from"), null=True, encoder=DjangoJSONEncoder)
    last = models.JSONField(_("to"), null=True, encoder=DjangoJSONEncoder)
    after = models.BooleanField(default=False, editable=False)
    size = models.PositiveIntegerField(_("rows"), default=0)

    cursor = models.JSONField(_("cursor"), null=True, encoder=DjangoJSONEncoder)
    rows_done = models.BigIntegerField(_("rows done"), default=0)
    seconds = models.FloatField(_("seconds at work"), default=0)
    bad_rows = models.JSONField(default=list, encoder=DjangoJSONEncoder, editable=False)

    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    token = models.PositiveBigIntegerField(default=0, editable=False)
    lease_until = models.DateTimeField(_("held until"), null=True)
    not_before = models.DateTimeField(_("tried again at"), null=True)
    worker = models.CharField(_("worker"), max_length=255, blank=True)
    error = models.TextField(_("error"), blank=True)
    ended = models.DateTimeField(_("ended"), null=True)

    class Meta:
        verbose_name = _("range")
        verbose_name_plural = _("ranges")
        ordering = ["run", "number"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["run", "number"], name="safemigrate_range_number")]
        # For what each worker asks under a lock: which are held, and which are free.
        indexes = [
            models.Index(fields=["lease_until"], name="safemigrate_range_lease"),
            models.Index(fields=["run", "ended"], name="safemigrate_range_ended"),
        ]

    def __str__(self) -> str:
        return f"{self.run}, range {self.number}"

    def is_held(self) -> bool:
        return self.lease_until is not None and self.lease_until > timezone.now()

    #: Did the worker that had it before leave it without a word? Known to the one that took it.
    was_left = False

    @property
    def is_the_end(self) -> bool:
        return self.last is None


class BackfillEvent(models.Model):
    """What happened to a run: a move between states, a changed setting, an error; when, and by whom."""

    run = models.ForeignKey(BackfillRun, models.CASCADE, related_name="events", verbose_name=_("run"))
    at = models.DateTimeField(_("at"), default=timezone.now)
    text = models.TextField(_("event"))
    who = models.CharField(_("who"), max_length=150, blank=True)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ["at", "pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.text


def rate(samples: list[list[float]]) -> float:
    """Return rows per second over the last 60 s of (seconds at work, rows done) samples."""
    if len(samples) < 2:
        return 0.0
    last_time, last_rows = samples[-1]
    first_time, first_rows = next(sample for sample in samples if sample[0] >= last_time - 60)
    if first_time == last_time:
        first_time, first_rows = samples[-2]
    return max((last_rows - first_rows) / (last_time - first_time), 0.0) if last_time > first_time else 0.0


def open_key(label: str, alias: str) -> str:
    """Return what is unique among the runs that are not over, in the schema that the caller is in."""
    key = ":".join(filter(None, [alias, schema_of(alias), label.lower()]))
    return key if len(key) <= 255 else hashlib.sha256(key.encode()).hexdigest()
