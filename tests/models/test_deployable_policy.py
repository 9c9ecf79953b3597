"""What leaves for the robot: normaliser, tanh and actuator range inside the module."""

from __future__ import annotations

import torch

from thousandfold.models.deployable_policy import (
    MIN_LIMIT_WIDTH,
    DeployablePolicy,
    InputLimits,
    NormalizedActor,
    Normalizer,
)
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape

LOW, HIGH = torch.tensor([-2.0, 0.0, 10.0]), torch.tensor([2.0, 5.0, 11.0])
WIDE = InputLimits(
    torch.full((4,), -99.0), torch.full((4,), 99.0), torch.full((2,), -99.0), torch.full((2,), 99.0)
)


def make_actor() -> NormalizedActor:
    torch.manual_seed(0)
    return NormalizedActor.around(GoalActor(4, 2, 3, NetworkShape(4, 16)), 4, 2)


def states(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = 3 * torch.randn(count, 6, generator=generator) + 1
    return draw[:, :4], draw[:, 4:]


def test_a_fitted_normalizer_gives_zero_mean_and_unit_variance():
    data = 7 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) - 20
    normalizer = Normalizer(3)
    assert torch.equal(normalizer(data), data)
    normalizer.fit(data)
    value = normalizer(data)
    assert value.mean(0).abs().max() < 1e-4
    assert torch.allclose(value.std(0, correction=0), torch.ones(3), atol=1e-4)


def test_a_number_that_never_varies_is_shifted_but_not_blown_up():
    normalizer = Normalizer(2)
    normalizer.fit(torch.tensor([[5.0, 1.0], [5.0, 3.0]]))
    assert torch.equal(normalizer(torch.tensor([5.5, 4.0])), torch.tensor([0.5, 2.0]))


def test_an_actor_is_unchanged_behind_normalizers_that_were_not_fitted():
    actor, (observation, goal) = make_actor(), states()
    assert torch.equal(actor(observation, goal).mean, actor.actor(observation, goal).mean)


def test_the_actor_sees_normalized_states_and_goals_each_with_its_own_normalizer():
    actor, (observation, goal) = make_actor(), states()
    actor.observation_normalizer.fit(observation)
    actor.goal_normalizer.fit(10 * goal)
    expected = actor.actor(
        (observation - observation.mean(0)) / observation.std(0, correction=0),
        (goal - 10 * goal.mean(0)) / (10 * goal.std(0, correction=0)),
    )
    assert torch.allclose(actor(observation, goal).mean, expected.mean, atol=1e-5)


def test_the_normalizers_travel_with_the_weights():
    actor, (observation, goal) = make_actor(), states()
    actor.observation_normalizer.fit(observation)
    restored = NormalizedActor.around(GoalActor(4, 2, 3, NetworkShape(4, 16)), 4, 2)
    restored.load_state_dict(actor.state_dict())
    assert torch.equal(restored(observation, goal).mean, actor(observation, goal).mean)


def test_controls_are_actions_in_actuator_units():
    actor, (observation, goal) = make_actor(), states()
    output = DeployablePolicy(actor, WIDE, LOW, HIGH)(observation, goal)
    assert torch.equal(output.action, torch.tanh(actor(observation, goal).mean))
    assert torch.allclose(output.control, LOW + (output.action + 1) / 2 * (HIGH - LOW), rtol=1e-6)


def test_saturated_actions_reach_exactly_the_ends_of_the_actuator_range():
    actor, (observation, goal) = make_actor(), states(1)
    policy = DeployablePolicy(actor, WIDE, LOW, HIGH)
    for bias, end in ((100.0, HIGH), (-100.0, LOW)):
        torch.nn.init.constant_(actor.actor.mean_head.bias, bias)
        assert torch.equal(policy(observation, goal).control[0], end)


def test_the_limits_are_the_range_that_was_seen_widened_by_its_own_width():
    observation = torch.tensor([[0.0, 5.0, -1.0], [2.0, 5.0, 1.0], [1.0, 5.0, 0.0]])
    limits = InputLimits.around(observation, torch.tensor([[3.0], [4.0], [4.0]]))
    torch.testing.assert_close(limits.observation_low, torch.tensor([-2.0, 5.0 - MIN_LIMIT_WIDTH, -3.0]))
    torch.testing.assert_close(limits.observation_high, torch.tensor([4.0, 5.0 + MIN_LIMIT_WIDTH, 3.0]))
    assert (limits.goal_low.tolist(), limits.goal_high.tolist()) == ([2.0], [5.0])


def test_inputs_beyond_their_limits_act_as_if_they_were_at_them():
    actor, (observation, goal) = make_actor(), states()
    limits = InputLimits.around(observation, goal)
    policy = DeployablePolicy(actor, limits, LOW, HIGH)
    assert torch.equal(policy(observation, goal).action, torch.tanh(actor(observation, goal).mean))
    low, high = (torch.cat(pair) for pair in (limits[::2], limits[1::2]))
    far = torch.where(torch.rand(32, 6) < 0.5, low - 1.0, high + torch.inf)
    at_limits = torch.where(far < 0, low, high)
    found, expected = policy(far[:, :4], far[:, 4:]), policy(at_limits[:, :4], at_limits[:, 4:])
    assert torch.equal(found.action, expected.action)
    assert not torch.equal(found.action, torch.tanh(actor(far[:, :4], far[:, 4:]).mean))


def test_nan_stays_nan():
    policy, (observation, goal) = DeployablePolicy(make_actor(), WIDE, LOW, HIGH), states(2)
    observation[0, 1] = torch.nan
    output = policy(observation, goal)
    assert output.action[0].isnan().all() and output.control[0].isnan().all()
    assert output.action[1].isfinite().all()
