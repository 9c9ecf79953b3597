"""The picture of a frontier: what each student retains against how long one call of it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thousandfold.pipeline.pictures import INK, PALETTE, SOFT, house_figure, label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PICTURE_FILE = "frontier.png"

_MARKERS = "osD^vP*X"
# Where a label may stand beside its point, in points; the first that covers nothing is taken.
_PLACES = [(28, -3), (-28, -3), (0, 9), (0, -17), (26, 11), (-26, 11), (26, -17), (-26, -17)]
_PLACES += [(x, y) for y in (24, -30, 37, -43, 50, -56) for x in (0, 30, -30)]
_MARK_POINTS, _BAR_POINTS = 5, 2


def draw_frontier(path: Path, table: Mapping[str, Any]) -> None:
    """Draw every student with its 95 % interval, those on the front joined by a line, and the teacher.

    The height is the retention; the success, where the teacher has none to retain. `table` is the content of
    `frontier.json`.
    """
    rows, teacher = table["rows"], table["teacher"]
    metric = "success" if any(row["retention"] is None for row in rows) else "retention"
    with house_figure(path, width=8.6, height=6.0) as figure:
        axes: Axes = figure.subplots()
        axes.set(xscale="log", xlabel="p99 of one call on one CPU thread (µs)")
        axes.set_ylabel("success" if metric == "success" else "retention of the teacher's success")
        axes.set_title(f"Students of {teacher['name']} on {table['task']}")
        # What is to be had within a latency: the best student that is fast enough, as steps.
        front = sorted((row for row in rows if row["on_front"]), key=lambda row: row["p99_us"])
        points = [(row["p99_us"], row[metric]) for row in front]
        axes.step(
            *zip(*points, strict=True), where="post", color=SOFT, linewidth=1.5, zorder=1, label="front"
        )
        _draw_students(axes, rows, metric)
        if teacher["p99_us"] is not None:
            height = teacher["success"] if metric == "success" else 1.0
            axes.axhline(height, color=INK, linewidth=0.8, linestyle=":", zorder=0)
            label = f"teacher, {teacher['depth']} × {teacher['width']}"
            axes.scatter([teacher["p99_us"]], [height], marker="*", s=220, color=INK, zorder=3, label=label)
        axes.margins(x=0.08, y=0.12)
        label_log_axis(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        figure.legend(loc="outside lower center", ncols=6, fontsize=9)
        figure.draw_without_rendering()
        _label(axes, rows, metric)


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


def _label(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Write depth x width beside each mark, where no mark and no other label is covered."""
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

    for place in _PLACES:
        box = covered_at(place)
        inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
        if inside and not any(box.overlaps(other) for other in taken):
            return box
    return covered_at(_PLACES[0])
