"""Two value networks: what reaches them and the action, and their loss."""

from __future__ import annotations

import pytest
import torch

from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.models.value_critic import ValueCritic, temporal_difference_loss


def make_critic() -> ValueCritic:
    torch.manual_seed(0)
    return ValueCritic(4, 2, 3, NetworkShape(4, 16))


def test_one_pass_over_both_actions_is_two_passes() -> None:
    critic = make_critic()
    state, goal, other = torch.randn(5, 4), torch.randn(5, 2), torch.randn(5, 2)
    proposed, taken = torch.rand(5, 3).requires_grad_(), torch.rand(5, 3)
    of_proposed, of_taken = critic.of_both_actions(state, (proposed, goal), (taken, other))
    torch.testing.assert_close(of_proposed, critic(state, proposed, goal))
    torch.testing.assert_close(of_taken, critic(state, taken, other))
    of_proposed.sum().backward()
    assert proposed.grad is not None and proposed.grad.abs().min() > 0
    assert all(p.grad is None or not p.grad.any() for p in critic.parameters())


def test_the_networks_differ_and_both_learn() -> None:
    critic = make_critic()
    rows = torch.randn(5, 4), torch.rand(5, 3), torch.randn(5, 2)
    values = critic(*rows)
    assert values.shape == (2, 5) and not torch.allclose(values[0], values[1])
    temporal_difference_loss(values, torch.zeros(5))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())


def test_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    loss, metrics = temporal_difference_loss(values, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(0.5 * ((1 + 1) / 2 + (0 + 9) / 2))
    assert metrics["value"].item() == pytest.approx(7 / 4)
    assert metrics["value_error"].item() == pytest.approx((1 + 1 + 0 + 3) / 4)
