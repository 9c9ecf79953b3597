"""How long a dataset takes to load: from its shards, checked by hash, and from the packed copy in the cache.

    python -m benchmarks.dataset_loading --rows 1000000 --steps 100 1000

Episodes of random numbers in the sizes of the point U-maze. The first load checks every file, reads every
shard and packs the result; the packed loads after it read one file. What was written is in the memory of the
system by then: these are figures of the formats and not of a disk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import Cell, StudyParser, run_once
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.replay.goal_dataset import GoalEpisode, write_goal_dataset
from thousandfold.stages.dataset.files import MINARI_FOLDER, load_dataset

TASK = "point_u_maze"


def random_episode(
    task: CompiledTask, steps: int, alternatives: int, rng: np.random.Generator
) -> GoalEpisode:
    """Return an episode of random numbers."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rows, actions = steps + 1, task.action_dim
    return GoalEpisode(
        observation=draw(rows, task.observation_dim),
        achieved_goal=draw(rows, task.goal_dim),
        desired_goal=draw(task.goal_dim),
        action=draw(steps, actions).clip(-1, 1),
        teacher_mean=draw(rows, actions),
        teacher_log_std=draw(rows, actions),
        alternative_goal=draw(rows, alternatives, task.goal_dim),
        alternative_mean=draw(rows, alternatives, actions),
        alternative_log_std=draw(rows, alternatives, actions),
        success=np.zeros(rows, bool),
        terminated=False,
        truncated=True,
        distribution="training",
        action_noise=0.0,
    )


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(rows: int, steps: int, alternatives: int, loads: int, folder: Path) -> Cell:
    """Write a dataset, load it for the first time and then from the cache; return seconds and sizes.

    Args:
        rows: transitions.
        steps: of an episode.
        alternatives: goals a state beside the commanded one.
        loads: how often the packed copy is loaded; the median counts.
        folder: an empty one to work in.
    """
    task, workspace, rng = compile_task(TASK), Workspace(folder), np.random.default_rng(0)
    artifact = workspace.create("dataset", task=TASK, settings={})

    def episodes() -> Iterator[GoalEpisode]:
        for _ in range(rows // steps):
            yield random_episode(task, steps, alternatives, rng)

    root = artifact.file(MINARI_FOLDER)
    write_s = seconds(lambda: write_goal_dataset(root, task, episodes(), {}))
    artifact.complete({})
    first_s = seconds(lambda: load_dataset(artifact, workspace.cache))
    packed_s = [seconds(lambda: load_dataset(artifact, workspace.cache)) for _ in range(loads)]
    return {
        "episodes": rows // steps,
        "shards": len(list(root.rglob("shard_*-v0"))),
        "dataset_bytes": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        "packed_bytes": sum(path.stat().st_size for path in workspace.cache.rglob("*") if path.is_file()),
        "write_s": round(write_s, 3),
        "first_load_s": round(first_s, 3),
        "packed_load_s": round(statistics.median(packed_s), 3),
    }


def show(result: Cell) -> str:
    """Return a line a length of episodes."""
    return "\n".join(
        f"{result['rows']:,} rows in episodes of {steps}: first load {cell['first_load_s']:.2f} s, packed "
        f"{cell['packed_load_s']:.2f} s, written in {cell['write_s']:.1f} s"
        for steps, cell in result["by_episode_steps"].items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every length of episodes and print a line for each."""
    parser = StudyParser(__doc__, "dataset_loading")
    parser.number("--rows", 1_000_000)
    parser.several("--steps", [100, 1000], type=int)
    parser.number("--alternatives", 4, "goals a state")
    parser.number("--loads", 5, "packed loads, of which the median counts")
    options = parser.parse(arguments)

    def measured() -> Cell:
        cells = {}
        for steps in options.steps:
            with tempfile.TemporaryDirectory() as folder:
                cells[steps] = measure(options.rows, steps, options.alternatives, options.loads, Path(folder))
        heads = {"task": TASK, "rows": options.rows, "alternative_goals": options.alternatives}
        return heads | {"by_episode_steps": cells}

    run_once(options, measured, show)


if __name__ == "__main__":
    main()
