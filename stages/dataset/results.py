"""The end of every command that makes a dataset: the view of its shards, coverage, picture, results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mazes import MazeCoverage
from thousandfold.envs.pictures.rendering import draw_map, limits_of_map, term_labels
from thousandfold.ground.picture_style import DENSITY_MAP, FAINT, INK, PALETTE, house_figure
from thousandfold.pipeline.artifact_task import own_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.pictures import artifact_facts
from thousandfold.pipeline.runtime import StageContext, StageWork
from thousandfold.replay.coverage import measure_coverage
from thousandfold.replay.dataset_layout import NAMESPACE, dataset_id, read_metadata, shards_below
from thousandfold.replay.dataset_writer import write_view
from thousandfold.replay.goal_dataset import DatasetStatistics, GoalDataset, load_goal_dataset
from thousandfold.stages.dataset.files import COVERAGE_PICTURE, MINARI_FOLDER
from thousandfold.stages.episodes import wilson_interval
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.random_baseline import warn_of_chance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

UNSTABLE = "unstable_episodes"
"""What a shard's metadata calls the episodes that it lacks because their physics diverged."""


def complete_dataset(
    work: StageWork,
    context: StageContext,
    task: CompiledTask,
    metadata: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    teacher: Artifact | None = None,
) -> Artifact:
    """Make one dataset of the shards in the artifact, measure and draw what it covers, and complete it.

    Args:
        work: the artifact and its tracking run.
        context: workspace and console.
        task: the dataset's.
        metadata: facts of the whole dataset.
        more: further results.
        teacher: whose labels these are, to be warned of where it is no better than random.

    Raises:
        UserError: there is no shard, or one is damaged.
    """
    artifact, root = work.artifact, work.artifact.file(MINARI_FOLDER)
    statistics = write_view(root, task, metadata, own_task(artifact))
    data = load_goal_dataset(root)
    results = _success(statistics) | _coverage(artifact, data, task) | dict(more or {})
    results[UNSTABLE] = _unstable_episodes(artifact, task)
    artifact.complete(results | {"dataset_id": dataset_id(task.name)})
    work.run.log_metrics(grouped(_numbers(results), "dataset"), step=0)
    digest = str(artifact.manifest.hash)[:16]
    work.run.log_dataset(artifact.name, digest, str(artifact.path), statistics.rows, "generated")
    work.log_files(COVERAGE_PICTURE, "manifest.json")
    _say(artifact, results, context)
    warn_of_chance(context.console, teacher, artifact)
    return artifact


def _success(statistics: DatasetStatistics) -> dict[str, Any]:
    """Return counts, and the success of all, of the clean episodes and of each level of noise."""
    results: dict[str, Any] = {
        "episodes": statistics.episodes,
        "rows": statistics.rows,
        "success": statistics.successes / statistics.episodes,
        "success_interval": list(wilson_interval(statistics.successes, statistics.episodes)),
        "clean_episodes": statistics.clean_episodes,
        "success_by_noise": {
            level: successes / episodes for level, (episodes, successes) in statistics.by_noise.items()
        },
    }
    if statistics.clean_episodes:
        interval = wilson_interval(statistics.clean_successes, statistics.clean_episodes)
        results["clean_success"] = statistics.clean_successes / statistics.clean_episodes
        results["clean_success_interval"] = list(interval)
    return results


def _coverage(artifact: Artifact, data: GoalDataset, task: CompiledTask) -> dict[str, Any]:
    """Measure what the dataset covers, and draw it."""
    found, maze = measure_coverage(data, task), maze_coverage(data, task)
    results = found.results() | {"alternative_goals": data.alternative_goal.shape[1]}
    # The picture belongs to the dataset's hash, which the seed decides and no name.
    facts = [fact for fact in artifact_facts(artifact) if fact != artifact.name] + [f"{found.rows:,} states"]
    if maze is not None:
        results["coverage"] = maze.share
        facts.append(f"{maze.visited_cells} of {maze.free_cells} free cells visited")
        facts.append(f"{maze.floor_share:.0%} of their floor")
    draw_coverage(artifact.file(COVERAGE_PICTURE), data, task, found.distances, facts)
    return results


def _unstable_episodes(artifact: Artifact, task: CompiledTask) -> int:
    shards = shards_below(artifact.file(MINARI_FOLDER), task.name).values()
    return sum(int(read_metadata(shard)[NAMESPACE].get(UNSTABLE, 0)) for shard in shards)


