"""A task bound to its compiled model: term names resolved to columns of MuJoCo's data fields.

Arrays may be NumPy's or torch's; `xp` is the module of the arrays at hand (`numpy` or `torch`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.control_map import ControlMap
from thousandfold.envs.element_names import describe_elements, earlier_names
from thousandfold.envs.mujoco_log import compile_spec
from thousandfold.envs.start_states import STATE, StartStates, require_whole_state
from thousandfold.envs.task import GoalTask, SuccessRegion, TaskError
from thousandfold.envs.term_columns import FIELDS, TermColumns, TermResolver, read_terms

_MOST_FRAME_SKIP = 10_000  # physics steps within a control step


class CompiledTask:
    """A `GoalTask` with its model compiled, its dimensions known and its terms resolved.

    Attributes:
        spec: the task as written.
        model: the compiled `mujoco.MjModel`.
        model_warnings: what MuJoCo warned of as it compiled it.
        frame_skip: physics steps per control step.
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        control: maps actions to the controls of the model's actuators.
    """

    def __init__(self, task: GoalTask) -> None:
        self.spec = task
        self.name = task.name
        owner = f"Task {task.name!r}"
        self.model, self.model_warnings = _compile(task)
        require_whole_state(self.model, owner)
        self.frame_skip = self._frame_skip()
        resolver = TermResolver(self.model, owner)
        self._observation = resolver.resolve(task.observation)
        self._achieved_goal = resolver.resolve(task.achieved_goal)
        self._early_end = [(end, resolver.resolve((end.term,))) for end in task.early_end]
        self.observation_dim = self._observation[-1].stop
        self.goal_dim = self._achieved_goal[-1].stop
        self.control = ControlMap(self.model, task.control, owner)
        self.action_dim = self.control.action_dim
        self._starts = self._start_states()
        self._check_regions()
        self._check_goals()

    def _start_states(self) -> dict[str, StartStates]:
        owner = f"Task {self.name!r}"
        return {
            name: StartStates(self.model, distribution.starts, owner)
            for name, distribution in self.spec.distributions.items()
        }

    def __deepcopy__(self, memo: object) -> CompiledTask:
        """Return the task itself: nothing changes it, and copies of what runs it share its model."""
        return self

    def changed(self, **changes: Any) -> CompiledTask:
        """Return the same model under a task with other episodes; arguments as of `GoalTask.changed`.

        Raises:
            TaskError: as `GoalTask.changed`.
        """
        task = self.spec.changed(**changes)
        if task is self.spec:
            return self
        changed = copy.copy(self)
        changed.spec = task
        changed._starts = changed._start_states()
        changed._check_goals()
        return changed

    def _frame_skip(self) -> int:
        control_dt, timestep = self.spec.control_dt_s, self.model.opt.timestep
        if not control_dt > 0:
            raise TaskError(f"Task {self.name!r}: control_dt_s must be above 0, not {control_dt}.")
        if not timestep > 0:
            raise TaskError(
                f"Task {self.name!r}: the model's timestep (option timestep) must be above 0, not {timestep}."
            )
        ratio = control_dt / timestep
        if not ratio <= _MOST_FRAME_SKIP:
            raise TaskError(
                f"Task {self.name!r}: control_dt_s {control_dt} holds more than {_MOST_FRAME_SKIP:,} of the "
                f"model's timesteps {timestep}."
            )
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise TaskError(
                f"Task {self.name!r}: control_dt_s {control_dt} is not a multiple of the model's timestep "
                f"{timestep}."
            )
        return round(ratio)

    def _check_regions(self) -> None:
        if not self.spec.success:
            raise TaskError(f"Task {self.name!r} has no success region.")
        for region in self.spec.success:
            stop = self.goal_dim if region.stop is None else region.stop
            fits = 0 <= region.start < stop <= self.goal_dim
            if region.radius <= 0 or not fits or (stop - region.start) % region.points:
                raise TaskError(
                    f"Task {self.name!r}: {region} does not fit a goal of {self.goal_dim} numbers."
                )

    def _check_goals(self) -> None:
        for name, distribution in self.spec.distributions.items():
            shape = distribution.sample(np.random.default_rng(0), 1)[1].shape
            if shape != (1, self.goal_dim):
                raise TaskError(
                    f"Task {self.name!r}: goals of {name!r} have {shape[1]} numbers, "
                    f"the achieved goal has {self.goal_dim}."
                )

    # -- terms ------------------------------------------------------------------------------------

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the MuJoCo data fields that the task reads."""
        terms = [*self.spec.observation, *self.spec.achieved_goal, *(end.term for end in self.spec.early_end)]
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
        read_terms(self._observation, fields, out, xp)

    def read_achieved_goal(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the achieved goal into `out`, (num_worlds, goal_dim). Arguments as in `read_observation`."""
        read_terms(self._achieved_goal, fields, out, xp)

    def ended_early(self, fields: Mapping[str, Any], xp: Any = np) -> Any:
        """Return (num_worlds,) bool, true where an early-end condition holds; None without conditions."""
        ended = None
        for end, columns in self._early_end:
            out = xp.zeros_like(fields[end.term.field][:, : columns[-1].stop])
            read_terms(columns, fields, out, xp)
            outside = ((out < end.low) | (out > end.high)).any(1)
            ended = outside if ended is None else ended | outside
        return ended

    def early_ends_holding(self, data: mujoco.MjData) -> list[int]:
        """Return which of the task's early ends hold in the state of `data`, whose fields are up to date."""
        fields = {name: np.reshape(getattr(data, name), (1, -1)) for name in self.fields}
        held = []
        for index, (end, columns) in enumerate(self._early_end):
            out = np.zeros((1, columns[-1].stop))
            read_terms(columns, fields, out, np)
            held += [index] if ((out < end.low) | (out > end.high)).any() else []
        return held

    def term_spans(self, part: str) -> list[slice]:
        """Return which numbers of ``observation`` or ``achieved_goal`` each of its terms gives."""
        return [slice(columns.start, columns.stop) for columns in self._terms(part)]

    # -- goals, actions, resets -------------------------------------------------------------------

    def is_success(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return (...,) bool for goals of shape (..., goal_dim): every success region holds."""
        reached = None
        for region in self.spec.success:
            within = self._distance(region, achieved_goal, desired_goal) < region.radius
            reached = within if reached is None else reached & within
        return reached

    def goal_distance(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return the Euclidean distance over the first success region's slice, shape (...,)."""
        return self._distance(self.spec.success[0], achieved_goal, desired_goal)

    @staticmethod
    def _distance(region: SuccessRegion, achieved_goal: Any, desired_goal: Any) -> Any:
        difference = region.mean_point(achieved_goal - desired_goal)
        return (difference**2).sum(-1) ** 0.5

    def sample_start(
        self, distribution: str, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw initial positions and velocities, and goals; the rest of the state is `start_state`'s.

        Returns:
            qpos (count, nq), qvel (count, nv), desired goal (count, goal_dim), all float64.
        """
        positions, goals = self.spec.distribution(distribution).sample(rng, count)
        qpos, qvel = self._starts[distribution].sample(rng, positions)
        return qpos, qvel, goals

    def start_state(self, distribution: str) -> np.ndarray:
        """Return the integration state that a distribution's episodes start in, (state size,) float64.

        Its positions and velocities are those before anything is drawn: `sample_start` draws the episode's.
        """
        self.spec.distribution(distribution)
        return self._starts[distribution].base

    def start_data(self, distribution: str) -> mujoco.MjData:
        """Return an `MjData` in a distribution's start state; nothing is computed from it yet."""
        data = mujoco.MjData(self.model)
        mujoco.mj_setState(self.model, data, self.start_state(distribution), STATE)
        return data

    # -- documentation ----------------------------------------------------------------------------

    def describe(self, part: str) -> list[dict[str, str]]:
        """Return name and unit of every number of ``observation`` or ``achieved_goal``, in order.

        `element_names.describe_elements` says how they are called.
        """
        return [
            element for columns in self._terms(part) for element in describe_elements(self.model, columns)
        ]

    def earlier_names(self, part: str) -> list[str]:
        """Return how files of earlier versions call the same numbers: see `element_names.earlier_names`."""
        return [name for columns in self._terms(part) for name in earlier_names(self.model, columns)]

    def _terms(self, part: str) -> list[TermColumns]:
        return {"observation": self._observation, "achieved_goal": self._achieved_goal}[part]


def _compile(task: GoalTask) -> tuple[mujoco.MjModel, list[str]]:
    try:
        model, found = compile_spec(task.build_spec())
    except ValueError as error:
        raise TaskError(
            f"Task {task.name!r}: MuJoCo refuses the model: {' '.join(str(error).split())}"
        ) from error
    if not np.isfinite(model.qpos0).all():
        raise TaskError(f"Task {task.name!r}: the model's initial positions hold NaN or infinity.")
    return model, found
