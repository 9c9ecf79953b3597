"""The picture of a dataset: where its states lie, and how far their goals are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.maze_coverage import MazeCoverage
from thousandfold.pipeline.files import atomic_file
from thousandfold.pipeline.pictures import PALETTE
from thousandfold.replay.goal_dataset import GoalDataset

_WALL = "#8C96A3"
_BINS = 80
_LABELS = {
    "start_to_goal": "start to commanded goal",
    "state_to_goal": "state to commanded goal",
    "state_to_alternative": "state to alternative goal",
}


def maze_coverage(data: GoalDataset, task: CompiledTask) -> MazeCoverage | None:
    """Return where in its maze a dataset's states lie; None for a task without one."""
    if task.task.maze is None:
        return None
    coverage = MazeCoverage(task.task.maze)
    coverage.add(data.achieved_goal[:, :2])
    return coverage


def draw_coverage(
    path: Path,
    data: GoalDataset,
    task: CompiledTask,
    distances: dict[str, np.ndarray],
    title: str,
) -> None:
    """Draw a map of the states and, beside it, histograms of the distances to goals; atomic, as PNG.

    A maze is seen from above, walls in grey. Elsewhere the map shows the first two numbers of the achieved
    goal, or is a histogram where there is one.

    Args:
        path: of the picture.
        data, task: what to draw.
        distances: of `replay.coverage`.
        title: stands above the map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    maze = maze_coverage(data, task)
    if maze is not None:
        _draw_maze(figure, left, maze)
    elif task.goal_dim > 1:
        _draw_map(figure, left, data.achieved_goal[:, :2], _names(task))
    else:
        left.hist(data.achieved_goal[:, 0], _BINS, color=PALETTE[0])
        left.set(xlabel=_names(task)[0], ylabel="states", yscale="log")
    left.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _draw_distances(right, distances, task)
    with atomic_file(path) as temporary:
        canvas.print_png(str(temporary))


def _draw_maze(figure: Any, axes: Any, coverage: MazeCoverage) -> None:
    """Draw from above how often each patch of the maze was visited."""
    from matplotlib.colors import ListedColormap, LogNorm

    walls = np.ma.masked_where(coverage.free, np.ones(coverage.free.shape))
    axes.imshow(walls.T, cmap=ListedColormap([_WALL]), origin="lower", extent=coverage.extent)
    visits = np.ma.masked_equal(coverage.visits, 0)
    norm = LogNorm(1, max(2, int(coverage.visits.max())))
    image = axes.imshow(visits.T, cmap="viridis", norm=norm, origin="lower", extent=coverage.extent)
    axes.set(xlabel="x (m)", ylabel="y (m)")
    figure.colorbar(image, ax=axes, label="states in a patch", shrink=0.8)


def _draw_map(figure: Any, axes: Any, achieved: np.ndarray, names: list[str]) -> None:
    """Draw how often each patch of a plane was visited."""
    from matplotlib.colors import LogNorm

    counts, x, y = np.histogram2d(achieved[:, 0], achieved[:, 1], _BINS)
    norm = LogNorm(1, max(2, int(counts.max())))
    mesh = axes.pcolormesh(x, y, np.ma.masked_equal(counts, 0).T, norm=norm, cmap="viridis")
    axes.set(xlabel=names[0], ylabel=names[1])
    figure.colorbar(mesh, ax=axes, label="states in a patch", shrink=0.8)


def _draw_distances(axes: Any, distances: dict[str, np.ndarray], task: CompiledTask) -> None:
    """Draw how far goals are, one line a kind of distance, with the radius of success."""
    top = max(float(np.quantile(values, 0.999)) for values in distances.values())
    edges = np.linspace(0.0, max(top, 1e-9), _BINS // 2 + 1)
    for (name, values), colour in zip(distances.items(), PALETTE, strict=False):
        weights = np.full(len(values), 1.0 / len(values))
        label = _LABELS[name]
        axes.hist(values, edges, weights=weights, histtype="step", lw=2, color=colour, label=label)
    radius = task.task.success[0].radius
    axes.axvline(radius, color="#222222", lw=1.2, ls="--", label=f"success within {radius:g}")
    axes.set(xlabel="distance to the goal", ylabel="share")
    axes.legend(frameon=False, fontsize=9)


def _names(task: CompiledTask) -> list[str]:
    """Return name and unit of each number of the achieved goal."""
    entries = task.describe("achieved_goal")
    return [f"{entry['name']} ({entry['unit']})" if entry["unit"] else entry["name"] for entry in entries]
