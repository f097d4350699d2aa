"""What adding a field would do to one database, shown before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from django.db import Error, connections, router
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState
from django.db.models import QuerySet

from safemigrate import conf
from safemigrate.backends import Database, for_connection, get_backend
from safemigrate.engine import engine
from safemigrate.engine.batch_size import Pace, configured
from safemigrate.exceptions import InvalidPopulate
from safemigrate.generator.autodetector import Migrations
from safemigrate.generator.targets import RequiredField
from safemigrate.operations import AddNullableField, AddRequiredField
from safemigrate.plan import sampling
from safemigrate.plan.risks import SMALL, Risk, Situation, found
from safemigrate.plan.sampling import Sample
from safemigrate.populate.sources import AsWritten, InPython, Source, calls_function, resolve
from safemigrate.schema import preflight, proofs
from safemigrate.schema.change import Change
from safemigrate.schema.fields import model_in
from safemigrate.schema.plan import Fill
from safemigrate.schema.steps import Obstacle, Step
from safemigrate.types import field_of

ROW_LOCKS = "row locks"


@dataclass(frozen=True)
class PlannedMigration:
    """A migration that concerns the field, and the state of all models before it."""

    migration: Migration
    before: ProjectState


@dataclass(frozen=True)
class Action:
    """One thing that is done: a step, or the fill, which alone has batches, seconds and a sample.

    `blocks` says who waits for it: none, writers (those of one batch's rows, in a fill) or everyone;
    `lasts` for how long. `wait` is how long, in seconds, others may stand behind one try to get the lock.
    """

    migration: str
    title: str
    statements: tuple[str, ...]
    lock: str
    blocks: str
    lasts: str
    done: bool
    wait: float | None = None
    batches: int | None = None
    seconds: float | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class DatabasePlan:
    """All that is known about one field on one database. None stands for what is not known."""

    label: str
    alias: str
    database: str
    rows: int | None = None
    nulls: int | None = None
    table_bytes: int | None = None
    index_bytes: int | None = None
    populate: str = ""
    actions: tuple[Action, ...] = ()
    risks: tuple[Risk, ...] = ()

    @property
    def hurts(self) -> bool:
        return any(risk.hurts for risk in self.risks)

    @property
    def seconds(self) -> float | None:
        """The time of the fills together, where it is known; without commits, and the writing of the log."""
        known = [action.seconds for action in self.actions if action.seconds is not None]
        return sum(known) if known else None


def planned(migrations: Sequence[Migration], state: ProjectState) -> list[PlannedMigration]:
    """Return the entries of migrations that are not written yet, one after another from `state` on."""
    entries = []
    for migration in migrations:
        entries.append(PlannedMigration(migration, state.clone()))
        state = migration.mutate_state(state.clone())
    return entries


def concerning(target: RequiredField, entries: Sequence[PlannedMigration]) -> list[PlannedMigration]:
    """Return those of the entries that do something to the target's field."""
    return [entry for entry in entries if _holds(entry.migration, target)]


def written(target: RequiredField, migrations: Migrations) -> list[PlannedMigration]:
    """Return the entries of the migrations on disk that add the target."""
    loader = migrations.loader
    keys = loader.graph.forwards_plan(loader.graph.leaf_nodes(target.app_label)[0])
    own = [key for key in keys if _holds(loader.graph.nodes[key], target)]
    return [PlannedMigration(loader.graph.nodes[key], loader.project_state(key, at_end=False)) for key in own]


def make(target: RequiredField, entries: Sequence[PlannedMigration], alias: str) -> DatabasePlan:
    """Return the plan of the target on one alias. Nothing is changed, and only a reader's lock is held.

    On MySQL and MariaDB the steps are tried on an empty table made like it, which is dropped again.

    Up to 2,000 rows are copied into a table that no other session sees and filled there, which calls a function
    that computes values.
    """
    connection = connections[alias]
    blank = DatabasePlan(target.label, alias, connection.display_name)
    try:
        connection.ensure_connection()
        look = _Look(target, entries, alias)
        with look.database.impatient(look.model):
            return look.plan(blank)
    except Error as error:
        if for_connection(connection).is_lock_timeout(error):
            return replace(blank, risks=(_locked(look),))
        text = f"{alias} could not be looked at: {str(error).strip()}"
        return replace(blank, risks=(Risk(text, "See to it that it answers, and plan again.", hurts=True),))


def _locked(look: _Look) -> Risk:
    table = look.database.quote(look.model._meta.db_table)
    holders = "; ".join(look.database.blockers([table])) or "unknown, gone before it could be named"
    return Risk(
        f"Another session holds the table {look.model._meta.db_table}, so it could not even be read. "
        f"Blocked by: {holders}.",
        "The migration would wait for the same lock. End what holds it, or wait for it, and plan again.",
        hurts=True,
    )


def _holds(migration: Migration, target: RequiredField) -> bool:
    return migration.app_label == target.app_label and any(
        _concerns(operation, target) for operation in migration.operations
    )


def _concerns(operation: Any, target: RequiredField) -> bool:
    if not hasattr(operation, "plan"):
        return False
    names = operation.name if isinstance(operation.name, list) else [operation.name]
    return operation.model_name.lower() == target.model_name and target.name in names


class _Look:
    """One look at one alias."""

    def __init__(self, target: RequiredField, entries: Sequence[PlannedMigration], alias: str) -> None:
        self.target, self.entries, self.alias = target, entries, alias
        self.connection = connections[alias]
        self.database: Database = for_connection(self.connection)
        self.model = entries[0].before.apps.get_model(target.app_label, target.model_name)

    def plan(self, blank: DatabasePlan) -> DatabasePlan:
        if not self.database.has_table(self.model):
            text = f"{self.alias} has no table {self.model._meta.db_table} yet."
            cure = "The migrations make it, and fill nothing: on an empty table all is done at once."
            return replace(blank, rows=0, risks=(Risk(text, cure),))
        actions = tuple(self._actions())
        table, indexes = get_backend(self.connection).monitoring.size(self.model)
        return replace(
            blank,
            rows=self.rows,
            nulls=self.nulls,
            table_bytes=table,
            index_bytes=indexes,
            populate="; ".join(dict.fromkeys(source.title for source in self._sources)),
            actions=actions,
            risks=tuple(found(self._situation(actions))),
        )

    @cached_property
    def rows(self) -> int:
        rows = self.database.estimated_rows(self.model)
        if rows >= SMALL:
            return rows
        # Where it looks small it is cheap to be sure, and an old estimate may be quite wrong.
        every: QuerySet[Any] = QuerySet(self.model, using=self.alias)
        return rows if not every.exists() else every.count()

    @cached_property
    def nulls(self) -> int | None:
        """The rows to fill, where the column is there already."""
        if not self._fills:
            return 0
        if self.database.column(self.model, str(self.target.field.column)) is None:
            return None
        return self._fills[0].target.batches.count()

    @cached_property
    def unapplied(self) -> list[str]:
        """The app's earlier migrations that this alias does not have yet."""
        graph = self.loader.graph
        names = [
            name
            for leaf in graph.leaf_nodes(self.target.app_label)
            for label, name in graph.forwards_plan(leaf)
            if label == self.target.app_label
        ]
        own = {entry.migration.name for entry in self.entries}
        return [name for name in takewhile(lambda name: name not in own, names) if name not in self.applied]

    @cached_property
    def loader(self) -> MigrationLoader:
        return MigrationLoader(self.connection)

    @cached_property
    def applied(self) -> set[str]:
        return {name for label, name in self.loader.applied_migrations if label == self.target.app_label}

    @cached_property
    def _parts(self) -> list[tuple[str, Step | Fill, int | None]]:
        """Return migration, part and batch size, in order."""
        return [
            (entry.migration.name, part, getattr(operation, "batch_size", None))
            for entry in self.entries
            for operation, before, after in _states(entry)
            if _concerns(operation, self.target)
            for part in operation.plan(Change(self.target.app_label, self.database, before, after))
        ]

    @property
    def _fills(self) -> list[Fill]:
        return [part for _, part, _ in self._parts if isinstance(part, Fill)]

    @property
    def _sources(self) -> list[Source]:
        """Return how rows get their value, also where none is written."""
        if self._fills:
            return [fill.source for fill in self._fills]
        return [resolve(op.populate, op.names) for op in self._operations if isinstance(op, AddRequiredField)]

    @property
    def _operations(self) -> list[Any]:
        return [
            operation
            for entry in self.entries
            for operation in entry.migration.operations
            if _concerns(operation, self.target)
        ]

    def _actions(self) -> Iterator[Action]:
        required, so_far = self._required(), True
        for migration, part, batch_size in self._parts:
            if required:
                done = not self._needed(part)
            else:
                # What a later part finds is known only once all before it are done.
                done = so_far = so_far and not self._needed(part)
            done = done or migration in self.applied
            if isinstance(part, Fill):
                yield self._fill(migration, part, batch_size, done)
            else:
                yield self._step(migration, part, done)

    def _required(self) -> bool:
        """Is NOT NULL in force? All that is left then comes after it."""
        field = field_of(self._fills[-1].target.model, self.target.name) if self._fills else None
        return field is not None and self.database.is_required(self.model, field)

    def _needed(self, part: Step | Fill) -> bool:
        return bool(self.nulls) if isinstance(part, Fill) else part.needed()

    def _step(self, migration: str, step: Step, done: bool) -> Action:
        wait = None if step.online else self.database.lock_wait(conf.get("SAFEMIGRATE_LOCK_TIMEOUT"))
        statements = (*step.statements, *step.cleanup)
        lock = step.lock
        return Action(migration, step.title, statements, lock.name, lock.blocks, lock.lasts, done, wait)

    def _fill(self, migration: str, fill: Fill, batch_size: int | None, done: bool) -> Action:
        action = Action(
            migration, fill.title, self._statement(fill), ROW_LOCKS, "writers", "one batch at a time", done
        )
        if done:
            return action
        pace = configured(batch_size, calls=calls_function(fill.source))
        sample = self._sample(fill, pace)
        rows = round(self.rows * sample.share) if self.nulls is None else self.nulls
        if isinstance(fill.source, AsWritten):
            return replace(action, lock="as the function takes", lasts="as it takes", sample=sample)
        batches = None if sample.per_row is None else _batches(pace, rows, sample.per_row)
        looks = sample.per_look * self.rows
        seconds = None if sample.per_row is None else sample.per_row * rows + looks
        return replace(action, batches=batches, seconds=seconds, sample=sample)

    def _sample(self, fill: Fill, pace: Pace) -> Sample:
        if self.unapplied:
            return Sample(skipped=f"{self.alias} has not all columns yet")
        return sampling.take(fill.target, fill.source, largest=pace.largest)

    def _statement(self, fill: Fill) -> tuple[str, ...]:
        made = fill.statement()
        if made is None:
            return ()
        return (f"{self.database.with_values(*made)} AND <the primary key is in the range>",)

    def _obstacles(self) -> list[Obstacle]:
        last = self.entries[-1]
        state = last.migration.mutate_state(last.before.clone())
        model = model_in(state, self.target.app_label, self.target.model_name, self.database)
        field = field_of(model, self.target.name)
        found = preflight.obstacles(self.database, model, field)
        if any(isinstance(op, AddNullableField | AddRequiredField) for op in self._operations):
            found += preflight.left(self.database, model, field)
        for fill in self._fills:
            try:
                if isinstance(fill.source, InPython):
                    engine.refuse_repeated_keys(fill.target, fill.source)
                if not self.unapplied:  # What is not there yet an earlier migration may make.
                    proofs.refuse_missing(fill.target, fill.source)
            except InvalidPopulate as error:
                found.append(Obstacle(str(error), "Until then no row is filled."))
        return found

    def _situation(self, actions: Sequence[Action]) -> Situation:
        done = all(action.done for action in actions)
        return Situation(
            target=self.target,
            model=self.model,
            database=self.database,
            monitoring=get_backend(self.connection).monitoring,
            rows=self.rows,
            unapplied=self.unapplied,
            operations=self._operations,
            fills=self._fills,
            problems=[a.sample.problem for a in actions if a.sample and a.sample.problem],
            steps=[part for _, part, _ in self._parts if isinstance(part, Step)],
            obstacles=[] if done else self._obstacles(),
            done=done,
        )


def allowed(targets: Sequence[RequiredField], aliases: Sequence[str]) -> Iterator[tuple[RequiredField, str]]:
    """Return each target with each alias that the routers let it be on."""
    for target in targets:
        for alias in aliases:
            if router.allow_migrate_model(alias, target.model):
                yield target, alias


def _states(entry: PlannedMigration) -> Iterator[tuple[Any, ProjectState, ProjectState]]:
    before = entry.before
    for operation in entry.migration.operations:
        after = before.clone()
        operation.state_forwards(entry.migration.app_label, after)
        yield operation, before, after
        before = after


def _batches(pace: Pace, rows: int, per_row: float) -> int:
    """Return how many batches it will be, when each takes as long as the sample's."""
    size, number = pace.start, 0
    while rows > 0:
        rows, number = rows - size, number + 1
        following = pace.next_size(size, size * per_row)
        if following == size:
            return number + max(0, -(-rows // size))
        size = following
    return number
