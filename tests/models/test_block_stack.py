"""The stack against the plain blocks: outputs, gradients, frozen rows, precision, memory."""

import copy

import pytest
import torch

from tests.models.plain_blocks import unroll_blocks
from thousandfold.models import compiled_norm_swish
from thousandfold.models.block_stack import BlockStack, Compute
from thousandfold.models.dense_products import TORCH_PRODUCTS, OneDnnProducts, has_onednn
from thousandfold.models.residual_mlp import NetworkShape, ResidualMLP

SCALES = ["none", "inverse_sqrt_blocks", "learned_from_zero"]


WIDTH = 16


@pytest.fixture(autouse=True, params=["compiled", "compiled, oneDNN", "torch", "warp"])
def kernels(request, monkeypatch):
    """What computes LayerNorm and Swish, and the products."""
    if "oneDNN" in request.param:
        if not has_onednn():
            pytest.skip("this torch comes without oneDNN")
        by_onednn = OneDnnProducts()
        exact = torch.float32
        monkeypatch.setattr(
            compiled_norm_swish,
            "dense_products",
            lambda _, dtype, __: by_onednn if dtype == exact else TORCH_PRODUCTS,
        )
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: "compiled" in request.param)
    # Warp's CPU device stands for CUDA.
    monkeypatch.setattr(compiled_norm_swish, "_runs_warp", lambda _: request.param == "warp")
    return request.param


def make_network(scale="none", depth=16, compute=None, final_norm=False):
    torch.manual_seed(0)
    shape = NetworkShape(depth, WIDTH, residual_scale=scale, final_norm=final_norm)
    network = ResidualMLP(3, shape, compute)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def stacked_gradients(plain):
    """The gradients of plain blocks in the order and shape of a stack's parameters."""
    layers = [layer for block in plain.body for layer in block.layers]
    parts = [[layer[0].weight for layer in layers], [layer[0].bias for layer in layers]]
    parts += [[layer[1].weight for layer in layers], [layer[1].bias for layer in layers]]
    if plain.body[0].gain is not None:
        parts.append([block.gain for block in plain.body])
    return [torch.stack([parameter.grad for parameter in part]) for part in parts]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_output_and_gradients_are_those_of_the_plain_blocks(scale, checkpoint):
    network = make_network(scale, compute=Compute(checkpoint=checkpoint))
    plain = unroll_blocks(copy.deepcopy(network))
    inputs = torch.randn(7, 3, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    target = torch.randn(7, WIDTH)
    ours, theirs = network(inputs), plain(twin)
    torch.testing.assert_close(ours, theirs)
    (ours * target).sum().backward()
    (theirs * target).sum().backward()
    torch.testing.assert_close(inputs.grad, twin.grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(network.body.parameters(), stacked_gradients(plain), strict=True):
        torch.testing.assert_close(a.grad, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_agree_with_finite_differences(scale):
    torch.manual_seed(0)
    stack = BlockStack(3, 2, scale=0.5, learned_gain=scale == "learned_from_zero").double()
    if stack.gain is not None:
        torch.nn.init.uniform_(stack.gain, 0.5, 1.0)
    parameters = list(stack.parameters())

    def run(hidden, *values):
        names = [name for name, _ in stack.named_parameters()]
        return torch.func.functional_call(stack, dict(zip(names, values, strict=True)), hidden)

    hidden = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (hidden, *parameters))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_frozen_rows_pass_gradients_on_and_teach_nothing(scale, checkpoint):
    network = make_network(scale, compute=Compute(checkpoint=checkpoint), final_norm=True)
    inputs = torch.randn(5, 3, requires_grad=True)
    weights = torch.randn(5, WIDTH)
    together = (network(inputs, frozen_rows=2) * weights).sum()
    parameters = list(network.parameters())
    got = torch.autograd.grad(together, [inputs, *parameters])

    alone = inputs.detach()[2:]
    expected = torch.autograd.grad((network(alone) * weights[2:]).sum(), parameters)
    for a, b in zip(got[1:], expected, strict=True):
        # Sums over other numbers of rows round differently: in float64 they agree to 3e-15.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)
    whole = torch.autograd.grad((network(inputs) * weights).sum(), [inputs])[0]
    torch.testing.assert_close(got[0], whole, rtol=1e-4, atol=1e-5)
    assert got[0][:2].abs().sum() > 0


def test_all_rows_frozen_leave_the_parameters_without_a_gradient():
    network = make_network()
    inputs = torch.randn(4, 3, requires_grad=True)
    network(inputs, frozen_rows=4).sum().backward()
    assert inputs.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_no_gradient_is_computed_for_frozen_parameters():
    network = make_network().requires_grad_(False)
    inputs = torch.randn(4, 3, requires_grad=True)
    network(inputs).sum().backward()
    assert inputs.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bfloat16_stays_near_float32_and_gives_float32_gradients():
    exact, rounded = make_network(), make_network(compute=Compute(precision="bfloat16"))
    rounded.load_state_dict(exact.state_dict())
    inputs = torch.randn(64, 3)
    outputs = [network(inputs) for network in (exact, rounded)]
    assert outputs[1].dtype == torch.float32
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.1)
    for output in outputs:
        output.square().mean().backward()
    for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert b.grad.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0)
        assert cosine > 0.98


