"""The end of every command that makes a dataset: the view of its shards, coverage, picture, results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.pipeline.artifact_task import own_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext, StageWork, as_user_error
from thousandfold.replay.coverage import measure_coverage
from thousandfold.replay.dataset_layout import NAMESPACE, dataset_id, read_metadata, shards_below
from thousandfold.replay.dataset_writer import write_view
from thousandfold.replay.goal_dataset import DatasetError, DatasetStatistics, GoalDataset, load_goal_dataset
from thousandfold.stages.dataset.coverage_picture import draw_coverage, maze_coverage
from thousandfold.stages.dataset.files import COVERAGE_PICTURE, MINARI_FOLDER
from thousandfold.stages.episodes import wilson_interval
from thousandfold.stages.random_baseline import warn_of_chance

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
    statistics = as_user_error(lambda: write_view(root, task, metadata, own_task(artifact)), DatasetError)
    data = as_user_error(lambda: load_goal_dataset(root), DatasetError)
    results = _success(statistics) | _coverage(artifact, data, task) | dict(more or {})
    results[UNSTABLE] = _unstable_episodes(artifact, task)
    artifact.complete(results | {"dataset_id": dataset_id(task.name)})
    work.run.log_metrics(_numbers(results), step=0)
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
    title = f"{found.rows:,} states in {found.occupied_cells:,} cells"
    if maze is not None:
        results["coverage"] = maze.share
        title += f", {maze.share:.0%} of the free ones of the maze"
    draw_coverage(artifact.file(COVERAGE_PICTURE), data, task, found.distances, title)
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
