"""A forecast as a person reads it on a terminal, and as JSON for a program."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from safemigrate.plan.plan import Action, Forecast
from safemigrate.plan.risks import SMALL, Risk

WIDEST = 100


def text(forecasts: Sequence[Forecast]) -> str:
    """Return the forecasts one under another, no line wider than the terminal where words allow it."""
    return "\n\n".join("\n".join(_lines(forecast)) for forecast in forecasts)


def as_json(forecasts: Sequence[Forecast]) -> str:
    """Return the forecasts as one JSON object; numbers are bytes, rows and seconds, null is not known."""
    plans = [_plain(forecast) for forecast in forecasts]
    return json.dumps({"safe": not any(plan["hurts"] for plan in plans), "plans": plans}, indent=2)


FORMATS: dict[str, Callable[[Sequence[Forecast]], str]] = {"text": text, "json": as_json}


def _plain(forecast: Forecast) -> dict[str, Any]:
    return asdict(forecast) | {"seconds": forecast.seconds, "hurts": forecast.hurts}


def _lines(forecast: Forecast) -> Iterator[str]:
    yield f"{forecast.label} on {forecast.alias} ({forecast.database})"
    yield from _facts(forecast)
    number = 0
    for migration, actions in groupby(forecast.actions, key=lambda action: action.migration):
        yield f"\n  {migration}"
        for action in actions:
            number += 1
            yield from _action(number, action)
    yield ""
    for risk in forecast.risks:
        yield from _risk(risk)
    yield from _verdict(forecast)


def _facts(forecast: Forecast) -> Iterator[str]:
    facts = {
        "rows": _rows(forecast.rows),
        "NULL": _nulls(forecast),
        "table": _bytes(forecast.table_bytes),
        "indexes": _bytes(forecast.index_bytes),
        "populate": forecast.populate,
    }
    for name, value in facts.items():
        if value:
            yield from _wrapped(value, f"  {name:<10}")


def _rows(rows: int | None) -> str:
    return f"about {rows:,}" if rows and rows >= SMALL else _number(rows)


def _nulls(forecast: Forecast) -> str:
    if forecast.nulls is not None:
        return _number(forecast.nulls)
    return "all of them: the column is not there yet" if forecast.actions else ""


def _action(number: int, action: Action) -> Iterator[str]:
    done = " (done already)" if action.done else ""
    yield from _wrapped(f"{action.title}{done}", f"  {number:>2}  ")
    if action.done:
        return
    for statement in action.statements:
        yield from _wrapped(f"{statement};", "        ")
    yield from _wrapped(_effect(action), "      > ")
    if action.sample:
        yield from _wrapped(_sample(action), "      > ")


def _effect(action: Action) -> str:
    return f"{action.lock}, {action.lasts}: {_waiting(action)}"


def _waiting(action: Action) -> str:
    if action.blocks == "nobody":
        return "nobody waits"
    if action.blocks == "everyone":
        return "readers and writers wait"
    return "who writes one of these rows waits" if action.sample else "readers pass, writers wait"


def _sample(action: Action) -> str:
    sample = action.sample
    if sample is None or sample.skipped:
        return f"time not predicted: {sample.skipped if sample else ''}"
    tried = f"{sample.rows:,} rows were filled in {_seconds(sample.seconds)} in a copy, and taken back"
    if action.seconds is None or action.batches is None:
        return tried
    batches = "1 batch" if action.batches == 1 else f"about {action.batches:,} batches"
    return f"at least {_seconds(action.seconds)}, in {batches} ({tried})"


def _risk(risk: Risk) -> Iterator[str]:
    mark = "  !! " if risk.hurts else "  !  "
    yield from _wrapped(f"{risk.text} {risk.cure}", mark)


def _verdict(forecast: Forecast) -> Iterator[str]:
    if forecast.hurts:
        yield "  It would hurt, for the reasons marked with !!"
    elif forecast.actions and all(action.done for action in forecast.actions):
        yield "  All of it is done already."
    else:
        longest = max((action.wait or 0 for action in forecast.actions), default=0)
        yield from _wrapped(
            "Safe to run: nobody waits for longer than an instant, or than the "
            f"{longest:g} s at most for which a lock is asked for at a time.",
            "  ",
        )


def _wrapped(value: str, first: str) -> list[str]:
    width = max(40, min(shutil.get_terminal_size().columns, WIDEST))
    return textwrap.wrap(
        value,
        width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    size, units = float(value), iter(("bytes", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} minutes"
    return f"{value / 3600:.1f} hours"
