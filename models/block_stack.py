"""Residual blocks of any number as four stacked tensors, with a backward pass written out.

Autograd over a thousand layers spends its time on bookkeeping: a node, a parameter and a gradient for every
layer and tensor. Here a whole stack is one node and four parameters. The optimiser sees four tensors, rows
that must not teach the parameters share a pass with rows that do, and activations may be kept in bfloat16 or
be computed again. The mathematics is that of `residual_mlp.ResidualBlock`, which the tests compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAYERS_PER_BLOCK = 4
LAYER_NORM_EPS = 1e-6

Precision = Literal["float32", "bfloat16"]

# Bound once: looking an operator up takes as long as a small one runs.
_swish_backward = torch.ops.aten.silu_backward.grad_input
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_INPUT_GRADIENT = [True, False, False]
_ALL_GRADIENTS = [True, True, True]


@dataclass(frozen=True)
class Compute:
    """How a stack is computed; what it computes stays the same.

    Attributes:
        precision: of the branches' matrix products and kept activations while gradients are wanted. The
            residual stream, the parameters and their gradients are float32, and so is acting.
        checkpoint: keep the residual stream at every √blocks-th block alone and compute the rest again in the
            backward pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
    """

    precision: Precision = "float32"
    checkpoint: bool = False


class BlockStack(nn.Module):
    """Residual blocks: each four times [Dense, LayerNorm, Swish], scaled and added to its input.

    Args:
        width: units of every layer.
        num_blocks: how many blocks.
        scale: the factor on each block's branch.
        learned_gain: multiply each branch by a learned number too, which starts at 0 ("ReZero", Bachlechner
            et al., arXiv 2003.04887).
        compute: precision and memory.
    """

    weight: Tensor
    """(layers, width, width), each U(±1/√width) at the start"""
    bias: Tensor
    """(layers, width)"""
    norm_weight: Tensor
    """(layers, width)"""
    norm_bias: Tensor
    """(layers, width)"""
    gain: Tensor | None
    """(num_blocks,), or None where nothing is learned"""

    def __init__(
        self,
        width: int,
        num_blocks: int,
        *,
        scale: float = 1.0,
        learned_gain: bool = False,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        layers = LAYERS_PER_BLOCK * num_blocks
        bound = 1.0 / math.sqrt(width)
        self.num_blocks, self.scale, self.compute = num_blocks, scale, compute or Compute()
        self.weight = nn.Parameter(torch.empty(layers, width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        self.norm_weight = nn.Parameter(torch.ones(layers, width))
        self.norm_bias = nn.Parameter(torch.zeros(layers, width))
        self.gain = nn.Parameter(torch.zeros(num_blocks)) if learned_gain else None
        self._rounded: Tensor | None = None

    def forward(self, hidden: Tensor, frozen_rows: int = 0) -> Tensor:
        """Map (batch, width) to (batch, width).

        Args:
            hidden: the stream before the first block.
            frozen_rows: so many leading rows pass their gradient on to `hidden` and give none to the
                parameters.
        """
        parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
        if torch.is_grad_enabled():
            plan = _Plan(self.scale, frozen_rows, self.compute.checkpoint, self._rounded_weight())
            return _Stack.apply(hidden, *parameters, plan)
        for block in _blocks(*parameters):
            hidden, _ = block.forward(hidden, self.scale)
        return hidden

    @torch.no_grad()
    def _rounded_weight(self) -> Tensor | None:
        """Return the kernels in bfloat16, in memory that is kept: new pages cost more than the rounding."""
        if self.compute.precision == "float32":
            return None
        if self._rounded is None or self._rounded.device != self.weight.device:
            self._rounded = torch.empty_like(self.weight, dtype=torch.bfloat16)
        return self._rounded.copy_(self.weight)

    def stream(self, hidden: Tensor) -> list[Tensor]:
        """Return the residual stream before the first block and after each: num_blocks + 1 of (batch, width).

        For looking inside; no gradient.
        """
        states = [hidden]
        with torch.no_grad():
            parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
            for block in _blocks(*parameters):
                states.append(block.forward(states[-1], self.scale)[0])
        return states


class _Plan(NamedTuple):
    """What steers one pass through a stack."""

    scale: float
    frozen_rows: int
    checkpoint: bool
    rounded_weight: Tensor | None


class _Kept(NamedTuple):
    """What a layer's backward pass needs of its forward pass."""

    inputs: Tensor
    linear: Tensor
    mean: Tensor
    reciprocal_std: Tensor
    normed: Tensor


