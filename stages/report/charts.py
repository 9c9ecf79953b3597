"""The charts of a report as SVG elements, which take their font and their colours from the page around them.

Sizes are in pixels of a chart that is 340 or 400 wide; the page scales it to the width that it has.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from thousandfold.ground.picture_style import short_count
from thousandfold.pipeline.pictures import draw_curve, label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCENT, _OTHER, _INK, _SOFT, _FAINT, _CARD = _COLOURS = (
    "#0b6b63", "#6b7379", "#1d2327", "#596269", "#e4e1d9", "#ffffff",
)  # fmt: skip
# Each colour becomes one of the style sheet's, which has another value on a dark page.
_VARIABLES = dict(zip(_COLOURS, ("accent", "other", "ink", "soft", "faint", "card"), strict=True))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, and is wider than the fonts of browsers
    "font.size": 12,
    "text.color": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 1,
    "svg.fonttype": "none",
    "xtick.major.pad": 7,
    "ytick.major.pad": 7,
    **{f"{axis}tick.labelcolor": _SOFT for axis in "xy"},
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
}
# What Matplotlib writes into tags and a page does without; names that are ours go under the pointer.
_TIDIED = (
    (r' id="[^" ]*_\d+"| clip-path="[^"]*"| transform="rotate\(-0[^"]*"', ""),
    (r"font-family: [^;\"]*(; )?|font-size: 12px; |text-anchor: start; ", ""),
    (r"\s*\n\s*", ""),
    (r'(?<=[ "MLC])(-?\d+\.\d\d)\d+(?=[ "LCz])', r"\1"),
    ("xlink:href", "href"),
    (r'<g id="([^"]*)">', r"<g><title>\1</title>"),
    (r"<g ?/>", ""),
)
_WIDTH = 400
_MOST_POINTS = 400  # of a curve: more cannot be seen
_MOST_LINES = 64  # layers of a network that can be told apart in its drawing


@contextmanager
def _page_style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def _axes(width: float, height: float, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Return the axes of a new chart, with these margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), frameon=False)  # an SVG has 72 pixels an inch
    size = ((width - left - right) / width, (height - top - bottom) / height)
    return figure.add_axes((left / width, bottom / height, *size), frameon=False)


def _svg(axes: Axes, description: str) -> str:
    """Return the finished chart as an SVG element.

    Args:
        description: what a screen reader says in its place; every chart of a page has another.
    """
    import matplotlib

    figure, file = axes.get_figure(root=True), io.StringIO()
    assert figure is not None
    matplotlib.rcParams["svg.hashsalt"] = description
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = file.getvalue().partition("</defs>")[2]  # leaves out styles that would be of the whole page
    body = re.sub(r"<defs>\s*<clipPath.*?</defs>", "", body, flags=re.DOTALL)
    for pattern, tidy in _TIDIED:
        body = re.sub(r"<[^>]*>\s*", lambda tag: re.sub(pattern, tidy, tag[0]), body)  # noqa: B023
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    width, height = 72 * figure.get_size_inches()
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">{body}'


@dataclass(frozen=True)
class Curve:
    """One measure over a training.

    Attributes:
        name: what is measured.
        xs, values: finite.
        low, high: ends of the interval at each point, where there are intervals.
        is_fraction: lies between 0 and 1, and its chart does.
    """

    name: str
    xs: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_fraction: bool = False


@dataclass(frozen=True)
class Range:
    """One row of an interval chart.

    Attributes:
        label: stands above the row, at its left.
        value: stands above the row, at its right.
        mark: where the dot lies.
        inner, outer: ends of the thick and of the thin line.
        is_student: drawn in the page's one colour.
    """

    label: str
    value: str
    mark: float
    inner: tuple[float, float]
    outer: tuple[float, float] | None = None
    is_student: bool = False


@_page_style()
def curve_chart(curve: Curve, x_label: str, marked: Sequence[float] = ()) -> str:
    """Return a curve with its interval as a band, its last value at its end, and dashed lines at `marked`."""
    axes = _axes(340, 206, left=56, right=76, top=30, bottom=44)
    stride = -(-len(curve.xs) // _MOST_POINTS)
    xs, values, low, high = (
        part[::-stride][::-1] for part in (curve.xs, curve.values, curve.low, curve.high)
    )
    if low and high:
        axes.fill_between(xs, low, high, color=_ACCENT, alpha=0.12, linewidth=0)
    last = f"{values[-1]:.3f}" if curve.is_fraction else tick_label(values[-1], 3)
    draw_curve(axes, xs, values, _ACCENT, last)
    for place in marked:
        axes.axvline(place, color=_SOFT, linewidth=1, linestyle="--")
    axes.set_xlim(min(0.0, xs[0]), xs[-1] if xs[-1] > xs[0] else xs[0] + 1)
    if curve.is_fraction:
        axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    _name_axes(axes, x_label, curve.name)
    return _svg(axes, f"{curve.name} over {x_label}, from {curve.values[0]:.3g} to {curve.values[-1]:.3g}")


def _name_axes(axes: Axes, x_label: str, y_label: str = "") -> None:
    """Write what the axes count, and few marks as short as they can be."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label, loc="right")
    axes.annotate(
        y_label, (0, 1), (-48, 14), "axes fraction", "offset points", color=_INK, size=13.5, weight="bold"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: tick_label(value))
        if isinstance(locator := axis.get_major_locator(), MaxNLocator):
            locator.set_params(nbins=5)


