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

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner_speed import spread
from benchmarks.turns import facts, ratios
from thousandfold.envs.registry import compile_task
from thousandfold.ground.files import write_json_atomic
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.replay.dataset_writer import write_shard
from thousandfold.stages.dataset.labels import LABEL_BATCH, TeacherLabels
from thousandfold.stages.dataset.rollout import EpisodeGroup, LabelledRollout, RolloutPlan, Round
from thousandfold.stages.networks import TrainedActor

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/label_rate.json"
SIDES = ("bare", "labels", "rollout")


def make_teacher(task_name: str, depth: int, width: int) -> TrainedActor:
    """Return an actor as it is before training."""
    task, shape = compile_task(task_name), NetworkShape(depth, width)
    torch.manual_seed(0)
    actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
    return TrainedActor(NormalizedActor(actor, task.observation_dim, task.goal_dim).eval(), task, shape, {})


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


def take_turns(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Call every side once a round, after a first time that does not count; return its labels a second."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            labels = side()
            if number:
                rates[name].append(round(labels / (time.perf_counter() - start), 1))
    return rates


def main() -> None:
    """Measure all sides in turn, print their rates, and write the figures."""
    parser = argparse.ArgumentParser(description="Labels a second of generate-dataset.")
    parser.add_argument("--task", default="point_u_maze")
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worlds", type=int, default=128, help="episodes of a round")
    parser.add_argument("--alternatives", type=int, default=4, help="goals a state")
    parser.add_argument("--batches", type=int, default=16, help="forward passes of the other sides a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    set_up_torch(options.threads)
    trained = make_teacher(options.task, options.depth, options.width)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": bare_side(trained, options.batches),
            "labels": labels_side(trained, options.batches, options.alternatives),
            "rollout": rollout_side(
                trained, options.worlds, options.alternatives, options.threads, Path(folder)
            ),
        }
        rates = take_turns(sides, options.rounds)
    result: dict[str, Any] = facts() | {
        name: getattr(options, name)
        for name in ("task", "depth", "width", "threads", "worlds", "alternatives", "batches")
    }
    result["labels_per_second"] = {name: spread(values) for name, values in rates.items()}
    result["rounds_labels_per_second"] = rates
    result["over_bare"] = {name: ratios(rates, name, "bare") for name in SIDES[1:]}
    for name in SIDES:
        share = statistics.median(rates[name]) / statistics.median(rates["bare"])
        print(f"{name}: {statistics.median(rates[name]):,.0f} labels/s, {share:.2f} of the bare rate")
    write_json_atomic(options.output, result)


if __name__ == "__main__":
    main()
