"""A teacher's mean action, which is what is deployed, against actions drawn as it drew them in training.

    python -m benchmarks.sampled_action --teacher .../runs/teacher-20261129-181500 .../runs/teacher-...
    python -m benchmarks.sampled_action --table          print what is recorded; run nothing

A cell is a teacher. Its ratio, mean / sampled, is of success, with a 95 % interval over pairs of fresh
episodes that start and aim alike. Where the mean swings with a clock, one that does not is there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Cell, StudyParser, markdown_table, run_study, with_interval
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import sample_action
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.stages.episodes import Policy, retention, run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

_HEADS = (
    "task",
    "seed",
    "success, mean",
    "sampled",
    "mean, still",
    "mean / sampled, success",
    "time at goal, mean",
    "sampled",
)


def run_cell(teacher: Artifact, seed: int, episodes: int) -> Cell:
    """Run both sides of a cell and return its record."""
    trained = load_actor(teacher)
    generator = torch.Generator().manual_seed(seed)

    still = NormalizedActor(
        trained.actor.actor, trained.actor.observation_normalizer, trained.actor.goal_normalizer
    )

    @torch.no_grad()
    def sampled(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        gaussian = still(torch.as_tensor(observation), torch.as_tensor(goal))
        return sample_action(gaussian, torch.randn(gaussian.mean.shape, generator=generator))[0].numpy()

    policies: dict[str, Policy] = {"mean": torch_policy(trained.actor), "sampled": sampled}
    if trained.actor.dither is not None:
        policies["still"] = torch_policy(still)
    found = {
        name: run_episodes(trained.task, policy, episodes=episodes, seed=seed)
        for name, policy in policies.items()
    }
    ratio = retention(found["sampled"].success, found["mean"].success)
    return {
        "task": teacher.manifest.task,
        "teacher_hash": teacher.manifest.hash,
        "teacher_seed": teacher.manifest.settings["seed"],
        "episodes": episodes,
        **{f"{name}_success": float(each.success.mean()) for name, each in found.items()},
        **{f"{name}_time_at_goal": float(each.time_at_goal.mean()) for name, each in found.items()},
        "success_ratio": ratio["retention"],
        "success_ratio_interval": ratio["interval"],
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell."""
    return markdown_table(_HEADS, [
        [
            cell["task"], cell["teacher_seed"],
            *(f"{cell[f'{side}_success']:.3f}" for side in ("mean", "sampled")),
            f"{cell['still_success']:.3f}" if "still_success" in cell else "",
            with_interval(cell["success_ratio"], cell["success_ratio_interval"]),
            *(f"{cell[f'{side}_time_at_goal']:.0f}" for side in ("mean", "sampled")),
        ]
        for cell in cells.values()
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "sampled_action")
    parser.several("--teacher", type=Path, metavar="FOLDER", help="of a teacher's artifact")
    parser.number("--seed", 0, "of the episodes and of the draws")
    parser.number("--episodes", 512)
    parser.number("--threads", 1)
    options = parser.parse(arguments, needs="teacher")
    set_up_torch(options.threads)
    cells = []
    for folder in options.teacher:
        teacher = Artifact.load(folder)
        task, seed = teacher.manifest.task, teacher.manifest.settings["seed"]
        name = f"{task}, seed {seed}, {str(teacher.manifest.hash)[:8]}"
        cells.append((name, partial(run_cell, teacher, options.seed, options.episodes)))
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
