"""What could go wrong with adding a field to a table, seen from how the database is now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import router
from django.db.models import Model

from safemigrate.backends import Database, Monitoring
from safemigrate.conf import get
from safemigrate.exceptions import NoGuard, NotVisible
from safemigrate.generator.targets import RequiredField
from safemigrate.operations import AddNullableField, AddRequiredField, Whole
from safemigrate.schema import guards
from safemigrate.schema.plan import Fill
from safemigrate.schema.steps import Obstacle, Step
from safemigrate.types import field_of

#: Fewer rows than this are filled, read and copied before anybody notices.
SMALL = 10_000
OPEN_SECONDS = 5
LAG_SECONDS = 5
FEW_INDEXES = 4


@dataclass(frozen=True)
class Risk:
    """What is wrong, what to do, and whether the migration had better not be run as things are."""

    text: str
    cure: str
    hurts: bool = False


@dataclass(frozen=True)
class Situation:
    """What is about to be done, and to which table. `done` when nothing is left to do."""

    target: RequiredField
    model: type[Model]
    database: Database
    monitoring: Monitoring
    rows: int
    unapplied: Sequence[str]
    operations: Sequence[Any]
    fills: Sequence[Fill]
    problems: Sequence[str]
    steps: Sequence[Step]
    obstacles: Sequence[Obstacle]
    done: bool

    @property
    def alias(self) -> str:
        return str(self.database.connection.alias)

    @property
    def table(self) -> str:
        return str(self.model._meta.db_table)


def found(situation: Situation) -> list[Risk]:
    """Return all risks, those that hurt first."""
    if situation.done:
        return []
    risks = [risk for look in LOOKS for risk in look(situation)]
    return sorted(risks, key=lambda risk: not risk.hurts)


def _failing_sample(situation: Situation) -> Iterator[Risk]:
    for problem in situation.problems:
        yield Risk(
            f"In the sample, {problem}.",
            "Correct the populate, or these rows, and plan again.",
            hurts=True,
        )


def _obstacles(situation: Situation) -> Iterator[Risk]:
    """What the operations themselves look for before their first statement."""
    for obstacle in situation.obstacles:
        yield Risk(f"{obstacle.text[0].upper()}{obstacle.text[1:]}", obstacle.cure, hurts=obstacle.certain)


def _long_steps(situation: Situation) -> Iterator[Risk]:
    if situation.rows < SMALL:
        return
    for step in situation.steps:
        if step.lock.hurts:
            allowed = get("SAFEMIGRATE_ALLOW_TABLE_COPY")
            yield Risk(
                f"To {step.title}, the table is locked {step.lock.lasts}: {step.lock.blocks} must wait, with "
                f"{situation.rows:,} rows.",
                "Take SAFEMIGRATE_ALLOW_TABLE_COPY out of the settings: the server is then asked to do it online, "
                "and refuses where it cannot."
                if allowed
                else "This database cannot do it otherwise: run it at an hour when they can wait.",
                hurts=True,
            )


def _open_transactions(situation: Situation) -> Iterator[Risk]:
    patience = get("SAFEMIGRATE_LOCK_TRIES") * (
        get("SAFEMIGRATE_LOCK_TIMEOUT") + 1.5 * get("SAFEMIGRATE_LOCK_PAUSE")
    )
    try:
        longest = situation.monitoring.open_transactions(patience)
        others = [
            line for line in situation.monitoring.open_transactions(OPEN_SECONDS) if line not in longest
        ]
    except NotVisible as error:
        yield Risk(
            f"Whether transactions are open for long cannot be seen: {error}.",
            "Look yourself before you run it.",
        )
        return
    for line in longest:
        yield Risk(
            f"A transaction is open for longer than a lock is tried for ({patience:.0f} s): {line}.",
            "If it has touched the table, no lock is to be had beside it: let it end first.",
            hurts=True,
        )
    for line in others:
        yield Risk(
            f"A transaction is open for more than {OPEN_SECONDS} s: {line}.",
            "If it has touched the table, the short locks are tried again until it ends.",
        )


def _triggers(situation: Situation) -> Iterator[Risk]:
    names = situation.monitoring.triggers(situation.model)
    if names:
        yield Risk(
            f"The table has triggers that fire for each filled row: {', '.join(names)}.",
            "See that this is what you want; the predicted time does not count them.",
        )


def _replicas(situation: Situation) -> Iterator[Risk]:
    try:
        lag = situation.monitoring.replication_lag()
    except NotVisible as error:
        yield Risk(
            f"How far the replicas are behind cannot be seen: {error}.", "Watch them while the fill runs."
        )
        return
    if lag is not None and lag > LAG_SECONDS:
        yield Risk(
            f"A replica is {lag:.0f} s behind, and the fill would add to it.",
            "Wait until it has caught up; see docs: how-to/throttle.",
        )


def _costly_updates(situation: Situation) -> Iterator[Risk]:
    indexes, fillfactor = (
        situation.monitoring.indexes(situation.model),
        situation.monitoring.fillfactor(situation.model),
    )
    if indexes > FEW_INDEXES and fillfactor == 100 and situation.rows >= SMALL:
        yield Risk(
            f"The table has {indexes} indexes and full pages (fillfactor 100): a filled row moves to another page, "
            "and gets a new entry in each of the indexes.",
            "The predicted time counts this, but the indexes will grow. Plan for the space on the disk.",
        )


def _too_small(situation: Situation) -> Iterator[Risk]:
    if situation.rows == 0:
        yield Risk("The table has no rows.", "All of it is done at once.")
    elif situation.rows < SMALL:
        in_one = any(isinstance(op, Whole) for op in situation.operations)
        yield Risk(
            f"{situation.rows:,} rows are few: they are filled in a moment.",
            "It may run at any hour."
            if in_one
            else "One migration would do, at any hour (--phases 1), if no old code goes on inserting rows.",
        )


def _foreign_alias(situation: Situation) -> Iterator[Risk]:
    field: Any = situation.target.field
    if field.remote_field and not router.allow_migrate_model(situation.alias, field.related_model):
        label = field.related_model._meta.label
        yield Risk(
            f"{situation.target.name} refers to {label}, which the routers keep away from {situation.alias}"
            + (": its foreign key cannot be made there." if field.db_constraint else "."),
            "Give the field db_constraint=False, and see to it yourself that the rows referred to exist."
            if field.db_constraint
            else "Nothing checks that the rows referred to exist.",
            hurts=bool(field.db_constraint),
        )


def _old_code(situation: Situation) -> Iterator[Risk]:
    known = not any(isinstance(op, AddNullableField | AddRequiredField) for op in situation.operations)
    if situation.target.field.has_db_default() and not known:
        return
    reasons = [_no_guard(situation, fill, is_known=known) for fill in situation.fills]
    for reason in filter(None, reasons):
        yield Risk(
            f"No write guard: {reason}. "
            + ("NULL that old code writes" if known else "Rows that old code inserts")
            + " before NOT NULL stays, and is filled at the end.",
            "Nothing to do, as long as such writes end before NOT NULL does.",
        )
    if known and reasons and not any(reasons):
        yield Risk(
            "Old code knows the field as nullable: also a save() of an instance that was loaded earlier may write NULL "
            "back. The write guard replaces it until the column is required.",
            "Nothing to do until then.",
        )
    if any(isinstance(op, Whole) and not op.keep_guard for op in situation.operations):
        may_keep = not any(reasons) and (not known or situation.database.guards_before_not_null)
        what = (
            "Code that writes NULL into the field fails"
            if known
            else "Code that does not know the field cannot insert rows"
        )
        yield Risk(
            f"{what} once it is required, and all is in one migration.",
            "If such code is still running then, write "
            + ("it for several deployments" if known else "three")
            + " (--phases 3)"
            + (", or keep the guard (--keep-guard)." if may_keep else "."),
        )


def _no_guard(situation: Situation, fill: Fill, *, is_known: bool) -> str | None:
    field = field_of(fill.target.model, situation.target.name)
    if reason := guards.why_not(fill.source):
        return reason
    try:
        guards.up(
            situation.database, fill.target.model, field, fill.source, fill.target.apps, is_known=is_known
        )
    except NoGuard as error:
        return str(error)
    return None


def _unapplied(situation: Situation) -> Iterator[Risk]:
    if situation.unapplied:
        names = ", ".join(f"{situation.target.app_label}.{name}" for name in situation.unapplied)
        yield Risk(
            f"{situation.alias} does not have all earlier migrations: {names}.",
            f"For a prediction, apply them first: python manage.py migrate {situation.target.app_label} "
            f"{situation.unapplied[-1]} --database {situation.alias}",
        )


LOOKS = [
    _failing_sample,
    _obstacles,
    _long_steps,
    _foreign_alias,
    _open_transactions,
    _unapplied,
    _old_code,
    _triggers,
    _replicas,
    _costly_updates,
    _too_small,
]
