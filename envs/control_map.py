"""From actions in [−1, 1] to controls in actuator units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.object_names import as_written, find_object, object_names
from thousandfold.envs.task import Command, TaskError

_ACTUATOR = mujoco.mjtObj.mjOBJ_ACTUATOR
_KINDS = ("range", "switch", "hold")
_LISTED = "list the actuators in `action`, each with its `low` and `high`"


class ControlMap:
    """How a task's actions become the controls of its model's actuators.

    Attributes:
        actuators: names of all actuators, in the model's order, as `object_names` gives them.
        actions: names of the actuators that take an action, in the order of the actions.
        action_dim: how many actions there are.
        columns: (nu,) int64, which action each actuator takes; 0 for one that is held.
        low, high: (nu,) float32, controls at action −1 and +1; equal for an actuator that is held.
        switched: (nu,) bool, whether the actuator knows only `low` and `high`, which at actions above 0.

    Args:
        model: the compiled model.
        commands: one for each actuator, the actions in their order; None gives every actuator its own action
            over its ctrlrange.
        owner: how errors begin.

    Raises:
        TaskError: no actuator takes an action, an actuator is missing or commanded twice, or a range is
            neither given nor in the model.
    """

    def __init__(self, model: mujoco.MjModel, commands: Sequence[Command] | None, owner: str) -> None:
        self.actuators = object_names(model, _ACTUATOR)
        if model.nu == 0:
            raise TaskError(f"{owner}: the model has no actuator.")
        if commands is None:
            commands = [Command(name) for name in self.actuators]
            ids = list(range(model.nu))
        else:
            ids = []
            for place, command in enumerate(commands):
                try:
                    index = find_object(model, _ACTUATOR, command.actuator, owner)
                except TaskError as error:
                    raise error.within(place, "actuator") from None
                if index in ids:
                    raise TaskError(f"{owner}: actuator {command.actuator!r} is commanded twice.", (place,))
                ids.append(index)
        for index, name in enumerate(self.actuators):
            if index not in ids:
                reason = f"actuator {name!r} has no command; hold it at a value, or give it an action"
                raise TaskError(f"{owner}: {reason}.")
        self.columns = np.zeros(model.nu, np.int64)
        self.low, self.high = np.zeros(model.nu, np.float32), np.zeros(model.nu, np.float32)
        self.switched = np.zeros(model.nu, bool)
        self.actions: list[str] = []
        for place, (index, command) in enumerate(zip(ids, commands, strict=True)):
            try:
                self.low[index], self.high[index] = _bounds(model, index, command, owner)
            except TaskError as error:
                raise error.within(place) from None
            self.switched[index] = command.kind == "switch"
            if command.kind != "hold":
                self.columns[index] = len(self.actions)
                self.actions.append(self.actuators[index])
        self.action_dim = len(self.actions)
        if self.action_dim == 0:
            raise TaskError(f"{owner}: every actuator is held, none takes an action.")
        self._placed: dict[Any, tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: not what was placed on devices of this process."""
        return {**self.__dict__, "_placed": {}}

    @property
    def is_plain(self) -> bool:
        """Whether every actuator has its own action, in the model's order, over a range."""
        own = np.arange(len(self.actuators))
        return self.action_dim == len(own) and np.array_equal(self.columns, own) and not self.switched.any()

    def __call__(self, action: Any, xp: Any = np) -> Any:
        """Map actions in [−1, 1] (clipped), (num_worlds, action_dim), to controls, (num_worlds, nu)."""
        action = xp.asarray(action)
        middle, half_range, columns, switched = self._on(xp, action.device)
        share = action.clip(-1.0, 1.0)
        if columns is not None:
            share = share[..., columns]
        if switched is not None:
            # An action that is not a number must not pass for a closed switch: `share` keeps it.
            share = xp.where(switched & (share == share), 2.0 * (share > 0) - 1.0, share)
        return middle + half_range * share

    def _on(self, xp: Any, device: Any) -> tuple[Any, ...]:
        """Return middle and half the width of the ranges, columns and switches, as arrays on `device`."""
        if (xp, device) not in self._placed:
            self._placed[xp, device] = tuple(
                None if array is None else xp.asarray(array, device=device)
                for array in (
                    (self.high + self.low) / 2,
                    (self.high - self.low) / 2,
                    None if self.is_plain else self.columns,
                    self.switched if self.switched.any() else None,
                )
            )
        return self._placed[xp, device]


def _bounds(model: mujoco.MjModel, index: int, command: Command, owner: str) -> tuple[float, float]:
    if command.kind not in _KINDS:
        raise TaskError(f"{owner}: unknown command {command.kind!r}; valid: {', '.join(_KINDS)}.")
    name = object_names(model, _ACTUATOR)[index]
    low, high = command.low, command.high
    if command.kind == "hold":
        if low is None or high is not None:
            raise TaskError(f"{owner}: actuator {name!r} is held at one value, in `low`.")
        return low, low
    if low is None or high is None:
        lowest, highest = _own_range(model, index, name, owner)
        low, high = lowest if low is None else low, highest if high is None else high
    if not np.isfinite([low, high]).all() or low == high:
        raise TaskError(f"{owner}: actuator {name!r} has no room between {low} and {high}.")
    return float(low), float(high)


def _own_range(model: mujoco.MjModel, index: int, name: str, owner: str) -> tuple[float, float]:
    """Return the bounds that the model gives an actuator's control.

    They are its ctrlrange; 0 to 1 for a muscle without one, where its activation stops too.

    Raises:
        TaskError: it has none, or one that is switched off; the message says what the model has.
    """
    low, high = map(float, model.actuator_ctrlrange[index])
    if model.actuator_ctrllimited[index]:
        return low, high
    if low < high:
        raise TaskError(
            f"{owner}: actuator {name!r} has the ctrlrange {low:g} to {high:g}, but the model switches it "
            f'off (ctrllimited="false"): switch it on there, or {_LISTED}: '
            f"{{actuator: {as_written(name)}, low: {low:g}, high: {high:g}}}."
        )
    if model.actuator_dyntype[index] == mujoco.mjtDyn.mjDYN_MUSCLE:
        return 0.0, 1.0
    if low > high:
        raise TaskError(
            f"{owner}: actuator {name!r} has a ctrlrange that runs down, from {low:g} to {high:g}, which "
            f"MuJoCo ignores: swap its bounds in the model, or {_LISTED}: "
            f"{{actuator: {as_written(name)}, low: {low:g}, high: {high:g}}}."
        )
    reason = "has no ctrlrange"
    if model.actuator_forcelimited[index]:
        weakest, strongest = model.actuator_forcerange[index]
        reason = f"has the forcerange {weakest:g} to {strongest:g}, which bounds no control, and no ctrlrange"
    raise TaskError(f"{owner}: actuator {name!r} {reason}: give it one in the model, or {_LISTED}.")
