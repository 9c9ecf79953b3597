"""The charts of a report: curves, intervals, students on a frontier, and two networks to scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thousandfold.stages.report.svg_plot import (
    WIDTH,
    Scale,
    across,
    dot,
    drawing,
    line,
    path,
    scale_over,
    text,
    thinned,
    tick_label,
    upward,
)

_LEFT, _TOP = 56.0, 30.0
_CURVE_WIDTH = 340.0  # three of them stand side by side
_LANE_WIDTH = 9.0  # between lines of descent
_MARKED_POINTS = 40  # a curve of fewer has a dot for each
_MOST_LINES = 64  # layers of a network that can be told apart in its drawing


@dataclass(frozen=True)
class Curve:
    """One measure over a training.

    Attributes:
        name: what is measured.
        points: (x, y), finite.
        low, high: ends of the interval at each point, where there are intervals.
        is_fraction: lies between 0 and 1, and its chart does.
    """

    name: str
    points: Sequence[tuple[float, float]]
    low: Sequence[tuple[float, float]] = ()
    high: Sequence[tuple[float, float]] = ()
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


def curve_chart(curve: Curve, x_label: str) -> str:
    """Return a curve with its interval as a band and its last value at its end."""
    height, bottom, right = 206.0, 162.0, _CURVE_WIDTH - 66
    points = thinned(curve.points)
    inside = [*points, *curve.low, *curve.high]
    x = _over_steps(points, _LEFT, right)
    if curve.is_fraction:
        y = Scale(0.0, 1.0, bottom, _TOP)
    else:
        y = scale_over([value for _, value in inside], bottom, _TOP)
    parts = [*upward(y, _LEFT, right), *across(x, bottom, bottom, x_label)]
    parts.append(text(_LEFT - 48, 16, curve.name, kind="name"))
    if curve.low and curve.high:
        edge = [*thinned(curve.high), *reversed(thinned(curve.low))]
        parts.append(path([(x.at(a), y.at(b)) for a, b in edge], "band", closed=True))
    drawn = [(x.at(a), y.at(b)) for a, b in points]
    parts.append(path(drawn, "curve"))
    if len(drawn) < _MARKED_POINTS:
        parts += [dot(*place, "mark", 2.6) for place in drawn]
    last = points[-1][1]
    parts.append(text(drawn[-1][0] + 9, drawn[-1][1] + 4.5, _short(last, curve.is_fraction), kind="last"))
    described = f"{curve.name} over {x_label}, from {points[0][1]:.3g} to {last:.3g}"
    return drawing(parts, height, described, _CURVE_WIDTH)


def _over_steps(points: Sequence[tuple[float, float]], start: float, end: float) -> Scale:
    first, last = points[0][0], points[-1][0]
    return Scale(min(0.0, first), last if last > first else first + 1.0, start, end)


def _short(value: float, is_fraction: bool) -> str:
    return f"{value:.3f}" if is_fraction else tick_label(value, 3)


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
    step, left, right = 44.0, 14.0, WIDTH - 18
    bottom = 14.0 + step * len(rows) + (16 if reference else 0)
    top = 20.0 if reference else 4.0
    values = [v for row in rows for v in (row.mark, *row.inner, *(row.outer or ()))]
    values += [reference[0]] if reference else []
    x = scale_over(values, left, right, log=log)
    if top_value is not None:
        x = Scale(min(x.low, top_value - 0.05), top_value, left, right)
    parts, values_end = across(x, top, bottom, x_label), right
    if reference is not None:
        place = x.at(reference[0])
        anchor = "end" if place > (left + right) / 2 else "start"
        values_end = place - 8 if anchor == "end" else right
        parts += [line(place, top, place, bottom, "reference"), text(place, 14, reference[1], anchor=anchor)]
    for index, row in enumerate(rows):
        parts += _range_row(row, x, top + step * index + 18, values_end)
    described = "; ".join(f"{row.label}: {row.value}" for row in rows)
    return drawing(parts, bottom + 44, f"{x_label}. {described}")


def _range_row(row: Range, x: Scale, y: float, right: float) -> list[str]:
    colour = "student" if row.is_student else "other"
    parts = [text(x.start, y, row.label, kind="row"), text(right, y, row.value, kind="value", anchor="end")]
    if row.outer is not None:
        parts.append(line(x.at(row.outer[0]), y + 13, x.at(row.outer[1]), y + 13, f"thin {colour}"))
    parts.append(line(x.at(row.inner[0]), y + 13, x.at(row.inner[1]), y + 13, f"thick {colour}"))
    return [*parts, dot(x.at(row.mark), y + 13, f"dot {colour}", 5.0)]


def frontier_chart(table: Mapping[str, Any], chosen: tuple[int, int] | None) -> str:
    """Return the students of a frontier: what each retains, with its interval, against its p99.

    Args:
        table: the content of `frontier.json`; at least one of its rows has a p99.
        chosen: depth and width of the report's own student, to be ringed; None: there is none.
    """
    rows = [row for row in table["rows"] if row.get("p99_us")]
    metric = "success" if any(row.get("retention") is None for row in rows) else "retention"
    height, bottom, right = 320.0, 272.0, WIDTH - 18
    teacher = table["teacher"]
    one = teacher["success"] if metric == "success" else 1.0
    times = [row["p99_us"] for row in rows] + ([teacher["p99_us"]] if teacher.get("p99_us") else [])
    x = scale_over(times, _LEFT + 48, right, log=True)  # labels of the fastest stand at its left
    y = scale_over([one, *(v for row in rows for v in row[f"{metric}_interval"])], bottom, _TOP)
    parts = [*upward(y, _LEFT, right), *across(x, _TOP, bottom, "p99 of one call (µs, logarithmic)")]
    parts.append(text(_LEFT - 48, 16, _FRONTIER_NAMES[metric], kind="name"))
    parts.append(line(_LEFT, y.at(one), right, y.at(one), "reference"))
    parts += _front_line(rows, metric, x, y)
    for row in sorted(rows, key=lambda row: bool(row.get("on_front"))):
        parts += _frontier_mark(row, metric, x, y, chosen)
    if teacher.get("p99_us"):
        name = f"teacher {teacher['depth']} × {teacher['width']}"
        place = x.at(teacher["p99_us"])
        parts += [dot(place, y.at(one), "dot other", 6.0), text(place, y.at(one) - 12, name, anchor="end")]
    front = [f"{row['depth']} × {row['width']}" for row in rows if row.get("on_front")]
    described = f"{metric} against p99 of {len(rows)} students; on the front: {', '.join(front)}"
    return drawing(parts, height, described)


_FRONTIER_NAMES = {"success": "success", "retention": "retention of the teacher’s success"}


def _front_line(rows: Sequence[Mapping[str, Any]], metric: str, x: Scale, y: Scale) -> list[str]:
    """Return the best that is to be had within a latency, as steps."""
    front = sorted((row for row in rows if row.get("on_front")), key=lambda row: row["p99_us"])
    corners: list[tuple[float, float]] = []
    for row in front:
        place = (x.at(row["p99_us"]), y.at(row[metric]))
        corners += [(place[0], corners[-1][1]), place] if corners else [place]
    return [path([*corners, (x.end, corners[-1][1])], "front")] if corners else []


def _frontier_mark(
    row: Mapping[str, Any], metric: str, x: Scale, y: Scale, chosen: tuple[int, int] | None
) -> list[str]:
    place, height = x.at(row["p99_us"]), y.at(row[metric])
    low, high = (y.at(value) for value in row[f"{metric}_interval"])
    name = f"{row['depth']} × {row['width']}"
    on_front = bool(row.get("on_front"))
    parts = [line(place, low, place, high, "thin student" if on_front else "thin other")]
    title = f"{name}: {row[metric]:.3f}, p99 {row['p99_us']:.1f} µs"
    parts.append(dot(place, height, "dot student" if on_front else "dot hollow", 5.0, title))
    if chosen == (row["depth"], row["width"]):
        parts.append(dot(place, height, "ring", 10.0, "this report’s student"))
    if on_front:
        parts.append(text(place - 9, height - 9, name, kind="last", anchor="end"))
    return parts


def networks_chart(networks: Sequence[tuple[str, int, int, bool]]) -> str:
    """Return networks side by side, a line a layer, as long as the layer is wide; all on one scale.

    Args:
        networks: label, depth, width, and whether it is the student.
    """
    deepest, widest = max(n[1] for n in networks), max(n[2] for n in networks)
    column = WIDTH / len(networks)
    bottom, room = 236.0, 200.0
    parts = []
    for index, (label, depth, width, is_student) in enumerate(networks):
        centre, colour = column * (index + 0.5), "student" if is_student else "other"
        half = 0.36 * column * width / widest
        tall = max(3.0, room * depth / deepest)
        if depth <= _MOST_LINES:
            gap = min(tall / depth, 26.0)
            heights = [bottom - gap * (layer + 0.5) for layer in range(depth)]
            parts += [line(centre - half, y, centre + half, y, f"layer {colour}") for y in heights]
        else:
            corners = [
                (centre - half, bottom),
                (centre - half, bottom - tall),
                (centre + half, bottom - tall),
            ]
            parts.append(path([*corners, (centre + half, bottom)], f"block {colour}", closed=True))
        size = f"{depth:,} layers of {width:,}"
        parts.append(text(centre, bottom + 24, label, kind="row", anchor="middle"))
        parts.append(text(centre, bottom + 42, size, anchor="middle"))
    described = "; ".join(f"{label}: {depth} layers of {width} units" for label, depth, width, _ in networks)
    return drawing(parts, bottom + 52, described)


def lineage_gutter(parents: Sequence[Sequence[int]], row_height: float) -> tuple[str, float]:
    """Return the lines of descent beside a list of artifacts, and how wide they are.

    Args:
        parents: of each artifact the rows of those that it was made from, all of them above it.
        row_height: of one artifact in the list.
    """
    lanes = descent_lanes([(parent, child) for child, found in enumerate(parents) for parent in found])
    trunk = 14.0 + _LANE_WIDTH * max(lanes.values(), default=0)
    parts = []
    for (parent, child), lane in lanes.items():
        top, bottom = row_height * (parent + 0.5), row_height * (child + 0.5)
        out, bend = trunk - _LANE_WIDTH * lane, min(26.0, (bottom - top) / 2)
        steps = (
            f"M{trunk:.0f} {top:.0f}C{out:.0f} {top:.0f} {out:.0f} {top:.0f} {out:.0f} {top + bend:.0f}"
            f"L{out:.0f} {bottom - bend:.0f}C{out:.0f} {bottom:.0f} {out:.0f} {bottom:.0f} "
            f"{trunk:.0f} {bottom:.0f}"
        )
        parts.append(f'<path class="descent" d="{steps}"/>')
    parts += [dot(trunk, row_height * (row + 0.5), "knot", 5.0) for row in range(len(parents))]
    size = f'width="{trunk + 10:.0f}" height="{row_height * len(parents):.0f}"'
    return f'<svg class="gutter" {size} aria-hidden="true">{"".join(parts)}</svg>', trunk + 10


def descent_lanes(edges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return a lane for each edge between rows, so that no two edges in a lane run beside one another.

    Lane 0, the trunk, holds the edges between neighbours; the shorter an edge, the nearer to it.
    """
    lanes: dict[tuple[int, int], int] = {}
    for parent, child in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        lane = 0 if child - parent == 1 else 1
        while lane and any(
            taken == lane and parent < other[1] and other[0] < child for other, taken in lanes.items()
        ):
            lane += 1
        lanes[parent, child] = lane
    return lanes
