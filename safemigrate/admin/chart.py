"""Rows per second over time, as an SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 24, 44
UNITS = ((3 * 3600, 3600), (3 * 60, 60), (0, 1))  # from so many seconds on, in units of so many

Point = Sequence[float]


@dataclass(frozen=True)
class Span:
    """From one sample to the next: when, in seconds at work, and how many rows per second."""

    start: float
    end: float
    rate: float


def spans(samples: Sequence[Point]) -> list[Span]:
    """Return the rate between each two samples (seconds at work, rows done)."""
    return [
        Span(before[0], after[0], max(after[1] - before[1], 0) / (after[0] - before[0]))
        for before, after in pairwise(samples)
        if after[0] > before[0]
    ]


def ticks(highest: float) -> list[float]:
    """Return round numbers from 0 on, the last one not below `highest`; three to six of them."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(highest))
    step = next(power * part for part in (0.2, 0.25, 0.5, 1, 2, 2.5) if highest <= 5 * power * part)
    return [step * number for number in range(ceil(highest / step - 1e-9) + 1)]


def rate_chart(samples: Sequence[Point]) -> SafeString:
    """Return the drawing; empty for fewer than two samples, which make no rate."""
    found = spans(samples)
    return _Chart(found).svg() if found else SafeString("")


class _Chart:
    def __init__(self, found: list[Span]) -> None:
        self.spans = found
        self.seconds = found[-1].end
        self.rates = ticks(max(span.rate for span in found))
        self.unit = next(unit for least, unit in UNITS if self.seconds >= least)
        self.times = [tick for tick in ticks(self.seconds / self.unit) if tick * self.unit <= self.seconds]

    def svg(self) -> SafeString:
        return format_html(
            '<svg class="run-chart" viewBox="0 0 {} {}" role="img" aria-labelledby="chart-title chart-text">'
            '<title id="chart-title">{}</title><desc id="chart-text">{}</desc>{}{}{}<path d="{}"/></svg>',
            WIDTH,
            HEIGHT,
            _("Rows per second over the time at work"),
            self._description(),
            self._rate_axis(),
            self._time_axis(),
            self._captions(),
            self._path(),
        )

    def _x(self, seconds: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds:.1f}"

    def _y(self, rate: float) -> str:
        return f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / self.rates[-1]:.1f}"

    def _path(self) -> str:
        first = self.spans[0]
        steps = "".join(f"V{self._y(span.rate)}H{self._x(span.end)}" for span in self.spans)
        return f"M{self._x(first.start)} {self._y(first.rate)}{steps}"

    def _rate_axis(self) -> SafeString:
        lines = [(LEFT, WIDTH - RIGHT, self._y(rate), LEFT - 6, number(rate)) for rate in self.rates]
        return format_html_join(
            "",
            '<path class="run-chart-line" d="M{0} {2}H{1}"/>'
            '<text x="{3}" y="{2}" dy="4" text-anchor="end">{4}</text>',
            lines,
        )

    def _time_axis(self) -> SafeString:
        places = [(self._x(time * self.unit), HEIGHT - BOTTOM + 16, number(time)) for time in self.times]
        return format_html_join("", '<text x="{}" y="{}" text-anchor="middle">{}</text>', places)

    def _captions(self) -> SafeString:
        time = {1: _("seconds at work"), 60: _("minutes at work"), 3600: _("hours at work")}[self.unit]
        return format_html(
            '<text x="4" y="14">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>',
            _("rows per second"),
            WIDTH - RIGHT,
            HEIGHT - 8,
            time,
        )

    def _description(self) -> str:
        rates = [span.rate for span in self.spans]
        return _(
            "%(seconds)s seconds at work; slowest %(least)s, fastest %(most)s, last %(last)s rows per second."
        ) % {
            "seconds": number(round(self.seconds)),
            "least": number(round(min(rates))),
            "most": number(round(max(rates))),
            "last": number(round(rates[-1])),
        }


def number(value: float) -> str:
    """Return the number as the reader's language writes it, 12,500 or 0.25, no longer than it has to be."""
    shortest = int(value) if float(value).is_integer() else float(f"{value:.3g}")
    return number_format(shortest, force_grouping=True)
