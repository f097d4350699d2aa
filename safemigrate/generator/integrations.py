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


def _allowed(**reasons: str) -> Snippet:
    lines = "".join(f'        "{rule}": "{reason}",\n' for rule, reason in reasons.items())
    return Snippet(f"deploy_safety_allowed = {{\n{lines}    }}")


_RERUN = "Run again after it was stopped, each operation does what is left."
_REQUIRED = (
    "Old rows are filled first. It is to be migrated when no code is left that does not know the field."
)


# By the app that is installed: the class attribute that says to it when a migration is to be run, or why it is safe.
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
    # Its rules read what an operation inherits from: AddField of a required field, AlterField to one.
    "deferred_migrations": {
        When.BEFORE: _allowed(
            E003="The column is nullable until each row has its value.", E004=_REQUIRED, E106=_RERUN
        ),
        When.EITHER: _allowed(E106=_RERUN),
        When.AFTER: _allowed(E004=_REQUIRED, E106=_RERUN),
    },
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
