"""The compiled LayerNorm and Swish against torch's kernels and against float64."""

from pathlib import Path

import pytest
import torch

from thousandfold.models import compiled_kernels, compiled_norm_swish
from thousandfold.models.compiled_kernels import LANES
from thousandfold.models.compiled_norm_swish import CompiledNormSwish, norm_swish
from thousandfold.models.norm_swish import LAYER_NORM_EPS, TORCH_NORM_SWISH, Layer, TorchNormSwish

ROWS = 11
CPU = torch.device("cpu")


def make(width: int, rows: int = ROWS, dtype: torch.dtype = torch.float32):
    """A matrix of rows with means and spreads of their own, a gradient, and a layer.

    Its Dense is a permutation, whose product is exact in any precision: what is rounded, the kernels round.
    """
    generator = torch.Generator().manual_seed(width)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    inputs = (3 * draw(rows, 1) + (0.1 + draw(rows, 1).exp()) * draw(rows, width)).to(dtype)
    kernel = torch.eye(width)[torch.randperm(width, generator=generator)].to(dtype)
    return inputs, draw(rows, width).to(dtype), Layer(kernel, draw(width), 1 + 0.3 * draw(width), draw(width))


def reference(inputs, gradient, layer, frozen_rows):
    """y, ∂x and the sums of autograd in float64."""
    exact = torch.addmm(layer.bias.double(), inputs.double(), layer.weight.double().t()).requires_grad_()
    weight, bias = (each.double().requires_grad_() for each in layer[2:])
    normed = torch.nn.functional.layer_norm(exact, exact.shape[1:], weight, bias, LAYER_NORM_EPS)
    outputs = torch.nn.functional.silu(normed)
    (before,) = torch.autograd.grad(outputs, exact, gradient.double(), retain_graph=True)
    learning = gradient.double().clone()
    learning[:frozen_rows] = 0
    sums = torch.autograd.grad(outputs, (weight, bias), learning)
    return outputs.detach(), before, (*sums, before[frozen_rows:].sum(0))


def both_passes(kernels, inputs, gradient, layer, frozen_rows):
    given = inputs.clone(), gradient.clone()
    outputs, kept = kernels.forward(inputs, layer)
    memory = torch.full_like(gradient, torch.nan)
    before, sums = kernels.backward(gradient, kept, layer, frozen_rows, memory)
    torch.testing.assert_close((inputs, gradient), given, rtol=0, atol=0, equal_nan=True)
    # Two layers with the same sums: the collected ones are told apart from a sum over layers.
    return outputs, before, None if sums is None else kernels.collect([sums, sums])


@pytest.mark.parametrize("frozen_rows", [0, 4])
@pytest.mark.parametrize("width", [LANES, 5 * LANES, 256])
@pytest.mark.parametrize("compiled", [False, True])
def test_both_passes_agree_with_float64(compiled: bool, width: int, frozen_rows: int, threads: int):
    inputs, gradient, layer = make(width)
    kernels = CompiledNormSwish(width, rounded=False) if compiled else TorchNormSwish()
    outputs, before, sums = both_passes(kernels, inputs, gradient, layer, frozen_rows)
    expected = reference(inputs, gradient, layer, frozen_rows)
    torch.testing.assert_close(outputs.double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before.double(), expected[1], rtol=1e-4, atol=2e-5)
    for ours, theirs in zip(sums, expected[2], strict=True):
        assert ours.shape == (2, width)
        for layer in ours:
            torch.testing.assert_close(layer.double(), theirs, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("frozen_rows", [0, 4])
def test_bfloat16_is_rounded_once_on_its_way_out(frozen_rows: int, threads: int):
    inputs, gradient, layer = make(64, dtype=torch.bfloat16)
    kernels = CompiledNormSwish(64, rounded=True)
    outputs, before, sums = both_passes(kernels, inputs, gradient, layer, frozen_rows)
    assert outputs.dtype == before.dtype == torch.bfloat16
    expected = reference(inputs, gradient, layer, frozen_rows)
    for ours, theirs in zip((outputs, before), expected[:2], strict=True):
        # Half a unit in the last of eight bits.
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)
    for ours, theirs in zip(sums, expected[2], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours[0].double(), theirs, rtol=1e-4, atol=5e-5)


