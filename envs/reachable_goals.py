"""Goals that a model reaches for certain: what it achieves in states with joints drawn in their ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mujoco
import numpy as np

from thousandfold.envs.mujoco_log import quiet_mujoco
from thousandfold.envs.object_names import find_object, object_names
from thousandfold.envs.start_states import STATE, StartStates
from thousandfold.envs.task import EarlyEnd, EpisodeDistribution, GoalTask, TaskError
from thousandfold.envs.term_columns import TermColumns, TermResolver, leave_bounds, read_terms

_JOINT = mujoco.mjtJoint
POOL = 4096
"""States that are looked for, once a compiled task and episode distribution: a goal is one of them."""
_TRIES = 10 * POOL
_LEAST = 16
_CHUNK = 256
_VIOLATED = 0.01  # of the model's extent, or of a radian: an equality that a state would break


@dataclass(frozen=True)
class ReachableGoals:
    """What is achieved, at rest, in states whose joints are drawn uniformly in their ranges.

    All else is as in a start that is drawn with it. A compiled task draws them: `require_drawable`.

    Attributes:
        joints: hinges and slides by name; None takes all that have a range.
        margin: the share of its range that a joint keeps from either end.
        collision_free: leave out states in which geoms penetrate that do not in the initial state.
        low, high: bounds of the goal's first numbers, to leave out others; empty: none.
    """

    joints: tuple[str, ...] | None = None
    margin: float = 0.05
    collision_free: bool = True
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Raise TypeError: without the model nothing can be drawn."""
        raise TypeError("reachable goals are drawn by a compiled task")


