"""What leaves for the robot: input limits, normaliser, actor, tanh and map to actuators in one module."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thousandfold.models.goal_actor import Gaussian, GoalActor

# A number that never varies in the data keeps its scale instead of being divided by nearly nothing.
MIN_STD = 1e-6

GOLDEN_ANGLE = 2.4
"""radians, nearly π (3 − √5): of so many turns none points where another does"""

MIN_LIMIT_WIDTH = 1e-3
"""how far at least an input may leave the range that was seen, in its own unit"""


class Normalizer(nn.Module):
    """Subtracts a mean and divides by a standard deviation; the identity until it is fitted."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, data: Tensor) -> None:
        """Take mean and standard deviation over the rows of `data`, (rows, size)."""
        std = data.std(0, correction=0)
        self.mean.copy_(data.mean(0))
        self.std.copy_(torch.where(std < MIN_STD, torch.ones_like(std), std))

    def forward(self, value: Tensor) -> Tensor:
        """Return the normalised value, (..., size)."""
        return (value - self.mean) / self.std

    def difference(self, value: Tensor, other: Tensor) -> Tensor:
        """Return how much further one value lies than the other once both are normalised, (..., size)."""
        return (value - other) / self.std


class Dither(nn.Module):
    """A swing of every action with a clock, so that nothing stands still in balance.

    Action i swings by share · std · √2 sin(2π t / T + i · 2.4), whose mean square is that of as much noise.
    Neighbours are a golden angle apart, so that all actions together point nowhere.

    Args:
        share: of the actor's own standard deviation.
        clock: which numbers of an observation are cos and sin of 2π t / T.
        action_dim: how many actions there are.
    """

    weight: Tensor

    def __init__(self, share: float, clock: list[int], action_dim: int) -> None:
        super().__init__()
        self.clock = clock
        phase = GOLDEN_ANGLE * torch.arange(action_dim)
        weight = share * math.sqrt(2.0) * torch.stack([phase.sin(), phase.cos()], dim=1)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, observation: Tensor, std: Tensor) -> Tensor:
        """Return what is added to the mean, (batch, action_dim)."""
        return std * (observation[..., self.clock] @ self.weight.T)


class NormalizedActor(nn.Module):
    """An actor behind normalisers of its state and its goal; its mean may swing with a clock."""

    def __init__(
        self,
        actor: GoalActor,
        observation_normalizer: Normalizer,
        goal_normalizer: Normalizer,
        dither: Dither | None = None,
    ) -> None:
        super().__init__()
        self.actor, self.dither = actor, dither
        self.observation_normalizer, self.goal_normalizer = observation_normalizer, goal_normalizer

    @classmethod
    def around(
        cls, actor: GoalActor, observation_dim: int, goal_dim: int, dither: Dither | None = None
    ) -> NormalizedActor:
        """Return an actor behind the identity: its normalisers are still to be fitted or loaded."""
        return cls(actor, Normalizer(observation_dim), Normalizer(goal_dim), dither)

    def forward(self, observation: Tensor, goal: Tensor) -> Gaussian:
        """Return the Gaussian before the tanh for (batch, observation_dim) and (batch, goal_dim)."""
        gaussian = self.actor(self.observation_normalizer(observation), self.goal_normalizer(goal))
        if self.dither is None:
            return gaussian
        swing = self.dither(observation, gaussian.log_std.exp())
        return Gaussian(gaussian.mean + swing, gaussian.log_std)


class InputLimits(NamedTuple):
    """What a policy's inputs are clipped to; low ≤ high everywhere."""

    observation_low: Tensor
    """(observation_dim,)"""
    observation_high: Tensor
    """(observation_dim,)"""
    goal_low: Tensor
    """(goal_dim,)"""
    goal_high: Tensor
    """(goal_dim,)"""

    @classmethod
    def around(cls, observation: Tensor, goal: Tensor) -> InputLimits:
        """Return the range of the rows, (n, observation_dim) and (n, goal_dim), widened on both sides.

        A sensor that leaves it by more than the range is wide, and by more than `MIN_LIMIT_WIDTH`, shows
        nothing that the policy was ever checked on.
        """
        limits = []
        for seen in (observation, goal):
            low, high = seen.amin(0), seen.amax(0)
            width = (high - low).clamp(min=MIN_LIMIT_WIDTH)
            limits += [low - width, high + width]
        return cls(*limits)


