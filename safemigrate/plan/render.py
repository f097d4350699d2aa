"""A plan as a person reads it on a terminal, and as JSON for a program."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from safemigrate.plan.plan import Action, DatabasePlan
from safemigrate.plan.risks import SMALL, Risk

WIDEST = 100


def text(plans: Sequence[DatabasePlan]) -> str:
    """Return the plans one under another, no line wider than the terminal where words allow it."""
    return "\n\n".join("\n".join(_lines(plan)) for plan in plans)


def as_json(plans: Sequence[DatabasePlan]) -> str:
    """Return the plans as one JSON object; numbers are bytes, rows and seconds, null is not known."""
    listed = [_plain(plan) for plan in plans]
    return json.dumps({"safe": not any(plan["hurts"] for plan in listed), "plans": listed}, indent=2)


FORMATS: dict[str, Callable[[Sequence[DatabasePlan]], str]] = {"text": text, "json": as_json}


def _plain(plan: DatabasePlan) -> dict[str, Any]:
    return asdict(plan) | {"seconds": plan.seconds, "hurts": plan.hurts}


def _lines(plan: DatabasePlan) -> Iterator[str]:
    yield f"{plan.label} on {plan.alias} ({plan.database})"
    yield from _facts(plan)
    number = 0
    for migration, actions in groupby(plan.actions, key=lambda action: action.migration):
        yield f"\n  {migration}"
        for action in actions:
            number += 1
            yield from _action(number, action)
    yield ""
    for risk in plan.risks:
        yield from _risk(risk)
    yield from _verdict(plan)


def _facts(plan: DatabasePlan) -> Iterator[str]:
    facts = {
        "rows": _rows(plan.rows),
        "NULL": _nulls(plan),
        "table": _bytes(plan.table_bytes),
        "indexes": _bytes(plan.index_bytes),
        "populate": plan.populate,
    }
    for name, value in facts.items():
        if value:
            yield from _wrapped(value, f"  {name:<10}")


def _rows(rows: int | None) -> str:
    return f"about {rows:,}" if rows and rows >= SMALL else _number(rows)


def _nulls(plan: DatabasePlan) -> str:
    if plan.nulls is not None:
        return _number(plan.nulls)
    return "all of them: the column is not there yet" if plan.actions else ""


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
        return "no session waits"
    if action.blocks == "everyone":
        return "readers and writers wait"
    return "writers of these rows wait" if action.sample else "readers pass, writers wait"


def _sample(action: Action) -> str:
    sample = action.sample
    if sample is None or sample.skipped:
        return f"time not predicted: {sample.skipped if sample else ''}"
    tried = f"{sample.rows:,} rows were filled in {_seconds(sample.seconds)} in a copy, and rolled back"
    if action.seconds is None or action.batches is None:
        return tried
    batches = "1 batch" if action.batches == 1 else f"about {action.batches:,} batches"
    return f"at least {_seconds(action.seconds)}, in {batches} ({tried})"


def _risk(risk: Risk) -> Iterator[str]:
    mark = "  !! " if risk.hurts else "  !  "
    yield from _wrapped(f"{risk.text} {risk.cure}", mark)


def _verdict(plan: DatabasePlan) -> Iterator[str]:
    if plan.hurts:
        yield "  Not safe to run now; see the lines marked !!"
    elif plan.actions and all(action.done for action in plan.actions):
        yield "  All of it is done already."
    else:
        longest = max((action.wait or 0 for action in plan.actions), default=0)
        yield from _wrapped(
            "Safe to run: a lock that blocks other sessions is held briefly, and one try waits for it at most "
            f"{longest:g} s.",
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
