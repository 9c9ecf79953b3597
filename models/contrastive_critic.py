"""The contrastive critic: how near a state and action lie to a goal, learned from InfoNCE.

Losses are pure: tensors in, (loss, metrics) out. Source: arXiv 2503.14858 and Eysenbach et al.,
"Contrastive Learning as Goal-Conditioned Reinforcement Learning", NeurIPS 2022.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.residual_mlp import NetworkShape, ResidualMLP, dense

EMBEDDING_DIM = 64
LOGSUMEXP_PENALTY = 0.1
# A cosine alone lies in [−1, 1], too flat for a softmax over hundreds of goals to pick one.
COSINE_TEMPERATURE = 0.1

Energy = Literal["norm", "squared", "dot", "cosine"]
InfoNCE = Literal["forward", "backward", "symmetric"]
Metrics = dict[str, Tensor]


class Encoder(nn.Module):
    """A residual network with a linear head of 64 numbers."""

    def __init__(self, inputs: int, shape: NetworkShape) -> None:
        super().__init__()
        self.trunk = ResidualMLP(inputs, shape)
        self.head = dense(shape.width, EMBEDDING_DIM)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, 64)."""
        return self.head(self.trunk(inputs))


class ContrastiveCritic(nn.Module):
    """Two encoders: φ of state and action, ψ of the goal.

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        shape: size and form of both encoders.
    """

    def __init__(self, observation_dim: int, goal_dim: int, action_dim: int, shape: NetworkShape) -> None:
        super().__init__()
        self.state_action_encoder = Encoder(observation_dim + action_dim, shape)
        self.goal_encoder = Encoder(goal_dim, shape)

    def encode_state_action(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return φ(s, a), (batch, 64)."""
        return self.state_action_encoder(torch.cat([observation, action], dim=-1))

    def encode_goal(self, goal: Tensor) -> Tensor:
        """Return ψ(g), (batch, 64)."""
        return self.goal_encoder(goal)


def pairwise_energy(state_action: Tensor, goal: Tensor, energy: Energy) -> Tensor:
    """Return f(s_i, a_i, g_j), (batch, batch), from embeddings (batch, 64).

    ``norm`` is −‖φ − ψ‖₂, whose gradient at distance 0 is taken as 0.
    """
    if energy == "dot":
        return state_action @ goal.T
    if energy == "cosine":
        unit = nn.functional.normalize
        return unit(state_action, dim=-1) @ unit(goal, dim=-1).T / COSINE_TEMPERATURE
    # Not by the matrix product: it cancels where a positive pair is near, just where precision counts.
    distance = torch.cdist(state_action, goal, compute_mode="donot_use_mm_for_euclid_dist")
    return -distance if energy == "norm" else -distance.square()


def paired_energy(state_action: Tensor, goal: Tensor, energy: Energy) -> Tensor:
    """Return f(s_i, a_i, g_i), (batch,): the diagonal of `pairwise_energy`."""
    if energy == "dot":
        return (state_action * goal).sum(-1)
    if energy == "cosine":
        return nn.functional.cosine_similarity(state_action, goal, dim=-1) / COSINE_TEMPERATURE
    if energy == "squared":
        return -(state_action - goal).square().sum(-1)
    return -torch.linalg.vector_norm(state_action - goal, dim=-1)


def contrastive_loss(logits: Tensor, variant: InfoNCE = "forward") -> tuple[Tensor, Metrics]:
    """Return InfoNCE with the positives on the diagonal, plus 0.1 · mean(logsumexp²).

    Args:
        logits: energies (batch, batch); row i is a state and action, column j a goal.
        variant: ``forward`` classifies the goal of each row, ``backward`` the row of each goal,
            ``symmetric`` takes the mean of both.

    Returns:
        The loss and its metrics: accuracy, positive and negative logit, logsumexp (each a scalar tensor).
    """
    positives = logits.diagonal()
    axes = {"forward": (1,), "backward": (0,), "symmetric": (1, 0)}[variant]
    losses, penalties = [], []
    for axis in axes:
        logsumexp = logits.logsumexp(axis)
        losses.append((logsumexp - positives).mean())
        penalties.append(logsumexp.square().mean())
    info_nce = torch.stack(losses).mean()
    loss = info_nce + LOGSUMEXP_PENALTY * torch.stack(penalties).mean()
    return loss, _contrastive_metrics(logits.detach(), info_nce.detach())


@torch.no_grad()
def _contrastive_metrics(logits: Tensor, info_nce: Tensor) -> Metrics:
    batch = logits.shape[0]
    positive = logits.diagonal().mean()
    correct = logits.argmax(1) == torch.arange(batch, device=logits.device)
    return {
        "info_nce": info_nce,
        "categorical_accuracy": correct.float().mean(),
        "positive_logit": positive,
        "negative_logit": (logits.sum() - positive * batch) / max(batch * (batch - 1), 1),
        "logsumexp": logits.logsumexp(1).mean(),
    }


def actor_loss(energy: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, Metrics]:
    """Return mean(α · log π − f(s, π(s, g), g)) for tensors of shape (batch,) and a scalar α."""
    loss = (alpha * log_prob - energy).mean()
    return loss, {"actor_energy": energy.detach().mean(), "entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return α · mean(−log π − H*), which raises α while the entropy is below its target H*."""
    return log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()
