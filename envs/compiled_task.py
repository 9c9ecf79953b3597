"""A task bound to its compiled model: term names resolved to columns of MuJoCo's data fields.

Arrays may be NumPy's or torch's; `xp` is the module of the arrays at hand (`numpy` or `torch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import mujoco
import numpy as np

from envs.task import GoalTask, SuccessRegion, TaskError, Term, Transform

_OBJECT = mujoco.mjtObj


@dataclass(frozen=True)
class Field:
    """A MuJoCo data field that every simulator has, and how its numbers belong to named objects.

    Attributes:
        kind: the MuJoCo object type of the names a term may give.
        in_state: whether the field is part of the integration state, hence current after a step.
        columns: (model, object id) -> flat columns (start, stop) of that object.
        width: model -> how many numbers the field has for one world.
    """

    kind: mujoco.mjtObj
    in_state: bool
    columns: Callable[[mujoco.MjModel, int], tuple[int, int]]
    width: Callable[[mujoco.MjModel], int]


def _per_object(size: int, count: str, kind: mujoco.mjtObj) -> Field:
    """Return a field with `size` numbers for each object, `count` naming how many there are."""
    return Field(
        kind=kind,
        in_state=False,
        columns=lambda model, index: (size * index, size * (index + 1)),
        width=lambda model: size * getattr(model, count),
    )


_JOINT_QPOS = {mujoco.mjtJoint.mjJNT_FREE: 7, mujoco.mjtJoint.mjJNT_BALL: 4}
_JOINT_QVEL = {mujoco.mjtJoint.mjJNT_FREE: 6, mujoco.mjtJoint.mjJNT_BALL: 3}


def _joint_qpos(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start = int(model.jnt_qposadr[joint])
    return start, start + _JOINT_QPOS.get(mujoco.mjtJoint(model.jnt_type[joint]), 1)


def _joint_qvel(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start = int(model.jnt_dofadr[joint])
    return start, start + _JOINT_QVEL.get(mujoco.mjtJoint(model.jnt_type[joint]), 1)


def _sensor(model: mujoco.MjModel, sensor: int) -> tuple[int, int]:
    start = int(model.sensor_adr[sensor])
    return start, start + int(model.sensor_dim[sensor])


FIELDS: Mapping[str, Field] = {
    "qpos": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qpos, lambda model: model.nq),
    "qvel": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qvel, lambda model: model.nv),
    "ctrl": Field(_OBJECT.mjOBJ_ACTUATOR, True, lambda model, i: (i, i + 1), lambda model: model.nu),
    "xpos": _per_object(3, "nbody", _OBJECT.mjOBJ_BODY),
    "xquat": _per_object(4, "nbody", _OBJECT.mjOBJ_BODY),
    "site_xpos": _per_object(3, "nsite", _OBJECT.mjOBJ_SITE),
    "cinert": _per_object(10, "nbody", _OBJECT.mjOBJ_BODY),
    "cvel": _per_object(6, "nbody", _OBJECT.mjOBJ_BODY),
    "qfrc_actuator": Field(_OBJECT.mjOBJ_JOINT, False, _joint_qvel, lambda model: model.nv),
    "sensordata": Field(_OBJECT.mjOBJ_SENSOR, False, _sensor, lambda model: model.nsensordata),
}


@dataclass(frozen=True)
class TermColumns:
    """A term with its names resolved: which flat columns of which field, and where they go.

    Attributes:
        term: the term as written.
        source: flat columns of the field; a slice where they are contiguous (no copy).
        start: first column of the output; the term fills ``start:stop``.
        stop: one past the last column of the output.
        minus: flat columns of the subtracted term, for ``difference``.
    """

    term: Term
    source: slice | np.ndarray
    start: int
    stop: int
    minus: slice | np.ndarray | None = None
    _placed: dict[Any, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)

    def columns_on(self, xp: Any, device: Any) -> tuple[Any, Any]:
        """Return `source` and `minus` on `device`, where a NumPy index would be sent at each reading."""
        if (xp, device) not in self._placed:
            self._placed[xp, device] = (
                _place(self.source, xp, device),
                _place(self.minus, xp, device),
            )
        return self._placed[xp, device]


class CompiledTask:
    """A `GoalTask` with its model compiled, its dimensions known and its terms resolved.

    Attributes:
        task: the task as written.
        model: the compiled `mujoco.MjModel`.
        frame_skip: physics steps per control step.
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        control_low, control_high: actuator units at action −1 and +1, shape (action_dim,), float32.
    """

    def __init__(self, task: GoalTask) -> None:
        self.task = task
        self.name = task.name
        self.model = _compile(task)
        self.frame_skip = self._frame_skip()
        self._observation = self._resolve(task.observation)
        self._achieved_goal = self._resolve(task.achieved_goal)
        self._early_end = [(end, self._resolve((end.term,))) for end in task.early_end]
        self.observation_dim = self._observation[-1].stop
        self.goal_dim = self._achieved_goal[-1].stop
        self.action_dim = int(self.model.nu)
        if self.action_dim == 0:
            raise TaskError(f"Task {task.name!r}: the model has no actuator.")
        self.control_low, self.control_high = self._control_range()
        self._control_maps: dict[Any, tuple[Any, Any]] = {}
        self._start_columns = {name: self._joint_columns(name) for name in task.distributions}
        self._check_regions()
        self._check_goals()

    def _frame_skip(self) -> int:
        ratio = self.task.control_dt_s / self.model.opt.timestep
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise TaskError(
                f"Task {self.name!r}: control_dt_s {self.task.control_dt_s} is not a multiple "
                f"of the model's timestep {self.model.opt.timestep}."
            )
        return round(ratio)

    def _control_range(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.model.actuator_ctrllimited.all():
            index = int(np.flatnonzero(~self.model.actuator_ctrllimited.astype(bool))[0])
            raise TaskError(f"Task {self.name!r}: actuator {self.actuator_names[index]!r} has no ctrlrange.")
        low, high = self.model.actuator_ctrlrange.T.astype(np.float32)
        return low.copy(), high.copy()

    def _joint_columns(self, distribution: str) -> np.ndarray:
        """Return the columns of qpos that the distribution's start positions go to."""
        reset = self.task.distributions[distribution].starts
        columns = [self._columns(Term("qpos", name)) for name in reset.joints]
        if any(len(joint) != 1 for joint in columns):
            raise TaskError(
                f"Task {self.name!r}: starts are drawn for slide and hinge joints, not {reset.joints}."
            )
        drawn = 0 if reset.position is None else reset.position.sample(np.random.default_rng(0), 1).shape[1]
        if drawn != len(columns):
            raise TaskError(f"Task {self.name!r}: starts draw {drawn} numbers for {len(columns)} joints.")
        return np.concatenate(columns) if columns else np.zeros(0, int)

    def _check_regions(self) -> None:
        if not self.task.success:
            raise TaskError(f"Task {self.name!r} has no success region.")
        for region in self.task.success:
            stop = self.goal_dim if region.stop is None else region.stop
            if region.radius <= 0 or not 0 <= region.start < stop <= self.goal_dim:
                raise TaskError(
                    f"Task {self.name!r}: {region} does not fit a goal of {self.goal_dim} numbers."
                )

    def _check_goals(self) -> None:
        for name, distribution in self.task.distributions.items():
            shape = distribution.goals.sample(np.random.default_rng(0), 1).shape
            if shape != (1, self.goal_dim):
                raise TaskError(
                    f"Task {self.name!r}: goals of {name!r} have {shape[1]} numbers, "
                    f"the achieved goal has {self.goal_dim}."
                )

    # -- terms ------------------------------------------------------------------------------------

    def _resolve(self, terms: tuple[Term, ...]) -> list[TermColumns]:
        resolved: list[TermColumns] = []
        start = 0
        for term in terms:
            if term.transform not in get_args(Transform):
                valid = ", ".join(get_args(Transform))
                raise TaskError(f"Task {self.name!r}: unknown transform {term.transform!r}; valid: {valid}.")
            columns = self._columns(term)
            minus = None if term.minus is None else self._columns(term.minus)
            if term.minus is not None and term.minus.transform != "identity":
                raise TaskError(f"Task {self.name!r}: the term that a difference subtracts has no transform.")
            if (term.transform == "difference") != (minus is not None):
                raise TaskError(f"Task {self.name!r}: a term has `minus` exactly when it is a difference.")
            if minus is not None and len(minus) != len(columns):
                raise TaskError(
                    f"Task {self.name!r}: a difference of {len(columns)} and {len(minus)} numbers."
                )
            stop = start + len(columns)
            resolved.append(TermColumns(term, _as_slice(columns), start, stop, _as_slice(minus)))
            start = stop
        if start == 0:
            raise TaskError(f"Task {self.name!r} has an empty list of terms.")
        return resolved

    def _columns(self, term: Term) -> np.ndarray:
        if term.field not in FIELDS:
            raise TaskError(f"Task {self.name!r}: unknown field {term.field!r}; valid: {', '.join(FIELDS)}.")
        spec = FIELDS[term.field]
        if term.object is None:
            columns = np.arange(spec.width(self.model))
        else:
            index = mujoco.mj_name2id(self.model, spec.kind, term.object)
            if index < 0:
                kind = spec.kind.name.removeprefix("mjOBJ_").lower()
                raise TaskError(f"Task {self.name!r}: the model has no {kind} named {term.object!r}.")
            columns = np.arange(*spec.columns(self.model, index))
        if term.columns is not None:
            if min(term.columns, default=0) < 0 or max(term.columns, default=0) >= len(columns):
                raise TaskError(
                    f"Task {self.name!r}: columns {term.columns} of {term.field!r}, which has {len(columns)}."
                )
            columns = columns[list(term.columns)]
        return columns

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the MuJoCo data fields that the task reads."""
        terms = [*self.task.observation, *self.task.achieved_goal, *(end.term for end in self.task.early_end)]
        names = [term.field for term in terms] + [term.minus.field for term in terms if term.minus]
        return tuple(dict.fromkeys(names))

    @cached_property
    def needs_derived_fields(self) -> bool:
        """Whether a simulator must compute kinematics at the new state before the terms are read."""
        return not all(FIELDS[name].in_state for name in self.fields)

    def read_observation(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the observation into `out`, (num_worlds, observation_dim).

        Args:
            fields: arrays (num_worlds, width) by field name.
            out: array to fill, of the kind that `xp` makes.
            xp: the module that `out` belongs to, `numpy` or `torch`.
        """
        _read(self._observation, fields, out, xp)

    def read_achieved_goal(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the achieved goal into `out`, (num_worlds, goal_dim). Arguments as in `read_observation`."""
        _read(self._achieved_goal, fields, out, xp)

    def ended_early(self, fields: Mapping[str, Any], xp: Any = np) -> Any:
        """Return (num_worlds,) bool, true where an early-end condition holds; None without conditions."""
        ended = None
        for end, columns in self._early_end:
            out = xp.zeros_like(fields[end.term.field][:, : columns[-1].stop])
            _read(columns, fields, out, xp)
            outside = ((out < end.low) | (out > end.high)).any(1)
            ended = outside if ended is None else ended | outside
        return ended

    # -- goals, actions, resets -------------------------------------------------------------------

    def is_success(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return (...,) bool for goals of shape (..., goal_dim): every success region holds."""
        reached = None
        for region in self.task.success:
            within = self._distance(region, achieved_goal, desired_goal) < region.radius
            reached = within if reached is None else reached & within
        return reached

    def goal_distance(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return the Euclidean distance over the first success region's slice, shape (...,)."""
        return self._distance(self.task.success[0], achieved_goal, desired_goal)

    @staticmethod
    def _distance(region: SuccessRegion, achieved_goal: Any, desired_goal: Any) -> Any:
        part = slice(region.start, region.stop)
        return ((achieved_goal[..., part] - desired_goal[..., part]) ** 2).sum(-1) ** 0.5

    def control_from_action(self, action: Any, xp: Any = np) -> Any:
        """Map actions in [−1, 1] (clipped), (num_worlds, action_dim), to actuator units."""
        action = xp.asarray(action)
        middle, half_range = self._control_map(xp, action.device)
        return middle + half_range * action.clip(-1.0, 1.0)

    def _control_map(self, xp: Any, device: Any) -> tuple[Any, Any]:
        """Return the middle and half the width of the control range, as arrays of `xp` on `device`."""
        if (xp, device) not in self._control_maps:
            middle = (self.control_high + self.control_low) / 2
            half_range = (self.control_high - self.control_low) / 2
            self._control_maps[xp, device] = (
                xp.asarray(middle, device=device),
                xp.asarray(half_range, device=device),
            )
        return self._control_maps[xp, device]

    def sample_start(
        self, distribution: str, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw initial states and goals.

        Returns:
            qpos (count, nq), qvel (count, nv), desired goal (count, goal_dim), all float64.
        """
        episodes = self.task.distribution(distribution)
        reset = episodes.starts
        qpos = np.tile(self.model.qpos0, (count, 1))
        qvel = np.zeros((count, self.model.nv))
        if reset.position is not None:
            qpos[:, self._start_columns[distribution]] = reset.position.sample(rng, count)
        if reset.qpos_noise:
            qpos += rng.uniform(-reset.qpos_noise, reset.qpos_noise, size=qpos.shape)
        if reset.qvel_noise:
            qvel += reset.qvel_noise * rng.standard_normal(qvel.shape)
        return qpos, qvel, episodes.goals.sample(rng, count)

    # -- documentation ----------------------------------------------------------------------------

    @cached_property
    def actuator_names(self) -> list[str]:
        """Actuator names in the order of the action."""
        return [self.model.actuator(i).name or f"actuator_{i}" for i in range(self.model.nu)]

    def describe(self, part: str) -> list[dict[str, str]]:
        """Return name and unit of every number of ``observation`` or ``achieved_goal``, in order."""
        terms = {"observation": self._observation, "achieved_goal": self._achieved_goal}[part]
        return [
            {"name": f"{_label(columns.term)}[{i}]", "unit": columns.term.unit}
            for columns in terms
            for i in range(columns.stop - columns.start)
        ]


def _compile(task: GoalTask) -> mujoco.MjModel:
    try:
        return task.build_spec().compile()
    except ValueError as error:
        raise TaskError(
            f"Task {task.name!r}: MuJoCo refuses the model: {' '.join(str(error).split())}"
        ) from error


def _as_slice(columns: np.ndarray | None) -> Any:
    """Return contiguous columns as a slice, which reads without a copy."""
    if columns is None or len(columns) == 0 or not (np.diff(columns) == 1).all():
        return columns
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _place(columns: slice | np.ndarray | None, xp: Any, device: Any) -> Any:
    return xp.asarray(columns, device=device) if isinstance(columns, np.ndarray) else columns


def _read(terms: list[TermColumns], fields: Mapping[str, Any], out: Any, xp: Any) -> None:
    for columns in terms:
        term = columns.term
        source, minus = columns.columns_on(xp, fields[term.field].device)
        value = fields[term.field][:, source]
        if term.minus is not None:
            value = value - fields[term.minus.field][:, minus]
        elif term.transform != "identity":
            value = getattr(xp, term.transform)(value)
        out[:, columns.start : columns.stop] = value


def _label(term: Term) -> str:
    name = f"{term.field}:{term.object}" if term.object else term.field
    if term.minus is not None:
        return f"{name} - {_label(term.minus)}"
    return name if term.transform == "identity" else f"{term.transform}({name})"
