"""Pictures of tasks: paths through a maze, seen from above."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.compiled_task import CompiledTask
from envs.task import TaskError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and in grey.
_REACHED, _MISSED = "#0072B2", "#D55E00"
_WALL, _FLOOR, _INK = "#C9CED6", "#FFFFFF", "#2B2F36"
_GOAL_FILL, _GOAL_EDGE = "#F0E442", "#8A7F00"
_DPI, _LONGEST_SIDE_INCHES, _LARGEST_CELL_INCHES = 150, 7.0, 1.1
_OUTER_WALL_CELLS = 0.35  # how much of the outer wall to show: it carries no information
_FAINTEST, _BOLDEST = 0.35, 0.9


def draw_maze_paths(
    path_png: str | Path,
    task: CompiledTask,
    paths: Sequence[np.ndarray],
    goals: np.ndarray,
    successes: np.ndarray,
    title: str,
) -> None:
    """Draw paths through the task's maze, x to the right and y upwards, and write the picture as PNG.

    Args:
        path_png: the file to write; it appears complete or not at all.
        task: a maze task.
        paths: n paths, each (steps, 2) positions in metres.
        goals: (n, 2), the goal that each path was commanded to, in metres.
        successes: (n,) bool, whether the path reached its goal.
        title: a line above the picture.

    Raises:
        TaskError: the task has no maze.
        ValueError: paths, goals and successes are not equally many.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maze = task.task.maze
    if maze is None:
        raise TaskError(f"Task {task.name!r} has no maze to draw.")
    goals, successes = np.asarray(goals, float).reshape(-1, 2), np.asarray(successes, bool)
    if not len(paths) == len(goals) == len(successes):
        raise ValueError(f"{len(paths)} paths, {len(goals)} goals and {len(successes)} successes")

    rows = maze.layout.split()
    cells = np.array([len(rows), len(rows[0])]) - 2 + 2 * _OUTER_WALL_CELLS
    width, height = cells * min(_LARGEST_CELL_INCHES, _LONGEST_SIDE_INCHES / cells.max())
    # Room beside the maze for axis labels, above it for the title and below it for the legend.
    figure = Figure(figsize=(max(width + 0.6, 4.0), height + 1.25), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _draw_maze(axes, rows, maze.scale)
    _draw_goals(axes, goals, successes, task.task.success[0].radius)
    _draw_paths(axes, paths, successes)
    axes.set_title(title, fontsize=10, color=_INK)
    _draw_legend(figure, successes)
    _write_png(FigureCanvasAgg(figure), Path(path_png))


def _draw_maze(axes: Axes, rows: list[str], scale: float) -> None:
    from matplotlib.patches import Rectangle

    axes.set_facecolor(_FLOOR)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell == "#":
                corner = (scale * (i - 0.5), scale * (j - 0.5))
                # An edge of the wall's own colour: without it, hairlines show between neighbouring cells.
                axes.add_patch(
                    Rectangle(corner, scale, scale, facecolor=_WALL, edgecolor=_WALL, linewidth=0.5)
                )
    margin = 0.5 - _OUTER_WALL_CELLS
    axes.set_xlim(scale * margin, scale * (len(rows) - 1 - margin))
    axes.set_ylim(scale * margin, scale * (len(rows[0]) - 1 - margin))
    axes.set_xticks(scale * np.arange(1, len(rows) - 1))
    axes.set_yticks(scale * np.arange(1, len(rows[0]) - 1))
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)", fontsize=9, color=_INK)
    axes.set_ylabel("y (m)", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_goals(axes: Axes, goals: np.ndarray, successes: np.ndarray, radius: float) -> None:
    """Draw each goal once with its success radius: evaluation goals are few, and many paths share one."""
    from matplotlib.patches import Circle

    for x, y in np.unique(goals.round(3), axis=0):
        axes.add_patch(Circle((x, y), radius, facecolor=_GOAL_FILL, alpha=0.35, linewidth=0, zorder=2))
        axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=_GOAL_EDGE, linewidth=0.9, zorder=2))
    if len(goals):
        axes.scatter(goals[:, 0], goals[:, 1], marker="*", s=45, color=_GOAL_EDGE, linewidths=0, zorder=5)


def _draw_paths(axes: Axes, paths: Sequence[np.ndarray], successes: np.ndarray) -> None:
    """Draw paths with a dot at their start; the more there are, the fainter, misses above hits."""
    alpha = float(np.clip(10 / max(len(paths), 1), _FAINTEST, _BOLDEST))
    for path, reached in zip(paths, successes, strict=True):
        colour = _REACHED if reached else _MISSED
        layer = 3 if reached else 4
        path = np.asarray(path)
        axes.plot(
            path[:, 0],
            path[:, 1],
            color=colour,
            alpha=alpha,
            linewidth=1.4,
            solid_capstyle="round",
            zorder=layer,
        )
        axes.scatter(*path[0, :2], s=14, color=colour, edgecolors="white", linewidths=0.5, zorder=6)


def _draw_legend(figure: Any, successes: np.ndarray) -> None:
    from matplotlib.lines import Line2D

    def line(colour: str, label: str) -> Line2D:
        return Line2D([], [], color=colour, linewidth=2, label=label)

    reached = int(successes.sum())
    marks: dict[str, Any] = {"linestyle": "", "color": _INK, "markeredgewidth": 0}
    handles = [
        line(_REACHED, f"reached the goal ({reached})"),
        line(_MISSED, f"did not ({len(successes) - reached})"),
        Line2D([], [], marker="o", markersize=5, label="start", **marks),
        Line2D([], [], marker="*", markersize=9, label="goal", **{**marks, "color": _GOAL_EDGE}),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=_INK
    )


def _write_png(canvas: Any, path: Path) -> None:
    """Write the picture beside its place, then rename it, so that no reader sees half of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            canvas.print_png(file)
        os.chmod(name, 0o644)  # mkstemp makes it readable by its owner alone
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
