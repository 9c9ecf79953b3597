"""The two kernels of `fused_norm_swish`, which Warp compiles, as operators of torch.

An operator is one kernel. A block of threads computes a row at a time; rows are read once and written once.
Warp's CPU device runs the same kernels, slowly: it is there for tests.
"""

# Kernels of one width and precision are made by a function, of types that pyright takes for values.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# To Warp a number that changes in a loop is float(0.0), and 0.0 a constant.
# ruff: noqa: UP018

import functools
from typing import Any

import torch
import warp as wp
from torch import Tensor

from thousandfold.models.norm_swish import LAYER_NORM_EPS

# Whoever starts Warp has it print a banner unless it is told not to before.
wp.config.log_level = max(wp.config.log_level, wp.LOG_ERROR)
wp.init()

_MOST_THREADS = 1024
_NUMBERS_OF_A_THREAD = 4  # of a row
_STORED: dict[torch.dtype, Any] = {torch.float32: wp.float32, torch.bfloat16: wp.bfloat16}

_OPERATORS = torch.library.Library("thousandfold", "FRAGMENT")
_OPERATORS.define(
    "norm_swish(Tensor product, Tensor bias, Tensor weight, Tensor shift, Tensor(a!) moments, "
    "Tensor(b!) outputs, Tensor(c!)? stream, Tensor? gain, float scale) -> ()"
)
_OPERATORS.define(
    "norm_swish_backward(Tensor product, Tensor bias, Tensor weight, Tensor shift, Tensor moments, "
    "Tensor gradient, int frozen_rows, Tensor(a!) before, Tensor(b!) sums, Tensor(c!)? stream, "
    "Tensor? gain, float scale, Tensor(d!)? gain_sums) -> ()"
)


@wp.func
def _swish(apart: float, reciprocal: float, weight: float, shift: float) -> float:
    normed = apart * reciprocal * weight + shift
    return normed / (1.0 + wp.exp(-normed))


@wp.func
def _unit(linear: float, mean: float, reciprocal: float) -> float:
    return (linear - mean) * reciprocal


@wp.func
def _before_swish(gradient: float, unit: float, weight: float, shift: float) -> float:
    normed = unit * weight + shift
    sigmoid = 1.0 / (1.0 + wp.exp(-normed))
    return gradient * sigmoid * (1.0 + normed * (1.0 - sigmoid))


@wp.func
def _before_norm(scaled: float, unit: float, centre: float, slope: float, reciprocal: float) -> float:
    return reciprocal * (scaled - centre - unit * slope)


