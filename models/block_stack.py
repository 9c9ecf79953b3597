"""Residual blocks of any number as four stacked tensors, with a backward pass written out.

Autograd over a thousand layers spends its time on bookkeeping: a node, a parameter and a gradient for every
layer and tensor. Here a whole stack is one node and four parameters. The optimiser sees four tensors, rows
that must not teach the parameters share a pass with rows that do, activations may be kept in bfloat16 or be
computed again, and LayerNorm and Swish may be one kernel. The mathematics is that of a module a layer, which
the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thousandfold.models.compiled_norm_swish import norm_swish
from thousandfold.models.fused_norm_swish import FusedNormSwish, FusedStack, apply_blocks, stack_of
from thousandfold.models.norm_swish import TORCH_NORM_SWISH, Layer, NormSwish

LAYERS_PER_BLOCK = 4

Precision = Literal["float32", "bfloat16"]


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

    def forward(self, hidden: Tensor, frozen_rows: int = 0, stem: Layer | None = None) -> Tensor:
        """Map (batch, width) to (batch, width).

        Args:
            hidden: the stream before the first block.
            frozen_rows: so many leading rows pass their gradient on to `hidden` and give none to the
                parameters.
            stem: a layer before the first block, which is given `hidden`, (batch, inputs), instead.
        """
        parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
        learns = torch.is_grad_enabled()
        rounded = self._rounded_weight() if learns else None
        kernels = self.weight if rounded is None else rounded
        norm = _norm_swish(kernels, self.bias)
        if isinstance(norm, FusedNormSwish):
            with torch.no_grad():
                blocks = stack_of(kernels, *parameters[1:], self.num_blocks, self.scale, norm)
            if not learns:
                return apply_blocks(hidden if stem is None else _apply_layer(hidden, stem), blocks)
            if stem is not None:
                plan = _Plan(stem=_norm_swish(stem.weight, stem.bias), frozen_rows=frozen_rows)
                hidden = _Stack.apply(hidden, *stem, *_NO_STACK, plan)
            return FusedStack.apply(hidden, *parameters, blocks, frozen_rows, self.compute.checkpoint)
        if learns:
            of_stem = None
            if stem is not None:
                of_stem = norm if rounded is None else _norm_swish(stem.weight, stem.bias)
            plan = _Plan(of_stem, norm, frozen_rows, self.scale, self.compute.checkpoint, rounded)
            return _Stack.apply(hidden, *(stem or _NO_STEM), *parameters, plan)
        if stem is not None:
            hidden = _apply_layer(hidden, stem)
        for block in _blocks(*parameters):
            hidden, _ = block.forward(hidden, self.scale, norm)
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
        states, norm = [hidden], _norm_swish(self.weight, self.bias)
        with torch.no_grad():
            parameters = (self.weight, self.bias, self.norm_weight, self.norm_bias, self.gain)
            for block in _blocks(*parameters):
                states.append(block.forward(states[-1], self.scale, norm)[0])
        return states


def _norm_swish(kernels: Tensor, bias: Tensor) -> NormSwish:
    """Return what computes LayerNorm and Swish in the precision and on the device of the kernels."""
    # A network that was made another precision as a whole has biases that the compiled one cannot read.
    exact = bias.dtype == torch.float32
    return norm_swish(kernels.device, kernels.dtype, bias.shape[-1]) if exact else TORCH_NORM_SWISH


def _apply_layer(inputs: Tensor, layer: Layer) -> Tensor:
    """Return one layer's Swish(LayerNorm(Dense(inputs))), (batch, width); no gradient."""
    return _norm_swish(layer.weight, layer.bias).forward(inputs, layer)[0]


class _Plan(NamedTuple):
    """What steers one pass through a stem and a stack, of which one may be missing."""

    stem: NormSwish | None = None
    norm: NormSwish = TORCH_NORM_SWISH
    frozen_rows: int = 0
    scale: float = 1.0
    checkpoint: bool = False
    rounded_weight: Tensor | None = None


