"""Pictures of tasks: paths seen from above, through a maze or over open ground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.task import MazePicture, TaskError
from thousandfold.ground.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg

# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and in grey.
_REACHED, _MISSED = "#0072B2", "#D55E00"
_WALL, _FLOOR, _INK, _GRID = "#C9CED6", "#FFFFFF", "#2B2F36", "#E7E9ED"
_GOAL_FILL, _GOAL_EDGE = "#F0E442", "#8A7F00"
_DPI, _LONGEST_SIDE_INCHES, _LARGEST_CELL_INCHES = 150, 7.0, 1.1
_OPEN_SIDE_INCHES, _NARROWEST = 5.0, 0.45  # without a maze: the longer side, and the other one at least
_LABEL_INCHES, _TITLE_INCHES, _LEGEND_INCHES, _LEAST_INCHES = 0.6, 0.9, 0.35, 4.0
_OUTER_WALL_CELLS = 0.35  # how much of the outer wall to show: it carries no information
_FAINTEST, _BOLDEST = 0.35, 0.9


def has_plan(task: CompiledTask) -> bool:
    """Return whether the task's goals have an x and a y, so that paths to them can be seen from above."""
    positions = task.goal_positions(np.zeros(task.goal_dim))
    return positions is not None and len(positions) >= 2


