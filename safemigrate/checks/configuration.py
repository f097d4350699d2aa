"""The system check over the settings: their names, their values, and what they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution

from safemigrate import conf
from safemigrate.exceptions import InvalidSetting
from safemigrate.formatting import nearest
from safemigrate.throttles import imported

HINT = "See docs: reference/settings"


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Return an error for each setting that a backfill would be refused for, a warning for a name without a meaning.

    Imports the throttles; asks no database.
    """
    return [*_unknown(), *_invalid()]


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
