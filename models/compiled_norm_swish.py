"""LayerNorm and Swish in kernels compiled for this processor, and the choice between them and torch's.

`CompiledNormSwish` keeps a row in the first-level cache from its mean to its Swish, and from the gradient
after the Swish to that before the LayerNorm, and takes the sums over rows that become the parameters'
gradients on the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from thousandfold.models.dense_products import TORCH_PRODUCTS, DenseProducts, dense_products
from thousandfold.models.norm_swish import LANES, TORCH_NORM_SWISH, Layer, NormSwish


class CompiledNormSwish:
    """In two kernels that LLVM compiles for this processor, in torch's threads.

    Args:
        width: numbers in a row, a multiple of `LANES`.
        rounded: whether matrices and kernels are bfloat16 and not float32. Statistics, the other parameters
            and all of their gradients are float32 with both.
        products: of the layers' kernels.
    """

    def __init__(self, width: int, rounded: bool, products: DenseProducts = TORCH_PRODUCTS) -> None:
        from thousandfold.models.norm_swish_kernels import Compiled

        self.products = products
        self._compiled = Compiled(width, rounded)
        self._forward = _in_parallel(self._compiled.forward)
        self._backward = _in_parallel(self._compiled.backward)

    def forward(self, inputs: Tensor, layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
        """Return y, x less its bias, and each row's mean and 1/√(variance + ε), (2, batch) float32."""
        product = self.products.outputs(inputs, layer.weight)
        outputs, moments = torch.empty_like(product), layer.bias.new_empty(2, len(product))
        addresses = [each.data_ptr() for each in (product, *layer[1:], moments, outputs)]
        self._forward(_parts(), len(product), *addresses)
        return outputs, (product, moments)

    def backward(
        self, gradient: Tensor, kept: Sequence[Tensor], layer: Layer, frozen_rows: int, memory: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return `memory` and the sums of parts of the rows, (3, parts, width) float32; see `NormSwish`."""
        (product, moments), parts = kept, _parts()
        rows, width = product.shape
        sums = None if frozen_rows == rows else moments.new_empty(3, parts, width)
        addresses = [each.data_ptr() for each in (product, *layer[1:], moments, gradient, memory)]
        self._backward(parts, rows, frozen_rows, *addresses, 0 if sums is None else sums.data_ptr())
        return memory, sums

    def collect(self, sums: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' sums over all parts."""
        norm_weight, norm_bias, bias = torch.stack(list(sums), 1).sum(2).unbind(0)
        return norm_weight, norm_bias, bias


def norm_swish(device: torch.device, dtype: torch.dtype, width: int) -> NormSwish:
    """Return what computes LayerNorm and Swish of matrices of `width` columns the fastest here."""
    if is_compiled(device, dtype, width):
        return _compiled(width, dtype == torch.bfloat16, dense_products(device, dtype, width))
    return TORCH_NORM_SWISH


def is_compiled(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Return whether `norm_swish` compiles: on the CPU, for float32 and bfloat16 and whole vectors.

    Not where a kernel would have to do on one thread what torch does on several.
    """
    precise = dtype in (torch.float32, torch.bfloat16)
    if device.type != "cpu" or not precise or width % LANES or not _has_compiler():
        return False
    return torch.get_num_threads() == 1 or _openmp() is not None


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


_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Return what runs a function in torch's own team of threads: another would fight it for the CPUs."""
    already_loaded = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        with contextlib.suppress(OSError, AttributeError):
            parallel = ctypes.CDLL(str(library), already_loaded).GOMP_parallel
            parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            parallel.restype = None
            return parallel
    return None


def _parts() -> int:
    """Return in how many parts rows are computed: one for each of torch's threads, where they can be had."""
    return torch.get_num_threads() if _openmp() else 1


def _in_parallel(address: int) -> Callable[..., None]:
    """Return a function that runs the kernel at `address` with a number of parts and its other arguments.

    The kernel takes the parts' numbers from a counter, the first of what it is given, until none is left:
    which thread computes a part does not matter, and a team smaller than asked for leaves nothing out.
    """
    alone, parallel = _Kernel(address), _openmp()

    def run(parts: int, *arguments: int) -> None:
        given = (ctypes.c_int64 * (2 + len(arguments)))(0, parts, *arguments)
        if parts == 1 or parallel is None:
            alone(ctypes.addressof(given))
        else:
            parallel(address, ctypes.addressof(given), parts, 0)

    return run
