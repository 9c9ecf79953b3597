"""The squashed Gaussian: bounds, and the log-probability against torch.distributions."""

import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from thousandfold.models.goal_actor import Gaussian, GoalActor, sample_action
from thousandfold.models.residual_mlp import NetworkShape


def test_log_std_stays_within_its_bounds_for_any_input():
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 3, NetworkShape(4, 16))
    gaussian = actor(1e4 * torch.randn(64, 4), 1e4 * torch.randn(64, 2))
    assert gaussian.mean.shape == gaussian.log_std.shape == (64, 3)
    assert gaussian.log_std.min() >= -5 and gaussian.log_std.max() <= 2


def test_log_std_is_the_middle_of_its_bounds_at_a_zero_head():
    actor = GoalActor(4, 2, 3, NetworkShape(4, 16))
    torch.nn.init.zeros_(actor.log_std_head.weight)
    assert torch.allclose(actor(torch.randn(1, 4), torch.randn(1, 2)).log_std, torch.tensor(-1.5))


def test_log_probability_agrees_with_torch_distributions():
    torch.manual_seed(0)
    gaussian = Gaussian(
        torch.randn(9, 3, dtype=torch.float64), 0.3 * torch.randn(9, 3, dtype=torch.float64) - 1
    )
    noise = torch.randn(9, 3, dtype=torch.float64)
    action, log_prob = sample_action(gaussian, noise)
    reference = TransformedDistribution(
        Normal(gaussian.mean, gaussian.log_std.exp()), [TanhTransform(cache_size=1)]
    )
    before_tanh = gaussian.mean + gaussian.log_std.exp() * noise
    torch.testing.assert_close(action, before_tanh.tanh())
    expected = reference.log_prob(action).sum(-1)
    torch.testing.assert_close(log_prob, expected, atol=1e-3, rtol=1e-3)  # the 1e-6 inside the logarithm


def test_sampling_is_reparameterised():
    gaussian = Gaussian(torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True))
    action, log_prob = sample_action(gaussian, torch.ones(2, 1))
    (action.sum() + log_prob.sum()).backward()
    assert gaussian.mean.grad.abs().min() > 0 and gaussian.log_std.grad.abs().min() > 0
