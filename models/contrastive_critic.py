"""The contrastive critic: how near a state and action lie to a goal, learned from InfoNCE.

Losses are pure: tensors in, (loss, metrics) out. Source: arXiv 2503.14858 and Eysenbach et al.,
"Contrastive Learning as Goal-Conditioned Reinforcement Learning", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thousandfold.models.block_stack import Compute
from thousandfold.models.compiled_info_nce import info_nce_kernels
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
        inputs = torch.cat([observation.repeat(2, 1), torch.cat([proposed, taken])], dim=-1)
        encoder = self.state_action_encoder
        hidden = encoder.trunk(inputs, frozen_rows=len(proposed))
        of_proposed, of_taken = hidden.split([len(proposed), len(taken)])
        weight, bias = encoder.head.weight.detach(), encoder.head.bias.detach()
        return nn.functional.linear(of_proposed, weight, bias), encoder.head(of_taken)

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


class Contrast(NamedTuple):
    """What the energies of each row say of the column that is its positive; (rows,) each."""

    positive: Tensor
    """the energy of the row's positive"""
    logsumexp: Tensor
    """of the row's energies"""
    not_below: Tensor
    """how many energies are as high as the positive's, itself among them; without a gradient"""
    total: Tensor
    """the sum of the row's energies; without a gradient"""


def contrast(rows: Tensor, columns: Tensor, energy: Energy, first: int = 0) -> Contrast:
    """Contrast the embeddings of rows (rows, 64) with those of columns (columns, 64).

    Args:
        rows, columns: φ and ψ, or ψ and φ.
        energy: of a pair.
        first: column of the first row's positive; that of row i is column first + i.
    """
    kernels = info_nce_kernels(rows.device, rows.dtype, rows.shape[1]) if energy == "norm" else None
    if kernels is not None:
        return Contrast(*kernels(rows, columns, first))
    energies = pairwise_energy(rows, columns, energy)
    positive = energies.diagonal(first)
    # torch has one kernel for the logarithm of the softmax, and several for logsumexp.
    logsumexp = positive - energies.log_softmax(1).diagonal(first)
    constant = energies.detach()
    not_below = (constant >= positive.detach().unsqueeze(1)).sum(1)
    return Contrast(positive, logsumexp, not_below, constant.sum(1))


def contrastive_loss(
    state_action: Tensor,
    goal: Tensor,
    energy: Energy = "norm",
    variant: InfoNCE = "forward",
    no_goal: Tensor | None = None,
    lost: Tensor | None = None,
    gather: Callable[[Tensor], Tensor] = lambda own: own,
    first: int = 0,
) -> tuple[Tensor, Metrics]:
    """Return InfoNCE, whose positives are a row's own goal, plus 0.1 · mean(logsumexp²).

    Args:
        state_action, goal: φ and ψ of the same transitions, (batch, 64) each.
        energy: of a pair.
        variant: ``forward`` classifies the goal of each state and action among all goals, ``backward`` the
            state and action of each goal, ``symmetric`` takes the mean of both.
        no_goal: embedding (64,) of reaching no goal, one more to classify; ``forward`` alone has it.
        lost: (batch,) bool, rows whose positive is no goal.
        gather: returns what a batch is contrasted with, of which it is a part: all ranks' rows for its own.
        first: where in that the batch begins.

    Returns:
        The loss and its metrics, each a scalar tensor: InfoNCE; of states and actions with goals alone the
        accuracy, positive and negative logit and logsumexp.
    """
    goals = gather(goal)
    sides = [] if variant == "backward" else [contrast(state_action, goals, energy, first)]
    if variant != "forward":
        sides.append(contrast(goal, gather(state_action), energy, first))
    losses, penalties = [], []
    for positive, logsumexp, _, _ in sides:
        if no_goal is not None and lost is not None:
            nowhere = paired_energy(state_action, no_goal, energy)
            positive = torch.where(lost, nowhere, positive)
            logsumexp = torch.logaddexp(logsumexp, nowhere)
        losses.append((logsumexp - positive).mean())
        penalties.append(logsumexp.square().mean())
    info_nce, penalty = (
        each[0] if len(each) == 1 else torch.stack(each).mean() for each in (losses, penalties)
    )
    loss = info_nce + LOGSUMEXP_PENALTY * penalty
    with torch.no_grad():
        # What is reported is about the goal of each state and action with every variant.
        reported = contrast(state_action, goals, energy, first) if variant == "backward" else sides[0]
        return loss, {"info_nce": info_nce.detach()} | _contrast_metrics(reported, len(goals))


def log_not_lost(state_action: Tensor, goal: Tensor, no_goal: Tensor, energy: Energy) -> Tensor:
    """Return log(1 − P(lost | s, a)), (batch,): InfoNCE's softmax has a column more for reaching no goal.

    Args:
        state_action, goal: φ of what is judged, and ψ of the goals of a batch, which stand for all goals.
        no_goal: embedding (64,) of reaching none.
        energy: of a pair.
    """
    goals = contrast(state_action, goal, energy).logsumexp
    return goals - torch.logaddexp(goals, paired_energy(state_action, no_goal, energy))


def _contrast_metrics(contrast: Contrast, columns: int) -> Metrics:
    positive, rows = contrast.positive.mean(), len(contrast.positive)
    return {
        "categorical_accuracy": (contrast.not_below == 1).mean(dtype=torch.float32),
        "positive_logit": positive,
        "negative_logit": (contrast.total.sum() - positive * rows) / max(rows * (columns - 1), 1),
        "logsumexp": contrast.logsumexp.mean(),
    }


def actor_loss(energy: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, Metrics]:
    """Return mean(α · log π − f(s, π(s, g), g)) for tensors of shape (batch,) and a scalar α."""
    loss = (alpha * log_prob - energy).mean()
    return loss, {"actor_energy": energy.detach().mean(), "entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return α · mean(−log π − H*), which raises α while the entropy is below its target H*."""
    return log_alpha.exp() * (-log_prob.detach() - target_entropy).mean()
