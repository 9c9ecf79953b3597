"""Labels a second of `generate-dataset`, beside the bare forward passes of the same teacher.

    python -m benchmarks.label_rate --depth 64 --width 256 --threads 2

Sides, in turn, round after round:

    bare      forward passes of the actor over batches of 2048 rows, which stay where they are
    labels    `TeacherLabels.alternatives`: goals gathered, batches cut, results joined, checked and returned
    rollout   all that the stage does in a round of episodes: physics, labels while acting, alternative goals
              and their labels, a shard written and forced to the disk

A label is one Gaussian for one state and goal. The teacher is not trained, which costs the same.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Cell, StudyParser, in_turn, ratios, run_once, spread
from thousandfold.envs.registry import compile_task
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.replay.dataset_writer import write_shard
from thousandfold.stages.dataset.labels import LABEL_BATCH, TeacherLabels
from thousandfold.stages.dataset.rollout import EpisodeGroup, LabelledRollout, RolloutPlan, Round
from thousandfold.stages.networks import TrainedActor

_SIZES = ("task", "depth", "width", "threads", "worlds", "alternatives", "batches")


def make_teacher(task_name: str, depth: int, width: int) -> TrainedActor:
    """Return an actor as it is before training."""
    task, shape = compile_task(task_name), NetworkShape(depth, width)
    torch.manual_seed(0)
    actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
    return TrainedActor(
        NormalizedActor.around(actor, task.observation_dim, task.goal_dim).eval(), task, shape, {}
    )


def bare_side(trained: TrainedActor, batches: int) -> Callable[[], int]:
    """Return what makes forward passes and says how many labels that were."""
    task = trained.task
    observation, goal = (torch.randn(LABEL_BATCH, size) for size in (task.observation_dim, task.goal_dim))

    @torch.inference_mode()
    def forward() -> int:
        for _ in range(batches):
            trained.actor(observation, goal)
        return batches * LABEL_BATCH

    return forward


def labels_side(trained: TrainedActor, batches: int, alternatives: int) -> Callable[[], int]:
    """Return what labels alternative goals and says how many labels that were."""
    task, labels, rng = trained.task, TeacherLabels(trained, "cpu"), np.random.default_rng(0)
    rows = batches * LABEL_BATCH // alternatives
    observation = rng.standard_normal((rows, task.observation_dim), np.float32)
    goals = rng.standard_normal((rows, alternatives, task.goal_dim), np.float32)

    def label() -> int:
        labels.alternatives(observation, goals)
        return rows * alternatives

    return label


def rollout_side(
    trained: TrainedActor, worlds: int, alternatives: int, threads: int, root: Path
) -> Callable[[], int]:
    """Return what runs a round into a shard and says how many labels that were."""
    group = EpisodeGroup(0, "training", 0.2, worlds)
    plan = RolloutPlan([group], worlds, alternative_goals=alternatives)
    rollout = LabelledRollout(trained, plan, num_threads=threads)
    numbers = itertools.count()

    def generate() -> int:
        number = next(numbers)
        each = Round(number, group, number, worlds)
        episodes = rollout.run_round(each)
        write_shard(root, trained.task, each.index, episodes, {})
        return sum(len(episode.success) for episode in episodes) * (1 + alternatives)

    return generate


def rate(side: Callable[[], int]) -> float:
    """Return labels a second."""
    start = time.perf_counter()
    labels = side()
    return round(labels / (time.perf_counter() - start), 1)


def show(result: Cell) -> str:
    """Return a line a side."""
    rates = {side: statistics.median(each) for side, each in result["rounds_labels_per_second"].items()}
    return "\n".join(
        f"{side}: {rate:,.0f} labels/s, {rate / rates['bare']:.2f} of the bare rate"
        for side, rate in rates.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sides in turn and print their rates."""
    parser = StudyParser(__doc__, "label_rate")
    parser.add_argument("--task", default="point_u_maze")
    parser.number("--depth", 64)
    parser.number("--width", 256)
    parser.number("--threads", 2)
    parser.number("--worlds", 128, "episodes of a round")
    parser.number("--alternatives", 4, "goals a state")
    parser.number("--batches", 16, "forward passes of the other sides a round")
    parser.rounds(5, least=1)
    options = parser.parse(arguments)

    def measured() -> Cell:
        set_up_torch(options.threads)
        trained = make_teacher(options.task, options.depth, options.width)
        sizes = {name: getattr(options, name) for name in _SIZES}
        goals = options.alternatives
        with tempfile.TemporaryDirectory() as folder:
            sides = {
                "bare": bare_side(trained, options.batches),
                "labels": labels_side(trained, options.batches, goals),
                "rollout": rollout_side(trained, options.worlds, goals, options.threads, Path(folder)),
            }
            measures = {name: partial(rate, side) for name, side in sides.items()}
            in_turn(measures, 1)  # does not count
            rates = in_turn(measures, options.rounds)
        return sizes | {
            "labels_per_second": {name: spread(values) for name, values in rates.items()},
            "rounds_labels_per_second": rates,
            "over_bare": {name: ratios(rates[name], rates["bare"]) for name in ("labels", "rollout")},
        }

    run_once(options, measured, show)


if __name__ == "__main__":
    main()
