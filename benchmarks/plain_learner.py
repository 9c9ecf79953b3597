"""One learner update in torch as one would first write it: the plain side of `learner_speed.py`.

The mathematics are those of `stages.train_teacher.learner` with its default settings; nothing is shared. The
actor's loss encodes the goals anew, runs are eager, and a module is a layer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.published import (
    EMBEDDING_DIM,
    LAYERS_PER_BLOCK,
    LEARNING_RATE,
    LOG_STD_MAX,
    LOG_STD_MIN,
    LOGSUMEXP_PENALTY,
    TANH_EPS,
    TARGET_ENTROPY_PER_ACTION,
)
from thousandfold.replay.trajectory_buffer import TransitionBatch


class DenseNormSwish(nn.Module):
    """Dense, LayerNorm, Swish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs, eps=1e-6)
        self.swish = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs)."""
        return self.swish(self.norm(self.dense(hidden)))


class Block(nn.Module):
    """Four layers, added to the block's input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseNormSwish(width, width) for _ in range(LAYERS_PER_BLOCK))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width) to (batch, width)."""
        branch = hidden
        for layer in self.layers:
            branch = layer(branch)
        return hidden + branch


class ResidualNetwork(nn.Module):
    """Stem, residual blocks and linear heads.

    Args:
        inputs: numbers in.
        depth: Dense layers inside blocks, a multiple of 4.
        width: units of a layer.
        heads: outputs of each head.
    """

    def __init__(self, inputs: int, depth: int, width: int, heads: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = DenseNormSwish(inputs, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth // LAYERS_PER_BLOCK))
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for outputs in heads)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # its kernel already starts as U(±1/√fan_in)
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Map (batch, inputs) to one (batch, outputs) a head."""
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return [head(hidden) for head in self.heads]


class PlainLearner:
    """Networks, optimisers and the update; the actor's goals are permuted within the batch.

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        depth, width: form of the three networks.
    """

    def __init__(
        self, observation_dim: int, goal_dim: int, action_dim: int, *, depth: int, width: int
    ) -> None:
        self.action_dim = action_dim
        self.actor = ResidualNetwork(observation_dim + goal_dim, depth, width, (action_dim, action_dim))
        self.critic = nn.ModuleDict(
            {
                "state_action": ResidualNetwork(observation_dim + action_dim, depth, width, (EMBEDDING_DIM,)),
                "goal": ResidualNetwork(goal_dim, depth, width, (EMBEDDING_DIM,)),
            }
        )
        self.log_alpha = torch.zeros((), requires_grad=True)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=LEARNING_RATE)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=LEARNING_RATE)
        self._alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=LEARNING_RATE)

    def update(self, batch: TransitionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step with each optimiser; return the losses before it."""
        size = len(batch.goal)
        noise = torch.randn(size, self.action_dim, generator=generator)
        return self.step(batch, noise, torch.randperm(size, generator=generator))

    def step(self, batch: TransitionBatch, noise: Tensor, goal_order: Tensor) -> dict[str, Tensor]:
        """Update with given noise (batch, action_dim) and the goal that each state gets (batch,)."""
        with self._frozen_critic():
            actor_loss, log_prob = self._actor_loss(batch, noise, goal_order)
        alpha_loss = self._alpha_loss(log_prob)
        _descend(self._actor_optimizer, actor_loss)
        _descend(self._alpha_optimizer, alpha_loss)
        critic_loss = self._critic_loss(batch)
        _descend(self._critic_optimizer, critic_loss)
        losses = {"actor_loss": actor_loss, "alpha_loss": alpha_loss, "critic_loss": critic_loss}
        return {name: loss.detach() for name, loss in losses.items()}

    def _actor_loss(self, batch: TransitionBatch, noise: Tensor, goal_order: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean(α · log π − f(s, π(s, g), g)) and log π, (batch,)."""
        goal = batch.goal[goal_order]
        mean, scale = self.actor(torch.cat([batch.observation, goal], dim=-1))
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(scale) + 1.0)
        action = torch.tanh(mean + log_std.exp() * noise)
        log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_prob = (log_density - torch.log(1.0 - action.square() + TANH_EPS)).sum(-1)
        state_action = self._encode_state_action(batch.observation, action)
        energy = -torch.linalg.vector_norm(state_action - self._encode_goal(goal), dim=-1)
        return (self.log_alpha.exp().detach() * log_prob - energy).mean(), log_prob

    def _alpha_loss(self, log_prob: Tensor) -> Tensor:
        """Return α · mean(−log π − H*)."""
        target_entropy = TARGET_ENTROPY_PER_ACTION * self.action_dim
        return self.log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()

    def _critic_loss(self, batch: TransitionBatch) -> Tensor:
        """Return forward InfoNCE with the positives on the diagonal plus 0.1 · mean(logsumexp²)."""
        state_action = self._encode_state_action(batch.observation, batch.action)
        goal = self._encode_goal(batch.goal)
        logits = -torch.cdist(state_action, goal, compute_mode="donot_use_mm_for_euclid_dist")
        logsumexp = logits.logsumexp(1)
        return (logsumexp - logits.diagonal()).mean() + LOGSUMEXP_PENALTY * logsumexp.square().mean()

    def _encode_state_action(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.critic["state_action"](torch.cat([observation, action], dim=-1))[0]

    def _encode_goal(self, goal: Tensor) -> Tensor:
        return self.critic["goal"](goal)[0]

    @contextlib.contextmanager
    def _frozen_critic(self) -> Iterator[None]:
        """Compute no gradient for the critic's parameters in this context."""
        self.critic.requires_grad_(False)
        yield
        self.critic.requires_grad_(True)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
