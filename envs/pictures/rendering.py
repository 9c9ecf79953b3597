"""Pictures of tasks: paths seen from above, through a maze or over open ground."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.task import MazePicture, TaskError
from thousandfold.ground.picture_style import INK, MISSED, REACHED, SOFT, WALL, house_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GOAL_FILL, _GOAL_EDGE = "#F0E442", "#8A7F00"
_LONGEST_SIDE_INCHES, _LARGEST_CELL_INCHES = 7.0, 1.1
_OPEN_SIDE_INCHES, _NARROWEST = 5.0, 0.45  # without a maze: the longer side, and the other one at least
_LEFT_INCHES, _RIGHT_INCHES, _BELOW_INCHES, _LEGEND_INCHES, _LEAST_INCHES = 0.65, 0.15, 0.55, 0.35, 4.8
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
    facts: Sequence[str] = (),
) -> None:
    """Draw what was achieved from above, x to the right and y upwards, and write the picture as PNG.

    A maze is drawn whole, with its walls; without one the picture shows where the paths lead.

    Args:
        path_png: the file to write; it appears complete or not at all.
        task: a task whose goal has an x and a y.
        paths: n paths, each (steps, goal_dim), the goals that were achieved.
        goals: (n, goal_dim), the goal that each path was commanded to.
        successes: (n,) bool, whether the path reached its goal.
        title, facts: of the heading, as `house_figure` takes them.

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

    limits = limits_of_map(maze, paths, goals, radius)
    with _open_map(path_png, limits, maze, title, facts, below=_LEGEND_INCHES) as axes:
        # Each goal once, with its success radius: evaluation goals are few, and many paths share one.
        for x, y in np.unique(goals.round(3), axis=0):
            axes.add_patch(Circle((x, y), radius, facecolor=_GOAL_FILL, alpha=0.35, linewidth=0, zorder=2))
            axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=_GOAL_EDGE, linewidth=0.9, zorder=2))
        if len(goals):
            axes.scatter(goals[:, 0], goals[:, 1], marker="*", s=45, color=_GOAL_EDGE, linewidths=0, zorder=5)
        # Paths with a dot at their start; the more there are, the fainter, misses above hits.
        alpha = float(np.clip(10 / max(len(paths), 1), _FAINTEST, _BOLDEST))
        for path, reached in zip(paths, successes, strict=True):
            colour, layer = (REACHED, 3) if reached else (MISSED, 4)
            style = {"color": colour, "alpha": alpha, "linewidth": 1.4, "solid_capstyle": "round"}
            axes.plot(path[:, 0], path[:, 1], **style, zorder=layer)
            axes.scatter(*path[0, :2], s=14, color=colour, edgecolors="white", linewidths=0.5, zorder=6)
        reached, marks = int(successes.sum()), {"linestyle": "", "color": INK, "markeredgewidth": 0}
        handles = [
            Line2D([], [], color=REACHED, linewidth=2, label=f"reached ({reached})"),
            Line2D([], [], color=MISSED, linewidth=2, label=f"missed ({len(successes) - reached})"),
            Line2D([], [], marker="o", markersize=5, label="start", **marks),
            Line2D([], [], marker="*", markersize=9, label="goal", **{**marks, "color": _GOAL_EDGE}),
        ]
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.2)


def draw_arrows(
    path_png: str | Path,
    task: CompiledTask,
    starts: np.ndarray,
    goals: np.ndarray,
    title: str,
    facts: Sequence[str] = (),
    *,
    none: str = "none",
) -> None:
    """Draw an arrow from each start to its goal, over the maze where there is one, and write a PNG.

    Goals with an x and a y are seen from above. Of others the first two numbers span the picture; of a single
    one the arrows lie one above the other.

    Args:
        path_png: the file to write; it appears complete or not at all.
        task: the task of the goals.
        starts, goals: (n, goal_dim), what was achieved at the start and what was commanded; n may be 0.
        title, facts: of the heading, as `house_figure` takes them.
        none: what is written in the picture where n is 0.
    """
    from matplotlib.ticker import AutoLocator, MaxNLocator

    seen_from_above, maze = has_plan(task), task.spec.maze

    def ends(goals: np.ndarray) -> np.ndarray:
        goals = np.asarray(goals, float).reshape(-1, task.goal_dim)
        if seen_from_above:
            return _plan(task, goals)
        return goals[:, :2] if task.goal_dim > 1 else np.stack([goals[:, 0], np.arange(len(goals))], axis=1)

    starts, goals = ends(starts), ends(goals)
    limits = limits_of_map(maze, [starts], goals, task.position_radius)
    # Numbers that are no x and y need not be of one unit.
    with _open_map(path_png, limits, maze, title, facts, square=not seen_from_above) as axes:
        if not seen_from_above:
            names = term_labels(task)
            axes.set_aspect("auto")
            axes.xaxis.set_major_locator(AutoLocator())
            axes.yaxis.set_major_locator(AutoLocator() if task.goal_dim > 1 else MaxNLocator(integer=True))
            axes.set_xlabel(names[0])
            axes.set_ylabel(names[1] if task.goal_dim > 1 else "episode")
        for start, goal in zip(starts, goals, strict=True):
            style = {"arrowstyle": "-|>", "color": MISSED, "alpha": _FAINTEST * 2, "linewidth": 1.1}
            axes.annotate("", goal, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=4)
        axes.scatter(
            starts[:, 0], starts[:, 1], s=14, color=MISSED, edgecolors="white", linewidths=0.5, zorder=6
        )
        if not len(starts):
            paper = {"facecolor": "white", "edgecolor": SOFT, "boxstyle": "round,pad=0.6"}
            axes.text(
                0.5, 0.5, none, transform=axes.transAxes, ha="center", va="center", bbox=paper, zorder=7
            )


