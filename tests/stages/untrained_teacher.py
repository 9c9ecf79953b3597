"""A teacher that has learned nothing, and settings of a small dataset of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.networks import NETWORK_FILE, save_network

SHAPE = NetworkShape(depth=4, width=16)


STEPS = 100


SETTINGS = GenerateDatasetSettings(
    episodes=10, num_worlds=4, noise_levels=(0.0, 0.2), noise_until=0.8, seed=7, device="cpu"
)


def make_actor(task: CompiledTask) -> GoalActor:
    torch.manual_seed(0)
    return GoalActor(task.observation_dim, task.goal_dim, task.action_dim, SHAPE)


def make_teacher(context: StageContext, change: Callable[[torch.Tensor], object] | None = None) -> Artifact:
    """Return the artifact of an untrained teacher; `change` is applied to its mean head's bias."""
    task = compile_task("point_u_maze")
    actor = make_actor(task)
    if change is not None:
        change(actor.mean_head.bias.data)
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    artifact = context.workspace.create("teacher", task=task.name, settings={})
    save_network(artifact.file(NETWORK_FILE), tensors, kind="teacher", task=task, shape=SHAPE)
    artifact.complete({"success": 0.0})
    return artifact
