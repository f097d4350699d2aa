"""The system checks over the settings, their names, their values, and what they name, and over the Backfill classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution

from safemigrate import backfills, conf
from safemigrate.backfills.problems import problems
from safemigrate.exceptions import InvalidBackfill, InvalidSetting
from safemigrate.formatting import nearest, page
from safemigrate.throttles import imported

HINT, CLASSES = f"See {page('reference/settings')}", f"See {page('reference/backfill-classes')}"


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Return an error for each setting that a backfill would be refused for, a warning for a name without a meaning.

    Imports the throttles; asks no database.
    """
    return [*_unknown(), *_invalid()]


def check_backfills(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Return an error for each thing that is wrong with a Backfill of an app. Asks no database."""
    try:
        found = backfills.registered()
    except InvalidBackfill as error:
        return [Error(str(error), hint=CLASSES, obj="backfills", id="safemigrate.E002")]
    return [
        Error(text, hint=CLASSES, obj=label, id="safemigrate.E002")
        for label, each in found.items()
        for text in problems(each)
    ]


def _unknown() -> Iterator[CheckMessage]:
    for name in sorted(dir(settings)):
        if name.startswith("SAFEMIGRATE_") and name not in conf.SETTINGS:
            text = f"There is no setting {name}.{nearest(name, conf.SETTINGS)}"
            yield Caution(text, hint=HINT, obj="settings", id="safemigrate.W010")


def _invalid() -> Iterator[CheckMessage]:
    for name in conf.SETTINGS:
        try:
            value = conf.get(name)
            for path in value if name == "SAFEMIGRATE_THROTTLES" else ():
                imported(path)
        except InvalidSetting as error:
            yield Error(str(error), hint=HINT, obj="settings", id="safemigrate.E001")
