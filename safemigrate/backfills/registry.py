"""The classes that the apps have, found by themselves as admin.py is."""

from __future__ import annotations

from collections.abc import Iterator

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from safemigrate.backfills.backfill import Backfill
from safemigrate.exceptions import InvalidBackfill, NothingToRun
from safemigrate.formatting import nearest


def registered() -> dict[str, type[Backfill]]:
    """Return the classes in the `backfills` modules of the apps, by label. Imports these modules."""
    autodiscover_modules("backfills")
    found: dict[str, type[Backfill]] = {}
    for each in _classes(Backfill):
        label = each.label()
        if (other := found.get(label)) is not None:
            raise InvalidBackfill(
                f"Two backfills are called {label}: one in {other.__module__}, one in {each.__module__}. A run is "
                "known by that name; rename one of them."
            )
        found[label] = each
    return dict(sorted(found.items()))


def _classes(base: type[Backfill]) -> Iterator[type[Backfill]]:
    for each in base.__subclasses__():
        config = apps.get_containing_app_config(each.__module__)
        inside = each.__module__.removeprefix(f"{config.name}.").split(".") if config else []
        if inside[:1] == ["backfills"] and not vars(vars(each).get("Meta", object)).get("abstract", False):
            yield each
        yield from _classes(each)


def find(label: str) -> type[Backfill]:
    """Return the class of that label. Raises NothingToRun."""
    known = registered()
    by_lower = {each.lower(): each for each in known}
    if label.lower() in by_lower:
        return known[by_lower[label.lower()]]
    app_label = label.partition(".")[0]
    there = ", ".join(known) or "there is none yet"
    raise NothingToRun(
        f"There is no backfill {label}.{nearest(label, known)} Known: {there}. It is a class that inherits from "
        f"safemigrate.backfills.Backfill in backfills.py of the app {app_label}; a field is named as app.Model.field."
    )