def threads(width: int) -> int:
    """Return how many threads compute a row on CUDA."""
    return min(_MOST_THREADS, 32 * -(-width // (32 * _NUMBERS_OF_A_THREAD)))


@functools.cache
def kernels(width: int, dtype: torch.dtype) -> tuple[list[wp.Kernel], list[wp.Kernel]]:
    """Return the two kernels of the forward pass, and those of the backward pass.

    The first of two is a layer's within a block. The other is of the last one, whose outputs are scaled and
    added to the stream.

    Args:
        width: numbers in a row.
        dtype: of matrices: float32 or bfloat16. The stream and all else are float32.
    """
    # All are made before the first is launched: Warp compiles a module as a whole.
    module = wp.get_module(f"norm_swish_{width}_{_STORED[dtype].__name__}")
    module.options["block_dim"] = threads(width)
    within, ending = (_kernels(width, _STORED[dtype], module, ends_block) for ends_block in (False, True))
    return [within[0], ending[0]], [within[1], ending[1]]


def _kernels(width: int, stored: Any, module: wp.Module, ends_block: bool) -> tuple[Any, Any]:
    suffix, most = "_ending_block" if ends_block else "", threads(width)

    @wp.kernel(name=f"forward{suffix}", enable_backward=False, launch_bounds=most, module=module)
    def forward(
        product: wp.array2d[stored],
        bias: wp.array[float],
        weight: wp.array[float],
        shift: wp.array[float],
        moments: wp.array2d[float],
        outputs: wp.array2d[stored],
        stream: wp.array2d[float],
        gain: wp.array[float],
        scale: float,
    ):
        row = wp.tid()
        linear = wp.tile_astype(wp.tile_load(product[row], shape=width), dtype=float)
        linear += wp.tile_load(bias, shape=width)
        mean = wp.tile_sum(linear)[0] / float(width)
        apart = wp.tile_map(wp.sub, linear, mean)
        variance = wp.tile_sum(wp.tile_map(wp.mul, apart, apart))[0] / float(width)
        reciprocal = 1.0 / wp.sqrt(variance + wp.static(LAYER_NORM_EPS))
        weights, shifts = wp.tile_load(weight, shape=width), wp.tile_load(shift, shape=width)
        out = wp.tile_map(_swish, apart, reciprocal, weights, shifts)
        if wp.static(ends_block):
            out = wp.tile_load(stream[row], shape=width) + out * (scale * gain[0])
            wp.tile_store(stream[row], out)
        wp.tile_store(outputs[row], wp.tile_astype(out, dtype=stored))
        moments[0, row] = mean
        moments[1, row] = reciprocal

    @wp.kernel(name=f"backward{suffix}", enable_backward=False, launch_bounds=most, module=module)
    def backward(
        product: wp.array2d[stored],
        bias: wp.array[float],
        weight: wp.array[float],
        shift: wp.array[float],
        moments: wp.array2d[float],
        gradient: wp.array2d[stored],
        frozen_rows: int,
        before: wp.array2d[stored],
        sums: wp.array3d[float],
        stream: wp.array2d[float],
        gain: wp.array[float],
        scale: float,
        gain_sums: wp.array[float],
    ):
        part = wp.tid()
        rows_of_part = (product.shape[0] + sums.shape[1] - 1) // sums.shape[1]
        biases = wp.tile_load(bias, shape=width)
        weights, shifts = wp.tile_load(weight, shape=width), wp.tile_load(shift, shape=width)
        of_weight = wp.tile_zeros(shape=width, dtype=float)
        of_shift = wp.tile_zeros(shape=width, dtype=float)
        of_bias = wp.tile_zeros(shape=width, dtype=float)
        of_gain = float(0.0)
        for row in range(part * rows_of_part, wp.min((part + 1) * rows_of_part, product.shape[0])):
            reciprocal = moments[1, row]
            linear = wp.tile_astype(wp.tile_load(product[row], shape=width), dtype=float) + biases
            unit = wp.tile_map(_unit, linear, moments[0, row], reciprocal)
            upstream = wp.tile_astype(wp.tile_load(gradient[row], shape=width), dtype=float)
            if wp.static(ends_block):
                upstream = wp.tile_load(stream[row], shape=width) + upstream
                wp.tile_store(stream[row], upstream)
                if row >= frozen_rows:
                    branch = wp.tile_map(_swish, unit, 1.0, weights, shifts)
                    of_gain += scale * wp.tile_sum(wp.tile_map(wp.mul, upstream, branch))[0]
                upstream = upstream * (scale * gain[0])
            before_swish = wp.tile_map(_before_swish, upstream, unit, weights, shifts)
            scaled = wp.tile_map(wp.mul, before_swish, weights)
            centre = wp.tile_sum(scaled)[0] / float(width)
            slope = wp.tile_sum(wp.tile_map(wp.mul, scaled, unit))[0] / float(width)
            result = wp.tile_map(_before_norm, scaled, unit, centre, slope, reciprocal)
            wp.tile_store(before[row], wp.tile_astype(result, dtype=stored))
            if row >= frozen_rows:
                of_weight += wp.tile_map(wp.mul, before_swish, unit)
                of_shift += before_swish
                of_bias += result
        wp.tile_store(sums[0, part], of_weight)
        wp.tile_store(sums[1, part], of_shift)
        wp.tile_store(sums[2, part], of_bias)
        if wp.static(ends_block):
            gain_sums[part] = of_gain

    return forward, backward


def _forward(product: Tensor, *arguments: Any) -> None:
    stream = arguments[5]
    forward, _ = kernels(product.shape[1], product.dtype)
    _launch(forward[stream is not None], len(product), product, *arguments)


def _backward(product: Tensor, *arguments: Any) -> None:
    sums, stream = arguments[7], arguments[8]
    _, backward = kernels(product.shape[1], product.dtype)
    _launch(backward[stream is not None], sums.shape[1], product, *arguments)


def _launch(kernel: wp.Kernel, blocks: int, product: Tensor, *arguments: Any) -> None:
    """Launch a kernel on torch's current stream, where a CUDA graph may be recorded."""
    given = [
        wp.from_torch(each, requires_grad=False, return_ctype=True) if isinstance(each, Tensor) else each
        for each in (product, *arguments)
    ]
    where: dict[str, Any] = {"device": "cpu"}
    if product.is_cuda:
        where = {"stream": _stream(product.device, torch.cuda.current_stream(product.device).cuda_stream)}
    block_dim = threads(product.shape[1])
    wp.launch_tiled(kernel, dim=[blocks], inputs=given, block_dim=block_dim, record_tape=False, **where)


@functools.cache
def _stream(device: torch.device, handle: int) -> wp.Stream:
    """Return Warp's name for a stream of torch's."""
    return wp.Stream(wp.device_from_torch(device), cuda_stream=handle)


for _name, _kernel in (("norm_swish", _forward), ("norm_swish_backward", _backward)):
    for _device in ("CPU", "CUDA"):
        _OPERATORS.impl(_name, _kernel, _device)
    torch.library.register_fake(f"thousandfold::{_name}", lambda *_: None, lib=_OPERATORS)
