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
_swish_backward = torch.ops.aten.silu_backward.default
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_INPUT_GRADIENT = [True, False, False]
_ALL_GRADIENTS = [True, True, True]


@dataclass(frozen=True)
class Compute:
    """How a stack is computed; what it computes stays the same.

    Attributes:
        precision: of the branches' matrix products and kept activations. The residual stream, the parameters
            and their gradients are float32.
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

    def forward(self, hidden: Tensor, frozen_rows: int = 0) -> Tensor:
        """Map (batch, width) to (batch, width).

        Args:
            hidden: the stream before the first block.
            frozen_rows: so many leading rows pass their gradient on to `hidden` and give none to the
                parameters.
        """
        parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
        if torch.is_grad_enabled():
            return _Stack.apply(hidden, *parameters, _Plan(self.scale, frozen_rows, self.compute))
        for block in _blocks(*parameters, self.compute.precision):
            hidden, _ = block.forward(hidden, self.scale)
        return hidden

    def stream(self, hidden: Tensor) -> list[Tensor]:
        """Return the residual stream before the first block and after each: num_blocks + 1 of (batch, width).

        For looking inside; no gradient.
        """
        states = [hidden]
        with torch.no_grad():
            parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
            for block in _blocks(*parameters, self.compute.precision):
                states.append(block.forward(states[-1], self.scale)[0])
        return states


class _Plan(NamedTuple):
    """What steers one pass through a stack."""

    scale: float
    frozen_rows: int
    compute: Compute


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
        if self.gain is None:
            return torch.add(hidden, inner, alpha=scale), kept
        return torch.addcmul(hidden, inner, self.gain, value=scale), kept


def _blocks(
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gain: Tensor | None,
    precision: Precision,
) -> list[_Block]:
    """Return the blocks of stacked parameters; the matrix products' in the precision that is asked for."""
    dtype = torch.bfloat16 if precision == "bfloat16" else weight.dtype
    stacks = (weight.to(dtype), bias.to(dtype), norm_weight, norm_bias)
    layers = [stack.unbind(0) for stack in stacks]
    gains = [None] * (len(weight) // LAYERS_PER_BLOCK) if gain is None else gain.unbind(0)
    blocks = []
    for index, own_gain in enumerate(gains):
        own = slice(LAYERS_PER_BLOCK * index, LAYERS_PER_BLOCK * (index + 1))
        blocks.append(_Block(layers[0][own], layers[1][own], layers[2][own], layers[3][own], own_gain))
    return blocks


class _Gradients:
    """Gradients of stacked parameters, filled block by block."""

    def __init__(self, weight: Tensor, bias: Tensor, gain: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        self.bias = torch.empty(bias.shape, dtype=dtype, device=weight.device)
        self.norm_weight: list[Tensor] = [bias] * len(bias)
        self.norm_bias: list[Tensor] = [bias] * len(bias)
        self.gain: list[Tensor] | None = None if gain is None else [gain] * len(gain)
        self.weights, self.biases = self.weight.unbind(0), self.bias.unbind(0)

    def stacked(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the parameters, float32."""
        norms = [torch.stack(part) for part in (self.norm_weight, self.norm_bias)]
        gain = None if self.gain is None else torch.stack(self.gain)
        return self.weight.to(norms[0].dtype), self.bias.to(norms[0].dtype), *norms, gain


class _Stack(torch.autograd.Function):
    """The stack as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *arguments: Any) -> Tensor:
        *parameters, plan = arguments
        weight, bias, norm_weight, norm_bias, gain = parameters
        blocks = _blocks(weight, bias, norm_weight, norm_bias, gain, plan.compute.precision)
        # save_for_backward notices parameters that change before the backward pass.
        ctx.save_for_backward(hidden, *parameters)
        ctx.plan, ctx.blocks = plan, blocks
        ctx.segment = math.isqrt(len(blocks) - 1) + 1 if plan.compute.checkpoint else 1
        ctx.kept, ctx.starts = [], []
        for index, block in enumerate(blocks):
            if index % ctx.segment == 0:
                ctx.starts.append(hidden)
            hidden, kept = block.forward(hidden, plan.scale)
            if not plan.compute.checkpoint:
                ctx.kept.append(kept)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (gradient,) = output_gradients
        hidden, weight, bias, _, _, gain = ctx.saved_tensors
        learns = ctx.needs_input_grad[1] and ctx.plan.frozen_rows < len(hidden)
        gradients = _Gradients(weight, bias, gain, ctx.blocks[0].weight[0].dtype) if learns else None
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
    if not ctx.plan.compute.checkpoint:
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
    for place in reversed(range(LAYERS_PER_BLOCK)):
        layer = LAYERS_PER_BLOCK * index + place
        normed = _swish_backward(branch, kept[place].normed)
        linear = _norm_backward(normed, kept[place], block, place, layer, gradients, plan.frozen_rows)
        if gradients is not None:
            learning, inputs = linear, kept[place].inputs
            if plan.frozen_rows:
                learning, inputs = learning[plan.frozen_rows :], inputs[plan.frozen_rows :]
            torch.mm(learning.t(), inputs, out=gradients.weights[layer])
            torch.sum(learning, 0, out=gradients.biases[layer])
        branch = torch.mm(linear, block.weight[place])
    return gradient + branch


def _norm_backward(
    gradient: Tensor,
    kept: _Kept,
    block: _Block,
    place: int,
    layer: int,
    gradients: _Gradients | None,
    frozen_rows: int,
) -> Tensor:
    """Return the gradient before a LayerNorm; fill in those of its parameters from the rows that teach."""
    shape, affine = kept.linear.shape[1:], (block.norm_weight[place], block.norm_bias[place])
    whole = (gradient, kept.linear, kept.mean, kept.reciprocal_std)

    def backward(rows: tuple[Tensor, ...], wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        upstream, linear, mean, rstd = rows
        return _layer_norm_backward(upstream, linear, shape, mean, rstd, *affine, wanted)

    if gradients is None:
        return backward(whole, _INPUT_GRADIENT)[0]
    if not frozen_rows:
        before, gradients.norm_weight[layer], gradients.norm_bias[layer] = backward(whole, _ALL_GRADIENTS)
        return before
    sizes = [frozen_rows, len(gradient) - frozen_rows]
    halves = [part.split_with_sizes(sizes) for part in whole]
    frozen, learning = zip(*halves, strict=True)
    after, gradients.norm_weight[layer], gradients.norm_bias[layer] = backward(learning, _ALL_GRADIENTS)
    return torch.cat([backward(frozen, _INPUT_GRADIENT)[0], after])
