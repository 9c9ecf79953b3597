"""Energies −‖row − column‖₂ and the softmax over them, in kernels compiled for this processor.

Energies are computed and written once. Squares of differences are summed, which does not cancel where a pair
is near as ‖r‖² + ‖c‖² − 2 r·c does: float32 is enough.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thousandfold.models.compiled_kernels import LANES, has_threads, in_parallel, parts


class CompiledInfoNCE:
    """In two kernels that LLVM compiles for this processor, in torch's threads.

    Args:
        dim: numbers in an embedding.
    """

    def __init__(self, dim: int) -> None:
        from thousandfold.models.info_nce_kernels import compile_kernels

        self._code = compile_kernels(dim)
        self.forward, self.backward = (in_parallel(self._code.address(n)) for n in ("forward", "backward"))

    def __call__(self, rows: Tensor, columns: Tensor, first: int) -> tuple[Tensor, ...]:
        """Return what is said of each row, (rows,) each; the gradients of the first two reach the embeddings.

        Distances over 1.8e19 are infinite.

        Args:
            rows, columns: embeddings (rows, dim) and (columns, dim), float32.
            first: column of the first row's positive.

        Returns:
            The energy of the row's positive; the logarithm of the sum of its energies' exponentials; how many
            energies are not below the positive's; the sum of its energies.
        """
        if rows.shape[1] != columns.shape[1] or not 0 <= first <= len(columns) - len(rows):
            raise ValueError(f"no positives from column {first} on for {rows.shape} and {columns.shape}")
        return _Contrast.apply(rows, columns, first, self)


def info_nce_kernels(device: torch.device, dtype: torch.dtype, dim: int) -> CompiledInfoNCE | None:
    """Return the kernels for embeddings of `dim` numbers, or None: they are for float32 on the CPU.

    None too without a compiler, and where a kernel would do on one thread what torch does on several.
    """
    return _compiled(dim) if dtype == torch.float32 and has_threads(device) else None


@functools.cache
def _compiled(dim: int) -> CompiledInfoNCE | None:
    try:
        return CompiledInfoNCE(dim)
    except (ImportError, OSError, RuntimeError):
        return None


class _Contrast(torch.autograd.Function):
    """With w = ∂L/∂e / e, 0 where e is 0: ∂L/∂r_i = Σ_j w_ij · (r_i − c_j), and c's likewise."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, first: int, kernels: CompiledInfoNCE
    ) -> tuple[Tensor, ...]:
        rows, columns = rows.contiguous(), columns.contiguous()
        # What fills the last vector lies infinitely far away.
        room = -len(columns) % LANES
        filled = torch.nn.functional.pad(columns, (0, 0, 0, room), value=torch.inf) if room else columns
        panels = filled.view(-1, LANES, filled.shape[1]).transpose(1, 2).contiguous()
        energies, statistics = rows.new_empty(len(rows), len(filled)), rows.new_empty(5, len(rows))
        addresses = [each.data_ptr() for each in (rows, panels, energies, statistics)]
        kernels.forward(parts(), len(rows), len(filled), first, *addresses)
        positive, largest, exponentials, not_below, total = statistics.unbind(0)
        logsumexp = largest + exponentials.log()
        ctx.mark_non_differentiable(not_below, total)
        ctx.save_for_backward(rows, columns, logsumexp)
        ctx.energies, ctx.first, ctx.kernels = energies, first, kernels
        return positive, logsumexp, not_below, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, columns, logsumexp = ctx.saved_tensors
        weights = ctx.energies
        if weights is None:
            raise RuntimeError("a second backward pass: the first has overwritten the energies")
        ctx.energies = None
        of_positive, of_logsumexp = (each.contiguous() for each in gradients[:2])
        addresses = [each.data_ptr() for each in (weights, logsumexp, of_positive, of_logsumexp)]
        ctx.kernels.backward(parts(), len(rows), weights.shape[1], ctx.first, *addresses)
        weights = weights[:, : len(columns)]
        # Sums of the weights as stored: with others the two terms would not cancel where a pair is near.
        return (
            torch.addmm(weights.sum(1, keepdim=True) * rows, weights, columns, alpha=-1),
            torch.addmm(weights.sum(0).unsqueeze(1) * columns, weights.t(), rows, alpha=-1),
            None,
            None,
        )
