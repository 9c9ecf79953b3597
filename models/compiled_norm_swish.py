"""LayerNorm and Swish in kernels compiled for this processor, and the choice between all that compute them.

`CompiledNormSwish` keeps a row in the first-level cache from its mean to its Swish, and from the gradient
after the Swish to that before the LayerNorm, and takes the sums over rows that become the parameters'
gradients on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from thousandfold.models.compiled_kernels import LANES, has_threads, in_parallel, parts
from thousandfold.models.dense_products import TORCH_PRODUCTS, DenseProducts, dense_products
from thousandfold.models.fused_norm_swish import WIDEST, FusedNormSwish
from thousandfold.models.norm_swish import TORCH_NORM_SWISH, Layer, NormSwish

_PRECISIONS = (torch.float32, torch.bfloat16)


class CompiledNormSwish:
    """In two kernels that LLVM compiles for this processor, in torch's threads.

    Args:
        width: numbers in a row, a multiple of `LANES`.
        rounded: whether matrices and kernels are bfloat16 and not float32. Statistics, the other parameters
            and all of their gradients are float32 with both.
        products: of the layers' kernels.
    """

    def __init__(self, width: int, rounded: bool, products: DenseProducts = TORCH_PRODUCTS) -> None:
        from thousandfold.models.norm_swish_kernels import compile_kernels

        self.products = products
        self._code = compile_kernels(width, rounded)
        self._forward, self._backward = (in_parallel(self._code.address(n)) for n in ("forward", "backward"))

    def forward(self, inputs: Tensor, layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
        """Return y, x less its bias, and each row's mean and 1/√(variance + ε), (2, batch) float32."""
        product = self.products.outputs(inputs, layer.weight)
        outputs, moments = torch.empty_like(product), layer.bias.new_empty(2, len(product))
        addresses = [each.data_ptr() for each in (product, *layer[1:], moments, outputs)]
        self._forward(parts(), len(product), *addresses)
        return outputs, (product, moments)

    def backward(
        self, gradient: Tensor, kept: Sequence[Tensor], layer: Layer, frozen_rows: int, memory: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return `memory` and the sums of parts of the rows, (3, parts, width) float32; see `NormSwish`."""
        (product, moments), count = kept, parts()
        rows, width = product.shape
        sums = None if frozen_rows == rows else moments.new_empty(3, count, width)
        addresses = [each.data_ptr() for each in (product, *layer[1:], moments, gradient, memory)]
        self._backward(count, rows, frozen_rows, *addresses, 0 if sums is None else sums.data_ptr())
        return memory, sums

    def collect(self, sums: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' sums over all parts."""
        each = torch.stack(list(sums), 1)
        norm_weight, norm_bias, bias = (each.sum(2) if each.shape[2] > 1 else each.squeeze(2)).unbind(0)
        return norm_weight, norm_bias, bias


def norm_swish(device: torch.device, dtype: torch.dtype, width: int) -> NormSwish:
    """Return what computes LayerNorm and Swish of matrices of `width` columns the fastest here."""
    if is_compiled(device, dtype, width):
        return _compiled(width, dtype == torch.bfloat16, dense_products(device, dtype, width))
    return _fused() if is_fused(device, dtype, width) else TORCH_NORM_SWISH


def is_compiled(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Return whether `norm_swish` compiles: on the CPU, for float32 and bfloat16 and whole vectors.

    Not where a kernel would have to do on one thread what torch does on several.
    """
    return dtype in _PRECISIONS and not width % LANES and has_threads(device) and _has_compiler()


def is_fused(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Return whether `norm_swish` has Warp compile: on CUDA, for float32 and bfloat16."""
    return dtype in _PRECISIONS and width <= WIDEST and _runs_warp(device)


def _runs_warp(device: torch.device) -> bool:
    return device.type == "cuda"


@functools.cache
def _has_compiler() -> bool:
    """Return whether LLVM is there and compiles for this processor."""
    try:
        CompiledNormSwish(LANES, rounded=False)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


@functools.cache
def _compiled(width: int, rounded: bool, products: DenseProducts) -> CompiledNormSwish:
    return CompiledNormSwish(width, rounded, products)


@functools.cache
def _fused() -> FusedNormSwish:
    return FusedNormSwish()