def tick_label(value: float, digits: int = 6) -> str:
    """Return a value as short text: 250000 as 250k, 0.00125 as 1.25e-3, others with so many digits."""
    if abs(value) >= 1000:
        return short_count(float(f"{value:.{digits}g}"))
    if 0 < abs(value) < 0.01:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10.0**exponent:.3g}e{exponent}"
    return f"{value:.{digits}g}"


@_page_style()
def range_chart(
    rows: Sequence[Range],
    x_label: str,
    *,
    log: bool = False,
    reference: tuple[float, str] | None = None,
    top_value: float | None = None,
) -> str:
    """Return a chart with one row an interval: a dot, a thick line and a thin one.

    Args:
        rows: from top to bottom.
        x_label: what the horizontal axis counts.
        log: a logarithmic axis.
        reference: a value that is marked by a dashed line, and its label.
        top_value: where the axis ends; None: beyond the largest value.
    """
    top = 20 if reference else 4
    axes = _axes(_WIDTH, top + 44 * len(rows) + 44, left=14, right=18, top=top, bottom=44)
    axes.set(xscale="log" if log else "linear", ylim=(len(rows), 0), yticks=[])
    axes.margins(x=0.06)
    for y, row in enumerate(rows):
        colour = _ACCENT if row.is_student else _OTHER
        if row.outer is not None:
            axes.plot(row.outer, [y + 0.7] * 2, color=colour, alpha=0.6, linewidth=2, solid_capstyle="round")
        axes.plot(row.inner, [y + 0.7] * 2, color=colour, alpha=0.55, linewidth=6, solid_capstyle="round")
        axes.plot(row.mark, y + 0.7, "o", color=colour, markersize=11, markeredgecolor=_CARD)
    if top_value is not None:
        axes.set_xlim(min(axes.get_xlim()[0], top_value - 0.05), top_value)
    values_end = 1.0
    if reference is not None:
        place, label = reference
        axes.axvline(place, color=_SOFT, linewidth=1, linestyle="--")
        axes.autoscale_view()
        share = axes.transAxes.inverted().transform(axes.transData.transform((place, 0)))[0]
        side = "right" if share > 0.5 else "left"
        values_end = share - 0.02 if share > 0.5 else 1.0
        axes.text(place, -0.1, label, ha=side)
    for y, row in enumerate(rows):
        axes.text(0, y + 0.4, row.label, transform=axes.get_yaxis_transform(), size=13, color=_INK)
        axes.text(values_end, y + 0.4, row.value, transform=axes.get_yaxis_transform(), ha="right")
    if log:
        label_log_axis(axes)
    _name_axes(axes, x_label)
    described = "; ".join(f"{row.label}: {row.value}" for row in rows)
    return _svg(axes, f"{x_label}. {described}")


