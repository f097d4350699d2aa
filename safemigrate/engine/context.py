"""What the fills of this process are run for: by whom, by which executor, in which migration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Model

#: The app, the model in small letters, and the fields of a fill.
FillKey = tuple[str, str, str]


@dataclass(frozen=True)
class Context:
    """`migrations` gives the migration of a fill by (app, model, its fields); `observers` makes more of them.

    `work_factories` lead another process to the work of a fill, by the fill and its alias: see `pipeline.chosen`.
    `in_migrate` says that no other `migrate` can be at the field.
    """

    person: str = ""
    executor: str = "inline"
    migrations: dict[FillKey, str] = field(default_factory=dict)
    observers: Sequence[Callable[[], Any]] = ()
    work_factories: dict[tuple[FillKey, str], Sequence[str]] = field(default_factory=dict)
    in_migrate: bool = False


current = Context()


#: Makes what is informed of each run; None where the app is not installed.
new_observer: Callable[[], Any] | None = None


def keep(label: str, alias: str) -> str:
    return ""


#: Gives a fill (app.Model.field, alias) that is too much for `migrate` to the workers of a queue, and returns what
#: to report of it; "" where it does not.
hand_over: Callable[[str, str], str] = keep


def is_not_known(label: str, alias: str, parameters: Mapping[str, Any]) -> bool:
    return False


#: Has a backfill (app.Class, alias, parameters) succeeded, or no row to do?
is_backfill_done: Callable[[str, str, Mapping[str, Any]], bool] = is_not_known


def is_never_passed(label: str, alias: str, **same: str) -> bool:
    return False


#: Has the one pass of a fill that leaves rows NULL been made: `runs.store.is_passed`?
is_passed: Callable[..., bool] = is_never_passed


def note_nothing(target: Any) -> None: ...


#: Notes that what the last run of a fill did is reversed with its migration.
note_reversed: Callable[[Any], None] = note_nothing


def none_known(label: str, alias: str) -> tuple[str, bool]:
    return "", False


#: Returns in words how far the fill of (app.Model.field, alias) is that another process does, "" where none is known,
#: and whether that process gives no sign of life.
progress_of: Callable[[str, str], tuple[str, bool]] = none_known

#: Returns in words how far the fill of (app.Model.field, alias) is that another process does just now; "" without one.
filled_elsewhere: Callable[[str, str], str] = keep


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Run with some of it changed."""
    global current
    before, current = current, replace(current, **values)
    try:
        yield
    finally:
        current = before


def migration_of(model: type[Model], names: Sequence[str]) -> str:
    """Return the migration in which the fields are filled, as far as it was noted."""
    return current.migrations.get(key_of(model, names), "")


def work_factory_of(target: Any) -> Sequence[str]:
    """Return what leads another process to the work of a `batches.Target`, nothing where it cannot be found."""
    return current.work_factories.get((key_of(target.model, target.names), target.alias), ())


def key_of(model: type[Model], names: Sequence[str]) -> FillKey:
    """Return what a fill of these fields goes by here."""
    return model._meta.app_label, str(model._meta.model_name), "+".join(names)


def note_plan(plan: Iterable[tuple[Any, bool]]) -> None:
    """Remember in which migration each fill of a plan of `migrate` stands."""
    for migration, backwards in plan:
        for operation in [] if backwards else migration.operations:
            if hasattr(operation, "populate"):
                names = getattr(operation, "names", [operation.name])
                key = (migration.app_label, operation.model_name.lower(), "+".join(names))
                current.migrations[key] = f"{migration.app_label}.{migration.name}"
