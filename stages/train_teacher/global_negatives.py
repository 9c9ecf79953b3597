"""InfoNCE over the batches of all ranks: each contrasts its own rows with everybody's columns.

With N ranks of b transitions, rank r holds rows r·b … r·b + b of the N·b energies of the whole batch:

                 ψ of rank 0   ψ of rank 1
    φ of rank 0 [ +             .           ]  rank 0's rows, for the forward loss
    φ of rank 1 [ .             +           ]  rank 1's rows;  + marks where the positives lie

A rank's loss is the mean over its own rows, so the mean of the ranks' losses is the loss of one process on
the whole batch, and so are the gradients once they are averaged over the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thousandfold.models.contrastive_critic import (
    Energy,
    InfoNCE,
    Metrics,
    contrastive_metrics,
    pairwise_energy,
    penalised_info_nce,
)
from thousandfold.pipeline.distributed import Ranks


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, one rank after the other; a row's gradient is the sum of what every rank sends back.

    `torch.distributed.nn.all_gather` multiplies the gradient by the number of ranks on top.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(rows).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = ctx.ranks.sum_(gradients[0].clone(memory_format=torch.contiguous_format))
        return total.chunk(ctx.ranks.size)[ctx.ranks.rank], None


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows (b, n) of all ranks, (size · b, n), in order of rank; gradients find their way back."""
    gathered = _GatherRows.apply(rows, ranks)
    assert isinstance(gathered, Tensor)
    return gathered


def global_contrastive_loss(
    state_action: Tensor,
    goal: Tensor,
    energy: Energy,
    variant: InfoNCE,
    ranks: Ranks,
    no_goal: Tensor | None = None,
    lost: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return this rank's part of `contrastive_loss` over the whole batch, and the metrics of its rows.

    Args:
        state_action, goal: φ and ψ of this rank's transitions, (b, 64); every rank has b.
        energy: the energy of a pair.
        variant: of InfoNCE; ``backward`` contrasts this rank's goals with every rank's states and actions.
        ranks: the processes that share the batch; all must call this together.
        no_goal, lost: embedding (64,) of no goal, and (b,) bool, which rows reach none; ``forward`` alone.
    """
    first = ranks.rank * len(goal)
    sides = []
    if variant in ("forward", "symmetric"):
        columns = gather_rows(goal, ranks)
        columns = columns if no_goal is None else torch.cat([columns, no_goal[None]])
        sides.append(pairwise_energy(state_action, columns, energy))
    if variant in ("backward", "symmetric"):
        sides.append(pairwise_energy(gather_rows(state_action, ranks), goal, energy).T)
    loss, info_nce = penalised_info_nce(sides, first, lost)
    rows = sides[0].detach() if no_goal is None else sides[0].detach()[:, :-1]
    if variant == "backward":  # what is reported is about the goal of each state and action all the same
        rows = pairwise_energy(state_action.detach(), ranks.gather(goal).flatten(0, 1), energy)
    return loss, contrastive_metrics(rows, info_nce.detach(), first)
