"""A student in training on made-up rows, without a dataset or a teacher that can do anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from thousandfold.envs.registry import compile_task
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.replay.goal_dataset import GoalDataset
from thousandfold.stages.distill.imitation import ImitationRows
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.networks import TrainedActor

TASK = compile_task("point_u_maze")
SHAPE = NetworkShape(4, 8)
SETTINGS = DistillSettings(
    student_depth=2,
    student_width=8,
    updates=4,
    alternative_fraction=0.5,
    batch_size=32,
    evaluate_every=100,
    evaluation_episodes=2,
    dagger_rounds=3,
    dagger_episodes=4,
    dagger_beta=0.5,
    dagger_updates=2,
    threads=1,
    device="cpu",
)


def make_network(shape: NetworkShape, seed: int) -> NormalizedActor:
    """Return a network with kernels of that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NormalizedActor.around(GoalActor(4, 2, 2, shape), 4, 2)


def make_teacher() -> TrainedActor:
    """Return a teacher that has learned nothing."""
    return TrainedActor(make_network(SHAPE, 0).eval(), TASK, SHAPE, {})


def made_up_data(value: float, episodes: int = 4, choices: int = 1) -> GoalDataset:
    """Return episodes of five steps whose every number is `value`."""
    rows = 5 * episodes

    def column(*shape: int) -> np.ndarray:
        return np.full((rows, *shape), value, np.float32)

    return GoalDataset(
        observation=column(4),
        achieved_goal=column(2),
        desired_goal=column(2),
        action=column(2),
        teacher_mean=column(2),
        teacher_log_std=column(2),
        alternative_goal=column(choices, 2),
        alternative_mean=column(choices, 2),
        alternative_log_std=column(choices, 2),
        episode=np.repeat(np.arange(episodes), 5),
        success=np.arange(episodes) % 2 == 0,
        metadata={},
    )


def make_training(**changes: Any) -> StudentTraining:
    """Return a training that has not begun, of `SETTINGS` with changes."""
    settings, data = SETTINGS.model_copy(update=changes), made_up_data(0.5)
    rows = ImitationRows.of(data, data.episode > 0, "cpu")
    validation = ImitationRows.of(data, data.episode == 0, "cpu")
    return StudentTraining(make_network(settings.shape, 1), rows, validation, settings, make_teacher())
