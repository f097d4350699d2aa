"""A step: statements that run together, the lock they take, and how to see whether they are still needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from safemigrate.exceptions import SafemigrateError, StepRefused

Blocked = Literal["nobody", "writers", "everyone"]
Time = Literal["briefly", "while it is read", "while it is copied"]

COPY_CURE = (
    "In a maintenance window, set SAFEMIGRATE_ALLOW_TABLE_COPY = True and run migrate again; or use a tool that copies "
    "in the background (gh-ost, pt-online-schema-change)."
)


@dataclass(frozen=True)
class Lock:
    """The lock of a step: its name, who waits for it, and for how long it is held, which may be the
    time that the database takes to read the table once, or to write it anew."""

    name: str
    blocks: Blocked
    lasts: Time = "briefly"

    def __str__(self) -> str:
        return f"{self.name}, {self.lasts}"

    @property
    def hurts(self) -> bool:
        """Does another session wait for a time that grows with the table?"""
        return self.blocks != "nobody" and self.lasts != "briefly"


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    `statements` are final SQL texts, without parameters. A step with `online` set runs each of them by
    itself, outside a transaction, for as long as it takes: it must block neither readers nor writers.
    Any other step runs them in one transaction where the database has transactions for DDL, under the
    short lock of `schema/runner.py`, on `tables` (quoted names). `needed` looks at the database and says whether
    there is anything to do; `cleanup` runs in any case; `verify` looks at the data afterwards, and raises.
    """

    title: str
    statements: tuple[str, ...]
    lock: Lock
    online: bool = False
    tables: tuple[str, ...] = ()
    needed: Callable[[], bool] = _always
    cleanup: tuple[str, ...] = ()
    verify: Callable[[], None] | None = None


@dataclass(frozen=True)
class Obstacle:
    """What the server will refuse in a later step (or may, where it is not `certain`), and what to do about it."""

    text: str
    cure: str
    certain: bool = True
    error: type[SafemigrateError] = StepRefused


@dataclass(frozen=True)
class Requirement:
    """The steps that make a filled column required, in order.

    before  index, unique and foreign-key work that can be done while NULLs are still allowed
    reject_nulls  lets no new NULL in; what slipped in before it is filled after it
    accept_nulls  takes that back, when rows are found that cannot be filled
    enforce  proves that nothing is NULL, and sets NOT NULL
    after   what the database can only do afterwards
    """

    before: Sequence[Step] = field(default=())
    reject_nulls: Sequence[Step] = field(default=())
    accept_nulls: Sequence[Step] = field(default=())
    enforce: Sequence[Step] = field(default=())
    after: Sequence[Step] = field(default=())

    def in_order(self) -> list[Step]:
        return [*self.before, *self.reject_nulls, *self.enforce, *self.after]
