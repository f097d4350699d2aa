"""The settings: their defaults, and the words for those that cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from safemigrate import conf
from safemigrate.engine import batch_size
from safemigrate.engine.batch_size import Pace
from safemigrate.exceptions import InvalidSetting

WRONG = {
    "SAFEMIGRATE_BATCH_SIZE": [0, -1, 1.5, "many", True],
    "SAFEMIGRATE_BATCH_SECONDS": [0, -0.1, None, "0.1", True],
    "SAFEMIGRATE_LOCK_TIMEOUT": [0, -1, None, "1s"],
    "SAFEMIGRATE_LOCK_TRIES": [0, None, 1.5],
    "SAFEMIGRATE_LOCK_PAUSE": [0, -1, None],
    "SAFEMIGRATE_WAIT_SECONDS": [-1, None, "10", True],
    "SAFEMIGRATE_RETRIES": [-1, None, 1.5, True],
    "SAFEMIGRATE_MAX_BAD_ROWS": [-1, None, "all"],
    "SAFEMIGRATE_WRITER_THREAD": [None, 1, "no"],
    "SAFEMIGRATE_WORKERS": [0, -1, None, 1.5, "many"],
    "SAFEMIGRATE_ALLOW_TABLE_COPY": [None, 1, "yes"],
    "SAFEMIGRATE_ROWS_PER_SECOND": [0, -1, 1.5, "many"],
    "SAFEMIGRATE_THROTTLES": [None, "safemigrate.throttles.Nice", [1]],
    "SAFEMIGRATE_MAX_REPLICATION_LAG": [0, -1, None, "5s"],
    "SAFEMIGRATE_REPLICAS": [None, "replica", [None]],
    "SAFEMIGRATE_FILL_HOURS": ["", "22-6", "22:00-24:00", "22:00", "7:00-8:00", "22:00-06:00 ", 22],
    "SAFEMIGRATE_CHECKS": [None, 0, "no"],
    "SAFEMIGRATE_RUNS_DATABASE": [None, "nowhere"],
    "SAFEMIGRATE_LEASE_SECONDS": [0, 2.9, None],
    "SAFEMIGRATE_MAX_ROWS_IN_MIGRATE": [-1, 1.5, "many"],
    "SAFEMIGRATE_EXECUTOR": [None, "", "Celery", "huey"],
    "SAFEMIGRATE_QUEUE": [None, "", 1],
    "SAFEMIGRATE_QUEUE_WORKERS": [0, None, 1.5],
    "SAFEMIGRATE_TASK_SECONDS": [0, -1, None, "30s"],
    "SAFEMIGRATE_TASK_RETRIES": [-1, None, 1.5],
    "SAFEMIGRATE_MIGRATE_ENQUEUES": [None, 1, "yes"],
    "SAFEMIGRATE_NOTIFY": [None, "ops@example.com", [None]],
    "SAFEMIGRATE_WEBHOOK": ["", "hooks.example.com", "file:///etc/passwd", 1],
    "SAFEMIGRATE_WEBHOOK_SECRET": [None, 1, b"secret"],
}
RIGHT = {
    "SAFEMIGRATE_BATCH_SIZE": [None, 1, 50_000],
    "SAFEMIGRATE_BATCH_SECONDS": [0.01, 2],
    "SAFEMIGRATE_LOCK_TIMEOUT": [0.05, 3],
    "SAFEMIGRATE_LOCK_TRIES": [1],
    "SAFEMIGRATE_WAIT_SECONDS": [0, 0.5, 3600],
    "SAFEMIGRATE_RETRIES": [0, 3],
    "SAFEMIGRATE_MAX_BAD_ROWS": [0, 10**9],
    "SAFEMIGRATE_WRITER_THREAD": [False],
    "SAFEMIGRATE_WORKERS": [1, 8],
    "SAFEMIGRATE_ALLOW_TABLE_COPY": [True],
    "SAFEMIGRATE_ROWS_PER_SECOND": [None, 1, 50_000],
    "SAFEMIGRATE_THROTTLES": [[], ("safemigrate.throttles.Nice",)],
    "SAFEMIGRATE_FILL_HOURS": ["22:00-06:00", "00:00-23:59"],
    "SAFEMIGRATE_RUNS_DATABASE": ["archive"],
    "SAFEMIGRATE_LEASE_SECONDS": [3, 60.5],
    "SAFEMIGRATE_MAX_ROWS_IN_MIGRATE": [None, 0, 10**9],
    "SAFEMIGRATE_EXECUTOR": ["inline", "celery", "rq", "tasks"],
    "SAFEMIGRATE_QUEUE_WORKERS": [1, 64],
    "SAFEMIGRATE_TASK_SECONDS": [0.5, 600],
    "SAFEMIGRATE_NOTIFY": [[], ["ops@example.com"]],
    "SAFEMIGRATE_WEBHOOK": [None, "https://hooks.example.com/1", "http://127.0.0.1:1/"],
    "SAFEMIGRATE_WEBHOOK_SECRET": ["", "secret"],
}


@pytest.mark.parametrize("name", conf.SETTINGS)
def test_a_setting_that_is_absent_has_its_default(name: str, settings: Any) -> None:
    assert not hasattr(settings, name)
    assert conf.get(name) == conf.SETTINGS[name].default


def test_every_setting_is_one_flat_name_and_says_what_it_means() -> None:
    for name, setting in conf.SETTINGS.items():
        assert name.startswith("SAFEMIGRATE_")
        assert setting.valid(setting.default)
        assert setting.form.startswith(
            (
                "a number",
                "True or False",
                "a list of",
                "hours as in",
                "an address",
                "a text",
                "an alias",
                "one of",
                "the name",
            )
        )
        assert setting.meaning.endswith(".")


def test_every_setting_is_tried_with_wrong_values() -> None:
    assert set(WRONG) == set(conf.SETTINGS)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_wrong_value_is_refused_in_words(name: str, value: Any, settings: Any) -> None:
    setattr(settings, name, value)
    with pytest.raises(InvalidSetting) as caught:
        conf.get(name)
    setting = conf.SETTINGS[name]
    assert str(caught.value) == f"{name} must be {setting.form}, not {value!r}. {setting.meaning}"
    assert isinstance(caught.value, ImproperlyConfigured)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in RIGHT for value in RIGHT[name]])
def test_a_right_value_is_taken(name: str, value: Any, settings: Any) -> None:
    setattr(settings, name, value)
    assert conf.get(name) == value


def test_the_pace_by_default() -> None:
    assert batch_size.configured() == Pace(seconds=0.1, start=1_000, smallest=200, largest=20_000)


def test_a_function_that_may_take_any_time_begins_with_few_rows() -> None:
    assert batch_size.configured(calls=True) == Pace(seconds=0.1, start=20, smallest=1, largest=20_000)
    assert batch_size.configured(30, calls=True) == Pace.fixed(30)


def test_the_pace_follows_the_settings(settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SECONDS = 2
    assert batch_size.configured() == Pace(seconds=2, start=1_000, smallest=200, largest=20_000)


def test_an_operation_s_batch_size_goes_before_the_setting(settings: Any) -> None:
    settings.SAFEMIGRATE_BATCH_SIZE = 30
    assert batch_size.configured() == Pace.fixed(30)
    assert batch_size.configured(7) == Pace.fixed(7)
