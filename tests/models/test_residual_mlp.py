"""The residual network: its published form, its parameter count, its options."""

import copy
import math

import pytest
import torch

from tests.models.plain_blocks import unroll_blocks
from thousandfold.models.contrastive_critic import ContrastiveCritic
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape, ResidualMLP, centre_kernels, parameter_count


def test_forward_is_the_published_formula():
    torch.manual_seed(0)
    network = ResidualMLP(3, NetworkShape(depth=8, width=5))
    inputs = torch.randn(7, 3)

    def layer(hidden, parts):
        linear, norm, _ = parts
        hidden = hidden @ linear.weight.T + linear.bias
        centred = hidden - hidden.mean(-1, keepdim=True)
        hidden = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias
        return hidden * torch.sigmoid(hidden)

    hidden = layer(inputs, network.stem)
    for block in unroll_blocks(copy.deepcopy(network)).body:
        branch = hidden
        for parts in block.layers:
            branch = layer(branch, parts)
        hidden = hidden + branch
    torch.testing.assert_close(network(inputs), hidden)


def test_depth_counts_dense_layers_in_blocks_alone():
    network = ResidualMLP(3, NetworkShape(depth=16, width=5))
    assert network.body.weight.shape == (16, 5, 5)
    linear = [m for m in unroll_blocks(network).modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 16 + 1  # the stem is one more


def test_initialisation_is_uniform_with_zero_bias():
    torch.manual_seed(0)
    network = ResidualMLP(64, NetworkShape(depth=4, width=256))
    bound = 1 / math.sqrt(256)
    assert network.body.weight.abs().max() <= bound
    assert network.body.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert network.body.bias.abs().max() == 0


@pytest.mark.parametrize(("depth", "millions"), [(4, 0.98), (16, 3.4), (64, 12.9)])
def test_parameter_counts_match_the_published_humanoid_networks(depth, millions):
    shape = NetworkShape(depth, 256)
    networks = GoalActor(268, 3, 17, shape), ContrastiveCritic(268, 3, 17, shape)
    assert sum(map(parameter_count, networks)) / 1e6 == pytest.approx(millions, rel=0.03)


def test_inverse_sqrt_scale_divides_each_branch():
    torch.manual_seed(0)
    plain = ResidualMLP(3, NetworkShape(depth=16, width=8))
    scaled = ResidualMLP(3, NetworkShape(depth=16, width=8, residual_scale="inverse_sqrt_blocks"))
    scaled.load_state_dict(plain.state_dict())
    hidden = torch.randn(4, 8)
    before, after = plain.body.stream(hidden)[:2]
    branch = after - before
    torch.testing.assert_close(scaled.body.stream(hidden)[1], hidden + branch / 2.0)  # 4 blocks: 1/√4


def test_final_norm_normalises_what_the_head_sees():
    torch.manual_seed(0)
    hidden = ResidualMLP(3, NetworkShape(depth=32, width=16, final_norm=True))(torch.randn(5, 3))
    torch.testing.assert_close(hidden.mean(-1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(-1, correction=0), torch.ones(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_without_layer_norm_a_layer_is_dense_and_swish(kind):
    torch.manual_seed(0)
    shape = NetworkShape(depth=8, width=5, kind=kind, layer_norm=False, residual_scale="inverse_sqrt_blocks")
    network, inputs = ResidualMLP(3, shape), torch.randn(7, 3)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in network.modules())

    def layers(hidden, stack):
        for linear in (module for module in stack.modules() if isinstance(module, torch.nn.Linear)):
            hidden = hidden @ linear.weight.T + linear.bias
            hidden = hidden * torch.sigmoid(hidden)
        return hidden

    hidden = layers(inputs, network.stem)
    if kind == "plain":
        hidden = layers(hidden, network.body)
        assert len(network.body) == 7  # the stem is the first of 8
    else:
        for block in network.body:
            hidden = hidden + layers(hidden, block.layers) / math.sqrt(2)
    torch.testing.assert_close(network(inputs), hidden)


@pytest.mark.parametrize("depth", [1, 2, 8, 32])
def test_without_layer_norm_activations_neither_vanish_nor_explode(depth):
    torch.manual_seed(0)
    shape = NetworkShape(depth, 128, kind="plain", layer_norm=False)
    mean_square = ResidualMLP(6, shape)(torch.randn(1000, 6)).square().mean().item()
    assert 0.3 < mean_square < 3


def test_frozen_rows_teach_a_network_without_layer_norm_nothing():
    torch.manual_seed(0)
    network = ResidualMLP(3, NetworkShape(4, 6, layer_norm=False))
    inputs, weights = torch.randn(5, 3, requires_grad=True), torch.randn(5, 6)
    (network(inputs, frozen_rows=2) * weights).sum().backward()
    frozen = [parameter.grad.clone() for parameter in network.parameters()]
    assert inputs.grad is not None and inputs.grad.abs().min() > 0
    network.zero_grad()
    (network(inputs[2:]) * weights[2:]).sum().backward()
    for got, parameter in zip(frozen, network.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad)


def test_a_learned_branch_without_layer_norm_starts_at_nothing():
    network = ResidualMLP(3, NetworkShape(8, 6, residual_scale="learned_from_zero", layer_norm=False))
    inputs = torch.randn(4, 3)
    assert torch.equal(network(inputs), network.stem(inputs))


def spread_of_inputs(network):
    """How much of what the last LayerNorm would see depends on the input, between 0 and 1."""
    stream = network.body.stream(network.stem(torch.randn(128, 6)))[-1]
    return torch.nn.functional.layer_norm(stream, stream.shape[1:]).var(0).mean().item()


def test_centred_kernels_keep_inputs_apart_over_a_thousand_layers():
    torch.manual_seed(0)
    network = ResidualMLP(6, NetworkShape(depth=1024, width=32))
    collapsed = spread_of_inputs(network)
    centre_kernels(network)
    assert network.body.weight.mean(-1).abs().max() < 1e-7
    assert collapsed < 0.1 < 0.4 < spread_of_inputs(network)


def test_centring_leaves_the_stem_and_takes_the_heads():
    actor = GoalActor(4, 2, 2, NetworkShape(depth=4, width=8))
    stem = actor.trunk.stem[0].weight.clone()
    centre_kernels(actor)
    assert torch.equal(actor.trunk.stem[0].weight, stem)
    for head in (actor.mean_head, actor.log_std_head):
        assert head.weight.mean(-1).abs().max() < 1e-7


@pytest.mark.parametrize("depth", [16, 1024])
def test_the_deep_default_starts_unsaturated_with_a_gradient_at_any_depth(depth):
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 2, NetworkShape(depth, 64, residual_scale="learned_from_zero", final_norm=True))
    mean = actor(torch.randn(64, 4), torch.randn(64, 2)).mean
    assert mean.abs().mean() < 1.0
    mean.tanh().sum().backward()
    norm = torch.stack([p.grad.norm() for p in actor.parameters() if p.grad is not None]).norm()
    assert 10 < norm < 1000
    assert actor.trunk.body.gain.grad.abs().min() > 0


def test_plain_network_has_the_named_number_of_layers():
    network = ResidualMLP(3, NetworkShape(depth=3, width=5, kind="plain"))
    assert sum(isinstance(m, torch.nn.Linear) for m in network.modules()) == 3
    assert network(torch.zeros(2, 3)).shape == (2, 5)


@pytest.mark.parametrize(("depth", "hint"), [(6, "use 4 or 8"), (3, "use 4")])
def test_depth_off_the_blocks_is_refused_with_the_nearest(depth, hint):
    with pytest.raises(ValueError, match=hint):
        NetworkShape(depth, 8)
