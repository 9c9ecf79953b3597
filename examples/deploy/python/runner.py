"""A policy that is given the newest readings alone, and remembers past ones and what was sent last itself."""

from __future__ import annotations

import re

import numpy as np
from run_policy import Policy


class Runner:
    """One robot under a policy. `readings` names the numbers that `step` takes, in order.

    Where an input is NaN or infinite the last control is held, and `step` says why. `sent` is what was sent
    last; replace it where something else had the last word.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        names = [element["name"] for element in policy.metadata["inputs"]["observation"]]
        inputs = [re.fullmatch(r"(.+?)(?:@-(\d+))?", name).groups("0") for name in names]
        controls = [f"ctrl:{element['name']}[0]" for element in policy.metadata["outputs"]["control"]]
        newest = list(dict.fromkeys(name for name, _ in inputs))
        self.readings = [name for name in newest if name not in controls]
        told = [name for name in newest if name in controls]
        columns = self.readings + told
        self._actuators = [controls.index(name) for name in told]
        self._places = [(int(age), columns.index(name)) for name, age in inputs]
        self._memory = np.zeros((1 + max(age for age, _ in self._places), len(columns)), np.float32)
        self.reset()

    def reset(self, control: np.ndarray | None = None) -> None:
        """Begin: the next readings count as all before; `control` as sent last, a number for each actuator.

        Of a position servo that is where its joint stands, within `low` and `high` of its control.
        """
        self.sent, self._begins = control, True

    def step(self, readings: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, str | None]:
        """Return the control to send, and why it is the last one where it is held."""
        if self._actuators and self.sent is None:
            raise ValueError("call reset with what counts as sent last, before the first step")
        last = [self.sent[index] for index in self._actuators] if self._actuators else []
        newest, memory = (
            np.concatenate([np.asarray(readings, np.float32), last]).astype(np.float32),
            self._memory,
        )
        if self._begins:
            memory[:] = newest
            self._begins = not np.isfinite(newest).all()
        else:
            memory[1:] = memory[:-1].copy()
            memory[0] = newest
        observation, held = [memory[place] for place in self._places], None
        if len(memory) > 1 and not self._begins:
            memory[0] = np.where(np.isfinite(newest), newest, memory[1])
        try:
            self.sent = self.policy(observation, goal)[1].copy()
        except ValueError as error:
            if self.sent is None or np.isfinite([*observation, *goal]).all():
                raise
            held = f"{error}; the last control is held"
        return self.sent, held
