"""The kernels for CUDA, on Warp's CPU device, against float64; and compiled for a GPU."""

from pathlib import Path

import pytest
import torch
import warp as wp

from tests.models.test_norm_swish import ROWS, both_passes, make, reference
from thousandfold.models import compiled_norm_swish, norm_swish_tiles
from thousandfold.models.block_stack import BlockStack, Compute
from thousandfold.models.fused_norm_swish import WIDEST, FusedNormSwish

CUDA = torch.device("cuda")
# Of an element that is rounded once: half a unit in the last of bfloat16's eight bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("frozen_rows", [0, 4, ROWS])
@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (16, torch.bfloat16), (37, torch.float32)])
def test_both_passes_agree_with_float64(width: int, dtype: torch.dtype, frozen_rows: int):
    inputs, gradient, layer = make(width, dtype=dtype)
    outputs, before, sums = both_passes(FusedNormSwish(), inputs, gradient, layer, frozen_rows)
    assert outputs.dtype == before.dtype == dtype
    expected = reference(inputs, gradient, layer, frozen_rows)
    for ours, theirs in zip((outputs, before), expected[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=TOLERANCE[dtype], atol=1e-5)
    assert (sums is None) == (frozen_rows == ROWS)
    for ours, theirs in zip(sums or (), expected[2], strict=sums is not None):
        assert ours.shape == (2, width) and ours.dtype == torch.float32
        for own in ours:
            torch.testing.assert_close(own.double(), theirs, rtol=1e-5, atol=1e-5)


def test_swish_is_right_far_from_zero():
    values = torch.tensor([-1e30, -1e4, -104.0, -88.0, -1e-3, -0.0, 1e-30, 17.0, 87.0, 104.0, 1e4, 1e30])
    biases = torch.nn.functional.pad(values, (0, 16 - len(values)))
    inputs, _, layer = make(16, rows=3)
    constant = layer._replace(norm_weight=torch.zeros(16), norm_bias=biases)
    kernels = FusedNormSwish()
    outputs, kept = kernels.forward(inputs, constant)
    expected = torch.nn.functional.silu(biases.double()).expand(3, -1)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-6, atol=1e-6)
    before, sums = kernels.backward(torch.ones(3, 16), kept, constant, 0, torch.empty(3, 16))
    assert before.isfinite().all() and sums.isfinite().all()


def stack_and_gradients(precision: str, frozen_rows: int, device: str = "cpu", width: int = 16):
    """Outputs of five blocks with gains, and the gradients of inputs and parameters."""
    torch.manual_seed(0)
    stack = BlockStack(width, 5, scale=0.7, learned_gain=True, compute=Compute(precision))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    hidden, weights = torch.randn(2, ROWS, width).to(device)
    hidden, stack = hidden.requires_grad_(), stack.to(device)
    outputs = stack(hidden, frozen_rows)
    gradients = torch.autograd.grad((outputs * weights).sum(), [hidden, *stack.parameters()])
    return [each.cpu() for each in (outputs, *gradients)]


@pytest.mark.parametrize("together", [8, 32])
@pytest.mark.parametrize("frozen_rows", [0, 4])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_stack_is_as_near_as_its_precision(
    precision: str, tolerance: float, frozen_rows: int, together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: False)
    monkeypatch.setattr("thousandfold.models.fused_norm_swish._LAYERS_TOGETHER", together)
    expected = stack_and_gradients("float32", frozen_rows)
    monkeypatch.setattr(compiled_norm_swish, "_runs_warp", lambda device: True)
    for ours, theirs in zip(stack_and_gradients(precision, frozen_rows), expected, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("width", [16, 1000, WIDEST // 4])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_a_device_computes_what_the_cpu_does(precision: str, tolerance: float, width: int):
    expected = stack_and_gradients("float32", 4, width=width)
    for ours, theirs in zip(stack_and_gradients(precision, 4, "cuda", width), expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_an_operator_is_one_launch(monkeypatch: pytest.MonkeyPatch):
    launched: list[str] = []
    launch = wp.launch_tiled
    monkeypatch.setattr(
        wp, "launch_tiled", lambda kernel, **given: launched.append(kernel.key) or launch(kernel, **given)
    )
    inputs, gradient, layer = make(16)
    kernels, memory = FusedNormSwish(), torch.empty_like(gradient)
    _, kept = kernels.forward(inputs, layer)
    assert launched == ["forward"]
    kernels.backward(gradient, kept, layer, 0, memory)
    assert launched == ["forward", "backward"]


def test_cuda_takes_them_up_to_a_width():
    choose = compiled_norm_swish.norm_swish
    for dtype in (torch.float32, torch.bfloat16):
        assert isinstance(choose(CUDA, dtype, WIDEST), FusedNormSwish)
        assert not isinstance(choose(CUDA, dtype, WIDEST + 1), FusedNormSwish)
    assert not isinstance(choose(CUDA, torch.float64, 16), FusedNormSwish)
    assert not isinstance(choose(torch.device("cpu"), torch.float32, 16), FusedNormSwish)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [256, 1000, WIDEST])
def test_they_compile_for_a_gpu_of_today_without_one(width: int, dtype: torch.dtype, tmp_path: Path):
    module = norm_swish_tiles.kernels(width, dtype)[0][0].module
    (compiled,) = wp.compile_aot_module(module, arch=90, use_ptx=False, module_dir=tmp_path)
    assert compiled.suffix == ".cubin" and compiled.stat().st_size > 0
