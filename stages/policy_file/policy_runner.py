"""A policy that remembers for itself what its inputs tell of before: past readings, and what was sent last.

docs/policy-format.md says how ("What was sent last" and "Past readings"). Needs neither torch nor mlflow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from thousandfold.ground.errors import NonFiniteError
from thousandfold.stages.policy_file.metadata import past_reading
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy


class RunnerOutputs(NamedTuple):
    """What a runner returns."""

    action: np.ndarray
    """(action_dim,) in [−1, 1]; where `control` is held the last one, NaN before there was one"""
    control: np.ndarray
    """(num_actuators,) in actuator units, to be sent"""
    held: str | None
    """why `control` is what was sent last, in place of the policy's; None: it is the policy's"""


class PolicyRunner:
    """A policy in one world, called once a control step with the newest readings alone.

    Where an input is NaN or infinite, what was sent last is held, and `held` says why. Among past readings
    the last one that was a number stands in its place.

    Args:
        policy: the file.

    Attributes:
        readings: names of the numbers that `step` takes, in order.
        told: names of the actuators whose last control is among the inputs.
        sent: what was sent last, (num_actuators,); to be replaced where something else had the last word.
            None before the first step, where `reset` was not told.
    """

    def __init__(self, policy: OnnxPolicy) -> None:
        self.policy = policy
        inputs = [past_reading(element.name) for element in policy.metadata.inputs.observation]
        controls = {f"ctrl:{each.name}[0]": each.name for each in policy.metadata.outputs.control}
        newest = list(dict.fromkeys(name for name, _ in inputs))
        self.readings = tuple(name for name in newest if name not in controls)
        self.told = tuple(controls[name] for name in newest if name in controls)
        columns = [*self.readings, *(name for name in newest if name in controls)]
        names = list(controls.values())
        self._actuators = np.array([names.index(name) for name in self.told], np.int64)
        self._memory = np.zeros((1 + max(age for _, age in inputs), len(columns)), np.float32)
        self._source = np.array([age * len(columns) + columns.index(name) for name, age in inputs])
        self.sent: np.ndarray | None = None
        self._action: np.ndarray | None = None
        self._begins = True

    def reset(self, control: np.ndarray | None = None) -> None:
        """Begin an episode: the next readings count as all that came before.

        Args:
            control: (num_actuators,), what counts as sent last: of a position servo where its joint stands,
                within the ends of its control, of another actuator what it holds. It must be given where
                `told` names an actuator.

        Raises:
            ValueError: it is missing, or of another shape.
        """
        size = len(self.policy.metadata.outputs.control)
        if control is None and self.told:
            told = ", ".join(self.told)
            raise ValueError(
                f"what counts as sent last must be given, {size} numbers: the policy reads {told}"
            )
        if control is not None and np.shape(control) != (size,):
            raise ValueError(f"what counts as sent last has shape {np.shape(control)}, not ({size},)")
        self.sent = None if control is None else np.array(control, np.float32)
        self._action, self._begins = None, True

    def step(self, readings: np.ndarray, goal: np.ndarray) -> RunnerOutputs:
        """Return what to send, which counts as sent.

        Args:
            readings: (len(self.readings),), the newest.
            goal: (goal_dim,).

        Raises:
            ValueError: another shape, or `reset` was not called and had to be told what was sent.
            NonFiniteError: a number is NaN or infinite, and nothing was sent that could be held.
        """
        count, memory = len(self.readings), self._memory
        if np.shape(readings) != (count,):
            raise ValueError(f"readings have shape {np.shape(readings)}, not ({count},)")
        newest = np.empty(memory.shape[1], np.float32)
        newest[:count] = readings
        if self.told:
            if self.sent is None:
                raise ValueError("call reset before the first step, with what counts as sent last")
            newest[count:] = self.sent[self._actuators]
        observation = self._pushed(newest)
        try:
            action, control = self.policy.step(observation, goal)
            held = None
        except NonFiniteError as error:
            if self.sent is None:
                raise
            action, control, held = self._action, self.sent, f"{error} What was sent last is held."
            if action is None:
                action = np.full(len(self.policy.metadata.outputs.action), np.nan, np.float32)
        self.sent, self._action = np.array(control), action
        return RunnerOutputs(action, np.array(control), held)

    def _pushed(self, newest: np.ndarray) -> np.ndarray:
        """Take the newest readings and controls; return the observation, as it is, numbers or none."""
        memory = self._memory
        if self._begins:
            memory[:] = newest
            self._begins = not np.isfinite(newest).all()  # all before are the first that are numbers
        else:
            memory[1:] = memory[:-1]
            memory[0] = newest
        observation = memory.reshape(-1)[self._source]
        if not self._begins and len(memory) > 1:
            memory[0] = np.where(np.isfinite(newest), newest, memory[1])
        return observation
