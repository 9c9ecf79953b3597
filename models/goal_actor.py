"""The goal-conditioned actor: a squashed Gaussian over actions in (−1, 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thousandfold.models.block_stack import Compute
from thousandfold.models.residual_mlp import NetworkShape, ResidualMLP, dense

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
TANH_EPS = 1e-6


class Gaussian(NamedTuple):
    """A diagonal Gaussian before the tanh."""

    mean: Tensor
    """(batch, action_dim)"""
    log_std: Tensor
    """(batch, action_dim), within [−5, 2]"""


class GoalActor(nn.Module):
    """Maps a state and a goal to a Gaussian whose tanh is the action.

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        shape: size and form of the network.
        compute: precision and memory of its blocks.
    """

    def __init__(
        self,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        shape: NetworkShape,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        self.trunk = ResidualMLP(observation_dim + goal_dim, shape, compute)
        self.mean_head = dense(shape.width, action_dim)
        self.log_std_head = dense(shape.width, action_dim)

    def forward(self, observation: Tensor, goal: Tensor) -> Gaussian:
        """Return the Gaussian for observations (batch, observation_dim) and goals (batch, goal_dim)."""
        hidden = self.trunk(torch.cat([observation, goal], dim=-1))
        bounded = torch.tanh(self.log_std_head(hidden))
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (bounded + 1.0)
        return Gaussian(self.mean_head(hidden), log_std)


def sample_action(gaussian: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reparameterised action and its log-probability.

    Args:
        gaussian: the actor's output.
        noise: standard normal, (batch, action_dim).

    Returns:
        action tanh(mean + std·noise), (batch, action_dim), and log π, (batch,): the Gaussian's log density
        minus the tanh's log-determinant, Σ log(1 − tanh² + 1e-6).
    """
    action = torch.tanh(gaussian.mean + gaussian.log_std.exp() * noise)
    log_density = -0.5 * noise.square() - gaussian.log_std - 0.5 * math.log(2.0 * math.pi)
    log_determinant = torch.log1p(TANH_EPS - action.square())
    return action, (log_density - log_determinant).sum(-1)
