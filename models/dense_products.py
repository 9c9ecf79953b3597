"""The three matrix products of a Dense layer, forward and backward, by the library that is fastest here.

torch gives float32 products to MKL, which has kernels of 256 bits alone for AMD's processors. From Zen 5 on
these compute 512 bits at a time, and oneDNN, which comes with torch as well, uses that: twice the rate.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

_ZEN_5_FAMILY = 26
# Below, calling oneDNN and turning matrices takes what its products save.
_LEAST_ONEDNN_WIDTH = 128


class DenseProducts(Protocol):
    """Products of inputs X and outputs' gradients G, (rows, width) each, and a kernel W, (width, width)."""

    def outputs(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return X · Wᵀ."""
        ...

    def input_gradient(self, gradient: Tensor, weight: Tensor, memory: Tensor) -> Tensor:
        """Return G · W; it may lie in `memory`, (rows, width)."""
        ...

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Write Gᵀ · X into `out`, (width, width), which may be of another precision."""
        ...


class TorchProducts:
    """By `torch.mm`: on any device, in any precision."""

    def outputs(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return X · Wᵀ."""
        return torch.mm(inputs, weight.t())

    def input_gradient(self, gradient: Tensor, weight: Tensor, memory: Tensor) -> Tensor:
        """Return G · W, in `memory`."""
        return torch.mm(gradient, weight, out=memory)

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Write Gᵀ · X into `out`; of several layers where there is a dimension more."""
        product = torch.mm if gradient.dim() == 2 else torch.bmm
        if gradient.dtype == out.dtype:
            product(gradient.mT, inputs, out=out)
        elif gradient.device.type == "cuda":
            product(gradient.mT, inputs, out_dtype=out.dtype, out=out)
        else:
            out.copy_(product(gradient.mT, inputs))


class OneDnnProducts:
    """By oneDNN's linear layer, which torch's compiler uses too: on the CPU, in float32."""

    def __init__(self) -> None:
        linear = torch.ops.mkldnn._linear_pointwise.default

        def times_transposed(left: Tensor, right: Tensor) -> Tensor:
            """Return left · rightᵀ; left is copied where it does not lie row by row."""
            return linear(left, right, None, "none", [], "")

        self._times_transposed = times_transposed

    def outputs(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return X · Wᵀ."""
        return self._times_transposed(inputs, weight)

    def input_gradient(self, gradient: Tensor, weight: Tensor, memory: Tensor) -> Tensor:
        """Return G · W."""
        return self._times_transposed(gradient, weight.t())

    def weight_gradient(self, gradient: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Write Gᵀ · X into `out`."""
        out.copy_(self._times_transposed(gradient.t().contiguous(), inputs.t()))


TORCH_PRODUCTS = TorchProducts()


def dense_products(device: torch.device, dtype: torch.dtype, width: int) -> DenseProducts:
    """Return what computes the products of such layers the fastest; the same for all runs on a machine."""
    wide = device.type == "cpu" and dtype == torch.float32 and width >= _LEAST_ONEDNN_WIDTH
    return (_onednn() if wide else None) or TORCH_PRODUCTS


def has_onednn() -> bool:
    """Return whether this torch comes with oneDNN's linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _onednn() -> OneDnnProducts | None:
    """Return oneDNN's products where they are faster than MKL's, or None."""
    return OneDnnProducts() if has_onednn() and _amd_family(_processor()) >= _ZEN_5_FAMILY else None


def _processor() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    fields: Any = (line.partition(":")[::2] for line in lines)
    return {name.strip(): value.strip() for name, value in fields}


def _amd_family(processor: dict[str, str]) -> int:
    """Return the family of a processor of AMD's with AVX-512, or 0."""
    amd = processor.get("vendor_id") == "AuthenticAMD" and "avx512f" in processor.get("flags", "").split()
    return int(processor.get("cpu family", 0)) if amd else 0
