"""From a label to what is to be done: the Populate of a field in the migrations, or a Backfill of an app."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.apps import apps
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from safemigrate import backfills, conf
from safemigrate.backends import for_connection
from safemigrate.backfills import Backfill
from safemigrate.backfills.problems import problems
from safemigrate.engine import context, engine
from safemigrate.engine.batch_runner import Work, work_for
from safemigrate.engine.batches import Batches, Target
from safemigrate.exceptions import InvalidBackfill, InvalidPopulate, NothingToRun
from safemigrate.formatting import nearest
from safemigrate.operations import Populate
from safemigrate.populate.sources import AsWritten, Source, fingerprint, resolve
from safemigrate.runs import store
from safemigrate.schema.change import Change, FieldStep
from safemigrate.schema.fields import model_in


class Job(ABC):
    """What is to be done to the rows of a model on one alias."""

    alias: str
    migration: str
    max_bad_rows: int | None = None  # None: the setting's

    @property
    @abstractmethod
    def model(self) -> Any: ...

    @property
    @abstractmethod
    def target(self) -> Target: ...

    @property
    @abstractmethod
    def source(self) -> Source: ...

    @property
    @abstractmethod
    def batch_size(self) -> int | None: ...

    @property
    def throttles(self) -> Sequence[str] | None:
        return None

    @abstractmethod
    def is_finished(self) -> bool:
        """Is no row left to be done? Reads the table up to the first that is."""

    @abstractmethod
    def check_column(self) -> None:
        """Raise NothingToRun where there is nothing yet to work on."""

    @abstractmethod
    def validate(self) -> None:
        """Raise what can be seen to fail before a row is done."""

    @abstractmethod
    def run(self, *, batch_size: int | None = None, throttles: Sequence[str] | None = None) -> None:
        """Do what is left in this process, with what is given in place of the job's own, or the settings."""

    @property
    def label(self) -> str:
        return self.target.label

    @property
    def title(self) -> str:
        return self.source.title

    def rows_left(self) -> int:
        """Count the rows that are to be done; reads the table once."""
        return self.target.batches.count()

    def keys_left(self) -> Iterator[Any]:
        """Yield the keys of the rows that are to be done, in order; reads the table once."""
        rows = self.target.batches.todo.order_by("pk")
        for (key,) in rows.values_list("pk").iterator():
            yield key

    @property
    def chose_by_condition(self) -> bool:
        """Does a condition that ends with the work say which rows it is about?"""
        return self.target.where is not None

    @property
    def deletes_along(self) -> bool:
        """Does it delete rows, and with them those that refer to them?"""
        return False

    def before(self) -> None:  # noqa: B027  a migration has no such hooks
        """Do what the user wants done before the first batch."""

    def after(self) -> None:  # noqa: B027
        """Do what the user wants done after the last one."""


@dataclass(frozen=True)
class BackfillJob(Job):
    """A Backfill on one alias, with its parameters."""

    backfill: Backfill
    migration: str = ""

    @property
    def alias(self) -> str:  # type: ignore[override]
        return self.backfill.using

    @property
    def model(self) -> Any:
        return self.target.model

    @cached_property
    def target(self) -> Target:
        return self.backfill.target()

    @property
    def source(self) -> Source:
        return self.backfill.source()

    @property
    def batch_size(self) -> int | None:
        return self.backfill.batch_size

    @property
    def max_bad_rows(self) -> int | None:  # type: ignore[override]
        return self.backfill.max_bad_rows

    @property
    def chose_by_condition(self) -> bool:
        return self.backfill.where is not None

    @property
    def deletes_along(self) -> bool:
        return self.backfill.delete is True

    def is_finished(self) -> bool:
        return self.target.is_marked and not self.target.batches.any_left()

    def check_column(self) -> None:
        if self.model._meta.db_table not in connections[self.alias].introspection.table_names():
            raise NothingToRun(
                f"{self.label} on {self.alias}: there is no table {self.model._meta.db_table} there. Name the database "
                "that has it by --database, or migrate it first."
            )

    def validate(self) -> None:
        if found := problems(type(self.backfill)):
            raise InvalidBackfill("\n".join(found))
        self.backfill.refuse_repeated_keys()
        self.backfill.refuse_endless()

    @property
    def throttles(self) -> Sequence[str] | None:
        return self.backfill.throttles

    def run(self, *, batch_size: int | None = None, throttles: Sequence[str] | None = None) -> None:
        source = self.backfill.source()
        if not self.target.batches.any_left():
            return
        self.validate()
        given = json.dumps(self.backfill.parameters, cls=DjangoJSONEncoder)
        key = context.key_of(self.model, self.target.names), self.alias
        with context.changed(work_factories={key: (f"{__name__}.work", self.label, self.alias, given)}):
            engine.fill(
                self.target,
                source,
                batch_size=batch_size or self.batch_size,
                throttles=throttles if throttles is not None else self.throttles,
                max_bad_rows=self.max_bad_rows,
                before=self.before,
            )
        self.after()

    def before(self) -> None:
        self.backfill.before()

    def after(self) -> None:
        self.backfill.after()


