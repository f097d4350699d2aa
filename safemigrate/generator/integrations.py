"""What the files carry for other packages that order or judge migrations, where the project has these."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from django.apps import apps

from safemigrate.populate.expressions import Snippet


class When(Enum):
    """When a migration is to be run, seen from the deployment of the code that knows the field."""

    BEFORE = "before"
    EITHER = "either"
    AFTER = "after"


def _attributes(import_line: str, codes: Mapping[When, str]) -> dict[When, Snippet]:
    return {when: Snippet(code, frozenset({import_line})) for when, code in codes.items()}


# By the app that is installed: the class attribute that says to it when a migration is to be run.
ATTRIBUTES: dict[str, dict[When, Snippet]] = {
    "django_safemigrate": _attributes(
        "from django_safemigrate import Safe",
        {
            When.BEFORE: "safe = Safe.before_deploy()",
            When.EITHER: "safe = Safe.always()",
            When.AFTER: "safe = Safe.after_deploy()",
        },
    ),
    # It knows two stages; what may run in both is done with by the time the new code reads the field.
    "syzygy": _attributes(
        "from syzygy import Stage",
        {
            When.BEFORE: "stage = Stage.PRE_DEPLOY",
            When.EITHER: "stage = Stage.PRE_DEPLOY",
            When.AFTER: "stage = Stage.POST_DEPLOY",
        },
    ),
}

# By the app that is installed: the module and name of the operation that exempts a migration from its rules.
EXEMPTIONS: dict[str, tuple[str, str]] = {
    "django_migration_linter": ("django_migration_linter", "IgnoreMigration"),
}


def attributes(when: When) -> tuple[Snippet, ...]:
    """Return the lines that a Migration class to be run at this time has for the packages installed."""
    return tuple(sources[when] for app, sources in ATTRIBUTES.items() if apps.is_installed(app))


def exemptions() -> list[tuple[str, str]]:
    """Return module and name of the operations that a migration which sets NOT NULL needs to be let pass."""
    return [operation for app, operation in EXEMPTIONS.items() if apps.is_installed(app)]
