"""`manage.py backfill`: the fills outside `migrate`, and the runs that are recorded of all of them."""

from __future__ import annotations

import csv
import json
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error
from django.db import connections as databases
from django.utils import timezone

from safemigrate import backfills, conf, connections
from safemigrate.backends import for_connection
from safemigrate.engine import context
from safemigrate.engine.keys import key_to_json
from safemigrate.engine.observers import Limited, Limits, next_time, seconds
from safemigrate.exceptions import AlreadyRunning, InvalidAlias, LimitReached, SafemigrateError
from safemigrate.formatting import explained, table
from safemigrate.generator.applying import chosen_aliases, chosen_schemas, refuse_unknown
from safemigrate.generator.targets import find_all
from safemigrate.management import report
from safemigrate.models import BackfillRun
from safemigrate.runs import chain, lookup, scheduler, store, summary
from safemigrate.runs.status import Status
from safemigrate.runs.verify import shown, tried, verify

DESCRIPTION = """\
Fill required fields outside `migrate`, and see and control the runs.

Exit codes: 0 done, or stopped by a limit, or another process is at work on it already; 1 an error, or rows
without a value are left; 2 the command cannot be understood; 130 or 143 stopped by Ctrl-C or SIGTERM."""


#: A table of more rows is not counted unless that is wanted: it takes a reading of all of them.
COUNTED = 1_000_000


