"""What new fields mean for code that runs on without knowing them: who fills the rows that it inserts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from django.db import Error, connections, router
from django.db.migrations import Migration
from django.db.migrations.state import ProjectState

from safemigrate.exceptions import PlanningError
from safemigrate.generator.targets import RequiredField
from safemigrate.operations import RequireField, Whole
from safemigrate.populate.sources import resolve
from safemigrate.schema import guards

#: By field, why no write guard is possible; None where one is.
Reasons = Mapping[RequiredField, str | None]


def reasons(
    targets: Iterable[RequiredField], migrations: Iterable[Migration]
) -> dict[RequiredField, str | None]:
    """Return by target why the populate in these one-file migrations cannot guard it, None where it can.

    New fields with a db_default are left out: it fills new rows without a guard.
    """
    operations = {
        (migration.app_label, operation.model_name.lower(), operation.name): operation
        for migration in migrations
        for operation in migration.operations
        if isinstance(operation, Whole)
    }
    found = {target: operations[target.app_label, target.model_name, target.name] for target in targets}
    return {
        target: guards.why_not(resolve(operation.populate, [target.name]))
        for target, operation in found.items()
        if isinstance(operation, RequireField) or not target.field.has_db_default()
    }


def validate(migration: Migration, state: ProjectState) -> None:
    """Raise InvalidPopulate for what could only fail when the migration runs, on any database that it may run on.

    Nothing is read from the tables; a database that is away is not asked.
    """
    state = state.clone()
    for operation in migration.operations:
        if not isinstance(operation, Whole) or operation.populate is None:
            continue
        populate = operation.filling(migration.app_label, state)
        for alias in connections:
            if router.allow_migrate(alias, migration.app_label, model_name=operation.model_name.lower()):
                with suppress(Error):
                    populate.validate(migration.app_label, alias, state)


def check_keep_guard(targets: Iterable[RequiredField], why_not: Reasons) -> None:
    """Raise PlanningError unless there is a guard to keep for each target."""
    for target in targets:
        if target not in why_not:
            raise PlanningError(
                f"{target.label} has a db_default, which goes on filling the rows of code that does not know the "
                "field. There is no guard to keep: leave --keep-guard out."
            )
        if why_not[target]:
            raise PlanningError(
                f"--keep-guard: there can be no guard for {target.label}, because {why_not[target]}. Give --phases 3, "
                "to make the column required when no old code is left, or an expression as --populate."
            )


@dataclass(frozen=True)
class Words:
    """What is said of old code: where a guard stands only for now, where none can be, where it stays."""

    guarded: str
    unguarded: str
    unguarded_in_three: str
    kept: str


def notice(why_not: Reasons, nullable: Collection[RequiredField], *, phases: int, keep_guard: bool) -> str:
    """Return in a few lines what becomes of what old code writes, or nothing where nothing does."""
    known = {target: reason for target, reason in why_not.items() if target in nullable}
    new = {target: reason for target, reason in why_not.items() if target not in nullable}
    return "\n".join(
        [*_paragraphs(new, NEW, phases, keep_guard), *_paragraphs(known, KNOWN, phases, keep_guard)]
    )


def _paragraphs(why_not: Reasons, words: Words, phases: int, keep_guard: bool) -> Iterator[str]:
    guarded = [target for target, reason in why_not.items() if not reason]
    labels = ", ".join(target.label for target in guarded)
    if guarded and keep_guard:
        operations = ", ".join(f'UnguardWrites("{t.model_name}", "{t.name}")' for t in guarded)
        yield words.kept.format(labels=labels, operations=operations)
    elif guarded and phases == 1:
        yield words.guarded.format(labels=labels)
    bare = words.unguarded if phases == 1 else words.unguarded_in_three
    for target, reason in why_not.items():
        if reason:
            yield bare.format(labels=target.label, reason=reason)


NEW = Words(
    guarded="""\
Code deployed before {labels} can still insert rows: a write guard fills them,
where the database can. Once the column is required, such inserts fail. If old code runs on after that,
remove the file, and write it again with --keep-guard, or three files with --phases 3.""",
    unguarded="""\
Code deployed before {labels} still inserts NULL. No write guard is possible:
{reason}.
Such rows are filled at the end. Once the column is required, such inserts fail. If old code runs on after
that, remove the file, and write three with --phases 3.""",
    unguarded_in_three="""\
Code that does not know {labels} yet inserts NULL until the third file, which fills it; new code
must cope with that. No write guard is possible:
{reason}.""",
    kept="""\
Code that does not know {labels} yet may insert rows, now and after the column is required: the write
guard fills them. Where the database cannot, migrate says so. When no such code is left, take the guard down in
a migration with atomic = False: {operations}""",
)

KNOWN = Words(
    guarded="""\
Old code knows {labels} as nullable and may still write NULL, also by saving what it loaded before:
a write guard replaces it, where the database can. Once the column is required, such writes fail. If old code
runs on after that, remove the file, and write it again with --keep-guard (not for SQLite, which looks for NULL
before a trigger runs), or with --phases 3.""",
    unguarded="""\
Old code knows {labels} as nullable and may still write NULL. No write guard is possible:
{reason}.
Such rows are filled at the end. Once the column is required, such writes fail. If old code runs on after
that, remove the file, and write it again with --phases 3.""",
    unguarded_in_three="""\
Old code may write NULL into {labels} until the last file, which fills it. No write guard is possible:
{reason}.""",
    kept="""\
Old code may go on writing NULL into {labels}, now and after the column is required: the write guard
replaces it. SQLite cannot, because it looks for NULL before a trigger runs; there use --phases 3. When no such
code is left, take the guard down in a migration with atomic = False: {operations}""",
)
