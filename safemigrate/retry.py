"""How long to wait before another try."""

from __future__ import annotations

import random


def doubled(attempt: int, first: float, longest: float) -> float:
    """Return `first` for attempt 0, twice that for the next one, and so on, up to `longest`."""
    return float(min(first * 2.0 ** min(attempt, 30), longest))


def backoff(attempt: int, first: float, longest: float) -> float:
    """Return seconds as `doubled`, less up to a half by chance: what failed together does not come again together."""
    return doubled(attempt, first, longest) * random.uniform(0.5, 1.0)