@_page_style()
def frontier_chart(table: Mapping[str, Any], chosen: tuple[int, int] | None) -> str:
    """Return the students of a frontier: what each retains, with its interval, against its p99.

    Args:
        table: the content of `frontier.json`; at least one of its rows has a p99.
        chosen: depth and width of the report's own student, to be ringed; None: there is none.
    """
    rows, teacher = [row for row in table["rows"] if row.get("p99_us")], table["teacher"]
    front = sorted((row for row in rows if row.get("on_front")), key=lambda row: row["p99_us"])
    metric = "success" if any(row.get("retention") is None for row in rows) else "retention"
    one = teacher["success"] if metric == "success" else 1.0
    axes = _axes(_WIDTH, 320, left=56, right=18, top=30, bottom=48)
    axes.set_xscale("log")
    axes.margins(0.06)
    axes.axhline(one, color=_SOFT, linewidth=1, linestyle="--")
    labels = []
    for row in rows:
        x, y, name = row["p99_us"], row[metric], f"{row['depth']} × {row['width']}"
        colour, edge, fill = (_ACCENT, _CARD, _ACCENT) if row in front else (_OTHER, _OTHER, _CARD)
        layer = 4 if row in front else 3
        axes.vlines(x, *row[f"{metric}_interval"], color=colour, alpha=0.6, linewidth=2, zorder=layer)
        mark = {"color": fill, "markeredgecolor": edge, "markersize": 11, "zorder": layer}
        axes.plot(x, y, "o", **mark, gid=f"{name}: {y:.3f}, p99 {x:.1f} µs")
        if chosen == (row["depth"], row["width"]):
            ring = {"markerfacecolor": "none", "markeredgecolor": _ACCENT, "markersize": 20}
            axes.plot(x, y, "o", **ring, zorder=5, gid="this report’s student")
        if row in front:
            labels.append((x, y, name, {"color": _ACCENT, "weight": "bold"}))
    if x := teacher.get("p99_us"):
        axes.plot(x, one, "o", color=_OTHER, markeredgecolor=_CARD, markersize=12, zorder=4)
        labels.append((x, one, f"teacher {teacher['depth']} × {teacher['width']}", {}))
    low, high = axes.get_xlim()
    axes.set_xlim(low * (low / high) ** 0.14, high)  # labels of the fastest stand at their left
    if front:  # as steps, the best that is to be had within a latency
        xs, ys = [row["p99_us"] for row in front] + [high], [row[metric] for row in front + front[-1:]]
        axes.step(xs, ys, where="post", color=_ACCENT, alpha=0.7, linewidth=1.5, zorder=2)
    taken = []
    for x, y, name, style in sorted(labels, key=lambda label: label[0]):
        label = axes.annotate(name, (x, y), (-9, 9), textcoords="offset points", ha="right", **style)
        if any(label.get_window_extent().overlaps(other) for other in taken):
            label.set_position((-9, -20))
        taken.append(label.get_window_extent().expanded(1.4, 1.0))
    label_log_axis(axes)
    name = "success" if metric == "success" else "retention of the teacher’s success"
    place = " of the C code" if table.get("runtime") == "c" else ""
    _name_axes(axes, f"p99 of one call{place} (µs, logarithmic)", name)
    on_front = ", ".join(f"{row['depth']} × {row['width']}" for row in rows if row in front)
    return _svg(axes, f"{metric} against p99 of {len(rows)} students; on the front: {on_front}")


@_page_style()
def networks_chart(networks: Sequence[tuple[str, int, int, bool]]) -> str:
    """Return networks side by side, a line a layer, as long as the layer is wide; all on one scale.

    Args:
        networks: label, depth, width, and whether it is the student.
    """
    deepest, widest = max(n[1] for n in networks), max(n[2] for n in networks)
    axes = _axes(_WIDTH, 288, left=0, right=0, top=36, bottom=52)
    axes.set(xlim=(-0.5, len(networks) - 0.5), ylim=(0, 200))
    axes.set_axis_off()
    for centre, (label, depth, width, is_student) in enumerate(networks):
        colour, half = _ACCENT if is_student else _OTHER, 0.36 * width / widest
        tall = max(3.0, 200 * depth / deepest)
        if depth <= _MOST_LINES:
            gap = min(tall / depth, 26.0)
            heights = [gap * (layer + 0.5) for layer in range(depth)]
            axes.hlines(heights, centre - half, centre + half, color=colour, linewidth=3, capstyle="round")
        else:
            axes.bar(centre, tall, 2 * half, color=colour)
        axes.text(centre, -24, label, ha="center", size=13, color=_INK)
        axes.text(centre, -42, f"{depth:,} layers of {width:,}", ha="center")
    described = "; ".join(f"{label}: {depth} layers of {width} units" for label, depth, width, _ in networks)
    return _svg(axes, described)