def test_ties_are_rounded_to_even():
    # A LayerNorm that gives its bias alone, and Swish that gives a large number back as it is.
    between = torch.tensor([256.0 + 1.0, 256.0 + 3.0]).repeat(LANES // 2)
    inputs, _, layer = make(LANES, rows=1, dtype=torch.bfloat16)
    constant = layer._replace(norm_weight=torch.zeros(LANES), norm_bias=between)
    outputs, _ = CompiledNormSwish(LANES, rounded=True).forward(inputs, constant)
    assert torch.equal(outputs[0], between.to(torch.bfloat16))
    assert set(outputs[0].tolist()) == {256.0, 260.0}


@pytest.mark.parametrize("frozen_rows", [4, ROWS])
def test_frozen_rows_pass_their_gradient_on(frozen_rows: int):
    inputs, gradient, layer = make(32)
    kernels = CompiledNormSwish(32, rounded=False)
    _, before, sums = both_passes(kernels, inputs, gradient, layer, frozen_rows)
    _, whole, _ = both_passes(kernels, inputs, gradient, layer, 0)
    assert torch.equal(before, whole)
    assert (sums is None) == (frozen_rows == ROWS)


def test_every_row_is_computed_where_there_are_more_threads_than_rows():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for rows in (1, 2, 5):
            inputs, gradient, layer = make(16, rows)
            outputs, result, sums = both_passes(
                CompiledNormSwish(16, rounded=False), inputs, gradient, layer, 0
            )
            expected = reference(inputs, gradient, layer, 0)
            torch.testing.assert_close(outputs.double(), expected[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(result.double(), expected[1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(sums[1][0].double(), expected[2][1], rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_the_result_does_not_depend_on_who_computes_a_part(threads: int):
    kernels, case = CompiledNormSwish(64, rounded=False), make(64, rows=101)
    first, *again = (both_passes(kernels, *case, 10) for _ in range(5))
    for each in again:
        assert torch.equal(each[0], first[0])
        assert torch.equal(each[1], first[1])
        assert all(torch.equal(a, b) for a, b in zip(each[2], first[2], strict=True))


def test_swish_is_right_far_from_zero():
    values = torch.tensor([-1e30, -1e4, -104.0, -88.0, -87.0, -1e-3, -0.0, 0.0, 1e-30, 1e-3, 17.0, 87.0, 1e4])
    biases = torch.nn.functional.pad(values, (0, LANES - len(values)))
    inputs, _, layer = make(LANES, rows=3)
    constant = layer._replace(norm_weight=torch.zeros(LANES), norm_bias=biases)
    kernels = CompiledNormSwish(LANES, rounded=False)
    outputs, kept = kernels.forward(inputs, constant)
    expected = torch.nn.functional.silu(biases.double()).expand(3, -1)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-6, atol=1e-6)
    before, sums = kernels.backward(torch.ones(3, LANES), kept, constant, 0, torch.empty(3, LANES))
    assert before.isfinite().all()
    slope = torch.autograd.functional.jacobian(
        lambda x: torch.nn.functional.silu(x).sum(), values.clamp(-1e4).double()
    )
    torch.testing.assert_close(
        kernels.collect([sums])[1][0, : len(values)].double(), 3 * slope, rtol=1e-5, atol=1e-5
    )


def test_not_a_number_stays_one():
    inputs, gradient, layer = make(32)
    inputs[3, 5] = torch.nan  # and so the whole row of its product with any kernel
    kernels = CompiledNormSwish(32, rounded=False)
    outputs, before, sums = both_passes(kernels, inputs, gradient, layer, 0)
    assert outputs[3].isnan().all()
    assert outputs[4].isfinite().all()
    assert before[3].isnan().all()
    assert sums[0].isnan().all()


def test_what_cannot_be_compiled_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(norm_swish(CPU, torch.float32, 2 * LANES), CompiledNormSwish)
    assert isinstance(norm_swish(CPU, torch.bfloat16, LANES), CompiledNormSwish)
    for device, dtype, width in (
        (torch.device("cuda"), torch.float64, LANES),
        (CPU, torch.float64, LANES),
        (CPU, torch.float32, LANES + 1),
    ):
        assert isinstance(norm_swish(device, dtype, width), TorchNormSwish)
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: False)
    assert isinstance(norm_swish(CPU, torch.float32, LANES), TorchNormSwish)


@pytest.mark.skipif(
    not list((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")), reason="torch brings no libgomp"
)
def test_torchs_own_threads_are_found():
    assert compiled_kernels._openmp() is not None


def test_one_thread_does_not_take_over_from_many(monkeypatch: pytest.MonkeyPatch, threads: int):
    monkeypatch.setattr(compiled_kernels, "_openmp", lambda: None)
    assert compiled_norm_swish.is_compiled(CPU, torch.float32, LANES) == (threads == 1)


def test_where_llvm_does_not_compile_torchs_kernels_are_taken(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such processor")

    compiled_norm_swish._has_compiler.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(compiled_norm_swish, "CompiledNormSwish", broken)
        assert norm_swish(CPU, torch.float32, LANES) is TORCH_NORM_SWISH
    compiled_norm_swish._has_compiler.cache_clear()
    assert isinstance(norm_swish(CPU, torch.float32, LANES), CompiledNormSwish)


def test_torchs_kernels_give_float32_sums_of_rounded_rows():
    inputs, gradient, layer = make(64, dtype=torch.bfloat16)
    _, _, sums = both_passes(TorchNormSwish(), inputs, gradient, layer, 4)
    expected = reference(inputs, gradient, layer, 4)
    for ours, theirs in zip(sums, expected[2], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours[0].double(), theirs, rtol=0.05, atol=0.05)


def test_without_torchs_openmp_a_kernel_runs_in_one_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_kernels, "_openmp", lambda: None)
    inputs, gradient, layer = make(32)
    outputs, before, sums = both_passes(CompiledNormSwish(32, rounded=False), inputs, gradient, layer, 4)
    expected = reference(inputs, gradient, layer, 4)
    torch.testing.assert_close(outputs.double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before.double(), expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums[2][0].double(), expected[2][2], rtol=1e-4, atol=1e-5)
