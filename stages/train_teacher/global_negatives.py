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
