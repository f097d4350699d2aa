"""What a project's own tools make of a run's signals and log records; the receivers are those of the documentation."""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
import structlog
from django.db import models
from django.dispatch import Signal
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from safemigrate import signals
from safemigrate.exceptions import BadRows
from safemigrate.operations import AddNullableField, Populate
from tests.conftest import ROOT
from tests.runs.test_recorder import _recorded as _recorded  # noqa: PLC0414  an autouse fixture
from tests.support.sandbox import MigrationSandbox

pytestmark = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)

LABEL = "boxes.Question.n"
ROWS = 3


@pytest.fixture(autouse=True)
def _receivers() -> Iterator[None]:
    """Disconnect at the end what a test connects."""
    own = [value for value in vars(signals).values() if isinstance(value, Signal)]
    before = [list(signal.receivers) for signal in own]
    yield
    for signal, receivers in zip(own, before, strict=True):
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


def block(page: str, heading: str, mark: str) -> str:
    """The one block of Python below the heading that holds `mark`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(heading)[2]
    (found,) = [
        body for body in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if mark in body
    ]
    return str(found)


def a_run(alias: str, *, fails: bool = False) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(ROWS)
    sandbox.run(AddNullableField("question", "n", models.IntegerField()))
    if fails:
        with pytest.raises(BadRows):
            sandbox.run(Populate("question", "n", lambda row: None))
    else:
        sandbox.run(Populate("question", "n", lambda row: row.pk))


def metrics_of(path: Path) -> dict[str, tuple[dict[str, str], float]]:
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    return {each.name: (each.labels, each.value) for family in families for each in family.samples}


@pytest.mark.parametrize("fails", [False, True])
def test_prometheus_reads_the_file(alias: str, fails: bool, tmp_path: Path) -> None:
    file = tmp_path / "safemigrate.prom"
    source = block("how-to/notifications.md", "## In Prometheus", "write_metrics")
    namespace: dict[str, Any] = {}
    exec(re.sub(r'Path\("/.*?"\)', f"Path({str(file)!r})", source), namespace)
    a_run(alias, fails=fails)
    labels = {"field": LABEL, "database": "default"}
    assert metrics_of(file) == {
        "safemigrate_rows_done": (labels, 0 if fails else ROWS),
        "safemigrate_rows_total": (labels, ROWS),
        "safemigrate_failed": (labels, int(fails)),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_opentelemetry_counts_rows_and_failures(
    alias: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    namespace: dict[str, Any] = {}
    exec(block("how-to/notifications.md", "## In OpenTelemetry", "count_batch"), namespace)
    a_run(alias, fails=fails)
    data = json.loads(reader.get_metrics_data().to_json())
    provider.shutdown()
    found = {
        metric["name"]: metric["data"]["data_points"][0]
        for metric in data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    }
    labels = {"field": LABEL, "database": "default"}
    assert found["safemigrate.rows"]["value"] == (0 if fails else ROWS)
    assert found["safemigrate.rows"]["attributes"] == labels
    assert found["safemigrate.batch.duration"]["count"] >= 1
    if fails:
        assert found["safemigrate.failures"]["value"] == 1
        assert found["safemigrate.failures"]["attributes"] == labels | {"error": "BadRows"}
    else:
        assert "safemigrate.failures" not in found


@pytest.mark.parametrize("fails", [False, True])
def test_sentry_makes_an_event_of_a_run_that_fails(alias: str, fails: bool) -> None:
    events: list[dict[str, Any]] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            events.extend(filter(None, [envelope.get_event()]))

    sentry_sdk.init(
        dsn="https://key@sentry.invalid/1",
        transport=Kept,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration()],
    )
    try:
        a_run(alias, fails=fails)
    finally:
        sentry_sdk.get_global_scope().set_client(None)
    if not fails:
        assert events == []
        return
    (event,) = events
    assert event["level"] == "error"
    assert event["logger"].startswith("safemigrate")
    assert event["exception"]["values"][-1]["type"] == "BadRows"
    assert event["extra"]["label"] == LABEL
    assert event["extra"]["alias"] == "default"
    assert event["extra"]["run"]


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """What is written, in place of standard error, by the handlers that a test gives our logger."""
    logger, stream = logging.getLogger("safemigrate"), StringIO()
    before, level = list(logger.handlers), logger.level
    yield stream
    logger.handlers[:] = before
    logger.setLevel(level)


def lines(stream: StringIO) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    of_the_run = [line for line in found if "run" in line]
    assert of_the_run
    assert all(line["label"] == LABEL and line["alias"] == "default" for line in of_the_run)
    return found


@pytest.mark.parametrize("fails", [False, True])
def test_one_line_of_json_for_each_record(alias: str, fails: bool, logged: StringIO) -> None:
    namespace: dict[str, Any] = {}
    exec(block("reference/logging.md", "# Logging", "LOGGING"), namespace)
    namespace["LOGGING"]["handlers"]["json"]["stream"] = logged
    logging.config.dictConfig(namespace["LOGGING"])
    a_run(alias, fails=fails)
    last = lines(logged)[-1]
    assert last["status"] == ("failed" if fails else "succeeded")
    assert ("BadRows" in last.get("exc_info", "")) is fails


@pytest.mark.parametrize("fails", [False, True])
def test_structlog_has_the_attributes_as_fields(alias: str, fails: bool, logged: StringIO) -> None:
    handler = logging.StreamHandler(logged)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger = logging.getLogger("safemigrate")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    a_run(alias, fails=fails)
    last = lines(logged)[-1]
    assert last["level"] == ("error" if fails else "info")
    assert last["status"] == ("failed" if fails else "succeeded")
