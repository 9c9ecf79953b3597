"""The picture of a frontier: what each student retains against how long one call of it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thousandfold.ground.picture_style import INK, PALETTE, SOFT, house_figure
from thousandfold.pipeline.pictures import label_log_axis
from thousandfold.stages.frontier.table import in_c

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PICTURE_FILE = "frontier.png"

_MARKERS = "osD^vP*X"
# Where a label may stand beside its point, in points; the first that covers nothing is taken.
_PLACES = [(28, -3), (-28, -3), (0, 9), (0, -17), (26, 11), (-26, 11), (26, -17), (-26, -17)]
_PLACES += [(x, y) for y in (24, -30, 37, -43, 50, -56) for x in (0, 30, -30)]
_PLACES += [
    (side * x, y) for x in (42, 56, 72, 90) for y in (9, -17, 24, -30, 44, -50, 70, -76) for side in (1, -1)
]
_MARK_POINTS, _BAR_POINTS, _LINE_POINTS, _STAR_POINTS = 5.5, 2, 1.5, 9


def draw_frontier(path: Path, table: Mapping[str, Any]) -> None:
    """Draw every student with its 95 % interval, those on the front joined by a line, and the teacher.

    The height is the retention; the success, where the teacher has none to retain. `table` is the content of
    `frontier.json`.
    """
    rows, teacher = table["rows"], table["teacher"]
    metric = "success" if any(row["retention"] is None for row in rows) else "retention"
    facts = [table["task"], teacher["name"]]
    if teacher["depth"] is not None:
        facts.append(f"teacher: depth {teacher['depth']}, width {teacher['width']}")
    facts.append("bars: 95 % intervals")
    title = f"Students: {metric} against latency"
    place = "of the C code" if in_c(table) else "on one CPU thread"
    with house_figure(path, 8.6, 5.6, title, facts) as figure:
        axes: Axes = figure.subplots()
        axes.set(xscale="log", xlabel=f"p99 of one call {place} (µs)")
        axes.set_ylabel("success" if metric == "success" else "retention of the teacher's success")
        # What is to be had within a latency: the best student that is fast enough, as steps.
        front = sorted((row for row in rows if row["on_front"]), key=lambda row: row["p99_us"])
        points = [(row["p99_us"], row[metric]) for row in front]
        axes.step(
            *zip(*points, strict=True), where="post", color=SOFT, linewidth=1.5, zorder=1, label="front"
        )
        _draw_students(axes, rows, metric)
        teacher_mark = None
        if teacher["p99_us"] is not None:
            height = teacher["success"] if metric == "success" else 1.0
            axes.axhline(height, color=INK, linewidth=0.8, linestyle=":", zorder=0)
            teacher_mark = (teacher["p99_us"], height)
            label = f"teacher, {teacher['depth']} × {teacher['width']}"
            axes.scatter([teacher["p99_us"]], [height], marker="*", s=220, color=INK, zorder=3, label=label)
        axes.margins(x=0.08, y=0.12)
        label_log_axis(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        figure.legend(loc="outside lower center", ncols=6, fontsize=9)
        figure.draw_without_rendering()
        _label(axes, rows, metric, points, teacher_mark)


def _draw_students(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draw a mark and a bar a student, a colour and a shape a depth; those off the front are hollow."""
    depths = sorted({row["depth"] for row in rows})
    for depth, colour, marker in zip(depths, cycle(PALETTE), cycle(_MARKERS), strict=False):
        found = [row for row in rows if row["depth"] == depth]
        for row in found:
            low, high = row[f"{metric}_interval"]
            axes.vlines(row["p99_us"], low, high, color=colour, alpha=0.5, linewidth=2, zorder=2)
        axes.scatter(
            [row["p99_us"] for row in found],
            [row[metric] for row in found],
            marker=marker,
            s=48,
            facecolors=[colour if row["on_front"] else "white" for row in found],
            edgecolors=colour,
            linewidths=1.5,
            zorder=3,
        )
        axes.scatter([], [], marker=marker, s=48, color=colour, label=f"depth {depth}")


def _label(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    front: Sequence[tuple[float, float]],
    teacher: tuple[float, float] | None,
) -> None:
    """Write depth x width beside each mark, where no mark, no line and no other label is covered.

    `front` has the corners of the steps from the left, `teacher` the place of its mark.
    """
    from matplotlib.transforms import Bbox

    scale = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    taken: list[Bbox] = []
    for row in rows:
        (x, y), *ends = axes.transData.transform(
            [(row["p99_us"], height) for height in (row[metric], *row[f"{metric}_interval"])]
        )
        mark, bar = _MARK_POINTS * scale, _BAR_POINTS * scale
        taken.append(Bbox.from_extents(x - mark, y - mark, x + mark, y + mark))
        taken.append(Bbox.from_extents(x - bar, ends[0][1], x + bar, ends[1][1]))
    corners = axes.transData.transform(front)
    line = _LINE_POINTS * scale
    for (x, y), (next_x, next_y) in pairwise(corners):
        taken.append(Bbox.from_extents(x, y - line, next_x, y + line))
        taken.append(Bbox.from_extents(next_x - line, min(y, next_y), next_x + line, max(y, next_y)))
    if teacher is not None:
        (x, y), star = axes.transData.transform(teacher), _STAR_POINTS * scale
        taken.append(Bbox.from_extents(x - star, y - star, x + star, y + star))
    for row in sorted(rows, key=lambda row: not row["on_front"]):
        taken.append(_place(axes, row, metric, taken))


def _place(axes: Axes, row: Mapping[str, Any], metric: str, taken: Sequence[Bbox]) -> Bbox:
    """Write the label of one mark and return the pixels that it covers."""
    from matplotlib.text import Text

    written: Annotation = axes.annotate(
        f"{row['depth']} × {row['width']}",
        (row["p99_us"], row[metric]),
        xytext=_PLACES[0],
        textcoords="offset points",
        ha="center",
        fontsize=8,
        fontweight="bold" if row["on_front"] else "normal",
        color=INK if row["on_front"] else SOFT,
        arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
    )
    written.set_in_layout(False)
    frame = axes.get_window_extent()
    renderer = axes.get_figure().canvas.get_renderer()  # type: ignore[union-attr]

    def covered_at(place: tuple[int, int]) -> Bbox:
        written.set_position(place)
        written.update_positions(renderer)
        return Text.get_window_extent(written)  # the annotation's own adds its line

    def covers(place: tuple[int, int]) -> tuple[bool, int]:
        box = covered_at(place)
        inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
        return not inside, sum(box.overlaps(other) for other in taken)

    # The first that covers nothing, or what covers least.
    return covered_at(
        next((place for place in _PLACES if covers(place) == (False, 0)), None) or min(_PLACES, key=covers)
    )