def draw_paths(
    path_png: str | Path,
    task: CompiledTask,
    paths: Sequence[np.ndarray],
    goals: np.ndarray,
    successes: np.ndarray,
    title: str,
) -> None:
    """Draw what was achieved from above, x to the right and y upwards, and write the picture as PNG.

    A maze is drawn whole, with its walls; without one the picture shows where the paths lead.

    Args:
        path_png: the file to write; it appears complete or not at all.
        task: a task whose goal has an x and a y.
        paths: n paths, each (steps, goal_dim), the goals that were achieved.
        goals: (n, goal_dim), the goal that each path was commanded to.
        successes: (n,) bool, whether the path reached its goal.
        title: a line above the picture.

    Raises:
        TaskError: the task's goal has no x and y.
        ValueError: paths, goals and successes are not equally many.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle

    if not has_plan(task):
        raise TaskError(f"Task {task.name!r} has no goal in the plane to draw paths to.")
    goals, successes = np.asarray(goals, float).reshape(-1, task.goal_dim), np.asarray(successes, bool)
    if not len(paths) == len(goals) == len(successes):
        raise ValueError(f"{len(paths)} paths, {len(goals)} goals and {len(successes)} successes")
    radius, maze = task.position_radius, task.spec.maze
    goals, paths = _plan(task, goals), [_plan(task, path) for path in paths]

    canvas, axes = _open_map(_limits(maze, paths, goals, radius), maze, title, below=_LEGEND_INCHES)
    # Each goal once, with its success radius: evaluation goals are few, and many paths share one.
    for x, y in np.unique(goals.round(3), axis=0):
        axes.add_patch(Circle((x, y), radius, facecolor=_GOAL_FILL, alpha=0.35, linewidth=0, zorder=2))
        axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=_GOAL_EDGE, linewidth=0.9, zorder=2))
    if len(goals):
        axes.scatter(goals[:, 0], goals[:, 1], marker="*", s=45, color=_GOAL_EDGE, linewidths=0, zorder=5)
    # Paths with a dot at their start; the more there are, the fainter, misses above hits.
    alpha = float(np.clip(10 / max(len(paths), 1), _FAINTEST, _BOLDEST))
    for path, reached in zip(paths, successes, strict=True):
        colour, layer = (_REACHED, 3) if reached else (_MISSED, 4)
        style = {"color": colour, "alpha": alpha, "linewidth": 1.4, "solid_capstyle": "round"}
        axes.plot(path[:, 0], path[:, 1], **style, zorder=layer)
        axes.scatter(*path[0, :2], s=14, color=colour, edgecolors="white", linewidths=0.5, zorder=6)
    reached, marks = int(successes.sum()), {"linestyle": "", "color": _INK, "markeredgewidth": 0}
    handles = [
        Line2D([], [], color=_REACHED, linewidth=2, label=f"reached the goal ({reached})"),
        Line2D([], [], color=_MISSED, linewidth=2, label=f"did not ({len(successes) - reached})"),
        Line2D([], [], marker="o", markersize=5, label="start", **marks),
        Line2D([], [], marker="*", markersize=9, label="goal", **{**marks, "color": _GOAL_EDGE}),
    ]
    canvas.figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=_INK
    )
    _write_png(canvas, Path(path_png))


def draw_arrows(
    path_png: str | Path, task: CompiledTask, starts: np.ndarray, goals: np.ndarray, title: str
) -> None:
    """Draw an arrow from each start to its goal, over the maze where there is one, and write a PNG.

    Goals with an x and a y are seen from above. Of others the first two numbers span the picture; of a single
    one the arrows lie one above the other.

    Args:
        path_png: the file to write; it appears complete or not at all.
        task: the task of the goals.
        starts, goals: (n, goal_dim), what was achieved at the start and what was commanded; n may be 0.
        title: a line above the picture.
    """
    seen_from_above, maze = has_plan(task), task.spec.maze

    def ends(goals: np.ndarray) -> np.ndarray:
        goals = np.asarray(goals, float).reshape(-1, task.goal_dim)
        if seen_from_above:
            return _plan(task, goals)
        return goals[:, :2] if task.goal_dim > 1 else np.stack([goals[:, 0], np.arange(len(goals))], axis=1)

    starts, goals = ends(starts), ends(goals)
    limits = _limits(maze, [starts], goals, task.position_radius)
    # Numbers that are no x and y need not be of one unit.
    canvas, axes = _open_map(limits, maze, title, square=not seen_from_above)
    if not seen_from_above:
        axes.set_aspect("auto")
        axes.set_xlabel("first number of the goal", fontsize=9, color=_INK)
        axes.set_ylabel(
            "second number of the goal" if task.goal_dim > 1 else "episode", fontsize=9, color=_INK
        )
    for start, goal in zip(starts, goals, strict=True):
        style = {"arrowstyle": "-|>", "color": _MISSED, "alpha": _FAINTEST * 2, "linewidth": 1.1}
        axes.annotate("", goal, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=4)
    axes.scatter(
        starts[:, 0], starts[:, 1], s=14, color=_MISSED, edgecolors="white", linewidths=0.5, zorder=6
    )
    _write_png(canvas, Path(path_png))


def _open_map(
    limits: tuple[np.ndarray, np.ndarray],
    maze: MazePicture | None,
    title: str,
    *,
    below: float = 0.0,
    square: bool = False,
) -> tuple[FigureCanvasAgg, Axes]:
    """Return a picture and the axes of its map: walls with a tick at every cell, or open ground with a grid.

    Args:
        limits: the least and the largest x and y to show, each (2,).
        maze: the maze to draw; None for open ground.
        title: a line above the map.
        below: inches to leave below the map, for a legend.
        square: whether the map is a square, whatever its limits; else a metre is as long along x as along y.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    low, high = limits
    span, inches = high - low, _OPEN_SIDE_INCHES
    if maze is not None:  # one of few cells stays small
        inches = min(_LARGEST_CELL_INCHES * span.max() / maze.scale, _LONGEST_SIDE_INCHES)
    sides = np.full(2, _OPEN_SIDE_INCHES) if square else span * inches / span.max()
    size = (max(sides[0] + _LABEL_INCHES, _LEAST_INCHES), sides[1] + _TITLE_INCHES + below)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set_facecolor(_FLOOR)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)", fontsize=9, color=_INK)
    axes.set_ylabel("y (m)", fontsize=9, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if maze is None:
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0.0, span.max())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(ticks[1] - ticks[0]))
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        return FigureCanvasAgg(figure), axes
    rows, scale, (x, y) = maze.layout.split(), maze.scale, maze.origin
    # An edge of the wall's own colour: without it, hairlines show between neighbouring cells.
    style = {"facecolor": _WALL, "edgecolor": _WALL, "linewidth": 0.5}
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell == "#":
                corner = (x + scale * (i - 0.5), y + scale * (j - 0.5))
                axes.add_patch(Rectangle(corner, scale, scale, **style))
    axes.set_xticks(x + scale * np.arange(1, len(rows) - 1))
    axes.set_yticks(y + scale * np.arange(1, len(rows[0]) - 1))
    return FigureCanvasAgg(figure), axes


def _plan(task: CompiledTask, goals: np.ndarray) -> np.ndarray:
    """Return x and y of goals, (n, 2)."""
    positions = task.goal_positions(goals)
    assert positions is not None  # the task has a plan
    return positions[:, :2]


def _limits(
    maze: MazePicture | None, paths: Sequence[np.ndarray], goals: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest x and y to show, each (2,): the maze, or all paths and whole goals.

    On open ground neither side is much shorter than the other, so that a straight path is no hairline.
    """
    if maze is not None:
        rows, margin = maze.layout.split(), 0.5 - _OUTER_WALL_CELLS
        last = np.array([len(rows), len(rows[0])]) - 1 - margin
        return np.add(maze.origin, maze.scale * margin), np.add(maze.origin, maze.scale * last)
    points = np.concatenate([*paths, goals - radius, goals + radius, np.zeros((0, 2))])
    if not len(points):
        points = np.array([[-radius, -radius], [radius, radius]])
    low, high = points.min(0), points.max(0)
    span = np.maximum(high - low, _NARROWEST * (high - low).max()) * 1.1
    middle = (low + high) / 2
    return middle - span / 2, middle + span / 2


def _write_png(canvas: FigureCanvasAgg, path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        canvas.print_png(file)
