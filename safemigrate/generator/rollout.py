"""What new fields mean for code that runs on without knowing them: who fills the rows that it inserts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from django.db import Error, connections, router
from django.db.migrations import Migration
from django.db.migrations.state import ProjectState

from safemigrate.exceptions import PlanningError
from safemigrate.generator.targets import Target
from safemigrate.operations import AddRequiredField
from safemigrate.populate.sources import resolve
from safemigrate.schema import guards

#: By field, why no write guard is possible; None where one is.
Reasons = Mapping[Target, str | None]


def reasons(targets: Iterable[Target], migrations: Iterable[Migration]) -> dict[Target, str | None]:
    """Return by target why the populate in these one-file migrations cannot guard it, None where it can.

    Fields with a db_default are left out: it fills new rows without a guard.
    """
    populates = {
        (migration.app_label, operation.model_name.lower(), operation.name): operation.populate
        for migration in migrations
        for operation in migration.operations
        if isinstance(operation, AddRequiredField)
    }
    return {
        target: _why_not(target, populates[target.app_label, target.model_name, target.name])
        for target in targets
        if not target.field.has_db_default()
    }


def validate(migration: Migration, state: ProjectState) -> None:
    """Raise InvalidPopulate for what could only fail when the migration runs, on any database that it may run on.

    Nothing is read from the tables; a database that is away is not asked.
    """
    state = state.clone()
    for operation in migration.operations:
        if not isinstance(operation, AddRequiredField):
            continue
        populate = operation.filling(migration.app_label, state)
        for alias in connections:
            if router.allow_migrate(alias, migration.app_label, model_name=operation.model_name.lower()):
                with suppress(Error):
                    populate.validate(migration.app_label, alias, state)


def check_keep_guard(targets: Iterable[Target], why_not: Reasons) -> None:
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


def notice(why_not: Reasons, *, phases: int, keep_guard: bool) -> str:
    """Return in a few lines what becomes of the rows that old code inserts, or nothing where nothing does."""
    guarded = [target for target, reason in why_not.items() if not reason]
    paragraphs = []
    if guarded and keep_guard:
        paragraphs.append(_kept(guarded))
    elif guarded and phases == 1:
        paragraphs.append(GUARDED.format(labels=_labels(guarded)))
    bare = UNGUARDED if phases == 1 else UNGUARDED_IN_THREE
    for target, reason in why_not.items():
        if reason:
            paragraphs.append(bare.format(labels=target.label, reason=reason))
    return "\n".join(paragraphs)


GUARDED = """\
Code deployed before {labels} can still insert rows: a write guard fills them,
where the database can. Once the column is required, such inserts fail. If old code runs on after that,
remove the file, and write it again with --keep-guard, or three files with --phases 3."""

UNGUARDED = """\
Code deployed before {labels} still inserts NULL. No write guard is possible:
{reason}.
Such rows are filled at the end. Once the column is required, such inserts fail. If old code runs on after
that, remove the file, and write three with --phases 3."""

UNGUARDED_IN_THREE = """\
Code that does not know {labels} yet inserts NULL until the third file, which fills it; new code
must cope with that. No write guard is possible:
{reason}."""

KEPT = """\
Code that does not know {labels} yet may insert rows, now and after the column is required: the write
guard fills them. Where the database cannot, migrate says so. When no such code is left, take the guard down in
a migration with atomic = False: {operations}"""


def _kept(targets: list[Target]) -> str:
    operations = ", ".join(f'UnguardWrites("{t.model_name}", "{t.name}")' for t in targets)
    return KEPT.format(labels=_labels(targets), operations=operations)


def _labels(targets: Iterable[Target]) -> str:
    return ", ".join(target.label for target in targets)


def _why_not(target: Target, populate: Any) -> str | None:
    return guards.why_not(resolve(populate, [target.name]))