_NO_STEM, _NO_STACK = (None,) * 4, (None,) * 5


class _KeptBlock(NamedTuple):
    """What a block's backward pass needs: layers' inputs and more; the branch where a gain is learned."""

    inputs: list[Tensor]
    norm: list[Sequence[Tensor]]
    branch: Tensor | None


class _Block(NamedTuple):
    """The parameters of one block, in the precision that they are computed in."""

    layers: list[Layer]
    gain: Tensor | None

    def forward(self, hidden: Tensor, scale: float, norm: NormSwish) -> tuple[Tensor, _KeptBlock]:
        """Return the stream after the block, and what its backward pass needs."""
        inner = hidden.to(self.layers[0].weight.dtype)
        kept = _KeptBlock([], [], None)
        for layer in self.layers:
            kept.inputs.append(inner)
            inner, beside = norm.forward(inner, layer)
            kept.norm.append(beside)
        if self.gain is not None:
            after = torch.addcmul(hidden, inner, self.gain, value=scale)
            return after, kept._replace(branch=inner)
        out = inner if inner.dtype == hidden.dtype else None
        return torch.add(hidden, inner, alpha=scale, out=out), kept


def _blocks(
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    gain: Tensor | None,
    rounded_weight: Tensor | None = None,
) -> list[_Block]:
    """Return the blocks of stacked parameters, with rounded kernels where they are given."""
    kernels = weight if rounded_weight is None else rounded_weight
    stacks = (stack.unbind(0) for stack in (kernels, bias, norm_weight, norm_bias))
    layers = [Layer(*parts) for parts in zip(*stacks, strict=True)]
    gains = [None] * (len(weight) // LAYERS_PER_BLOCK) if gain is None else gain.unbind(0)
    starts = range(0, len(layers), LAYERS_PER_BLOCK)
    return [
        _Block(layers[start : start + LAYERS_PER_BLOCK], own)
        for start, own in zip(starts, gains, strict=True)
    ]


class _Gradients:
    """Gradients of stacked parameters, filled block by block."""

    def __init__(self, weight: Tensor, gain: Tensor | None, norm: NormSwish) -> None:
        self._norm = norm
        self._weight = torch.empty_like(weight)
        self._weights = self._weight.unbind(0)
        self._sums: list[Any] = [None] * len(weight)
        self._gain = None if gain is None else list(gain.unbind(0))

    def add_layer(self, layer: int, before_norm: Tensor, inputs: Tensor, sums: Any) -> None:
        """Fill in a layer's from the gradient before its LayerNorm and its inputs, (rows, width) each."""
        self._sums[layer] = sums
        self._norm.products.weight_gradient(before_norm, inputs, self._weights[layer])

    def add_gain(self, block: int, gradient: Tensor, branch: Tensor) -> None:
        """Fill in a block's gain from the gradient after it and from the branch, (rows, width) each."""
        if self._gain is not None:
            self._gain[block] = (gradient * branch).sum(dtype=self._gain[block].dtype)

    def stacked(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the parameters."""
        norm_weight, norm_bias, bias = self._norm.collect(self._sums)
        gain = None if self._gain is None else torch.stack(self._gain)
        return self._weight, bias, norm_weight, norm_bias, gain


class _Stack(torch.autograd.Function):
    """A stem and the stack, or one of them, as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *arguments: Any) -> Tensor:
        *parameters, plan = arguments
        stem, hidden = Layer(*parameters[:4]), inputs
        weight, bias, norm_weight, norm_bias, gain = parameters[4:]
        if plan.stem is not None:
            hidden, ctx.stem_kept = plan.stem.forward(inputs, stem)
        blocks = []
        if weight is not None:
            blocks = _blocks(weight, bias, norm_weight, norm_bias, gain, plan.rounded_weight)
        ctx.save_for_backward(inputs, *parameters)
        ctx.plan, ctx.blocks = plan, blocks
        ctx.segment = math.isqrt(len(blocks) - 1) + 1 if plan.checkpoint else 1
        ctx.kept, ctx.starts = [], []
        for index, block in enumerate(blocks):
            if index % ctx.segment == 0:
                ctx.starts.append(hidden)
            hidden, kept = block.forward(hidden, plan.scale, plan.norm)
            if not plan.checkpoint:
                ctx.kept.append(kept)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        gradient = output_gradients[0].contiguous()
        inputs, *parameters = ctx.saved_tensors
        stem, (weight, _, _, _, gain) = Layer(*parameters[:4]), parameters[4:]
        plan: _Plan = ctx.plan
        learns = any(ctx.needs_input_grad[1:]) and plan.frozen_rows < len(inputs)
        gradients = _Gradients(weight, gain, plan.norm) if learns and ctx.blocks else None
        for segment in reversed(range(len(ctx.starts))):
            first = segment * ctx.segment
            blocks = ctx.blocks[first : first + ctx.segment]
            for offset, kept in reversed(list(enumerate(_segment_kept(ctx, segment, blocks)))):
                gradient = _block_backward(gradient, blocks[offset], kept, first + offset, gradients, plan)
        of_stack = gradients.stacked() if gradients else _NO_STACK
        if plan.stem is None:
            return gradient, *_NO_STEM, *of_stack, None
        frozen, memory = plan.frozen_rows if learns else len(inputs), torch.empty_like(gradient)
        linear, sums = plan.stem.backward(gradient, ctx.stem_kept, stem, frozen, memory)
        before, of_stem = None, _NO_STEM
        if ctx.needs_input_grad[0]:
            before = plan.stem.products.input_gradient(linear, stem.weight, torch.empty_like(inputs))
        if learns:
            of_weight = torch.empty_like(stem.weight)
            plan.stem.products.weight_gradient(linear[frozen:], inputs[frozen:], of_weight)
            norm_weight, norm_bias, bias = (each[0] for each in plan.stem.collect([sums]))
            of_stem = of_weight, bias, norm_weight, norm_bias
        return before, *of_stem, *of_stack, None


def _segment_kept(ctx: Any, segment: int, blocks: list[_Block]) -> list[_KeptBlock]:
    """Return what the blocks of a segment kept, computed again where it was not kept."""
    if not ctx.plan.checkpoint:
        return [ctx.kept[segment]]
    hidden, again = ctx.starts[segment], []
    for block in blocks:
        hidden, kept = block.forward(hidden, ctx.plan.scale, ctx.plan.norm)
        again.append(kept)
    return again


def _block_backward(
    gradient: Tensor,
    block: _Block,
    kept: _KeptBlock,
    index: int,
    gradients: _Gradients | None,
    plan: _Plan,
) -> Tensor:
    """Return the gradient before the block from the one after it; fill in those of its parameters."""
    dtype = block.layers[0].weight.dtype
    branch = gradient.to(dtype) if plan.scale == 1.0 else (gradient * plan.scale).to(dtype)
    frozen = len(gradient) if gradients is None else plan.frozen_rows
    if block.gain is not None:
        if gradients is not None and kept.branch is not None:
            gradients.add_gain(index, branch[frozen:], kept.branch[frozen:])
        branch = branch * block.gain.to(dtype)
    # Two matrices serve the whole block: what was written last is still in the processor's cache.
    before, after = torch.empty_like(branch), torch.empty_like(branch)
    for place in reversed(range(LAYERS_PER_BLOCK)):
        layer = block.layers[place]
        linear, sums = plan.norm.backward(branch, kept.norm[place], layer, frozen, before)
        if gradients is not None:
            number, inputs = LAYERS_PER_BLOCK * index + place, kept.inputs[place]
            rows = (linear[frozen:], inputs[frozen:]) if frozen else (linear, inputs)
            gradients.add_layer(number, rows[0], rows[1], sums)
        branch = plan.norm.products.input_gradient(linear, layer.weight, after)
    return torch.add(gradient, branch, out=branch) if branch.dtype == gradient.dtype else gradient + branch
