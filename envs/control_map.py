"""From actions in [−1, 1] to controls in actuator units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.object_names import as_written, find_object, object_names
from thousandfold.envs.position_servos import servo_joint, target_range
from thousandfold.envs.task import LONGEST_CLOCK_S, Command, TaskError, Term, clock

_ACTUATOR = mujoco.mjtObj.mjOBJ_ACTUATOR
_KINDS = ("range", "switch", "hold", "offset", "delta")
_LISTED = "list the actuators in `action`, each with its `low` and `high`"


class ControlMap:
    """How a task's actions become the controls of its model's actuators.

    An actuator's target is `base` + `slope` · action + `swing` · clocks + `carry` · what was sent last. What
    is sent goes from there towards it by the share `gain`, by no more than `step`, and never leaves `low` and
    `high`.

    Attributes:
        actuators: names of all actuators, in the model's order, as `object_names` gives them.
        actions: names of the actuators that take an action, in the order of the actions.
        action_dim: how many actions there are.
        commands: what was said of each actuator, in the model's order.
        columns: (nu,) int64, which action each actuator takes; 0 for one that is held.
        low, high: (nu,) float32, what is sent never leaves them. Of a range or a switch they are the controls
            at action −1 and +1, so that either may be the greater; equal for an actuator that is held.
        switched: (nu,) bool, whether the actuator knows only `low` and `high`, which at actions above 0.
        base, slope: (nu,) float32, of the target.
        periods: of the clocks that targets swing with, in seconds.
        swing: (2 · clocks, nu) float32, what cos and sin of each clock add to the target.
        carry: (nu,) float32, 1 where the target is an increment of what was sent last, else 0.
        gain: (nu,) float32, 1 − exp(−control_dt_s / smoothing_s): the exact step of a first-order filter.
        step: (nu,) float32, the largest change in a control step; infinite where none is given.
        stateful: (nu,) bool, whether what is sent depends on what was sent last.
        is_moderated: whether what is sent may differ from the target: held back, or cut off at an end.

    Args:
        model: the compiled model.
        commands: one for each actuator, the actions in their order; None gives every actuator its own action
            over its ctrlrange.
        owner: how errors begin.
        control_dt_s: seconds between two actions.

    Raises:
        TaskError: no actuator takes an action, an actuator is missing or commanded twice, or a range is
            neither given nor in the model.
    """

    def __init__(
        self, model: mujoco.MjModel, commands: Sequence[Command] | None, owner: str, control_dt_s: float
    ) -> None:
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
        self.commands = [
            command for _, command in sorted(zip(ids, commands, strict=True), key=lambda pair: pair[0])
        ]
        self.low, self.high, self.base, self.slope, self.carry = np.zeros((5, model.nu), np.float32)
        self.gain, self.step = np.ones(model.nu, np.float32), np.full(model.nu, np.inf, np.float32)
        self.actions: list[str] = []
        swings = [command.swing for command in self.commands]
        self.periods = tuple(dict.fromkeys(swing.period_s for swing in swings if swing is not None))
        self.swing = np.zeros((2 * len(self.periods), model.nu), np.float32)
        for place, (index, command) in enumerate(zip(ids, commands, strict=True)):
            try:
                low, high = _bounds(model, index, command, owner)
                base, slope = _target(model, index, command, (low, high), control_dt_s, owner)
            except TaskError as error:
                raise error.within(place) from None
            self.low[index], self.high[index] = low, high
            self.carry[index] = command.kind == "delta"
            if command.smoothing_s > 0:
                self.gain[index] = -math.expm1(-control_dt_s / command.smoothing_s)
            with np.errstate(over="ignore"):  # it is refused below
                self.base[index], self.slope[index] = base, slope
                if (swing := command.swing) is not None:
                    row, phase = 2 * self.periods.index(swing.period_s), 2 * np.pi * swing.phase
                    self.swing[row : row + 2, index] = swing.amplitude * np.array(
                        [np.sin(phase), np.cos(phase)]
                    )
                if command.max_rate is not None:
                    self.step[index] = command.max_rate * control_dt_s
            numbers = [self.base[index], self.slope[index], *self.swing[:, index]]
            numbers += [self.step[index]] if command.max_rate is not None else []
            if not np.isfinite(numbers).all() or not self.gain[index] > 0 or not self.step[index] > 0:
                raise TaskError(
                    f"{owner}: actuator {command.actuator!r} has a rate, scale or time constant that is too "
                    "large or too small for a number of 32 bits.",
                    (place,),
                )
            if command.kind != "hold":
                self.columns[index] = len(self.actions)
                self.actions.append(self.actuators[index])
        self._turns = 2 * np.pi / np.array(self.periods)
        self.action_dim = len(self.actions)
        if self.action_dim == 0:
            raise TaskError(f"{owner}: every actuator is held, none takes an action.")
        self.switched = np.array([command.kind == "switch" for command in self.commands])
        self.stateful = (self.carry > 0) | (self.gain < 1) | np.isfinite(self.step)
        self._remembers = bool(self.stateful.any())
        self.is_moderated = self._remembers or any(command.kind == "offset" for command in self.commands)
        self._servos = {
            index: servo
            for index in np.flatnonzero(self.stateful).tolist()
            if (servo := servo_joint(model, index)) is not None
        }
        filters = (mujoco.mjtDyn.mjDYN_FILTER, mujoco.mjtDyn.mjDYN_FILTEREXACT)
        self._filters = {
            int(model.actuator_actadr[index] + model.actuator_actnum[index]) - 1: index
            for index in self._servos
            if mujoco.mjtDyn(model.actuator_dyntype[index]) in filters
        }
        self._placed: dict[Any, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: not what was placed on devices of this process."""
        return {**self.__dict__, "_placed": {}}

    @property
    def is_plain(self) -> bool:
        """Whether every actuator has its own action, in the model's order, over a range."""
        own = np.arange(len(self.actuators))
        return self.action_dim == len(own) and np.array_equal(self.columns, own) and not self.switched.any()

    @property
    def least(self) -> np.ndarray:
        """The least that is sent, (nu,)."""
        return np.minimum(self.low, self.high)

    @property
    def most(self) -> np.ndarray:
        """The most that is sent, (nu,)."""
        return np.maximum(self.low, self.high)

    def missing_terms(self, observation: Sequence[Term]) -> list[Term]:
        """Return the terms that an observation lacks of what was sent last and of clocks, where they count.

        Without them what an action does would depend on something that a policy is not told.
        """
        told = set[str]()
        for term in observation:
            if term.field == "ctrl" and term.transform == "identity":
                every = self.actuators if term.object is None else [term.object]
                told |= set(every if term.columns is None else [every[place] for place in term.columns])
        last = [
            Term("ctrl", name, unit=self._servos[index].unit if index in self._servos else "")
            for index, name in enumerate(self.actuators)
            if self.stateful[index] and name not in told
        ]
        seen = {term.period_s for term in observation}
        return last + [clock(period) for period in self.periods if period not in seen]

    def clocks(self, time_s: Any, xp: Any = np) -> Any:
        """Return cos and sin of each clock, (num_worlds, 2 · clocks); None where nothing swings.

        Args:
            time_s: (num_worlds, 1), seconds since each world's episode began; read where something swings.
            xp: the module of the array, `numpy` or `torch`.
        """
        if not self.periods:
            return None
        turn = time_s * self._on(xp, time_s.device)["turns"]
        pairs = xp.stack([xp.cos(turn), xp.sin(turn)], -1).reshape(len(turn), -1)
        return xp.asarray(pairs, dtype=xp.float32)

    def start(self, ctrl: Any, qpos: Any, xp: Any = np) -> Any:
        """Return what counts as sent last before an episode's first action, (num_worlds, nu).

        Of a position servo that is where its joint is, so that it holds still; of another actuator what the
        base state has. Where nothing is remembered it stays as it is.

        Args:
            ctrl: (num_worlds, nu), the base state's controls.
            qpos: (num_worlds, nq), the positions that the episode starts in.
            xp: the module of both, `numpy` or `torch`.
        """
        if not self._remembers:
            return ctrl
        placed = self._on(xp, ctrl.device)
        columns = [ctrl[:, index] for index in range(len(self.actuators))]
        for index, servo in self._servos.items():
            columns[index] = servo.gear * qpos[:, servo.column]
        within = xp.stack(columns, -1).clip(placed["least"], placed["most"])
        return xp.where(placed["stateful"], within, ctrl)

    def start_activation(self, act: Any, ctrl: Any, xp: Any = np) -> Any:
        """Return the activations before an episode's first action, (num_worlds, na).

        The filter of a position servo has settled at what counts as sent last, where that is remembered.

        Args:
            act: (num_worlds, na), the base state's activations.
            ctrl: (num_worlds, nu), as `start` returned them.
            xp: the module of both, `numpy` or `torch`.
        """
        if not self._filters:
            return act
        columns = [act[:, place] for place in range(act.shape[1])]
        for place, index in self._filters.items():
            columns[place] = ctrl[:, index]
        return xp.stack(columns, -1)

    def __call__(self, action: Any, last: Any = None, xp: Any = np, clocks: Any = None) -> Any:
        """Map actions in [−1, 1] (clipped), (num_worlds, action_dim), to controls, (num_worlds, nu).

        Args:
            action: of every world.
            last: (num_worlds, nu), what was sent before; read where an actuator is `stateful` alone.
            xp: the module of both, `numpy` or `torch`.
            clocks: (num_worlds, 2 · clocks), as `clocks` returns them; read where a target swings alone.
        """
        action = xp.asarray(action)
        placed = self._on(xp, action.device)
        share = action.clip(-1.0, 1.0)
        if placed["columns"] is not None:
            share = share[..., placed["columns"]]
        if placed["switched"] is not None:
            # An action that is not a number must not pass for a closed switch: `share` keeps it.
            share = xp.where(placed["switched"] & (share == share), 2.0 * (share > 0) - 1.0, share)
        target = placed["base"] + placed["slope"] * share
        if not self.is_moderated:
            return target
        if placed["swing"] is not None:
            if clocks is None:
                raise ValueError("the clocks that targets swing with must be given")
            target = target + clocks @ placed["swing"]
        least, most = placed["least"], placed["most"]
        held = 0.0
        if self._remembers:
            if last is None:
                raise ValueError("what was sent last must be given")
            held = xp.where(placed["stateful"], xp.asarray(last).clip(least, most), 0.0)
            target = target + placed["carry"] * held
        moved = (placed["gain"] * (target - held)).clip(-placed["step"], placed["step"])
        return (held + moved).clip(least, most)

    def _on(self, xp: Any, device: Any) -> dict[str, Any]:
        """Return what the map reads, by name, as arrays on `device`; None for what it need not read."""
        if (xp, device) not in self._placed:
            read = {
                "base": self.base,
                "slope": self.slope,
                "columns": None if self.is_plain else self.columns,
                "switched": self.switched if self.switched.any() else None,
                "swing": self.swing if self.periods else None,
                "turns": self._turns,
            }
            if self.is_moderated:
                names = ("least", "most", "carry", "gain", "step", "stateful")
                read |= {name: getattr(self, name) for name in names}
            self._placed[xp, device] = {
                name: None if array is None else xp.asarray(array, device=device)
                for name, array in read.items()
            }
        return self._placed[xp, device]


