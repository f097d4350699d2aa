"""The system check over the settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.checks.registry import registry

from safemigrate.checks.configuration import check_settings


def found(**kwargs: Any) -> list[tuple[str, str]]:
    return [(message.id, message.msg) for message in check_settings(**kwargs)]


def test_the_defaults_are_right() -> None:
    assert found() == []


def test_a_name_that_is_misspelt_is_given_right(settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SECOND = 1
    text = "There is no setting SAFEMIGRATE_BATCH_SECOND. Did you mean SAFEMIGRATE_BATCH_SECONDS?"
    assert found() == [("safemigrate.W010", text)]


def test_each_value_that_is_wrong_is_said_at_once(settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SECONDS = "fast"
    settings.SAFEMIGRATE_RUNS_DATABASE = "nowhere"
    (first, second) = found()
    assert first[0] == second[0] == "safemigrate.E001"
    assert first[1].startswith("SAFEMIGRATE_BATCH_SECONDS must be a number of seconds, not 'fast'.")
    assert second[1].startswith("SAFEMIGRATE_RUNS_DATABASE must be an alias of DATABASES, not 'nowhere'.")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("safemigrate.throttles.Nic", "cannot be imported: .* Did you mean safemigrate.throttles.Nice?"),
        ("decimal.Decimal", "is no class with a method reason"),
    ],
)
def test_a_throttle_is_imported(settings: Any, path: str, why: str) -> None:
    settings.SAFEMIGRATE_THROTTLES = [path]
    (code, text) = found()[0]
    assert code == "safemigrate.E001"
    assert re.search(why, text)


def test_check_alone_asks_it() -> None:
    names = [check.__qualname__ for check in registry.get_checks()]
    assert names.count(f"{check_settings.__module__}.check_settings") == 1
