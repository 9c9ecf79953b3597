"""A policy in its control loop: keeps past readings, time and what was sent, clamps what it sends, or holds.

docs/policy-format.md says what a runner must do; those of examples/deploy do the same. Needs neither torch
nor mlflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from thousandfold.ground.errors import NonFiniteError
from thousandfold.stages.policy_file.metadata import PolicyMetadata, clock_reading, past_reading
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

Status = Literal["ok", "late", "not_finite"]


class RunnerStep(NamedTuple):
    """What a runner returns."""

    control: np.ndarray | None
    """(num_actuators,) in actuator units, to be sent; None where nothing was safe to send yet"""
    status: Status
    """``ok``, or why `control` is what was sent last"""
    action: np.ndarray | None
    """(action_dim,) in [−1, 1], which `control` was made of; None where that is held"""


@dataclass(frozen=True)
class RunnerPlan:
    """What a runner of a policy keeps, and what it clamps controls to.

    A step is kept as a row of numbers: its readings, what was sent before it, its clocks. Arrays are float32,
    (num_actuators,).

    Attributes:
        readings: names of the numbers that a step is given, in order.
        clocks: period in seconds, and 0 for cos, 1 for sin.
        sources: for each number of the observation how many steps ago it came, and its place in that row.
        steps: how many rows are kept.
        low, high: ends of each control.
        most: what it changes in a step at most; may be infinite.
        joints: which reading tells where an actuator stands before the first step; -1: none does.
        gears: what that reading is multiplied by.
        starts: what counts as sent before the first step where no reading tells it.
        asked: whether that must be given: the policy builds on it, and the file does not know it.
    """

    readings: tuple[str, ...]
    clocks: tuple[tuple[float, int], ...]
    sources: tuple[tuple[int, int], ...]
    steps: int
    low: np.ndarray
    high: np.ndarray
    most: np.ndarray
    joints: tuple[int, ...]
    gears: np.ndarray
    starts: np.ndarray
    asked: tuple[bool, ...]

    @classmethod
    def of(cls, metadata: PolicyMetadata) -> RunnerPlan:
        """Return the plan for a policy file."""
        controls = metadata.outputs.control
        ends = np.array([(each.low, each.high) for each in controls], np.float32)
        rates = [math.inf if each.max_rate is None else each.max_rate for each in controls]
        inputs = [past_reading(element.name) for element in metadata.inputs.observation]
        sent = [f"ctrl:{each.name}[0]" for each in controls]
        clocks = {name: clock for name, _ in inputs if (clock := clock_reading(name)) is not None}
        readings = tuple(name for name, age in inputs if age == 0 and name not in sent and name not in clocks)
        columns = {name: column for column, name in enumerate((*readings, *sent, *clocks))}
        told = {name for name, _ in inputs}
        names = [f"qpos:{each.joint}[0]" for each in controls]
        joints = tuple(readings.index(name) if name in readings else -1 for name in names)
        # A servo whose joint stands elsewhere than the file says would jump.
        known = [each.kp is None and each.start is not None for each in controls]
        return cls(
            readings=readings,
            clocks=tuple(clocks.values()),
            sources=tuple((age, columns[name]) for name, age in inputs),
            steps=1 + max(age for _, age in inputs),
            low=ends.min(1),
            high=ends.max(1),
            most=np.array(rates, np.float32) * np.float32(metadata.control_dt_s),
            joints=joints,
            gears=np.array([1.0 if each.gear is None else each.gear for each in controls], np.float32),
            starts=np.array(
                [(each.start or 0.0) if here else 0.0 for each, here in zip(controls, known, strict=True)],
                np.float32,
            ),
            asked=tuple(
                joint < 0 and not here and (name in told or rate < math.inf)
                for joint, here, name, rate in zip(joints, known, sent, rates, strict=True)
            ),
        )


class PolicyRunner:
    """A policy in one world, called once a control step with the newest readings alone.

    Args:
        policy: the file.
        start: as of `reset`.

    Attributes:
        readings: names of the numbers that `step` takes, in order.
        held: how many steps in a row held the last control.

    Raises:
        ValueError: as of `reset`.
    """

    def __init__(self, policy: OnnxPolicy, start: Mapping[str, float] | None = None) -> None:
        self.policy, plan = policy, RunnerPlan.of(policy.metadata)
        self._plan, self._controls = plan, policy.metadata.outputs.control
        self.readings, self._low, self._high, self._most = plan.readings, plan.low, plan.high, plan.most
        self._has_rates, self._zeros = bool(np.isfinite(plan.most).any()), np.zeros_like(plan.most)
        columns = len(plan.readings) + len(plan.most) + len(plan.clocks)
        self._past = np.zeros((plan.steps, columns), np.float32)  # the newest first
        self._source = np.array([age * columns + column for age, column in plan.sources])
        step_s = policy.metadata.control_dt_s
        self._turn = np.array([2 * math.pi * step_s / period for period, _ in plan.clocks])
        self._shift = np.array([number * math.pi / 2 for _, number in plan.clocks])  # sin is cos later
        self.reset(start)

    def reset(self, start: Mapping[str, float] | None = None) -> None:
        """Begin an episode: the first readings count as all that came before.

        Args:
            start: by actuator, what counts as sent before the first step: of a position servo where it
                stands, which the first readings tell where they have its joint; of another actuator what it
                holds, which the file knows as a rule.

        Raises:
            ValueError: one that the policy builds on is neither given nor known, there is no such actuator,
                or a start is NaN or infinite.
        """
        start = start or {}
        if unknown := start.keys() - {each.name for each in self._controls}:
            raise ValueError(f"there is no actuator {min(unknown)}")
        self._start, self._joints = np.zeros(len(self._controls), np.float32), list[tuple[int, int, float]]()
        for place, (each, reading) in enumerate(zip(self._controls, self._plan.joints, strict=True)):
            if each.name in start:
                self._start[place] = start[each.name]
            elif reading >= 0:
                self._joints.append((place, reading, self._plan.gears[place]))
            elif self._plan.asked[place]:
                raise ValueError(f"give the start of actuator {each.name}: where it stands")
            else:
                self._start[place] = self._plan.starts[place]
        if not np.isfinite(self._start).all():
            raise ValueError("a start is NaN or infinite")
        self._sent: np.ndarray | None = None
        self.held = self._steps = 0

    def step(
        self, readings: np.ndarray | Sequence[float] | None, goal: np.ndarray | Sequence[float] | None
    ) -> RunnerStep:
        """Return what to send, which counts as sent.

        Args:
            readings: (len(self.readings),), the newest; None: they are late.
            goal: (goal_dim,); None: it is late.

        Raises:
            ValueError: another shape.
        """
        status: Status = "late"
        if readings is None or goal is None:
            self._remember(None)
        else:
            fresh, wanted = _as_float32(readings), _as_float32(goal)
            if fresh.shape != (size := (len(self.readings),)):
                raise ValueError(f"readings have shape {fresh.shape}, not {size}")
            if wanted.shape != (size := (len(self.policy.metadata.inputs.goal),)):
                raise ValueError(f"goal has shape {wanted.shape}, not {size}")
            sent, past = self._remember(fresh), self._past
            try:
                action, control = self.policy.step(past.reshape(-1)[self._source], wanted)
            except NonFiniteError:
                if len(past) > 1:  # the last good readings count once more
                    past[0, : len(fresh)] = past[1, : len(fresh)]
            else:
                # A product with zeros is a number where all are; it is quicker than a look at each.
                if math.isfinite(control.dot(self._zeros)):
                    if self._has_rates:
                        control = np.minimum(np.maximum(control, sent - self._most), sent + self._most)
                    self._sent, self.held = np.minimum(np.maximum(control, self._low), self._high), 0
                    return RunnerStep(self._sent.copy(), "ok", action)
            status = "not_finite"
        self.held += 1
        return RunnerStep(None if self._sent is None else self._sent.copy(), status, None)

    def _remember(self, fresh: np.ndarray | None) -> np.ndarray:
        """Put a step before those of the past; return what was sent before it.

        Args:
            fresh: (len(self.readings),) float32; None: the last ones count once more.
        """
        sent, past, after = self._sent, self._past, len(self.readings)
        if sent is not None:
            self._steps += 1
            if len(past) > 1:
                past[1:] = past[:-1]
            newest = past[0]
            if fresh is not None:
                newest[:after] = fresh
            newest[after : after + len(sent)] = sent
            if len(self._turn):
                newest[after + len(sent) :] = self._clocks()
            return sent
        sent, self._steps = self._start.copy(), 0
        if fresh is not None:  # as if it had stood there for ever
            for place, reading, gear in self._joints:
                sent[place] = gear * fresh[reading]
            sent = sent.clip(self._low, self._high)
            past[:] = np.concatenate((fresh, sent, self._clocks()))
        return sent

    def _clocks(self) -> np.ndarray:
        """Return what the clocks among the inputs tell now, in order."""
        return np.cos(self._steps * self._turn - self._shift)


def _as_float32(values: np.ndarray | Sequence[float]) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):  # too large for float32 is infinite
        return np.asarray(values, np.float32)