class Command(BaseCommand):
    help = DESCRIPTION

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs.setdefault("formatter_class", RawDescriptionHelpFormatter)
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        self._add_list(actions.add_parser("list", help="the runs, newest first"))
        self._add_show(actions.add_parser("show", help="all that is known of a run"))
        self._add_run(actions.add_parser("run", help="fill a field, or run a backfill, now, in this process"))
        self._add_set(actions.add_parser("set", help="change how a run is worked on, while it is"))
        actions.add_parser("requeue", help="enqueue the runs that no worker works on; for cron or beat")
        report = actions.add_parser("report", help="what a bug report needs, without secrets")
        report.add_argument("id", type=int, nargs="?", help="the number of the run that it is about")
        for name, meaning in CONTROLS.items():
            actions.add_parser(name, help=meaning).add_argument("id", type=int, help="the run's number")
        verify = actions.add_parser(
            "verify", help="count the rows left, and those with another value; exit code 1 if any"
        )
        self._add_label(verify)
        verify.add_argument("--left", action="store_true", help="count the rows left, and compute nothing")
        verify.add_argument(
            "--sample", type=_count, metavar="N", help="compute about N rows again, and not all"
        )
        for action in actions.choices.values():
            _take_options_of(parser, action)

    @staticmethod
    def _add_schemas(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--schemas",
            metavar="NAMES",
            help="with django-tenants, in these schemas, one after another: one,two or all",
        )

    def _add_list(self, parser: ArgumentParser) -> None:
        self._add_schemas(parser)
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")
        parser.add_argument("--limit", type=_count, default=20, metavar="N", help="no more than N (20)")

    @staticmethod
    def _add_show(parser: ArgumentParser) -> None:
        parser.add_argument("id", type=int, help="the run's number")
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")
        parser.add_argument(
            "--bad-rows", action="store_true", help="all rows that have no value, as CSV: key and reason"
        )
        parser.add_argument("--follow", action="store_true", help="go on showing it until it ends")

    @staticmethod
    def _add_set(parser: ArgumentParser) -> None:
        parser.add_argument("id", type=int, help="the run's number")
        meant = {
            "batch-size": "rows in a batch",
            "rows-per-second": "no more than these",
            "workers": "of a queue",
        }
        for name, meaning in meant.items():
            parser.add_argument(f"--{name}", type=_count, metavar="N", help=meaning)

    def _add_label(self, parser: ArgumentParser) -> None:
        self._add_schemas(parser)
        parser.add_argument(
            "label", metavar="LABEL", help="a field, app.Model.field, or a backfill of an app, app.Class"
        )
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a parameter of a backfill's form",
        )
        parser.add_argument(
            "--database", action="append", default=[], metavar="ALIAS", help="the database; may be repeated"
        )
        parser.add_argument(
            "--all-databases", action="store_true", help="every database that the model is on"
        )

    def _add_run(self, parser: ArgumentParser) -> None:
        self._add_label(parser)
        parser.add_argument("--max-time", type=_seconds, metavar="2h", help="stop cleanly after this time")
        parser.add_argument("--max-rows", type=_count, metavar="N", help="stop after about so many rows")
        parser.add_argument("--until", type=_time_of_day, metavar="06:00", help="stop at this time of day")
        parser.add_argument("--batch-size", type=_count, metavar="N", help="rows in a batch")
        parser.add_argument(
            "--workers",
            type=_count,
            metavar="N",
            help="so many connections, or workers of a queue, fill at once",
        )
        parser.add_argument(
            "--rows-per-second",
            type=_count,
            metavar="N",
            help="no more than these, in place of SAFEMIGRATE_ROWS_PER_SECOND",
        )
        parser.add_argument(
            "--throttle",
            action="append",
            metavar="PATH",
            help="in place of SAFEMIGRATE_THROTTLES; may be repeated",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be filled, and fill nothing"
        )
        parser.add_argument(
            "--count",
            action="store_true",
            help=f"with --dry-run: count the rows of a table of more than about {COUNTED:,} too",
        )
        self._add_executors(parser)

    @staticmethod
    def _add_executors(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--executor", choices=conf.EXECUTORS, help="in place of SAFEMIGRATE_EXECUTOR: by whose workers"
        )
        parser.add_argument("--queue", metavar="NAME", help="in place of SAFEMIGRATE_QUEUE")
        parser.add_argument(
            "--task-seconds", type=_seconds, metavar="30", help="in place of SAFEMIGRATE_TASK_SECONDS"
        )
        start = parser.add_mutually_exclusive_group()
        start.add_argument(
            "--eta", type=_time_of_day, metavar="02:00", help="have workers begin at this time"
        )
        start.add_argument(
            "--countdown", type=_seconds, metavar="10m", help="have workers begin after this time"
        )
        parser.add_argument(
            "--chain", action="store_true", help="one database after another, then verify; an error ends it"
        )
        parser.add_argument(
            "--migrate", action="store_true", help="with --chain: then migrate to where the field is required"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if schemas := options.get("schemas"):
                self._in_each(chosen_schemas(schemas), options)
            else:
                self._act(options)
        except SafemigrateError as error:
            raise CommandError(explained(error)) from error
        except Error as error:
            raise CommandError(
                f"The database says: {str(error).strip()}. What was filled stays. See to the cause, and run it again: "
                "it carries on from here (--traceback shows where it was)."
            ) from error

    def _act(self, options: Mapping[str, Any]) -> None:
        action = options["action"]
        act = getattr(self, f"_{action}", partial(self._control, action))
        if action not in WITHOUT_RUNS and (reason := store.unreadable()):
            raise CommandError(reason)
        act(options)

    def _in_each(self, schemas: Sequence[str], options: Mapping[str, Any]) -> None:
        """Do it in the schema of each tenant, whatever happens in the one before."""
        failed = []
        for schema in schemas:
            self.stdout.write(f"Schema {schema}")
            try:
                with connections.in_schema(schema):
                    self._act(options)
            except (CommandError, SafemigrateError, Error) as error:
                failed.append(f"Schema {schema}: {_reason(error)}")
        if failed:
            raise CommandError("\n".join(failed))

    # Looking

    def _list(self, options: Mapping[str, Any]) -> None:
        runs = store.records()
        if options["schemas"]:  # Where the runs are kept in a schema of all tenants, those of this one.
            runs = runs.filter(schema=connections.schema_of(store.database()))
        found = list(runs[: options["limit"]])
        if options["json"]:
            self.stdout.write(json.dumps([summary.as_dict(run) for run in found], indent=2))
        elif found:
            self.stdout.write(
                table(summary.HEADINGS, [summary.row(run) for run in found], right=summary.RIGHT)
            )
        else:
            self.stdout.write("No runs are recorded yet.")
        if not (options["json"] or options["schemas"]):
            self._list_never_run()

    def _list_never_run(self) -> None:
        """Name the backfills of the apps that have no run yet."""
        known = set(store.records().exclude(backfill="").values_list("backfill", flat=True))
        new = [
            (label, each.summary()) for label, each in backfills.registered().items() if label not in known
        ]
        if new:
            self.stdout.write("\nNever run yet:")
            self.stdout.write(table(["backfill", "what it does"], new))

    def _show(self, options: Mapping[str, Any]) -> None:
        run = store.find(options["id"])
        if options["bad_rows"]:
            self._write_bad_rows(run)
            return
        while True:
            self.stdout.write(
                json.dumps(summary.as_dict(run, full=True), indent=2)
                if options["json"]
                else summary.page(run)
            )
            if not options["follow"] or not (run.is_held() or run.status == Status.QUEUED):
                return
            time.sleep(1)
            run = store.find(options["id"])

    def _report(self, options: Mapping[str, Any]) -> None:
        run = None if options["id"] is None else store.find(options["id"])
        self.stdout.write(report.report(run))

    def _write_bad_rows(self, run: BackfillRun) -> None:
        """Write a line for each row that is NULL now, with the reason where the run knows it."""
        lines = csv.writer(self.stdout)
        lines.writerow(["key", "reason"])
        reasons = {json.dumps(key): reason for key, reason in run.bad_rows}
        with connections.in_schema(run.schema):
            job = lookup.find(run.job_label, run.alias, run.parameters)
            for key in map(key_to_json, job.keys_left()):
                text = key if isinstance(key, str) else json.dumps(key)
                lines.writerow([text, reasons.get(json.dumps(key), "")])

    def _verify(self, options: Mapping[str, Any]) -> None:
        wrong = [alias for alias in self._aliases(options) if not self._verify_on(alias, options)]
        if wrong:
            raise CommandError(f"Not every row is right on {', '.join(wrong)}.", returncode=1)

    def _verify_on(self, alias: str, options: Mapping[str, Any]) -> bool:
        """Write how many rows are left, and how many have another value than one that is computed again."""
        job, label = self._job(options, alias), options["label"]
        left = 0 if not job.target.is_marked else job.rows_left()
        what = "without a value" if job.migration else "still to be done"
        found = None if options["left"] else verify(job, options["sample"])
        again = "" if found is None else f"; of {found.rows:,} computed again, {found.differ:,} differ"
        since = (
            f", {found.since:,} of them written by the site since"
            if found is not None and found.since
            else ""
        )
        self.stdout.write(f"{label} on {alias}: {left:,} rows {what}{again}{since}")
        if found is None:
            return not left
        if found.first:
            rows = [[str(key), *map(shown, [*old, *new])] for key, old, new in found.first]
            names = list(job.target.names)
            self.stdout.write(table(["key", *names, *(f"{name}, computed" for name in names)], rows))
        return found.is_right and not left

    # Action

    def _control(self, action: str, options: Mapping[str, Any]) -> None:
        run = getattr(store, action)(options["id"], store.person())
        self.stdout.write(f"Run {run.pk} ({run}) is {run.get_status_display()}.")
        if run.is_shared and run.status == Status.QUEUED:
            self.stdout.write(f"Its workers are called. If none takes it: {run.next_command}")
        elif run.status == Status.QUEUED:
            self.stdout.write(f"The next process takes it: {run.command}")

    def _set(self, options: Mapping[str, Any]) -> None:
        names = ("batch_size", "rows_per_second", "workers")
        wanted = {name: options[name] for name in names if options[name] is not None}
        if not wanted:
            raise CommandError(
                "Say what to change: --batch-size, --rows-per-second or --workers.", returncode=2
            )
        run = scheduler.change(options["id"], store.person(), **wanted)
        self.stdout.write(
            f"Run {run.pk} ({run}) is changed: {', '.join(f'{n}={v}' for n, v in wanted.items())}."
        )

    def _requeue(self, options: Mapping[str, Any]) -> None:
        for line in scheduler.requeue():
            self.stdout.write(line)

    # Filling

    def _run(self, options: Mapping[str, Any]) -> None:
        executor = options["executor"] or self._executor_of(options) or conf.get("SAFEMIGRATE_EXECUTOR")
        _refuse_mixed(options, executor)
        if options["count"] and not options["dry_run"]:
            raise CommandError("--count is a part of --dry-run: add that too.", returncode=2)
        if lookup.is_backfill(options["label"]):  # What is wrong with its parameters is so on each database.
            lookup.find(options["label"], "default", _parameters(options))
        if executor != "inline" and not options["dry_run"]:
            self._begin(executor, options)
        elif options["chain"]:
            self._chain(options)
        else:
            self._fill_each(options)

    @staticmethod
    def _executor_of(options: Mapping[str, Any]) -> str:
        label = options["label"]
        return backfills.find(label).executor if lookup.is_backfill(label) else ""

    def _begin(self, executor: str, options: Mapping[str, Any]) -> None:
        """Give the runs to the workers of a queue: all at once, or the first of a chain."""
        aliases = list(self._aliases(options))
        wanted = {
            "queue": options["queue"],
            "workers": options["workers"],
            "seconds": options["task_seconds"],
        }
        wanted |= {"throttles": options["throttle"], "batch_size": options["batch_size"]}
        wanted |= {"rows_per_second": options["rows_per_second"]}
        with_options = scheduler.options_of(**wanted)
        failed = []
        for number, alias in enumerate(aliases):
            links = chain.links(aliases, number, migrate=options["migrate"]) if options["chain"] else None
            try:
                begun = self._begin_on(alias, executor, with_options, links, options)
            except AlreadyRunning as reason:
                self.stdout.write(str(reason))
                begun = True
            except (SafemigrateError, Error) as error:
                failed.append(f"{alias}: {_reason(error)}")
                begun = links is not None
            if begun and options["chain"]:
                break
        else:
            self._finish(aliases, options)
        if failed:
            raise CommandError("\n".join(failed))

    def _begin_on(
        self, alias: str, executor: str, wanted: dict[str, Any], links: Any, options: Mapping[str, Any]
    ) -> bool:
        job = self._job(options, alias)
        self._say_again(job)
        at = _start(options)
        run = scheduler.begin(job, executor, wanted, not_before=at, next_run=links)
        if run is None:
            self.stdout.write(f"{job.label} on {alias}: {_done(job)}; nothing was enqueued.")
            return False
        when = f" from {summary.moment(at)} on" if at else ""
        self.stdout.write(
            f"{job.label} on {alias}: run {run.pk}, enqueued in {run.options['queue']} of {executor}; no more than "
            f"{run.options['workers']} of its workers fill at once{when}. To see it: "
            f"python manage.py backfill show {run.pk} --follow"
        )
        return True

    def _chain(self, options: Mapping[str, Any]) -> None:
        """Fill one database after another here, and end with the first that is not full."""
        aliases, limit = list(self._aliases(options)), _limits(options)
        try:
            for alias in aliases:
                self._fill(alias, limit, options)
        except (AlreadyRunning, LimitReached) as reason:
            self.stdout.write(str(reason))
        else:
            self._finish(aliases, options)

    def _finish(self, aliases: Sequence[str], options: Mapping[str, Any]) -> None:
        if options["chain"] and not options["dry_run"]:
            chain.finish(options["label"], aliases, migrate=options["migrate"], report=self.stdout.write)

    def _fill_each(self, options: Mapping[str, Any]) -> None:
        limit = _limits(options)
        failed = []
        for alias in self._aliases(options):
            try:
                self._fill(alias, limit, options)
            except (AlreadyRunning, LimitReached) as reason:
                self.stdout.write(str(reason))
            except (SafemigrateError, Error) as error:  # The next database gets its turn.
                failed.append(f"{alias}: {_reason(error)}")
        if failed:
            raise CommandError("\n".join(failed))

    def _fill(self, alias: str, limit: Limits, options: Mapping[str, Any]) -> None:
        job = self._job(options, alias)
        if options["dry_run"]:
            self._try(job, count=options["count"])
            return
        self._say_again(job)
        limited = Limited(limit)
        with conf.changed(**_settings(options)), context.changed(observers=[lambda: limited]):
            job.run(batch_size=options["batch_size"], throttles=options["throttle"])
        with suppress(Error):  # The runs' database may be away: the rows are filled.
            store.close(job.target)
        now = f", {limited.rows:,} of them now" if limited.rows else ""
        self.stdout.write(f"{job.label} on {alias}: {_done(job)}{now}.")

    def _say_again(self, job: lookup.Job) -> None:
        """Say so where each row was done once already, and is to be done another time."""
        if job.migration or not job.target.is_cursor:
            return
        last = store.last_run(job.target)
        if last and last.status == Status.SUCCEEDED and last.finished:
            self.stdout.write(
                f"{job.label} on {job.alias} was done by run {last.pk}, at {summary.moment(last.finished)}. This is "
                "another run: each row is done once more."
            )

    def _try(self, job: lookup.Job, *, count: bool) -> None:
        """Say how many rows it would be; of a backfill, show some of them before and after."""
        rows, migration = f"{_how_many(job, count=count)} of {job.label} on {job.alias}", job.migration
        self.stdout.write(
            f"Would {'do' if not migration else 'fill'} {rows} by {job.title}"
            + (f" ({migration})." if migration else ".")
        )
        text, bad = ("", 0) if migration else tried(job)
        if text:
            self.stdout.write(text)
        if bad:
            raise CommandError(f"{bad:,} of the rows that were tried would be bad rows.")

    @staticmethod
    def _job(options: Mapping[str, Any], alias: str) -> lookup.Job:
        job = lookup.find(options["label"], alias, _parameters(options))
        job.check_column()
        return job

    @staticmethod
    def _aliases(options: Mapping[str, Any]) -> Sequence[str]:
        if lookup.is_backfill(options["label"]):
            allowed = backfills.find(options["label"]).databases
            refuse_unknown(options["database"])
            if other := [alias for alias in options["database"] if alias not in allowed]:
                raise InvalidAlias(
                    f"{options['label']} is not for the database {other[0]}: its databases are {', '.join(allowed)}."
                )
            return options["database"] or (allowed if options["all_databases"] else allowed[:1])
        targets = find_all([options["label"]])
        return chosen_aliases(options["database"], every=options["all_databases"], targets=targets)


#: The actions that need no record of a run; all others are about them.
WITHOUT_RUNS = {"run", "verify", "report"}
CONTROLS = {
    "pause": "let a run pause after its batch, until it is resumed",
    "resume": "let a paused run go on",
    "cancel": "end a run for good after its batch; what is filled stays filled",
    "retry": "let the next process take a run that failed, was stopped, or whose process is gone",
}


def _take_options_of(parser: ArgumentParser, action: ArgumentParser) -> None:
    """Let Django's own options, --settings among them, stand behind an action too."""
    for option in parser._actions:
        if option.option_strings and option.dest not in {"help", "version"}:
            again = copy(option)
            again.default = again.help = SUPPRESS
            action._add_action(again)


def _parameters(options: Mapping[str, Any]) -> dict[str, str]:
    """Return what --set gives."""
    given: dict[str, str] = {}
    for text in options["set"]:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise CommandError(f"--set {text}: give it as --set name=value.", returncode=2)
        if name in given:
            raise CommandError(f"--set {name} stands twice.", returncode=2)
        given[name] = value
    if given and not lookup.is_backfill(options["label"]):
        raise CommandError("--set is for the parameters of a backfill, and a field has none.", returncode=2)
    return given


def _reason(error: Exception) -> str:
    return explained(error) if isinstance(error, SafemigrateError) else str(error).strip()


def _done(job: lookup.Job) -> str:
    return "every row has a value" if job.migration and not job.target.leaves_null else "every row is done"


def _how_many(job: lookup.Job, *, count: bool) -> str:
    about = for_connection(databases[job.alias]).estimated_rows(job.model)
    if count or about <= COUNTED:
        return f"{job.rows_left():,} rows"
    return f"some of about {about:,} rows (--count counts them)"


def _limits(options: Mapping[str, Any]) -> Limits:
    return Limits(time.monotonic(), options["max_time"], options["until"], options["max_rows"])


def _start(options: Mapping[str, Any]) -> datetime | None:
    at: datetime | None = options["eta"]
    if options["countdown"] is not None:
        at = timezone.now() + timedelta(seconds=options["countdown"])
    return at


#: What means something only where one process fills, and only where the workers of a queue do.
ALONE = {"max_time": "--max-time", "max_rows": "--max-rows", "until": "--until"}
SHARED = {"queue": "--queue", "task_seconds": "--task-seconds", "eta": "--eta", "countdown": "--countdown"}


def _refuse_mixed(options: Mapping[str, Any], executor: str) -> None:
    wrong = SHARED if executor == "inline" else ALONE
    given = [flag for name, flag in wrong.items() if options[name] is not None]
    if given and executor == "inline":
        raise CommandError(
            f"{given[0]} is for the workers of a queue: add --executor celery, rq or tasks.", returncode=2
        )
    if given:
        raise CommandError(
            f"{given[0]} is for a fill in this process, and {executor} does it elsewhere. To fill at some hours only: "
            "--throttle safemigrate.throttles.FillHours; to end it: python manage.py backfill pause.",
            returncode=2,
        )
    if options["migrate"] and not options["chain"]:
        raise CommandError("--migrate is the end of a chain: add --chain.", returncode=2)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given for this call."""
    given = {
        "SAFEMIGRATE_WORKERS": options["workers"],
        "SAFEMIGRATE_ROWS_PER_SECOND": options["rows_per_second"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a number, 1 or more.")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _time_of_day(text: str) -> datetime:
    try:
        return next_time(text, timezone.localtime())
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
