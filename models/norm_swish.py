"""LayerNorm followed by Swish, forward and backward: what computes it must do, and torch's own kernels.

torch runs the two, and the gradients of the two, as kernels of their own, each of which reads and writes
whole matrices; beside the products of a narrow network that is most of the time. `compiled_norm_swish` has
faster ones for a CPU.

With x̂ = (x − mean) / √(variance + ε), n = w · x̂ + b and y = n · σ(n):

    ∂n = ∂y · σ(n) · (1 + n · (1 − σ(n)))
    ∂x = (w · ∂n − mean(w · ∂n) − x̂ · mean(x̂ · w · ∂n)) / √(variance + ε)

Sources: Ba et al., "Layer Normalization", arXiv 1607.06450; Ramachandran et al., "Searching for Activation
Functions", arXiv 1710.05941.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from thousandfold.models.dense_products import TORCH_PRODUCTS, DenseProducts

LAYER_NORM_EPS = 1e-6

# Bound once: looking an operator up takes as long as a small one runs.
_swish_backward = torch.ops.aten.silu_backward.grad_input
_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_INPUT_GRADIENT = [True, False, False]
_ALL_GRADIENTS = [True, True, True]


class Layer(NamedTuple):
    """The parameters of a layer: its Dense's, (width, inputs) and (width,); its LayerNorm's, (width,)."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class NormSwish(Protocol):
    """Layers' x = W · inputs + bias, y = Swish(LayerNorm(x)), and the gradients up to x; (batch, width)."""

    products: DenseProducts
    """what computes W · inputs, and the gradients of W and of the inputs from that of x"""

    def forward(self, inputs: Tensor, layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
        """Return y and what the backward pass needs beside `inputs`."""
        ...

    def backward(
        self, gradient: Tensor, kept: Sequence[Tensor], layer: Layer, frozen_rows: int, memory: Tensor
    ) -> tuple[Tensor, Any]:
        """Return the gradient with respect to x, and sums over its rows for `collect`.

        Args:
            gradient: with respect to y, contiguous.
            kept, layer: what `forward` returned and was given.
            frozen_rows: so many leading rows are left out of the sums; with all of them there are none.
            memory: of the same shape, overwritten; the result may lie in it.
        """
        ...

    def collect(self, sums: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the layers' norm_weight, norm_bias and bias, (layers, width) each."""
        ...


class TorchNormSwish:
    """In torch's kernels: on any device, of any width and precision."""

    products: DenseProducts = TORCH_PRODUCTS

    def forward(self, inputs: Tensor, layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
        """Return y and x, normed x, its means and 1/√(variance + ε)."""
        # CUDA's LayerNorm takes parameters of its input's precision alone.
        bias, weight, shift = (parameter.to(inputs.dtype) for parameter in layer[1:])
        linear = torch.addmm(bias, inputs, layer.weight.t())
        normed, mean, rstd = torch.native_layer_norm(linear, linear.shape[1:], weight, shift, LAYER_NORM_EPS)
        return nn.functional.silu(normed), (linear, normed, mean, rstd)

    def backward(
        self, gradient: Tensor, kept: Sequence[Tensor], layer: Layer, frozen_rows: int, memory: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the gradient with respect to x and three sums, (width,) each; see `NormSwish`."""
        linear, normed, mean, rstd = kept
        _swish_backward(gradient, normed, grad_input=memory)
        whole, shape, exact = (memory, linear, mean, rstd), linear.shape[1:], layer.bias.dtype
        norm = [parameter.to(linear.dtype) for parameter in layer[2:]]

        def before_norm(rows: Sequence[Tensor], wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
            upstream, own, its_mean, its_rstd = rows
            return _layer_norm_backward(upstream, own, shape, its_mean, its_rstd, *norm, wanted)

        if frozen_rows == len(linear):
            return before_norm(whole, _INPUT_GRADIENT)[0], None
        if not frozen_rows:
            result, weight, bias = before_norm(whole, _ALL_GRADIENTS)
            return result, (weight.to(exact), bias.to(exact), result.sum(0, dtype=exact))
        sizes = [frozen_rows, len(linear) - frozen_rows]
        frozen, learning = zip(*(part.split_with_sizes(sizes) for part in whole), strict=True)
        result, weight, bias = before_norm(learning, _ALL_GRADIENTS)
        sums = weight.to(exact), bias.to(exact), result.sum(0, dtype=exact)
        return torch.cat([before_norm(frozen, _INPUT_GRADIENT)[0], result]), sums

    def collect(self, sums: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' sums stacked."""
        norm_weight, norm_bias, bias = (torch.stack(part) for part in zip(*sums, strict=True))
        return norm_weight, norm_bias, bias


TORCH_NORM_SWISH = TorchNormSwish()


# -- threads --------------------------------------------------------------------------------------