def term_labels(task: CompiledTask) -> list[str]:
    """Return name and unit of each number of the goal, (goal_dim,), as an axis says them."""
    entries = task.describe("achieved_goal")
    return [f"{entry['name']} ({entry['unit']})" if entry["unit"] else entry["name"] for entry in entries]


@contextmanager
def _open_map(
    path: str | Path,
    limits: tuple[np.ndarray, np.ndarray],
    maze: MazePicture | None,
    title: str,
    facts: Sequence[str],
    *,
    below: float = 0.0,
    square: bool = False,
) -> Iterator[Axes]:
    """Yield the axes of a picture's map; the picture is written when the block ends well.

    Args:
        path: the PNG file.
        limits: the least and the largest x and y to show, each (2,).
        maze: the maze to draw; None for open ground.
        title, facts: of the heading.
        below: inches to leave below the map, for a legend.
        square: whether the map is a square, whatever its limits; else a metre is as long along x as along y.
    """
    span, inches = limits[1] - limits[0], _OPEN_SIDE_INCHES
    if maze is not None:  # one of few cells stays small
        inches = min(_LARGEST_CELL_INCHES * span.max() / maze.scale, _LONGEST_SIDE_INCHES)
    sides = np.full(2, _OPEN_SIDE_INCHES) if square else span * inches / span.max()
    width = max(_LEFT_INCHES + sides[0] + _RIGHT_INCHES, _LEAST_INCHES)
    below += _BELOW_INCHES
    with house_figure(Path(path), width, sides[1] + below, title, facts) as figure:
        # In its place by inches: a layout that is solved for would not know of the map's own proportions.
        figure.set_layout_engine("none")
        whole = figure.get_figheight()
        left = _LEFT_INCHES + (width - _LEFT_INCHES - sides[0] - _RIGHT_INCHES) / 2
        axes = figure.add_axes((left / width, below / whole, sides[0] / width, sides[1] / whole))
        draw_map(axes, limits, maze)
        yield axes


def draw_map(axes: Axes, limits: tuple[np.ndarray, np.ndarray], maze: MazePicture | None) -> None:
    """Draw the ground from above: walls with a tick at every cell, or open ground with a grid.

    Args:
        axes: of the map, a metre as long along x as along y.
        limits: the least and the largest x and y to show, each (2,).
        maze: the maze to draw; None for open ground.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    low, high = limits
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="x (m)", ylabel="y (m)")
    axes.set_aspect("equal")
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)
    if maze is None:
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0.0, (high - low).max())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(ticks[1] - ticks[0]))
        return
    axes.grid(False)
    rows, scale, (x, y) = maze.layout.split(), maze.scale, maze.origin
    # An edge of the wall's own colour: without it, hairlines show between neighbouring cells.
    style = {"facecolor": WALL, "edgecolor": WALL, "linewidth": 0.5}
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell == "#":
                corner = (x + scale * (i - 0.5), y + scale * (j - 0.5))
                axes.add_patch(Rectangle(corner, scale, scale, **style))
    axes.set_xticks(x + scale * np.arange(1, len(rows) - 1))
    axes.set_yticks(y + scale * np.arange(1, len(rows[0]) - 1))


def _plan(task: CompiledTask, goals: np.ndarray) -> np.ndarray:
    """Return x and y of goals, (n, 2)."""
    positions = task.goal_positions(goals)
    assert positions is not None  # the task has a plan
    return positions[:, :2]


def limits_of_map(
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
