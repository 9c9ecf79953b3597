"""The contrastive critic: how near a state and action lie to a goal, learned from InfoNCE.

Losses are pure: tensors in, (loss, metrics) out. Source: arXiv 2503.14858 and Eysenbach et al.,
"Contrastive Learning as Goal-Conditioned Reinforcement Learning", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thousandfold.models.block_stack import Compute
from thousandfold.models.residual_mlp import NetworkShape, ResidualMLP, apply_rows, dense

EMBEDDING_DIM = 64
LOGSUMEXP_PENALTY = 0.1
# A cosine alone lies in [−1, 1], too flat for a softmax over hundreds of goals to pick one.
COSINE_TEMPERATURE = 0.1

Energy = Literal["norm", "squared", "dot", "cosine"]
InfoNCE = Literal["forward", "backward", "symmetric"]
Metrics = dict[str, Tensor]


class Encoder(nn.Module):
    """A residual network with a linear head, of 64 numbers where nothing else is said."""

    def __init__(
        self, inputs: int, shape: NetworkShape, compute: Compute | None = None, outputs: int = EMBEDDING_DIM
    ) -> None:
        super().__init__()
        self.trunk = ResidualMLP(inputs, shape, compute)
        self.head = dense(shape.width, outputs)

    def forward(self, inputs: Tensor, frozen_rows: int = 0) -> Tensor:
        """Map (batch, inputs) to (batch, outputs); the first `frozen_rows` rows teach no parameter."""
        return apply_rows(self.head, self.trunk(inputs, frozen_rows), frozen_rows)


class ContrastiveCritic(nn.Module):
    """Two encoders: φ of state and action, ψ of the goal.

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        shape: size and form of both encoders.
        compute: precision and memory of their blocks.
        no_goal: learn an embedding for reaching no goal at all.
    """

    def __init__(
        self,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        shape: NetworkShape,
        compute: Compute | None = None,
        no_goal: bool = False,
    ) -> None:
        super().__init__()
        self.no_goal = nn.Parameter(torch.randn(EMBEDDING_DIM) / EMBEDDING_DIM**0.5) if no_goal else None
        self.state_action_encoder = Encoder(observation_dim + action_dim, shape, compute)
        self.goal_encoder = Encoder(goal_dim, shape, compute)

    @property
    def networks(self) -> dict[str, Encoder]:
        """Both encoders by name."""
        return {"state_action_encoder": self.state_action_encoder, "goal_encoder": self.goal_encoder}

    def encode_state_action(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return φ(s, a), (batch, 64)."""
        return self.state_action_encoder(torch.cat([observation, action], dim=-1))

    def encode_both_actions(
        self, observation: Tensor, proposed: Tensor, taken: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return φ(s, proposed) and φ(s, taken), (batch, 64) each, from one pass.

        The gradient of the first reaches `proposed` and no parameter; that of the second, the parameters.
        """
        states = torch.cat([observation, observation])
        inputs = torch.cat([states, torch.cat([proposed, taken])], dim=-1)
        embedding = self.state_action_encoder(inputs, frozen_rows=len(proposed))
        return embedding[: len(proposed)], embedding[len(proposed) :]

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
    if energy == "squared":
        return -_squared_distance(state_action, goal)
    pairs = _NormEnergy.apply(state_action, goal)
    assert isinstance(pairs, Tensor)
    return pairs


def _squared_distance(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ‖row_i − column_j‖², (rows, columns), from the matrix product.

    In float64: it cancels where a pair is near, just where precision counts.
    """
    wide, across = rows.double(), columns.double()
    norms = wide.square().sum(-1, keepdim=True) + across.square().sum(-1)
    return torch.addmm(norms, wide, across.T, alpha=-2.0).clamp_min(0.0).to(rows.dtype)


class _NormEnergy(torch.autograd.Function):
    """−‖row_i − column_j‖₂, with its gradient in two products: autograd's are in float64 and take longer.

    With e = −‖r − c‖₂ and w = ∂L/∂e / e, 0 where e is 0: ∂L/∂r_i = Σ_j w_ij · (r_i − c_j), and c's likewise.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        energy = -_squared_distance(rows, columns).sqrt()
        ctx.save_for_backward(rows, columns, energy)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, columns, energy = ctx.saved_tensors
        weight = torch.where(energy < 0, gradients[0] / energy, 0.0)
        of_rows = weight.sum(1, keepdim=True) * rows - weight @ columns
        return of_rows, weight.sum(0).unsqueeze(1) * columns - weight.T @ rows


def paired_energy(state_action: Tensor, goal: Tensor, energy: Energy) -> Tensor:
    """Return f(s_i, a_i, g_i), (batch,): the diagonal of `pairwise_energy`."""
    if energy == "dot":
        return (state_action * goal).sum(-1)
    if energy == "cosine":
        return nn.functional.cosine_similarity(state_action, goal, dim=-1) / COSINE_TEMPERATURE
    if energy == "squared":
        return -(state_action - goal).square().sum(-1)
    return -torch.linalg.vector_norm(state_action - goal, dim=-1)


def contrastive_loss(
    logits: Tensor, variant: InfoNCE = "forward", lost: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return InfoNCE with the positives on the diagonal, plus 0.1 · mean(logsumexp²).

    Args:
        logits: energies (batch, batch); row i is a state and action, column j a goal. With `lost` one more
            column, that of reaching no goal.
        variant: ``forward`` classifies the goal of each row, ``backward`` the row of each goal,
            ``symmetric`` takes the mean of both.
        lost: (batch,) bool, rows whose positive is the last column; ``forward`` alone has it.

    Returns:
        The loss and its metrics: accuracy, positive and negative logit, logsumexp (each a scalar tensor).
    """
    sides = {"forward": (logits,), "backward": (logits.T,), "symmetric": (logits, logits.T)}[variant]
    loss, info_nce = penalised_info_nce(sides, lost=lost)
    goals = logits.detach() if lost is None else logits.detach()[:, :-1]
    return loss, contrastive_metrics(goals, info_nce.detach())


def penalised_info_nce(
    sides: Sequence[Tensor], first: int = 0, lost: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the penalised loss and InfoNCE alone, each the mean over `sides`.

    Args:
        sides: energies (rows, columns) to classify the columns of; row i's positive is column first + i.
        first: column of the first row's positive.
        lost: (rows,) bool, rows whose positive is the last column instead; None: none.
    """
    losses, penalties = [], []
    for logits in sides:
        # torch has one kernel for the logarithm of the softmax, and several for logsumexp.
        log_softmax = logits.log_softmax(1)
        own = log_softmax.diagonal(first)
        losses.append(-(own if lost is None else torch.where(lost, log_softmax[:, -1], own)).mean())
        penalties.append((logits.diagonal(first) - own).square().mean())
    info_nce = torch.stack(losses).mean()
    return info_nce + LOGSUMEXP_PENALTY * torch.stack(penalties).mean(), info_nce


@torch.no_grad()
def contrastive_metrics(logits: Tensor, info_nce: Tensor, first: int = 0) -> Metrics:
    """Return the metrics of energies (rows, columns) whose first row has its positive in column `first`."""
    rows, columns = logits.shape
    positives = logits.diagonal(first)
    positive = positives.mean()
    return {
        "info_nce": info_nce,
        "categorical_accuracy": ((logits >= positives.unsqueeze(1)).sum(1) == 1).float().mean(),
        "positive_logit": positive,
        "negative_logit": (logits.sum() - positive * rows) / max(rows * (columns - 1), 1),
        "logsumexp": (positives - logits.log_softmax(1).diagonal(first)).mean(),
    }


def actor_loss(energy: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, Metrics]:
    """Return mean(α · log π − f(s, π(s, g), g)) for tensors of shape (batch,) and a scalar α."""
    loss = (alpha * log_prob - energy).mean()
    return loss, {"actor_energy": energy.detach().mean(), "entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return α · mean(−log π − H*), which raises α while the entropy is below its target H*."""
    return log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()
