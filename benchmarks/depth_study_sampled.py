"""What the depth study's teachers reach with sampled actions, on the episodes that judged their mean action.

    python -m benchmarks.depth_study_sampled --arms long

Evaluations take tanh(mean), as published. Where that pushes against a wall, nothing in the next observation
differs and it pushes on until the episode ends; an action drawn from the same policy slides along. The
difference tells a policy that does not know its way from one that is stuck on it. Cells whose teacher is no
longer in its workspace are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import depth_study
from benchmarks.depth_study import ARMS, ROOT
from thousandfold.ground.files import write_json_atomic
from thousandfold.models.goal_actor import GoalActor, sample_action
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import seed_sequence, set_up_torch
from thousandfold.stages.episodes import Policy, run_episodes
from thousandfold.stages.networks import load_actor

RESULT = ROOT / "benchmarks/results/depth_study_sampled.json"


def sampled_policy(actor: GoalActor, generator: torch.Generator) -> Policy:
    """Return the policy that draws its action from the actor's squashed Gaussian."""

    @torch.no_grad()
    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        gaussian = actor(torch.as_tensor(observation), torch.as_tensor(goal))
        return sample_action(gaussian, torch.randn(gaussian.mean.shape, generator=generator))[0].numpy()

    return policy


def evaluate(teacher: Artifact) -> dict[str, Any]:
    """Return success with sampled actions and with the mean, both on the final evaluation's episodes."""
    results, trained = teacher.manifest.results, load_actor(teacher)
    outcome = run_episodes(
        trained.task,
        sampled_policy(trained.actor.actor, torch.Generator().manual_seed(0)),
        episodes=results["episodes"],
        seed=seed_sequence(*results["evaluation_seed"]),
    ).summary()
    names = ("success", "success_interval", "time_at_goal", "episodes")
    return {
        "teacher": teacher.name,
        "sampled": {name: outcome[name] for name in names},
        "mean": {name: results[name] for name in names},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the teachers that are there and put them into the results."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.depth_study_sampled", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--task", default="point_big_maze")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "depth_study")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    set_up_torch(1)
    cells = json.loads(options.output.read_text(encoding="utf-8"))["cells"] if options.output.exists() else {}
    for cell in depth_study.plan(options.arms, options.task, options.seeds, 1.0):
        workspace = options.workspace_root / cell.folder
        if not workspace.exists() or not (teacher := depth_study.completed_teacher(workspace)):
            continue
        if cells.get(cell.key, {}).get("teacher") != teacher.name:
            cells[cell.key] = evaluate(teacher)
            write_json_atomic(options.output, {"cells": cells})
        found = cells[cell.key]
        print(
            f"{cell.key}: success {found['sampled']['success']:.3f} with sampled actions, "
            f"{found['mean']['success']:.3f} with the mean, {found['mean']['episodes']} episodes each",
            flush=True,
        )


if __name__ == "__main__":
    main()
