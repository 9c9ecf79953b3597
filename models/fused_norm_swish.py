"""Layers and stacks in few kernels, for CUDA: every kernel costs a launch there, and a pass over memory.

A layer is a product and one kernel more, forward; backward it is these two again. Residual sums, gains and
roundings are in the kernels of the layers where a block ends. The kernels' gradients of many layers are one
batched product, and the sums over rows that are the other parameters' gradients one more operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thousandfold.models.dense_products import TORCH_PRODUCTS, DenseProducts
from thousandfold.models.norm_swish import Layer

WIDEST = 8192
"""numbers in a row that a block of threads can hold"""

# A block of threads computes so many rows of a layer backward, and sums over them on the way.
_ROWS_OF_A_PART = 4
# The gradients of so many layers are kept until their kernels' are computed together. A product of one layer
# leaves most of a large GPU idle.
_LAYERS_TOGETHER = 32


class FusedNormSwish:
    """In two kernels that Warp compiles; see `NormSwish`. Matrices are float32 or bfloat16."""

    products: DenseProducts = TORCH_PRODUCTS

    def __init__(self) -> None:
        # Warp takes a second to load: it is, where it is used.
        from thousandfold.models import norm_swish_tiles  # noqa: F401

        self.norm_swish = torch.ops.thousandfold.norm_swish.default
        self.norm_swish_backward = torch.ops.thousandfold.norm_swish_backward.default

    def forward(self, inputs: Tensor, layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
        """Return y, x less its bias, and each row's mean and 1/√(variance + ε), (2, batch) float32."""
        product = self.products.outputs(inputs, layer.weight)
        outputs, moments = torch.empty_like(product), layer.bias.new_empty(2, len(product))
        self.norm_swish(product, *layer[1:], moments, outputs, None, None, 1.0)
        return outputs, (product, moments)

    def backward(
        self, gradient: Tensor, kept: Sequence[Tensor], layer: Layer, frozen_rows: int, memory: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return `memory` and the sums of parts of the rows, (3, parts, width) float32; see `NormSwish`."""
        product, moments = kept
        rows, width = product.shape
        sums, beside = moments.new_empty(3, _parts(rows), width), (None, None, 1.0, None)
        given = product, *layer[1:], moments, gradient, frozen_rows
        self.norm_swish_backward(*given, memory, sums, *beside)
        return memory, None if frozen_rows == rows else sums

    def collect(self, sums: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' sums over all parts."""
        norm_weight, norm_bias, bias = torch.stack(list(sums), 1).sum(2).unbind(0)
        return norm_weight, norm_bias, bias


class Blocks(NamedTuple):
    """A stack's parameters, and how it is computed."""

    layers: list[Layer]
    """the kernels in the precision of the products, all else float32"""
    gains: Sequence[Tensor]
    """of each block, (1,)"""
    scale: float
    norm: FusedNormSwish

    def ends(self, layer: int) -> bool:
        """Return whether a layer is the last one of its block."""
        return (layer + 1) % self.layers_per_block == 0

    @property
    def layers_per_block(self) -> int:
        """Layers of a block."""
        return len(self.layers) // len(self.gains)

    def beside(self, layer: int, stream: Tensor) -> tuple[Tensor | None, Tensor | None, float]:
        """Return what a layer's kernel is given of the stream: nothing within a block."""
        if not self.ends(layer):
            return None, None, self.scale
        return stream, self.gains[layer // self.layers_per_block], self.scale


class _Kept(NamedTuple):
    """What a forward pass over some layers leaves for the backward pass."""

    inputs: Tensor
    """(layers + 1, rows, width): each layer's, and what follows the last one"""
    products: Tensor
    """(layers, rows, width): each layer's W · inputs"""
    moments: Tensor
    """(layers, 2, rows): each row's mean and 1/√(variance + ε)"""


def stack_of(
    kernels: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gain: Tensor | None,
    num_blocks: int,
    scale: float,
    norm: FusedNormSwish,
) -> Blocks:
    """Return the blocks of stacked parameters; `kernels` may be rounded."""
    stacks = (stack.unbind(0) for stack in (kernels, bias, norm_weight, norm_bias))
    layers = [Layer(*parts) for parts in zip(*stacks, strict=True)]
    gains = bias.new_ones(num_blocks) if gain is None else gain
    return Blocks(layers, gains.view(-1, 1).unbind(0), scale, norm)


def apply_blocks(hidden: Tensor, blocks: Blocks) -> Tensor:
    """Return the stream after all blocks, (batch, width), and keep nothing for a backward pass."""
    stream, dtype = hidden.clone(memory_format=torch.contiguous_format), blocks.layers[0].weight.dtype
    # One layer's memory is every layer's.
    inputs, product = hidden.to(dtype, copy=True), torch.empty_like(stream, dtype=dtype)
    moments, count = stream.new_empty(2, len(stream)), len(blocks.layers)
    _run(blocks, range(count), stream, [inputs] * (count + 1), [product] * count, [moments] * count)
    return stream


def _run(
    blocks: Blocks,
    layers: range,
    stream: Tensor,
    inputs: Sequence[Tensor],
    products: Sequence[Tensor],
    moments: Sequence[Tensor],
) -> None:
    """Take the stream, (rows, width) and changed in place, through some layers; fill in the rest."""
    for place, layer in enumerate(layers):
        kernel, *parameters = blocks.layers[layer]
        torch.mm(inputs[place], kernel.t(), out=products[place])
        written = moments[place], inputs[place + 1]
        blocks.norm.norm_swish(products[place], *parameters, *written, *blocks.beside(layer, stream))


class FusedStack(torch.autograd.Function):
    """The stack as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *arguments: Any) -> Tensor:
        """Return the stream after all blocks.

        The arguments are the stacked weight, bias, norm_weight, norm_bias and gain, whose gradients the
        backward pass returns, then the `Blocks` made of them, frozen_rows and whether to checkpoint.
        """
        *parameters, blocks, ctx.frozen_rows, checkpoint = arguments
        # save_for_backward notices parameters that change before the backward pass.
        ctx.save_for_backward(hidden, *parameters)
        ctx.blocks, count = blocks, len(blocks.gains)
        segment = blocks.layers_per_block * (math.isqrt(count - 1) + 1 if checkpoint else count)
        ctx.segments = list(_ranges(0, len(blocks.layers), segment))
        stream = hidden.clone(memory_format=torch.contiguous_format)
        ctx.starts, ctx.kept = [], []
        for layers in ctx.segments:
            if checkpoint:
                ctx.starts.append(stream.clone())
            kept = _kept_of(blocks, layers, stream)
            if not checkpoint:
                ctx.kept.append(kept)
        return stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        """Return the gradients of `hidden` and of the stacked parameters."""
        stream = output_gradients[0].clone(memory_format=torch.contiguous_format)
        hidden, weight, _, _, _, gain = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        rows, parts = len(hidden), _parts(len(hidden))
        frozen = ctx.frozen_rows if ctx.needs_input_grad[1] else rows
        learns = frozen < rows
        gradients = torch.empty_like(weight) if learns else None
        sums = hidden.new_empty(3, len(weight), hidden.shape[1])
        gain_sums = hidden.new_empty(len(blocks.gains), parts)
        by_block = gain_sums.unbind(0)
        together = min(_LAYERS_TOGETHER, len(weight))
        dtype = blocks.layers[0].weight.dtype
        befores = hidden.new_empty(together, *hidden.shape, dtype=dtype)
        partial = hidden.new_empty(3, together, parts, hidden.shape[1])
        # The gradient of a layer's outputs, from the layer after it; where a block ends, what is still to be
        # added to the stream's.
        gradient = torch.zeros_like(stream, dtype=dtype)
        for segment in reversed(range(len(ctx.segments))):
            layers = ctx.segments[segment]
            kept = ctx.kept[segment] if ctx.kept else _kept_of(blocks, layers, ctx.starts[segment].clone())
            for group in reversed(list(_ranges(layers.start, layers.stop, together))):
                first, last = group.start - layers.start, group.stop - layers.start
                for layer in reversed(group):
                    place, own = layer - layers.start, layer - group.start
                    kernel, *parameters = blocks.layers[layer]
                    given = kept.products[place], *parameters, kept.moments[place], gradient, frozen
                    beside = blocks.beside(layer, stream)
                    gains = by_block[layer // blocks.layers_per_block] if blocks.ends(layer) else None
                    blocks.norm.norm_swish_backward(*given, befores[own], partial[:, own], *beside, gains)
                    torch.mm(befores[own], kernel, out=gradient)
                if gradients is not None:
                    TORCH_PRODUCTS.weight_gradient(
                        befores[: len(group), frozen:],
                        kept.inputs[first:last, frozen:],
                        gradients[group.start : group.stop],
                    )
                    torch.sum(partial[:, : len(group)], 2, out=sums[:, group.start : group.stop])
        before = stream.add_(gradient)
        if gradients is None:
            return before, *(None,) * 8
        norm_weight, norm_bias, bias = sums.unbind(0)
        of_gain = None if gain is None else gain_sums.sum(1)
        return before, gradients, bias, norm_weight, norm_bias, of_gain, None, None, None


def _kept_of(blocks: Blocks, layers: range, stream: Tensor) -> _Kept:
    """Take the stream, changed in place, through some layers; return what their backward pass needs."""
    count, dtype = len(layers), blocks.layers[0].weight.dtype
    kept = _Kept(
        stream.new_empty(count + 1, *stream.shape, dtype=dtype),
        stream.new_empty(count, *stream.shape, dtype=dtype),
        stream.new_empty(count, 2, len(stream)),
    )
    inputs, products, moments = (each.unbind(0) for each in kept)
    inputs[0].copy_(stream)
    _run(blocks, layers, stream, inputs, products, moments)
    return kept


def _ranges(start: int, stop: int, size: int) -> Iterator[range]:
    """Yield ranges of `size` numbers, the last of those that are left."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def _parts(rows: int) -> int:
    """Return in how many parts rows are computed backward."""
    return -(-rows // _ROWS_OF_A_PART)