def _numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the results that are numbers, those of a mapping under its name."""
    numbers: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = float(value)
    return numbers


def _say(artifact: Artifact, results: Mapping[str, Any], context: StageContext) -> None:
    low, high = results["success_interval"]
    minari = shlex.quote(str(artifact.file(MINARI_FOLDER)))
    clean = f"; clean episodes {results['clean_success']:.3f}" if "clean_success" in results else ""
    dropped = f"; {results[UNSTABLE]} unstable episodes dropped" if results[UNSTABLE] else ""
    context.console.say(
        f"Dataset {artifact.name}: {results['rows']:,} rows of {results['episodes']:,} episodes, success "
        f"{results['success']:.3f} [{low:.3f}, {high:.3f}]{clean}{dropped}. Minari: "
        f"{dataset_id(artifact.manifest.task)} with MINARI_DATASETS_PATH={minari}"
    )


# -- The picture of a dataset: where its states lie, and how far their goals are -------------------

_BINS = 80
_LABELS = {
    "start_to_goal": "start to commanded goal",
    "state_to_goal": "state to commanded goal",
    "state_to_alternative": "state to alternative goal",
}


def maze_coverage(data: GoalDataset, task: CompiledTask) -> MazeCoverage | None:
    """Return where in its maze a dataset's states lie; None for a task without one."""
    if task.spec.maze is None:
        return None
    coverage = MazeCoverage(task.spec.maze)
    coverage.add(data.achieved_goal[:, :2])
    return coverage


def draw_coverage(
    path: Path,
    data: GoalDataset,
    task: CompiledTask,
    distances: dict[str, np.ndarray],
    facts: Sequence[str] = (),
) -> None:
    """Draw a map of the states and, beside it, histograms of the distances to goals; atomic, as PNG.

    A maze is seen from above, walls in grey. Elsewhere the map shows the first two numbers of the achieved
    goal, or is a histogram where there is one.

    Args:
        path: of the picture.
        data, task: what to draw.
        distances: of `replay.coverage`.
        facts: of the heading.
    """
    title = "Where the dataset’s states lie, and how far their goals are"
    with house_figure(path, 10.0, 4.6, title, facts, panel_padding=0.14) as figure:
        left, right = figure.subplots(1, 2)
        maze = maze_coverage(data, task)
        if maze is not None:
            _draw_maze(figure, left, maze)
        elif task.goal_dim > 1:
            _draw_map(figure, left, data.achieved_goal[:, :2], term_labels(task))
        else:
            left.hist(data.achieved_goal[:, 0], _BINS, color=PALETTE[0])
            left.set(xlabel=term_labels(task)[0], ylabel="states", yscale="log")
        _draw_distances(right, distances, task)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)


def _draw_maze(figure: Figure, axes: Axes, coverage: MazeCoverage) -> None:
    """Draw from above how often each patch of the maze was visited, with the borders of its free cells."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    maze = coverage.maze
    draw_map(axes, limits_of_map(maze, [], np.zeros((0, 2)), 0.0), maze)
    for cell in np.argwhere(coverage.free):
        x, y = np.add(maze.origin, maze.scale * (cell - 0.5))
        axes.add_patch(
            Rectangle((x, y), maze.scale, maze.scale, fill=False, edgecolor=FAINT, linewidth=0.8, zorder=3)
        )
    visits = np.ma.masked_equal(coverage.visits, 0)
    norm = LogNorm(1, max(2, int(coverage.visits.max())))
    limits = axes.get_xlim(), axes.get_ylim()
    image = axes.imshow(
        visits.T, cmap=DENSITY_MAP, norm=norm, origin="lower", extent=coverage.extent, zorder=2
    )
    axes.set(xlim=limits[0], ylim=limits[1])
    _add_scale(figure, axes, image)


def _draw_map(figure: Figure, axes: Axes, achieved: np.ndarray, names: list[str]) -> None:
    """Draw how often each patch of a plane was visited."""
    from matplotlib.colors import LogNorm

    counts, x, y = np.histogram2d(achieved[:, 0], achieved[:, 1], _BINS)
    norm = LogNorm(1, max(2, int(counts.max())))
    mesh = axes.pcolormesh(x, y, np.ma.masked_equal(counts, 0).T, norm=norm, cmap=DENSITY_MAP)
    axes.set(xlabel=names[0], ylabel=names[1])
    _add_scale(figure, axes, mesh)


def _add_scale(figure: Figure, axes: Axes, image: ScalarMappable) -> None:
    bar = figure.colorbar(image, ax=axes, label="states in a patch (white: none)", shrink=0.8)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _draw_distances(axes: Axes, distances: dict[str, np.ndarray], task: CompiledTask) -> None:
    """Draw how far goals are, one line a kind of distance, with the radius of success."""
    top = max(float(np.quantile(values, 0.999)) for values in distances.values())
    edges = np.linspace(0.0, max(top, 1e-9), _BINS // 2 + 1)
    for (name, values), colour in zip(distances.items(), PALETTE, strict=False):
        share = np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, linewidth=1.8, color=colour, label=_LABELS[name])
    region = task.spec.success[0]
    unit = task.distance_unit(region)
    label = f"success: within {region.radius:g} {unit}".rstrip()
    axes.axvline(region.radius, color=INK, lw=1.3, ls="--", label=label)
    axes.set_xlabel("distance to the goal" + (f" ({unit})" if unit else ""))
    axes.set(ylabel="share in a bin", ylim=(0, None))
