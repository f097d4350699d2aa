"""The nearest name, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" for the known name that is most like `name`, or nothing."""
    names = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    return f" Did you mean {names[found[0]]}?" if found else ""
