"""Teachers, students and datasets that nobody trained or collected, small enough to export at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from thousandfold.envs.registry import compile_task
from thousandfold.models.deployable_policy import InputLimits, NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.replay.goal_dataset import GoalEpisode, write_goal_dataset
from thousandfold.stages.export_onnx.gate import GateStates
from thousandfold.stages.networks import NETWORK_FILE, save_network

TASK = "point_u_maze"
LIMITS = InputLimits(*(torch.full((size,), limit) for size in (4, 2) for limit in (-60.0, 60.0)))


def make_actor(depth: int, width: int, seed: int = 0) -> NormalizedActor:
    torch.manual_seed(seed)
    actor = NormalizedActor.around(GoalActor(4, 2, 2, NetworkShape(depth, width)), 4, 2)
    actor.observation_normalizer.fit(torch.randn(100, 4) * torch.tensor([1.0, 2.0, 0.5, 0.5]) + 2)
    return actor


def make_network(workspace: Workspace, kind: str, depth: int = 4, width: int = 8, **options: Any) -> Artifact:
    """Return a completed teacher or student that nobody trained."""
    task, actor = compile_task(TASK), make_actor(depth, width, seed=depth)
    tensors = dict(actor.state_dict())
    if kind == "teacher":
        tensors = {f"actor.{name}": value for name, value in actor.actor.state_dict().items()}
    artifact = workspace.create(kind, task=TASK, settings={}, **options)
    shape = NetworkShape(depth, width)
    save_network(artifact.file(NETWORK_FILE), tensors, kind=kind, task=task, shape=shape)
    artifact.complete({"success": 0.75, "success_interval": [0.4, 0.9], "episodes": 8})
    return artifact


def make_dataset(workspace: Workspace, teacher: Artifact) -> Artifact:
    """Return a dataset of two episodes of ten actions, of states that no rollout reaches."""
    artifact = workspace.create(
        "dataset", task=TASK, settings={}, parents={"teacher": teacher.parent_entry()}
    )
    rows = np.full((11, 4), 50.0, np.float32)
    episode = GoalEpisode(
        observation=rows,
        achieved_goal=rows[:, :2],
        desired_goal=rows[0, :2],
        action=np.zeros((10, 2), np.float32),
        teacher_mean=np.zeros((11, 2), np.float32),
        teacher_log_std=np.zeros((11, 2), np.float32),
        alternative_goal=np.zeros((11, 0, 2), np.float32),
        alternative_mean=np.zeros((11, 0, 2), np.float32),
        alternative_log_std=np.zeros((11, 0, 2), np.float32),
        success=np.zeros(11, bool),
        terminated=False,
        truncated=True,
        distribution="training",
        action_noise=0.0,
    )
    write_goal_dataset(artifact.path, compile_task(TASK), [episode, episode], {})
    artifact.complete({})
    return artifact


def gate_states() -> GateStates:
    draw = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    return GateStates(draw[:, :4].copy(), draw[:, 4:].copy(), {"closed_loop": 40})