def _target(
    model: mujoco.MjModel,
    index: int,
    command: Command,
    bounds: tuple[float, float],
    control_dt_s: float,
    owner: str,
) -> tuple[float, float]:
    """Return what an actuator's target is at action 0, and how much more at action 1."""
    name = object_names(model, _ACTUATOR)[index]
    for key, needed_by in (("max_rate", "delta"), ("scale", "offset")):
        if getattr(command, key) is None and command.kind == needed_by:
            raise TaskError(f"{owner}: actuator {name!r} needs a {key}, as every {needed_by} does.")
    for key in ("scale", "about", "swing"):
        if getattr(command, key) is not None and command.kind != "offset":
            raise TaskError(f"{owner}: actuator {name!r} is given {key}, which is for kind: offset alone.")
    least, swing = 2 * control_dt_s, command.swing
    if swing is not None and not least <= swing.period_s <= LONGEST_CLOCK_S:
        raise TaskError(
            f"{owner}: actuator {name!r} swings in at least two control steps, {least:g} s, and at most "
            f"{LONGEST_CLOCK_S:g} s, not in {swing.period_s:g} s."
        )
    if command.kind == "hold" and (command.max_rate is not None or command.smoothing_s):
        raise TaskError(f"{owner}: actuator {name!r} is held: leave out max_rate and smoothing_s.")
    if command.kind == "delta":
        if command.smoothing_s:
            raise TaskError(
                f"{owner}: actuator {name!r} has a smoothing_s, which would only make each delta smaller: "
                "give it a lower max_rate."
            )
        assert command.max_rate is not None
        return 0.0, command.max_rate * control_dt_s
    if command.kind == "offset":
        assert command.scale is not None
        about = command.about
        if about is None:
            servo = servo_joint(model, index)
            if servo is None:
                raise TaskError(
                    f"{owner}: actuator {name!r} is no position servo of a joint: give `about`, the "
                    "control that it moves around."
                )
            about = servo.gear * float(model.qpos0[servo.column])
        low, high = bounds
        if not low <= about <= high:
            raise TaskError(
                f"{owner}: actuator {name!r} is to move about {about:g}, which is not between {low:g} and "
                f"{high:g}."
            )
        return about, command.scale
    low, high = np.array(bounds, np.float32)
    return (high + low) / 2, (high - low) / 2


def _bounds(model: mujoco.MjModel, index: int, command: Command, owner: str) -> tuple[float, float]:
    if command.kind not in _KINDS:
        raise TaskError(f"{owner}: unknown command {command.kind!r}; valid: {', '.join(_KINDS)}.")
    name = object_names(model, _ACTUATOR)[index]
    low, high = command.low, command.high
    if command.kind == "hold":
        if low is None or high is not None:
            raise TaskError(f"{owner}: actuator {name!r} is held at one value, in `low`.")
        return low, low
    moves_about = command.kind in ("offset", "delta")
    if low is None or high is None:
        try:
            lowest, highest = _own_range(model, index, name, owner)
        except TaskError as error:
            if not moves_about or model.actuator_ctrlrange[index].any():
                raise
            try:
                lowest, highest = target_range(model, index)
            except TaskError:
                raise error from None
        low, high = lowest if low is None else low, highest if high is None else high
    if moves_about and low > high:
        raise TaskError(f"{owner}: actuator {name!r} has a low of {low:g} above its high of {high:g}.")
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
