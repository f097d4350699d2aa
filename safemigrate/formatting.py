"""Text for people: the nearest known name, the address of a page, and rows of text under headings."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

#: Where the documentation stands.
DOCS = "https://github.com/safemigrate/safemigrate/blob/main/docs"


def page(name: str) -> str:
    """Return the address of a page of the documentation, as in "reference/checks"."""
    return f"{DOCS}/{name}.md"


def explained(error: Exception) -> str:
    """Return what an error of ours says, and the address at which it is explained."""
    return f"{error}\nSee {page('reference/errors')}#{type(error).__name__.lower()}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" for the known name that is most like `name`, or nothing."""
    names = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    return f" Did you mean {names[found[0]]}?" if found else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Return the rows in columns as wide as they need, those under the headings `right` aligned there."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    signs = [">" if heading in right else "<" for heading in headings]
    return "\n".join(
        "  ".join(
            f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=True)
        ).rstrip()
        for line in lines
    )
