"""Sampled actions are drawn from the actor, and judged on the episodes of the teacher's final evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import depth_study, depth_study_sampled
from benchmarks.depth_study_results import Configuration
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher import train_teacher


def test_actions_are_those_of_the_squashed_gaussian():
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 2, NetworkShape(4, 8))
    rows = 4000
    observation, goal = np.zeros((rows, 4), np.float32), np.ones((rows, 2), np.float32)
    actions = depth_study_sampled.sampled_policy(actor, torch.Generator().manual_seed(1))(observation, goal)
    gaussian = actor(torch.from_numpy(observation[:1]), torch.from_numpy(goal[:1]))
    raw = np.arctanh(actions.astype(np.float64).clip(-1 + 1e-7, 1 - 1e-7))
    spread = gaussian.log_std.exp().detach().numpy()[0]
    assert np.abs(raw.mean(0) - gaussian.mean.detach().numpy()[0]).max() < 5 * spread.max() / rows**0.5
    assert raw.std(0) == pytest.approx(spread, rel=0.1)


def test_with_the_mean_the_recorded_success_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arm = depth_study.Arm("depth", (Configuration(4, 8, 16),), {"env_steps": 1, "evaluate_every": 1})
    monkeypatch.setattr(depth_study, "ARMS", {"depth": arm, "long": arm})
    first, second = depth_study.plan(["depth", "long"], "point_u_maze", [0], 1.0)
    teacher = train_teacher.run(TINY_TEACHER, make_context(tmp_path / first.folder))
    monkeypatch.setattr(depth_study_sampled, "sampled_policy", lambda actor, _: torch_policy(actor))
    output = tmp_path / "sampled.json"
    options = [f"--workspace-root={tmp_path}", f"--output={output}", "--task=point_u_maze", "--seeds=0"]
    depth_study_sampled.main(["--arms", "depth", "long", *options])
    cells = json.loads(output.read_text())["cells"]
    assert set(cells) == {first.key} and second.key != first.key
    assert cells[first.key]["sampled"] == cells[first.key]["mean"]
    assert cells[first.key]["mean"]["success"] == teacher.manifest.results["success"]
