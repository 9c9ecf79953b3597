"""Scales, ticks and the frame of small charts in SVG, whose colours are those of the page around them.

Text is given in units of the drawing: a chart that is `WIDTH` wide reads well from 320 to 560 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from thousandfold.pipeline.pictures import short_count

WIDTH = 400.0
_MOST_POINTS = 400  # of a line: more cannot be seen
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Maps values to positions along one side of a chart.

    Attributes:
        low, high: values at its ends.
        start, end: positions at its ends.
        log: whether equal ratios are equally long; both ends are above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value; one beyond an end lies at that end."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values to be marked, and their labels."""
        values = log_ticks(self.low, self.high) if self.log else even_ticks(self.low, self.high)
        return [(value, tick_label(value)) for value in values]


def scale_over(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Scale:
    """Return a scale with room for every value.

    Args:
        values: finite; above 0 on a logarithmic scale.
        start, end: positions of its ends.
        log: see `Scale`.
    """
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.1)
        return Scale(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, start, end)


def even_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most so many round values from `low` to `high`, evenly spaced."""
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in _STEPS if unit * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the 1, 2 and 5 of each decade from `low` to `high`; the decades alone where they are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def tick_label(value: float, digits: int = 6) -> str:
    """Return a value as short text: 250000 as 250k, 0.00125 as 1.25e-3, others with so many digits."""
    if abs(value) >= 1000:
        return short_count(float(f"{value:.{digits}g}"))
    if 0 < abs(value) < 0.01:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10.0**exponent:.3g}e{exponent}"
    return f"{value:.{digits}g}"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return as many of the points as can be seen, the last one among them."""
    stride = max(1, -(-len(points) // _MOST_POINTS))
    kept = list(points[::stride])
    return kept if (len(points) - 1) % stride == 0 else [*kept, points[-1]]


def text(x: float, y: float, content: str, *, kind: str = "tick", anchor: str = "start") -> str:
    """Return one line of text; `kind` is a class of the page's style sheet."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line; `kind` is a class of the page's style sheet."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """Return a line through points, or an area; `kind` is a class of the page's style sheet."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{steps}{"Z" if closed else ""}"/>'


def dot(x: float, y: float, kind: str, radius: float = 4.0, title: str = "") -> str:
    """Return a round mark; its title is shown under the pointer."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{inner}</circle>'


def across(scale: Scale, top: float, bottom: float, label: str) -> list[str]:
    """Return the marks of a horizontal axis: faint lines, their labels below, and what the axis counts."""
    parts = []
    for value, mark in scale.ticks():
        parts += [
            line(scale.at(value), top, scale.at(value), bottom, "grid"),
            text(scale.at(value), bottom + 17, mark, anchor="middle"),
        ]
    return [*parts, text(scale.end, bottom + 36, label, kind="axis", anchor="end")]


def upward(scale: Scale, left: float, right: float) -> list[str]:
    """Return the marks of a vertical axis: faint lines, and their labels on the left."""
    parts = []
    for value, mark in scale.ticks():
        parts += [
            line(left, scale.at(value), right, scale.at(value), "grid"),
            text(left - 7, scale.at(value) + 4, mark, anchor="end"),
        ]
    return parts


def drawing(parts: Sequence[str], height: float, description: str, width: float = WIDTH) -> str:
    """Return the SVG element; its description is what a screen reader says in its place."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description, _QUOTES)}">'
        f"{''.join(parts)}</svg>"
    )


_QUOTES = {'"': "&quot;"}
