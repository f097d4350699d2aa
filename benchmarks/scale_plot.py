"""The time of a fill by the number of workers, drawn: both scales logarithmic, in the page's own colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 380, 70, 20, 230, 45
TICKS = {1 / 60: "1 min", 1 / 6: "10 min", 1.0: "1 h", 10.0: "10 h", 100.0: "4 days", 1000.0: "6 weeks"}
TICKS |= {10_000.0: "1 year", 100_000.0: "11 years"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.grid { stroke: #9aa4af; stroke-opacity: .35 }
.s0 { stroke: #2f7d5b } .s1 { stroke: #2f5f9e } .s2 { stroke: #b5651d } .s3 { stroke: #8b3a62 }
polyline { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
"""


def plot(series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return an SVG with a line for each of the series: (workers, hours)."""
    xs = [workers for line in series.values() for workers, _ in line]
    ys = [hours for line in series.values() for _, hours in line]
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    down = Scale(max(ys) * 1.2, min(ys) / 1.2, TOP, HEIGHT - BOTTOM)
    ticks = [(hours, text) for hours, text in TICKS.items() if min(ys) / 1.2 <= hours <= max(ys) * 1.2]
    parts = [
        *(_across(down.at(hours), text) for hours, text in ticks),
        *(_text(across.at(x), HEIGHT - 22, f"{x}", "middle") for x in dict(next(iter(series.values())))),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "workers", "middle"),
        *(
            _line(n, title, [(across.at(x), down.at(y)) for x, y in line])
            for n, (title, line) in enumerate(series.items())
        ),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>Time for 1,000,000,000 rows by the number of workers</title>"
    return f"{head}{title}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"


class Scale:
    def __init__(self, first: float, last: float, start: float, end: float) -> None:
        self.first, self.start = first, start
        self.step = (end - start) / log(last / first)

    def at(self, value: float) -> float:
        return self.start + self.step * log(value / self.first)


def _across(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, text, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(number: int, title: str, points: Sequence[tuple[float, float]]) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    label = _text(x + 8, y + (16 if number == 1 else 4), title.replace("`", ""), "start")
    return f'<polyline class="s{number}" points="{joined}"/>{label}'