class _Block(NamedTuple):
    """The parameters of one block, four of each, in the precision that they are computed in."""

    weight: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    norm_weight: tuple[Tensor, ...]
    norm_bias: tuple[Tensor, ...]
    gain: Tensor | None

    def forward(self, hidden: Tensor, scale: float) -> tuple[Tensor, list[_Kept]]:
        """Return the stream after the block, and what its backward pass needs."""
        inner, kept = hidden.to(self.weight[0].dtype), []
        for weight, bias, norm_weight, norm_bias in zip(*self[:4], strict=True):
            linear = torch.addmm(bias, inner, weight.t())
            normed, mean, rstd = torch.native_layer_norm(
                linear, linear.shape[1:], norm_weight, norm_bias, LAYER_NORM_EPS
            )
            kept.append(_Kept(inner, linear, mean, rstd, normed))
            inner = nn.functional.silu(normed)
        out = inner if inner.dtype == hidden.dtype else None
        if self.gain is None:
            return torch.add(hidden, inner, alpha=scale, out=out), kept
        return torch.addcmul(hidden, inner, self.gain, value=scale, out=out), kept


def _blocks(
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gain: Tensor | None,
    rounded_weight: Tensor | None = None,
) -> list[_Block]:
    """Return the blocks of stacked parameters, with rounded kernels and biases where they are given."""
    if rounded_weight is not None:
        weight, bias = rounded_weight, bias.to(rounded_weight.dtype)
    layers = [stack.unbind(0) for stack in (weight, bias, norm_weight, norm_bias)]
    gains = [None] * (len(weight) // LAYERS_PER_BLOCK) if gain is None else gain.unbind(0)
    blocks = []
    for index, own_gain in enumerate(gains):
        own = slice(LAYERS_PER_BLOCK * index, LAYERS_PER_BLOCK * (index + 1))
        blocks.append(_Block(layers[0][own], layers[1][own], layers[2][own], layers[3][own], own_gain))
    return blocks


class _Gradients:
    """Gradients of stacked parameters, filled block by block."""

    def __init__(self, weight: Tensor, bias: Tensor, gain: Tensor | None) -> None:
        self.weight, self.bias = torch.empty_like(weight), torch.empty_like(bias)
        self.norm_weight: list[Tensor] = [bias] * len(bias)
        self.norm_bias: list[Tensor] = [bias] * len(bias)
        self.gain: list[Tensor] | None = None if gain is None else [gain] * len(gain)
        self._weights, self._biases = self.weight.unbind(0), self.bias.unbind(0)

    def add_dense(self, layer: int, outputs: Tensor, inputs: Tensor) -> None:
        """Fill in a Dense layer's gradients from that of its outputs and from its inputs, (batch, width)."""
        if outputs.dtype == self.weight.dtype:
            torch.mm(outputs.t(), inputs, out=self._weights[layer])
            torch.sum(outputs, 0, out=self._biases[layer])
        else:
            self._weights[layer].copy_(torch.mm(outputs.t(), inputs))
            self._biases[layer].copy_(outputs.sum(0))

    def stacked(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the parameters."""
        norms = [torch.stack(part) for part in (self.norm_weight, self.norm_bias)]
        return self.weight, self.bias, *norms, None if self.gain is None else torch.stack(self.gain)


class _Stack(torch.autograd.Function):
    """The stack as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *arguments: Any) -> Tensor:
        *parameters, plan = arguments
        weight, bias, norm_weight, norm_bias, gain = parameters
        blocks = _blocks(weight, bias, norm_weight, norm_bias, gain, plan.rounded_weight)
        # save_for_backward notices parameters that change before the backward pass.
        ctx.save_for_backward(hidden, *parameters)
        ctx.plan, ctx.blocks = plan, blocks
        ctx.segment = math.isqrt(len(blocks) - 1) + 1 if plan.checkpoint else 1
        ctx.kept, ctx.starts = [], []
        for index, block in enumerate(blocks):
            if index % ctx.segment == 0:
                ctx.starts.append(hidden)
            hidden, kept = block.forward(hidden, plan.scale)
            if not plan.checkpoint:
                ctx.kept.append(kept)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (gradient,) = output_gradients
        hidden, weight, bias, _, _, gain = ctx.saved_tensors
        learns = ctx.needs_input_grad[1] and ctx.plan.frozen_rows < len(hidden)
        gradients = _Gradients(weight, bias, gain) if learns else None
        for segment in reversed(range(len(ctx.starts))):
            first = segment * ctx.segment
            blocks = ctx.blocks[first : first + ctx.segment]
            for offset, kept in reversed(list(enumerate(_segment_kept(ctx, segment, blocks)))):
                gradient = _block_backward(
                    gradient, blocks[offset], kept, first + offset, gradients, ctx.plan
                )
        parts = gradients.stacked() if gradients else (None,) * 5
        return gradient, *parts, None


def _segment_kept(ctx: Any, segment: int, blocks: list[_Block]) -> list[list[_Kept]]:
    """Return what the blocks of a segment kept, computed again where it was not kept."""
    if not ctx.plan.checkpoint:
        return [ctx.kept[segment]]
    hidden, again = ctx.starts[segment], []
    for block in blocks:
        hidden, kept = block.forward(hidden, ctx.plan.scale)
        again.append(kept)
    return again


def _block_backward(
    gradient: Tensor,
    block: _Block,
    kept: list[_Kept],
    index: int,
    gradients: _Gradients | None,
    plan: _Plan,
) -> Tensor:
    """Return the gradient before the block from the one after it; fill in those of its parameters."""
    dtype = block.weight[0].dtype
    branch = gradient.to(dtype) if plan.scale == 1.0 else (gradient * plan.scale).to(dtype)
    if block.gain is not None:
        if gradients is not None and gradients.gain is not None:
            output = nn.functional.silu(kept[-1].normed)[plan.frozen_rows :]
            gradients.gain[index] = (branch[plan.frozen_rows :] * output).sum(dtype=block.gain.dtype)
        branch = branch * block.gain.to(dtype)
    # One buffer serves the whole block: what was written last is still in the processor's cache.
    buffer = torch.empty_like(kept[0].linear)
    for place in reversed(range(LAYERS_PER_BLOCK)):
        _swish_backward(branch, kept[place].normed, grad_input=buffer)
        layer = LAYERS_PER_BLOCK * index + place
        branch = _layer_backward(buffer, kept[place], block, place, layer, gradients, plan.frozen_rows)
    return torch.add(gradient, branch, out=branch) if branch.dtype == gradient.dtype else gradient + branch


def _layer_backward(
    buffer: Tensor,
    kept: _Kept,
    block: _Block,
    place: int,
    layer: int,
    gradients: _Gradients | None,
    frozen_rows: int,
) -> Tensor:
    """Turn, in place, the gradient after a LayerNorm into that before its Dense, and fill in."""
    shape, weight = kept.linear.shape[1:], block.weight[place]
    whole = (buffer, kept.linear, kept.mean, kept.reciprocal_std)

    def before_norm(rows: tuple[Tensor, ...], wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        upstream, linear, mean, rstd = rows
        norm_weight, norm_bias = block.norm_weight[place], block.norm_bias[place]
        return _layer_norm_backward(upstream, linear, shape, mean, rstd, norm_weight, norm_bias, wanted)

    if gradients is None:
        return torch.mm(before_norm(whole, _INPUT_GRADIENT)[0], weight, out=buffer)
    inputs, learning, after = kept.inputs, whole, buffer
    if frozen_rows:
        sizes = [frozen_rows, len(buffer) - frozen_rows]
        frozen, learning = zip(*(part.split_with_sizes(sizes) for part in whole), strict=True)
        inputs, after = inputs[frozen_rows:], learning[0]
        torch.mm(before_norm(frozen, _INPUT_GRADIENT)[0], weight, out=frozen[0])
    linear, gradients.norm_weight[layer], gradients.norm_bias[layer] = before_norm(learning, _ALL_GRADIENTS)
    gradients.add_dense(layer, linear, inputs)
    torch.mm(linear, weight, out=after)
    return buffer
