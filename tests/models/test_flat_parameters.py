"""Parameters in one tensor: Adam's steps, its moments by parameter, and parts that follow one another."""

import copy

import pytest
import torch

from thousandfold.models.flat_parameters import FlatAdam, FlatParameters


def make_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def gradients_of(network, seed):
    inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(network(inputs).square().mean(), list(network.parameters()))


@pytest.mark.parametrize("divisor", [None, 4.0])
def test_steps_and_moments_are_those_of_adam_over_the_parameters_one_by_one(divisor):
    network = make_network()
    reference = copy.deepcopy(network)
    flat = FlatParameters(network.parameters())
    ours = FlatAdam(flat, 1e-2)
    theirs = torch.optim.Adam(reference.parameters(), lr=torch.tensor(1e-2), fused=True)
    for seed in range(3):
        flat.set_gradients(gradients_of(network, seed))
        ours.step(None if divisor is None else torch.tensor(divisor))
        for parameter, gradient in zip(reference.parameters(), gradients_of(reference, seed), strict=True):
            parameter.grad = gradient / (divisor or 1.0)
        theirs.step()
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.grad, other.grad)
    state, moments = ours.state_dict(), theirs.state_dict()["state"]
    expected = {f"{number}.{name}": value for number, each in moments.items() for name, value in each.items()}
    assert state.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(state[name], moment, msg=name)


def test_a_state_goes_on_where_it_was_and_an_empty_one_begins():
    network = make_network()
    flat = FlatParameters(network.parameters())
    adam = FlatAdam(flat, 1e-2)
    flat.set_gradients(gradients_of(network, 0))
    adam.step()
    state, values = adam.state_dict(), flat.values.clone()

    def second_step():
        flat.values.copy_(values)
        flat.set_gradients(gradients_of(network, 1))
        adam.step()
        return flat.values.clone()

    first = second_step()
    adam.load_state_dict(state)
    assert torch.equal(second_step(), first)
    adam.load_state_dict({})
    assert not torch.equal(second_step(), first)
    assert float(adam.state_dict()["0.step"]) == 1.0


def test_parts_lie_in_order_and_hold_the_gradient_of_their_parameters_alone():
    network = make_network()
    flat = FlatParameters(network.parameters())
    flat.set_gradients(gradients_of(network, 0))
    last = flat.gradient[flat.range_of(network[2].parameters())]
    expected = torch.cat([each.flatten() for each in gradients_of(network, 0)[2:]]).norm()
    torch.testing.assert_close(last.norm(), expected)
    flat.values.fill_(2.0)
    assert all(bool((parameter == 2.0).all()) for parameter in network.parameters())
