"""Migrate one database alias after another, and say how each of them fared."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, Error, connections, models, router
from django.db.models import QuerySet

from safemigrate.backends import for_connection
from safemigrate.connections import schema_of
from safemigrate.exceptions import InvalidAlias, UnknownSchema
from safemigrate.formatting import nearest, table
from safemigrate.generator.targets import RequiredField


@dataclass(frozen=True)
class Count:
    """The rows of a table, and how many have a value in the column."""

    rows: int
    filled: int


@dataclass(frozen=True)
class Outcome:
    """What migrating one alias did; the counts are None where they could not be had."""

    alias: str
    rows: int | None
    filled: int | None
    seconds: float
    error: Exception | None = None

    @property
    def state(self) -> str:
        if self.error:
            return "failed"
        return "done" if self.filled else "nothing to fill"


def chosen_aliases(names: Sequence[str], *, every: bool, targets: Sequence[RequiredField]) -> list[str]:
    """Return the aliases named, or every one that is a database of its own, or the default one.

    Raises InvalidAlias for a name that is unknown, or where the router lets none of the models be.
    """
    if every:
        return [alias for alias in _distinct() if _allowed(alias, targets)]
    refuse_unknown(names)
    aliases = list(dict.fromkeys(names)) or [DEFAULT_DB_ALIAS]
    for alias in aliases:
        if not _allowed(alias, targets):
            models_named = ", ".join(dict.fromkeys(str(target.model._meta.label) for target in targets))
            raise InvalidAlias(
                f"The database routers do not allow {models_named} to be migrated on {alias}.{of_tenants(alias)}"
            )
    return aliases


def chosen_schemas(asked: str) -> list[str]:
    """Return the schemas of these tenants, separated by commas, or of "all". Raises UnknownSchema.

    The one that all share may be named too.
    """
    if not hasattr(settings, "TENANT_MODEL"):
        raise UnknownSchema(
            "--schemas names tenants of django-tenants, and this project has none (TENANT_MODEL)."
        )
    utils = importlib.import_module("django_tenants.utils")
    shared = utils.get_public_schema_name()
    known = utils.get_tenant_model()._default_manager.exclude(schema_name=shared)
    names = list(known.order_by("schema_name").values_list("schema_name", flat=True))
    if asked == "all":
        return names
    wanted = list(dict.fromkeys(asked.split(",")))
    for name in wanted:
        if name not in [*names, shared]:
            raise UnknownSchema(f"No tenant has the schema {name}.{nearest(name, names)}")
    return wanted


def of_tenants(alias: str) -> str:
    """Return what to type where the model may be in the tenants' schemas alone; "" without tenants."""
    if not (schema := schema_of(alias)):
        return ""
    return (
        f" The connection is in the schema {schema}. With django-tenants, name that of a tenant: python manage.py "
        "tenant_command add_required_field ... --schema=NAME; `backfill run` and `verify` take --schemas NAME, or all."
    )


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise InvalidAlias for a name that is no alias of DATABASES."""
    for alias in names:
        if alias not in connections:
            raise InvalidAlias(f"DATABASES has no alias {alias}.{nearest(alias, connections)}")


def apply(
    targets: Sequence[RequiredField], aliases: Iterable[str], migrate: Callable[[str], Any]
) -> list[Outcome]:
    """Call `migrate` with each alias, whatever happened on the one before."""
    # The migration may have been written a moment ago.
    importlib.invalidate_caches()
    return [_apply(targets, alias, migrate) for alias in aliases]


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one line per alias, under a line of headings."""
    rows = [(o.alias, _number(o.rows), _number(o.filled), f"{o.seconds:,.1f}", o.state) for o in outcomes]
    return table(
        ("database", "rows", "filled", "seconds", "state"), rows, right=("rows", "filled", "seconds")
    )


def _apply(targets: Sequence[RequiredField], alias: str, migrate: Callable[[str], Any]) -> Outcome:
    error: Exception | None = None
    before = _count(targets, alias)
    start = time.monotonic()
    try:
        migrate(alias)
    except Exception as failure:  # noqa: BLE001  whatever it is, the next alias gets its turn
        error = failure
    seconds = time.monotonic() - start
    after = _count(targets, alias)
    if after is None:
        return Outcome(alias, None, None, seconds, error)
    return Outcome(alias, after.rows, after.filled - (before.filled if before else 0), seconds, error)


def _count(targets: Sequence[RequiredField], alias: str) -> Count | None:
    """Count over all targets that are on the alias, or return None where there is no table to count."""
    try:
        counts = [_count_one(target, alias) for target in targets if _allowed(alias, [target])]
    except Error:
        return None
    return Count(sum(count.rows for count in counts), sum(count.filled for count in counts))


def _count_one(target: RequiredField, alias: str) -> Count:
    column: Any = target.field.column
    # Only this column is named, so that it does not matter what else models.py and the table differ in.
    rows: QuerySet[Any] = QuerySet(target.model, using=alias)
    if for_connection(connections[alias]).column(target.model, column) is None:
        return Count(rows.aggregate(rows=models.Count("*"))["rows"], 0)
    counted = rows.aggregate(rows=models.Count("*"), filled=models.Count(target.name))
    return Count(counted["rows"], counted["filled"])


def _allowed(alias: str, targets: Iterable[RequiredField]) -> bool:
    return any(router.allow_migrate_model(alias, target.model) for target in targets)


def _distinct() -> list[str]:
    found: dict[tuple[str, ...], str] = {}
    for alias in connections:
        options = settings.DATABASES[alias]
        if not options.get("TEST", {}).get("MIRROR"):
            place = tuple(str(options.get(key) or "") for key in ("ENGINE", "HOST", "PORT", "NAME"))
            found.setdefault(place, alias)
    return list(found.values())


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
