"""A teacher that reaches the goals of a corridor, its dataset, and students that take a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import UserError
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.replay.goal_dataset import GoalDataset
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import NETWORK_FILE, load_actor, save_network, torch_policy

TASK_NAME = "point_corridor"
SHAPE = NetworkShape(4, 16)
EVALUATION = 32, [3, 5]
"""Episodes and seed of the teachers' recorded evaluation."""
SETTINGS = DistillSettings(
    student_depth=4,
    student_width=12,
    updates=160,
    alternative_fraction=0.5,
    batch_size=128,
    learning_rate=1e-2,
    evaluate_every=40,
    evaluation_episodes=16,
    final_episodes=64,
    max_final_episodes=64,
    threads=1,
    device="cpu",
)


def change(**values: Any) -> DistillSettings:
    return DistillSettings(**(SETTINGS.model_dump() | values))


def linear_actor(gain: float) -> GoalActor:
    """Return an actor that was fitted to gain · (goal − position) − velocity."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = GoalActor(4, 2, 2, SHAPE)
        optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
        low, span = torch.tensor([0.7, 0.7]), torch.tensor([0.6, 2.6])
        for _ in range(200):
            position, goal = low + span * torch.rand(256, 2), low + span * torch.rand(256, 2)
            velocity = torch.randn(256, 2)
            found = actor(torch.cat([position, velocity], 1), goal)
            error = found.mean - (gain * (goal - position) - velocity)
            optimizer.zero_grad()
            (error.square().mean() + (found.log_std + 1.0).square().mean()).backward()
            optimizer.step()
    return actor


def make_teacher(context: StageContext, actor: GoalActor, **results: Any) -> Artifact:
    """Return the artifact of a teacher with its evaluation, some of whose results may be false."""
    task = compile_task(TASK_NAME)
    count, seed = EVALUATION
    summary = run_episodes(task, torch_policy(actor), episodes=count, seed=seed_sequence(*seed)).summary()
    artifact = context.workspace.create("teacher", task=TASK_NAME, settings={})
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    save_network(artifact.file(NETWORK_FILE), tensors, kind="teacher", task=task, shape=SHAPE)
    artifact.complete(summary | {"evaluation_seed": seed} | results)
    return artifact


def make_dataset(context: StageContext, teacher: Artifact, seed: int = 0) -> Artifact:
    settings = GenerateDatasetSettings(
        episodes=30,
        num_worlds=30,
        noise_levels=(0.0, 0.5),
        alternative_goals=2,
        device="cpu",
        threads=1,
        seed=seed,
    )
    return generate_dataset.run(settings, context, teacher)


def action_error(student: Artifact, data: GoalDataset) -> float:
    with torch.no_grad():
        actor = load_actor(student).actor
        found = actor(torch.from_numpy(data.observation), torch.from_numpy(data.desired_goal))
    return float(np.square(np.tanh(found.mean.numpy()) - np.tanh(data.teacher_mean)).mean())


def refusal(context: StageContext, teacher: Artifact, dataset: Artifact, settings=SETTINGS) -> str:
    """Return the one line that refuses; no student may come of it."""
    before = {a.name for a in context.workspace.artifacts("student") if a.manifest.status == "completed"}
    with pytest.raises(UserError) as raised:
        distill.run(settings, context, teacher, dataset)
    after = {a.name for a in context.workspace.artifacts("student") if a.manifest.status == "completed"}
    assert after == before and "\n" not in str(raised.value)
    return str(raised.value)
