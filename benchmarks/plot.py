"""The time of each method against one UPDATE, drawn: a panel for each database, in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from xml.sax.saxutils import escape

from benchmarks.figures import Figures, number
from benchmarks.methods import METHODS

COLUMNS, WIDTH, LABELS, BAR, STEP, HEAD = 2, 500, 225, 215, 19, 50
LEAST = 0.5
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px }
.value { font-size: 11px }
.ours { fill: #2f7d5b }
.theirs { fill: #9aa4af }
.one { stroke: #24292f; stroke-dasharray: 2 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .one { stroke: #e6edf3 } .theirs { fill: #6e7781 } }
"""


def plot(databases: Sequence[Figures]) -> str:
    """Return an SVG with the medians; the scale is logarithmic, and common to all panels."""
    panels = [bars(figures) for figures in databases]
    most = max((ratio for panel in panels for _, ratio in panel), default=1.0)
    height = HEAD + STEP * max(map(len, panels), default=0)
    parts = [
        panel(figures.title, found, most, n % COLUMNS * WIDTH, n // COLUMNS * height)
        for n, (figures, found) in enumerate(zip(databases, panels, strict=True))
    ]
    lines = -(-len(panels) // COLUMNS)
    size = f'viewBox="0 0 {WIDTH * COLUMNS} {height * lines}"'
    title = "<title>Time of each method against one UPDATE</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}<style>{STYLE}</style>\n' + (
        "\n".join(parts) + "\n</svg>\n"
    )


def bars(figures: Figures) -> list[tuple[str, float]]:
    """Return the methods that fill a column, with their ratio to the UPDATE of the same values."""
    names = [name for name in METHODS if name in figures.rounds[0] and METHODS[name].base != name]
    found = [(name, figures.ratio(name, METHODS[name].base)) for name in names if not METHODS[name].required]
    return [(name, ratio) for name, ratio in found if ratio is not None]


def panel(title: str, found: Sequence[tuple[str, float]], most: float, left: int, top: int) -> str:
    one = LABELS + _x(1, most)
    below = HEAD + STEP * len(found)
    lines = [
        f'<g transform="translate({left} {top})">',
        f'<text class="title" x="{LABELS}" y="14">{escape(title)}</text>',
        *(_bar(name, ratio, most, HEAD + STEP * n) for n, (name, ratio) in enumerate(found)),
        f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="{HEAD - 12}" y2="{below - 6}"/>',
        f'<text class="value" x="{one:.1f}" y="{HEAD - 15}" text-anchor="middle">one UPDATE</text>',
        "</g>",
    ]
    return "\n".join(lines)


def _bar(name: str, ratio: float, most: float, top: int) -> str:
    label = escape(METHODS[name].title.replace("`", ""))
    start, end = sorted((_x(1, most), _x(ratio, most)))
    kind = "ours" if METHODS[name].ours else "theirs"
    return (
        f'<text x="{LABELS - 8}" y="{top + 4}" text-anchor="end">{label}</text>'
        f'<rect class="{kind}" x="{LABELS + start:.1f}" y="{top - 6}" width="{end - start:.1f}" height="12"/>'
        f'<text class="value" x="{LABELS + end + 6:.1f}" y="{top + 4}">{number(ratio)}</text>'
    )


def _x(ratio: float, most: float) -> float:
    return BAR * log(max(ratio, LEAST) / LEAST) / log(max(most, 2) / LEAST)