def test_acting_is_float32_whatever_the_precision():
    exact, rounded = make_network(), make_network(compute=Compute(precision="bfloat16"))
    inputs = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(exact(inputs), rounded(inputs))


def test_rounded_kernels_follow_the_parameters():
    network = make_network(compute=Compute(precision="bfloat16"))
    inputs = torch.randn(4, 3)
    before = network(inputs).detach()
    with torch.no_grad():
        network.body.weight.mul_(2.0)
    assert not torch.equal(network(inputs), before)


def test_without_gradients_the_result_is_the_same():
    network = make_network("inverse_sqrt_blocks")
    inputs = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(network(inputs), network(inputs).detach())
    expected = network(inputs).detach()
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), expected)


def test_stream_holds_the_state_before_and_after_each_block():
    network = make_network("inverse_sqrt_blocks")
    hidden = network.stem(torch.randn(4, 3)).detach()
    states = network.body.stream(hidden)
    assert len(states) == 5
    assert torch.equal(states[0], hidden)
    torch.testing.assert_close(states[-1], network.body(hidden).detach())


def test_learned_gain_starts_as_the_identity():
    stack = BlockStack(WIDTH, 8, learned_gain=True)
    hidden = torch.randn(3, WIDTH)
    assert torch.equal(stack(hidden), hidden)


def test_changing_a_parameter_between_the_passes_is_noticed():
    stack = BlockStack(WIDTH, 2)
    output = stack(torch.randn(3, WIDTH, requires_grad=True)).sum()
    with torch.no_grad():
        stack.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def kept_bytes(depth, checkpoint):
    """Bytes of the tensors that a forward pass leaves for the backward pass, beside parameters."""
    stack = BlockStack(WIDTH, depth // 4, compute=Compute(checkpoint=checkpoint))
    output = stack(torch.randn(16, WIDTH, requires_grad=True))
    context = output.grad_fn
    if hasattr(context, "segments"):  # of Warp's kernels
        return sum(t.nbytes for t in [*context.starts, *(each for kept in context.kept for each in kept)])
    beside = [tensor for kept in context.kept for layer in kept.norm for tensor in layer]
    tensors = [tensor for kept in context.kept for tensor in kept.inputs] + beside + context.starts
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_checkpointing_keeps_a_number_of_streams_that_grows_with_the_root_of_depth(kernels):
    stream = 16 * WIDTH * 4
    assert kept_bytes(64, checkpoint=True) == 4 * stream
    assert kept_bytes(1024, checkpoint=True) == 16 * stream
    # A layer's inputs and its Dense's outputs, two statistics a row; torch's Swish wants its inputs too.
    layer = (3 if kernels == "torch" else 2) * stream + 16 * 2 * 4
    # What follows the last layer lies beside the layers' inputs where Warp's kernels wrote it.
    after = stream if kernels == "warp" else 0
    assert kept_bytes(1024, checkpoint=False) == 1024 * layer + after


def test_a_gradient_that_is_not_contiguous_is_taken_as_it_is():
    network = make_network()
    inputs = torch.randn(6, 3)
    weights = torch.randn(WIDTH, 6)
    ours, theirs = (
        torch.autograd.grad(network(inputs), network.body.weight, gradient)[0]
        for gradient in (weights.t(), weights.t().contiguous())
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_stack_of_another_precision_as_a_whole_computes_in_it(dtype):
    network = make_network().to(dtype)
    inputs = torch.randn(5, 3)
    expected = unroll_blocks(copy.deepcopy(network).float())(inputs)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    outputs = network(inputs.to(dtype))
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs.float(), expected, rtol=tolerance, atol=tolerance)
