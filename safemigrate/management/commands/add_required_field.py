"""python manage.py add_required_field polls.Question.expires_date"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser, no_translations
from django.db import models

from safemigrate.exceptions import InvalidExpression, OtherChanges, SafemigrateError
from safemigrate.formatting import explained
from safemigrate.generator import abandoning, applying, dependencies, rollout, writer
from safemigrate.generator.autodetector import Migrations
from safemigrate.generator.planner import Phase, from_default, phases_for
from safemigrate.generator.targets import RequiredField, find_all
from safemigrate.plan import plan, render
from safemigrate.populate.expressions import Snippet, read
from safemigrate.schema.steps import Step

DESCRIPTION = """\
Write the migration that adds a required field to a table with old rows, or makes a nullable one required, while
the site keeps serving.

The field is read from models.py, where it stands as it is to be, without null=True."""

QUESTION = """
Old rows need a value for {label} ({kind}). How do they get it?

  {example:<40} {meaning}
  polls.populate.{name:<25} a function of yours, by its dotted path: called for each row
  q                                        leave; nothing is written
"""

AT_ONCE = """\
--migrate applies all files now, and the order in which they are to be deployed is lost: code that does not know
that the field is required cannot insert any more when this ends. That is right only where no such code runs."""

EXAMPLES: dict[type[models.Field[Any, Any]], tuple[str, str]] = {
    models.BooleanField: ("False", "the same in every row"),
    models.DecimalField: ('Decimal("0")', "the same in every row"),
    models.FloatField: ("0.0", "the same in every row"),
    models.IntegerField: ("0", "the same in every row"),
    models.CharField: ('"draft"', "the same in every row"),
    models.TextField: ('""', "the same in every row"),
    models.JSONField: ("dict", "an empty dict in every row"),
}


class Command(BaseCommand):
    help = DESCRIPTION

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "labels",
            nargs="+",
            metavar="app.Model.field",
            help="The field, as in polls.Question.expires_date: a new one, or one that is null=True in the migrations. "
            "Several go together, app by app.",
        )
        parser.add_argument(
            "--populate",
            action="append",
            metavar="TEXT",
            help="How old rows get their value: a value, a Django expression in Python, or the dotted path "
            "of a function. Once for all fields, or once for each in their order.",
        )
        self._add_writing_arguments(parser)
        self._add_migrating_arguments(parser)
        self._add_planning_arguments(parser)

    def _add_writing_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--phases",
            type=int,
            choices=(1, 3),
            default=1,
            help="1: one migration does it all (the default). "
            "3: three migrations, for a deployment in steps: add and guard, fill, require and unguard.",
        )
        parser.add_argument(
            "--keep-guard",
            action="store_true",
            help="One migration, after which the database goes on filling the field in rows that are inserted "
            "without it.",
        )
        parser.add_argument("-n", "--name", help="Name of the migration, without its number.")
        parser.add_argument(
            "--batch-size",
            type=_rows,
            metavar="N",
            help="Rows in a batch; left out, the time it takes decides.",
        )
        parser.add_argument(
            "--only-this-field",
            action="store_true",
            help="Write the field even though models.py has other changes, and leave those for later.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Show the migrations that would be written, and write nothing.",
        )
        parser.add_argument(
            "--abandon",
            action="store_true",
            help="Give up an attempt that did not end: show what it left on each database, or on those of --database, "
            "ask, and undo it: guard, helper constraints, the column if no applied migration has it, and its run.",
        )
        parser.add_argument(
            "--no-input",
            "--noinput",
            action="store_false",
            dest="interactive",
            help="Never ask; fail when the value for old rows is not known.",
        )

    def _add_migrating_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--migrate", action="store_true", help="Apply the migrations at once.")
        parser.add_argument(
            "--database",
            action="append",
            default=[],
            metavar="ALIAS",
            help="With --migrate or --plan: the database; may be given several times.",
        )
        parser.add_argument(
            "--all-databases",
            action="store_true",
            help="With --migrate: every database that the routers let the model be in; --plan means them anyway.",
        )

    def _add_planning_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--plan",
            action="store_true",
            help="Show what it would do to each database, in what time and with which locks, and write nothing. "
            "Exits with 1 when a step is not safe to run.",
        )
        parser.add_argument(
            "--format", choices=tuple(render.FORMATS), default="text", help="With --plan: how it is shown."
        )

    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        _check_options(options)
        try:
            if options["abandon"]:
                self._abandon(options)
                return
            self._handle(find_all(options["labels"]), options)
        except SafemigrateError as error:
            raise CommandError(explained(error)) from error

    def _handle(self, targets: Sequence[RequiredField], options: Mapping[str, Any]) -> None:
        if options["plan"]:
            self._show_plan(targets, options)
            return
        aliases = []
        if options["migrate"]:
            aliases = applying.chosen_aliases(
                options["database"], every=options["all_databases"], targets=targets
            )
        migrations = Migrations()
        written = [target for target in targets if options["migrate"] and migrations.written(target)]
        for target in written:
            migrations.check_unchanged(target)
            self._log(f"{target.app_label}.{migrations.written(target)} adds {target.label} already.")
        new = [target for target in targets if target not in written]
        if new:
            self._write(new, migrations, options)
        if aliases:
            if new and options["phases"] == 3:
                self.stderr.write(self.style.WARNING(AT_ONCE))
            self._migrate(targets, aliases, options)

    def _abandon(self, options: Mapping[str, Any]) -> None:
        applying.refuse_unknown(options["database"])
        attempts = abandoning.attempts(options["labels"], options["database"])
        left = {attempt: steps for attempt in attempts if (steps := attempt.left())}
        for attempt in attempts:
            self.stdout.write(f"{attempt.label} on {attempt.alias}: {_left(left.get(attempt, []))}")
        if not left or options["dry_run"]:
            return
        if not self._may_undo(options):
            raise CommandError("Nothing was changed.")
        for attempt, steps in left.items():
            runs = "".join(f", run {number} cancelled" for number in attempt.undo(steps))
            self._log(self.style.SUCCESS(f"{attempt.label} on {attempt.alias}: undone{runs}."))
        files = ", ".join(sorted({name for attempt in attempts for name in attempt.files()}))
        if files:
            self._log(
                f"Not applied, and still there: {files}. Run migrate to try again; or else delete the file, and take "
                "the field out of models.py, or put null=True back where the column was nullable before."
            )

    def _may_undo(self, options: Mapping[str, Any]) -> bool:
        if not options["interactive"]:
            return True
        if not _may_ask(options):
            raise CommandError("Nothing was changed. To undo it without being asked, add --no-input.")
        return self._ask("Undo it? Values in a column that is dropped are lost. [y/N] ").lower() in (
            "y",
            "yes",
        )

    def _write(
        self, targets: Sequence[RequiredField], migrations: Migrations, options: Mapping[str, Any]
    ) -> None:
        for target in targets:
            writer.migrations_folder(target.app_label)
        phases, remark = self._phases(targets, migrations, options)
        files = writer.files(phases)
        if options["dry_run"]:
            for file in files:
                self.stdout.write(f"Would write {writer.shown(file.path)}:\n\n{file.text}")
            self._log(remark)
            return
        writer.write(files)
        for file in files:
            self._log(self.style.SUCCESS(f"Wrote {writer.shown(file.path)}"))
        if not options["migrate"]:
            self._log(_next_step(phases))
        self._log(remark)

    def _show_plan(self, targets: Sequence[RequiredField], options: Mapping[str, Any]) -> None:
        if options["format"] != "text":
            self.verbosity = 0
        aliases = applying.chosen_aliases(options["database"], every=not options["database"], targets=targets)
        entries = self._courses(targets, options)
        plans = [
            plan.make(target, entries[target], alias) for target, alias in plan.allowed(targets, aliases)
        ]
        if not plans:
            raise CommandError(
                f"There is nothing to plan: the routers keep {', '.join(target.label for target in targets)} away from "
                f"{', '.join(aliases) or 'every database'}. Name another --database.{applying.of_tenants('default')}"
            )
        self.stdout.write(render.FORMATS[options["format"]](plans))
        hurt = [f"{each.label} on {each.alias}" for each in plans if each.hurts]
        if hurt:
            raise CommandError(
                f"Not safe to run now: {', '.join(hurt)}. The plan has the reasons, and what to do."
            )

    def _courses(
        self, targets: Sequence[RequiredField], options: Mapping[str, Any]
    ) -> dict[RequiredField, list[plan.PlannedMigration]]:
        migrations = Migrations()
        new = [target for target in targets if not migrations.written(target)]
        entries = {target: plan.written(target, migrations) for target in targets if target not in new}
        for target in entries:
            migrations.check_unchanged(target)
        phases = self._phases(new, migrations, options)[0] if new else []
        planned = plan.planned([writer.load(phase) for phase in phases], migrations.state)
        return entries | {target: plan.concerning(target, planned) for target in new}

    def _phases(
        self, targets: Sequence[RequiredField], migrations: Migrations, options: Mapping[str, Any]
    ) -> tuple[list[Phase], str]:
        """Return the migrations to write, and what they mean for code that is running."""
        migrations.check(targets)
        self._check_alone(targets, migrations, options)
        return self._plan(self._populates(targets, options), migrations, options)

    def _check_alone(
        self, targets: Sequence[RequiredField], migrations: Migrations, options: Mapping[str, Any]
    ) -> None:
        if options["only_this_field"]:
            return
        try:
            migrations.check_alone(targets)
        except OtherChanges as changes:
            if not _may_ask(options):
                raise
            self.stdout.write(str(changes))
            if self._ask("Write only this field now? [y/N] ").lower() not in ("y", "yes"):
                raise CommandError("Nothing was written.") from None

    def _populates(
        self, targets: Sequence[RequiredField], options: Mapping[str, Any]
    ) -> dict[RequiredField, Snippet]:
        texts = options["populate"] or []
        if len(texts) not in (0, 1, len(targets)):
            raise CommandError(
                f"--populate was given {len(texts)} times for {len(targets)} fields: "
                "give it once for all of them, or once for each."
            )
        if not texts:
            return {target: self._without_text(target, options) for target in targets}
        each = texts if len(texts) == len(targets) else texts * len(targets)
        return {
            target: read(text, target.model, target.field) for target, text in zip(targets, each, strict=True)
        }

    def _without_text(self, target: RequiredField, options: Mapping[str, Any]) -> Snippet:
        found = from_default(target.field)
        if found:
            source, meaning = found
            self._log(f"{target.label}: without --populate, {meaning}.")
            return source
        if not _may_ask(options):
            raise CommandError(
                f"{target.label} has no default, so old rows need a value from elsewhere. Say how:\n"
                f"    python manage.py add_required_field {target.label} --populate '{_example(target)[0]}'"
            )
        return self._asked(target)

    def _asked(self, target: RequiredField) -> Snippet:
        example, meaning = _example(target)
        kind = type(target.field).__name__
        self.stdout.write(
            QUESTION.format(label=target.label, kind=kind, example=example, meaning=meaning, name=target.name)
        )
        source = None
        while source is None:
            source = self._answer(target)
        return source

    def _answer(self, target: RequiredField) -> Snippet | None:
        try:
            return read(self._ask("populate = "), target.model, target.field)
        except InvalidExpression as error:
            self.stdout.write(self.style.ERROR(str(error)))
            return None

    def _ask(self, question: str) -> str:
        try:
            answer = input(question).strip()
        except (KeyboardInterrupt, EOFError):
            answer = "q"
        if answer == "q":
            raise CommandError("Nothing was written.")
        return answer

    def _plan(
        self, populates: Mapping[RequiredField, Snippet], migrations: Migrations, options: Mapping[str, Any]
    ) -> tuple[list[Phase], str]:
        """Return the migrations to write, and what they mean for code that is running."""
        planners = _planners(populates, migrations, options)
        simplest = [writer.load(phase) for planner in planners for phase in planner()]
        for migration in simplest:
            rollout.validate(migration, migrations.state)
        why_not = rollout.reasons(populates, simplest)
        shape = {"phases": options["phases"], "keep_guard": options["keep_guard"]}
        if options["keep_guard"]:
            rollout.check_keep_guard(populates, why_not)
        guarded = [target for target, reason in why_not.items() if not reason]
        phases = [phase for planner in planners for phase in planner(guarded=guarded, **shape)]
        phases = [dependencies.added(phase, writer.load(phase), migrations.loader) for phase in phases]
        nullable = [target for target in populates if migrations.is_nullable(target)]
        return phases, rollout.notice(why_not, nullable, **shape)

    def _migrate(
        self, targets: Sequence[RequiredField], aliases: Sequence[str], options: Mapping[str, Any]
    ) -> None:
        migrate = partial(self._migrate_alias, list(dict.fromkeys(t.app_label for t in targets)), options)
        outcomes = applying.apply(targets, aliases, migrate)
        self._log("\n" + applying.summary(outcomes))
        failed = [outcome for outcome in outcomes if outcome.error]
        if failed:
            reasons = "\n".join(f"{outcome.alias}: {outcome.error}" for outcome in failed)
            raise CommandError(
                f"{len(failed)} of {len(outcomes)} databases failed. What was filled stays filled; "
                f"the same command goes on from there.\n{reasons}"
            )

    def _migrate_alias(self, app_labels: Sequence[str], options: Mapping[str, Any], alias: str) -> None:
        self._log(self.style.MIGRATE_HEADING(f"Database {alias}:"))
        for app_label in app_labels:
            call_command(
                "migrate",
                app_label,
                database=alias,
                interactive=False,
                verbosity=options["verbosity"],
                stdout=self.stdout,
                stderr=self.stderr,
                no_color=options["no_color"],
            )

    def _log(self, text: str) -> None:
        if self.verbosity and text:
            self.stdout.write(text)


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, 1 or more.")
    return int(text)


def _check_options(options: Mapping[str, Any]) -> None:
    if options["name"] and not options["name"].isidentifier():
        raise CommandError(f"--name must be a Python identifier, which {options['name']!r} is not.")
    if options["keep_guard"] and options["phases"] == 3:
        raise CommandError(
            "--keep-guard is for one file. With --phases 3 the guard stays until you migrate the third: leave "
            "--keep-guard out."
        )
    _check_plan(options)
    if options["migrate"] and options["dry_run"]:
        raise CommandError("--dry-run writes nothing, so there is nothing for --migrate to apply.")
    if options["database"] and options["all_databases"]:
        raise CommandError("--database names some databases and --all-databases means all: give one of them.")
    if options["abandon"] and (options["migrate"] or options["plan"] or options["populate"]):
        raise CommandError("--abandon undoes an attempt: leave --migrate, --plan and --populate out.")
    for option in ("database", "all_databases"):
        if options[option] and not (options["migrate"] or options["plan"] or options["abandon"]):
            typed = option.replace("_", "-")
            raise CommandError(f"--{typed} says where --migrate applies the migration: add --migrate.")


def _check_plan(options: Mapping[str, Any]) -> None:
    if options["plan"] and (options["migrate"] or options["dry_run"]):
        raise CommandError("--plan writes and migrates nothing: leave --migrate and --dry-run out.")
    if options["format"] != "text" and not options["plan"]:
        raise CommandError("--format says how --plan is shown: add --plan.")


def _planners(
    populates: Mapping[RequiredField, Snippet], migrations: Migrations, options: Mapping[str, Any]
) -> list[Callable[..., list[Phase]]]:
    """Return for each app the function that plans its migrations, in the shape that it is given."""
    by_app: defaultdict[str, dict[RequiredField, Snippet]] = defaultdict(dict)
    for target, source in populates.items():
        by_app[target.app_label][target] = source
    return [
        partial(
            phases_for,
            group,
            migrations.addition(list(group)),
            migrations.leaf(app_label),
            name=options["name"],
            batch_size=options["batch_size"],
        )
        for app_label, group in by_app.items()
    ]


def _may_ask(options: Mapping[str, Any]) -> bool:
    return bool(options["interactive"]) and sys.stdin is not None and sys.stdin.isatty()


def _left(steps: Sequence[Step]) -> str:
    if not steps:
        return "nothing is left of an attempt."
    return "\n".join(["to be undone:", *(f"    {sql};" for step in steps for sql in step.statements)])


def _next_step(phases: Sequence[Phase]) -> str:
    if any(phase.note for phase in phases):
        lines = [
            f"    python manage.py migrate {phase.app_label} {phase.name}  # {phase.note}"
            for phase in sorted(phases, key=lambda phase: phase.note)
        ]
        return "\n".join([f"Next, in {'three' if len(lines) == 3 else len(lines)} deployments:", *lines])
    lines = [f"    python manage.py migrate {phase.app_label}" for phase in phases]
    return "\n".join(["Next, on each database:", *lines])


def _example(target: RequiredField) -> tuple[str, str]:
    """Return a populate that this field could have, and what it means."""
    field = target.field
    if isinstance(field, models.UUIDField):
        return "uuid.uuid4", "a function, called for each row"
    if not field.unique:
        if isinstance(field, models.DateField):
            return _date_example(target)
        for kind, example in EXAMPLES.items():
            if isinstance(field, kind):
                return example
    return f"{target.app_label}.populate.{target.name}", "a function of yours, by its dotted path"


def _date_example(target: RequiredField) -> tuple[str, str]:
    dates = [
        field.name
        for field in target.model._meta.local_concrete_fields
        if isinstance(field, models.DateField) and field != target.field
    ]
    if dates:
        return f'F("{dates[0]}") + timedelta(days=30)', "from another column, computed by the database"
    return "Now()", "the time of the migration, from the database"
