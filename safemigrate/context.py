"""What the fills of this process are run for: by whom, by which executor, in which migration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Context:
    """`migrations` gives the migration of a fill by (app, model, its fields); `ledgers` makes more of them.

    `recipe` leads another process to the work of the fill that is run: see `workers.chosen`.
    """

    person: str = ""
    executor: str = "inline"
    migrations: dict[tuple[str, str, str], str] = field(default_factory=dict)
    ledgers: Sequence[Callable[[], Any]] = ()
    recipe: Sequence[str] = ()


current = Context()


@contextmanager
def changed(**values: Any) -> Iterator[None]:
    """Run with some of it changed."""
    global current
    before, current = current, replace(current, **values)
    try:
        yield
    finally:
        current = before


def migration_of(model: Any, names: Sequence[str]) -> str:
    """Return the migration in which the fields are filled, as far as it was noted."""
    meta = model._meta
    return current.migrations.get((meta.app_label, meta.model_name, "+".join(names)), "")


def note_plan(plan: Iterable[tuple[Any, bool]]) -> None:
    """Remember in which migration each fill of a plan of `migrate` stands."""
    for migration, backwards in plan:
        for operation in [] if backwards else migration.operations:
            if hasattr(operation, "populate"):
                names = getattr(operation, "names", [operation.name])
                key = (migration.app_label, operation.model_name.lower(), "+".join(names))
                current.migrations[key] = f"{migration.app_label}.{migration.name}"