class ReachableStates:
    """Draws reachable goals from a pool that is the same for the same model, task and distribution.

    Args:
        model: the compiled model.
        goals: what to draw.
        starts: draws what the joints do not say.
        reset: what `starts` was made of.
        goal: the resolved terms of the achieved goal.
        ends: early ends with their resolved terms; states that they hold in are left out.
        owner: how errors begin.
        name: the episode distribution's.

    Raises:
        TaskError: a joint that the model does not have or that has no range, or bounds of the wrong size.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        goals: ReachableGoals,
        starts: StartStates,
        episodes: EpisodeDistribution,
        goal: Sequence[TermColumns],
        ends: Sequence[tuple[EarlyEnd, Sequence[TermColumns]]],
        owner: str,
        name: str,
    ) -> None:
        self._model, self._goals, self._starts, self._reset = model, goals, starts, episodes.starts
        self._goal, self._ends, self._owner, self._name = goal, ends, owner, name
        self._joints = self._ranges()
        if len(goals.low) > goal[-1].stop:
            raise TaskError(
                f"{owner}: within has {len(goals.low)} numbers, and the achieved_goal {goal[-1].stop}.",
                ("reachable", "within"),
            )

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` goals, shape (count, goal_dim)."""
        return self.pool[rng.integers(len(self.pool), size=count)]

    def _ranges(self) -> list[tuple[int, float, float]]:
        """Return column of qpos, least and largest position of every joint that is drawn."""
        model, names = self._model, object_names(self._model, mujoco.mjtObj.mjOBJ_JOINT)
        coupled = {
            int(model.eq_obj1id[each])
            for each in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_JOINT)
            if model.eq_active0[each]
        }
        chosen = self._goals.joints
        if chosen is None:
            chosen = [
                name
                for joint, name in enumerate(names)
                if model.jnt_limited[joint] and joint not in coupled and self._is_single(joint)
            ]
            if not chosen:
                raise TaskError(
                    f"{self._owner}: no hinge or slide of the model has a range to draw from.", ("reachable",)
                )
        found = []
        for place, name in enumerate(chosen):
            entry = ("reachable", "joints", place)
            try:
                joint = find_object(model, mujoco.mjtObj.mjOBJ_JOINT, name, self._owner)
            except TaskError as error:
                raise TaskError(str(error), entry) from None
            if joint in coupled:
                raise TaskError(
                    f"{self._owner}: an equality constraint determines joint {name!r}: leave the joint out.",
                    entry,
                )
            turns = _JOINT(model.jnt_type[joint]) == _JOINT.mjJNT_HINGE
            if not self._is_single(joint) or not (model.jnt_limited[joint] or turns):
                raise TaskError(
                    f"{self._owner}: joint {name!r} is no hinge, and no slide with a range, to draw from.",
                    entry,
                )
            low, high = map(float, model.jnt_range[joint]) if model.jnt_limited[joint] else (-np.pi, np.pi)
            margin = self._goals.margin * (high - low)
            found.append((int(model.jnt_qposadr[joint]), low + margin, high - margin))
        return found

    def _is_single(self, joint: int) -> bool:
        return _JOINT(self._model.jnt_type[joint]) in (_JOINT.mjJNT_HINGE, _JOINT.mjJNT_SLIDE)

    @cached_property
    def pool(self) -> np.ndarray:
        """The goals that are drawn from, (at most `POOL`, goal_dim).

        Raises:
            TaskError: hardly any state is left.
        """
        data = mujoco.MjData(self._model)
        rng = np.random.default_rng([*self._name.encode()])
        found: list[np.ndarray] = []
        tried = touching = 0
        with quiet_mujoco():
            self._put(data, self._starts.base[:0])
            at_start = self._penetrating(data)
            while len(found) < POOL and tried < _TRIES:
                for qpos in self._draw(rng):
                    self._put(data, qpos)
                    tried += 1
                    if self._goals.collision_free and not self._penetrating(data) <= at_start:
                        touching += 1
                    elif (goal := self._achieved(data)) is not None:
                        found.append(goal)
        if len(found) < _LEAST:
            raise TaskError(
                f"{self._owner}: only {len(found)} of {tried:,} drawn states can be goals: in {touching:,} "
                "geoms penetrate that do not at the start; the others are outside `within`, end the episode "
                "or violate an equality.",
                ("reachable",),
            )
        return np.stack(found[:POOL])

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return positions of some states, (_CHUNK, nq)."""
        qpos, _ = self._starts.sample(rng, self._reset.sample(rng, _CHUNK))
        for column, low, high in self._joints:
            qpos[:, column] = rng.uniform(low, high, _CHUNK)
        model = self._model
        for each in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_JOINT):
            one, other = int(model.eq_obj1id[each]), int(model.eq_obj2id[each])
            if model.eq_active0[each]:
                column, away = int(model.jnt_qposadr[one]), np.zeros(_CHUNK)
                if other >= 0:
                    leads = int(model.jnt_qposadr[other])
                    away = qpos[:, leads] - model.qpos0[leads]
                polynomial = model.eq_data[each, :5]
                qpos[:, column] = model.qpos0[column] + np.polynomial.polynomial.polyval(away, polynomial)
        return qpos

    def _put(self, data: mujoco.MjData, qpos: np.ndarray) -> None:
        """Compute a state at rest; without positions the initial one."""
        model = self._model
        mujoco.mj_setState(model, data, self._starts.base, STATE)
        if len(qpos):
            data.qpos[:], data.qvel[:] = qpos, 0.0
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_sensorPos(model, data)
        mujoco.mj_fwdVelocity(model, data)
        mujoco.mj_sensorVel(model, data)

    @staticmethod
    def _penetrating(data: mujoco.MjData) -> set[tuple[int, int]]:
        deep = (data.contact.dist < 0) & (data.contact.exclude == 0)
        return {(int(one), int(other)) for one, other in np.sort(data.contact.geom[deep], axis=1)}

    def _achieved(self, data: mujoco.MjData) -> np.ndarray | None:
        """Return the goal of a state, (goal_dim,); None for one that is left out."""
        equal = data.efc_type[: data.nefc] == mujoco.mjtConstraint.mjCNSTR_EQUALITY
        if (np.abs(data.efc_pos[: data.nefc][equal]) > _VIOLATED * max(self._model.stat.extent, 1.0)).any():
            return None
        if any(
            leave_bounds(columns, end.low, end.high, _fields(data, columns))[0] for end, columns in self._ends
        ):
            return None
        goal = achieved_goal(data, self._goal)
        bounded = goal[: len(self._goals.low)]
        return goal if ((self._goals.low <= bounded) & (bounded <= self._goals.high)).all() else None


def _fields(data: mujoco.MjData, terms: Sequence[TermColumns]) -> dict[str, np.ndarray]:
    """Return the fields that terms read, (1, width) each."""
    return {name: getattr(data, name).reshape(1, -1) for each in terms for name in each.fields}


def achieved_goal(data: mujoco.MjData, goal: Sequence[TermColumns]) -> np.ndarray:
    """Return what a computed state achieves, (goal_dim,) float64, by the resolved terms of the goal."""
    out = np.zeros((1, goal[-1].stop))
    read_terms(list(goal), _fields(data, goal), out, np)
    return out[0]


def require_drawable(
    model: mujoco.MjModel, task: GoalTask, name: str, starts: StartStates, owner: str
) -> EpisodeDistribution:
    """Return an episode distribution of a task with goals that can be drawn.

    Raises:
        TaskError: they are reachable ones that do not suit the model.
    """
    episodes = task.distribution(name)
    if not isinstance(episodes.goals, ReachableGoals):
        return episodes
    resolver = TermResolver(model, owner)
    states = ReachableStates(
        model,
        episodes.goals,
        starts,
        episodes,
        resolver.resolve(task.achieved_goal),
        [(end, resolver.resolve((end.term,))) for end in task.early_end],
        owner,
        # Whatever is evaluated draws from one pool: a seed has the same goals there, whatever varies.
        name if name in ("training", "near") else "evaluation",
    )
    return replace(episodes, goals=states)