@dataclass(frozen=True)
class FieldJob(Job):
    """A Populate of a field on one alias, with the state of the models before it."""

    operation: Populate
    app_label: str
    migration: str
    alias: str
    state: Any

    @property
    def model(self) -> Any:
        database = for_connection(connections[self.alias])
        return model_in(self.state, self.app_label, self.operation.model_name, database)

    @property
    def source(self) -> Source:
        return resolve(self.operation.populate, self.operation.names)

    @property
    def batch_size(self) -> int | None:
        return self.operation.batch_size

    @property
    def column_is_there(self) -> bool:
        database = for_connection(connections[self.alias])
        columns = [self.model._meta.get_field(name).column for name in self.operation.names]
        return all(database.column(self.model, column) for column in columns)

    @property
    def target(self) -> Target:
        return self.operation.target(self.model, self.alias, self.state.apps)

    def is_finished(self) -> bool:
        if not self.column_is_there:
            return False
        try:
            database, target = for_connection(connections[self.alias]), self.target
        except (
            InvalidPopulate
        ):  # It is another one than the run that was stopped: what is left cannot be seen.
            return False
        columns = [self.model._meta.get_field(name) for name in target.null_fields]
        if target.where is None and all(database.is_required(self.model, column) for column in columns):
            return True
        if not target.batches.any_left():
            return True
        same = {"fingerprint": fingerprint(self.source), "migration": self.migration}
        return target.is_cursor and store.is_passed(target.label, self.alias, **same)

    def rows_left(self) -> int:
        was_left_so = self.target.leaves_null and self.is_finished()
        return 0 if was_left_so else super().rows_left()

    def check_column(self) -> None:
        if self.column_is_there:
            return
        raise NothingToRun(
            f"{self.label} on {self.alias} has no column yet: {self.migration} is to add it, or one before it. Where "
            "one migration adds, fills and requires, `migrate` does it all, unless SAFEMIGRATE_MAX_ROWS_IN_MIGRATE "
            "stops it before the fill; or write three, by add_required_field --phases 3, and migrate the first."
        )

    def validate(self) -> None:
        self.operation.validate(self.app_label, self.alias, self.state)

    def run(self, *, batch_size: int | None = None, throttles: Sequence[str] | None = None) -> None:
        connection, populate = connections[self.alias], self.operation
        if batch_size:
            populate = populate.with_batch_size(batch_size)
        field = f"{self.app_label}.{populate.model_name}.{populate.names[0]}"
        key = context.key_of(self.model, populate.names)
        work_factories = {(key, self.alias): (f"{__name__}.work", field, self.alias)}
        known = context.changed(migrations={key: self.migration}, work_factories=work_factories)
        settings = {} if throttles is None else {"SAFEMIGRATE_THROTTLES": throttles}
        with conf.changed(**settings), known, connection.schema_editor(atomic=False) as editor:
            populate.fill(Change(self.app_label, for_connection(connection), self.state, self.state, editor))


def is_backfill(label: str) -> bool:
    """Does the label name a Backfill, as shop.PurgeEvents does, and not a field?"""
    return label.count(".") == 1


def find(label: str, alias: str, parameters: Mapping[str, Any] | None = None) -> Job:
    """Return what the label names on the alias: a Backfill (app.Class), or a field's newest fill (app.Model.field).

    Raises NothingToRun, which says what is missing, and InvalidParameters.
    """
    if is_backfill(label):
        return BackfillJob(backfills.find(label)(parameters, using=alias))
    return _find_fill(label, alias)