class PolicyOutput(NamedTuple):
    """What a deployed policy returns."""

    action: Tensor
    """(batch, action_dim) in [−1, 1]"""
    control: Tensor
    """(batch, num_actuators) in actuator units"""


class ModeratedControl(NamedTuple):
    """How what is sent follows its target, as `envs.control_map.ControlMap` has it; (num_actuators,) each."""

    base: Tensor
    """the target at action 0"""
    slope: Tensor
    """how much further it is at action 1"""
    swing: Tensor
    """(2 · clocks, num_actuators), how much further it is for each number of the clocks"""
    carry: Tensor
    """1 where the target is an increment of what was sent last"""
    gain: Tensor
    """share of the way to the target that is gone at once"""
    step: Tensor
    """the most that what is sent changes; may be infinite"""
    stateful: Tensor
    """bool, whether what was sent last counts"""
    last: Tensor
    """int64, which number of the observation was sent last"""
    clocks: Tensor
    """(2 · clocks,) int64, which numbers of the observation are the clocks'"""


class DeployablePolicy(nn.Module):
    """Input limits → normaliser → actor → tanh → actuator range.

    An input beyond its limits is clipped to them, infinity included; NaN stays NaN.

    Args:
        actor, limits: the normalised actor, and those of its inputs.
        control_low, control_high: actuator units at action −1 and +1, (num_actuators,); equal for an actuator
            that is held at a value.
        columns: which action each actuator takes, (num_actuators,) int64; None: each its own, in order.
        switched: (num_actuators,) bool, actuators that know only the two ends, the high one at actions above
            0; None: there are none.
        moderated: how what is sent follows its target, on the CPU; None: it is the target.
    """

    observation_low: Tensor
    observation_high: Tensor
    goal_low: Tensor
    goal_high: Tensor
    control_low: Tensor
    control_high: Tensor
    columns: Tensor | None
    switched: Tensor | None

    def __init__(
        self,
        actor: NormalizedActor,
        limits: InputLimits,
        control_low: Tensor,
        control_high: Tensor,
        columns: Tensor | None = None,
        switched: Tensor | None = None,
        moderated: ModeratedControl | None = None,
    ) -> None:
        super().__init__()
        self.actor, self.moderated = actor, moderated
        own = {
            "control_low": control_low,
            "control_high": control_high,
            "columns": columns,
            "switched": switched,
        }
        for name, value in (limits._asdict() | own).items():
            self.register_buffer(name, value)

    def forward(self, observation: Tensor, goal: Tensor) -> PolicyOutput:
        """Return action and control for observations (batch, observation_dim) and goals (batch, goal_dim)."""
        observation = observation.clamp(self.observation_low, self.observation_high)
        goal = goal.clamp(self.goal_low, self.goal_high)
        action = torch.tanh(self.actor(observation, goal).mean)
        share = action if self.columns is None else action[..., self.columns]
        if self.switched is not None:
            share = torch.where(self.switched, torch.where(share > 0, 1.0, -1.0), share)
        if (law := self.moderated) is None:
            control = self.control_low + 0.5 * (share + 1.0) * (self.control_high - self.control_low)
            return PolicyOutput(action, control)
        least, most = self.control_ends
        held = torch.where(law.stateful, observation[..., law.last].clamp(least, most), 0.0)
        swung = observation[..., law.clocks] @ law.swing.to(observation.dtype)
        target = law.base + law.slope * share + swung + law.carry * held
        moved = (law.gain * (target - held)).clamp(-law.step, law.step)
        return PolicyOutput(action, (held + moved).clamp(least, most))

    @property
    def control_ends(self) -> tuple[Tensor, Tensor]:
        """The least and the most that each actuator is sent, (num_actuators,) each."""
        ends = self.control_low, self.control_high
        return torch.minimum(*ends), torch.maximum(*ends)