def is_done(label: str, alias: str, parameters: Mapping[str, Any] | None = None) -> bool:
    """Has a run of the backfill with these parameters succeeded on the alias, or has it no row to do there?

    Without any given, each run counts. Raises NothingToRun where there is no such class, and no such run.
    """
    if store.succeeded(label, alias, parameters or {}):
        return True
    kind = backfills.find(label)
    if kind.form is None or parameters:
        job = BackfillJob(kind(parameters, using=alias))
        return job.is_finished() or not job.target.batches.any_left()
    # Which rows it means, only its parameters say.
    model = apps.get_model(kind.model) if isinstance(kind.model, str) else kind.model
    return model is not None and not Batches(model, alias).any_left()


def _find_fill(label: str, alias: str) -> FieldJob:
    app_label, model_name, name = _parts(label)
    loader = MigrationLoader(connections[alias])
    found = None
    for key in _keys(loader, app_label):
        for number, operation in enumerate(loader.graph.nodes[key].operations):
            if isinstance(operation, FieldStep) and operation.fills(model_name, name):
                found = (key, number)
    if found is None:
        raise NothingToRun(_not_found(loader, app_label, model_name, name))
    return _fill(loader, *found, alias)


def requiring(label: str, alias: str) -> tuple[str, str]:
    """Return the migration that makes the field required: the one that fills it, or a later one.

    Raises NothingToRun.
    """
    app_label, model_name, name = _parts(label)
    loader = MigrationLoader(connections[alias])
    filled = _find_fill(label, alias).migration.partition(".")[2]
    keys = _keys(loader, app_label)
    for key in keys[keys.index((app_label, filled)) :]:
        for operation in loader.graph.nodes[key].operations:
            if isinstance(operation, FieldStep) and operation.requires(model_name, name):
                return key
    raise NothingToRun(
        f"No migration makes {label} required after {app_label}.{filled}: there is no SetNotNull of it. To write one: "
        f"python manage.py add_required_field {label} --phases 3"
    )


def work(label: str, alias: str, parameters: str = "{}") -> tuple[Work, Batches]:
    """Return what another process is to call with each batch of what the label names, and the batches."""
    job = find(label, alias, json.loads(parameters))
    if isinstance(job.source, AsWritten):
        raise NothingToRun(f"{label} is filled by {job.source.title}, in one go.")
    job.before()
    return work_for(job.target, job.source, for_connection(connections[alias])), job.target.batches


def _parts(label: str) -> tuple[str, str, str]:
    parts = label.split(".")
    if len(parts) != 3 or not all(parts):
        raise NothingToRun(
            f"{label!r} is no field and no backfill: give app.Model.field, as in polls.Question.expires_date, or "
            "app.Class, as in polls.RecountVotes."
        )
    return parts[0], parts[1].lower(), parts[2]


def _keys(loader: MigrationLoader, app_label: str) -> list[tuple[str, str]]:
    """Return the app's migrations in the order in which they are applied."""
    plan: list[tuple[str, str]] = []
    for leaf in loader.graph.leaf_nodes(app_label):
        plan += [key for key in loader.graph.forwards_plan(leaf) if key not in plan]
    return [key for key in plan if key[0] == app_label]


def _fill(loader: MigrationLoader, key: tuple[str, str], number: int, alias: str) -> FieldJob:
    app_label, migration_name = key
    state = loader.project_state(key, at_end=False)
    operations = loader.graph.nodes[key].operations
    for earlier in operations[:number]:
        earlier.state_forwards(app_label, state)
    operation = operations[number].filling(app_label, state)
    return FieldJob(operation, app_label, f"{app_label}.{migration_name}", alias, state)


def _not_found(loader: MigrationLoader, app_label: str, model_name: str, name: str) -> str:
    known = {
        f"{key[0]}.{operation.model_name}.{each}"
        for key, migration in loader.graph.nodes.items()
        for operation in migration.operations
        if isinstance(operation, FieldStep)
        for each in operation.names
        if operation.fills(operation.model_name, each)
    }
    label = f"{app_label}.{model_name}.{name}"
    hint = nearest(label, known)
    return (
        f"No migration fills {label}: there is no AddRequiredField or Populate of it.{hint} To write one: "
        f"python manage.py add_required_field {label}"
    )
