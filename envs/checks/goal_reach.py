"""Whether goals can be reached at all: what the joints' ranges allow, without contacts and dynamics.

Random configurations and, from the nearest of them, damped least squares on the distance to the goal
(Levenberg-Marquardt) with the joints kept in their ranges, and away from what ends an episode early, where
positions tell. A goal for which a configuration is found can be reached as far as geometry goes; one for
which none is found most likely cannot. Walls of a maze and floors are looked at apart.

A body that nothing drives directly, such as a cube on a free joint or the torso of a walker, goes anywhere in
this sense: whether something brings it there is a matter of contacts, and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mujoco
import numpy as np

from thousandfold.envs.checks.obstacles import FloorReach, MazeReach
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.reachable_goals import ReachableGoals
from thousandfold.envs.task import Term

_OF_CONFIGURATION = {
    "qpos", "xpos", "xquat", "xmat", "site_xpos", "site_xmat", "geom_xpos", "geom_xmat", "cinert",
    "sensordata",
}  # fmt: skip
_STARTS, _ITERATIONS = 3, 25
_DIFFERENCE = 1e-6
_MOVES_GOAL, _MOVES_JOINT = 1e-6, 1e-9
_MOMENTS_AT = 5  # configurations: an arm of force may vanish in one
_FREE, _BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)


@dataclass(frozen=True)
class ReachReport:
    """What became of some goals.

    Attributes:
        goals: how many were tried.
        out_of_reach: how many no configuration was found for, of those that are neither walled off nor below
            a floor.
        farthest: the largest of their distances to the nearest configuration found, over the first success
            region; 0 where all can be reached.
        walled_off: how many lie within walls of the maze, or where no path leads from their start.
        below_floor: how many of the others lie below a floor.
    """

    goals: int
    out_of_reach: int
    farthest: float
    walled_off: int = 0
    below_floor: int = 0

    @property
    def share(self) -> float:
        """The share of the goals that most likely cannot be reached."""
        return (self.out_of_reach + self.walled_off + self.below_floor) / self.goals


class GoalReach:
    """Looks for configurations of a task's model that reach its goals.

    Args:
        task: the compiled task.
        seed: of goals and random configurations.
        configurations: how many random ones to look at; with too few, goals seem out of reach that are not.
    """

    def __init__(self, task: CompiledTask, seed: int = 0, configurations: int = 1500) -> None:
        self._task, self._model = task, task.model
        self._data = task.start_data("training")
        self._rng = np.random.default_rng(seed)
        self._num_configurations = configurations
        self._maze, self._floor = MazeReach(task), FloorReach(task)
        ends = task.spec.early_end
        self._ends = [index for index, end in enumerate(ends) if self._is_positional((end.term,))]
        read = [*task.spec.achieved_goal, *(ends[index].term for index in self._ends)]
        self._fields = _fields_of(read)
        self._limited = [
            (int(self._model.jnt_qposadr[joint]), *map(float, self._model.jnt_range[joint]))
            for joint in range(self._model.njnt)
            if self._model.jnt_limited[joint] and self._model.jnt_type[joint] not in (_FREE, _BALL)
        ]

    @property
    def can_judge(self) -> bool:
        """Whether the achieved goal follows from the positions of the joints alone."""
        return self._is_positional(self._task.spec.achieved_goal)

    @cached_property
    def is_driven(self) -> bool:
        """Whether actuators act on all joints without bounds that success depends on.

        Free joints and slides without a range are meant: hinges and balls have a bounded reach.
        """
        rng = np.random.default_rng(0)  # its own, so that `judge` draws the same before and after
        starts, _, goals = self._task.sample_start("training", rng, 1)
        loose = self._undriven_columns(self._random_configurations(starts, rng, _MOMENTS_AT))
        jacobian = self._jacobian(starts[0], goals[0], self._residual(starts[0], goals[0]))
        return not (np.abs(jacobian[:, loose]) > _MOVES_GOAL).any()

    def _undriven_columns(self, configurations: np.ndarray) -> np.ndarray:
        """Return (nv,) bool: degrees of freedom of joints without bounds that no actuator acts on."""
        model, data = self._model, self._data
        moment, driven = np.zeros((model.nu, model.nv)), np.zeros(model.nv, bool)
        for qpos in configurations:
            data.qpos[:] = qpos
            mujoco.mj_fwdPosition(model, data)
            sparse = data.moment_rownnz, data.moment_rowadr, data.moment_colind
            mujoco.mju_sparse2dense(moment, data.actuator_moment, *sparse)
            driven |= (np.abs(moment) > _MOVES_JOINT).any(0)
        loose = np.zeros(model.nv, bool)
        for joint in range(model.njnt):
            kind, own = model.jnt_type[joint], model.dof_jntid == joint
            unbounded = kind == _FREE or (kind == _SLIDE and not model.jnt_limited[joint])
            loose[own] = unbounded and not driven[own].any()
        return loose

    def _is_positional(self, terms: Sequence[Term]) -> bool:
        fields = _fields_of(terms)
        if not fields <= _OF_CONFIGURATION:
            return False
        positional = self._model.sensor_needstage <= int(mujoco.mjtStage.mjSTAGE_POS)
        return "sensordata" not in fields or bool(positional.all())

    def judge(self, distribution: str, goals: int) -> ReachReport:
        """Draw so many goals of an episode distribution, and look for configurations that reach them."""
        self._data = self._task.start_data(distribution)  # bodies moved from outside stay where it puts them
        if isinstance(self._task.spec.distribution(distribution).goals, ReachableGoals):
            return ReachReport(goals, 0, 0.0)
        qpos, _, desired = self._task.sample_start(distribution, self._rng, goals)
        configurations = self._random_configurations(qpos, self._rng, self._num_configurations)
        allowed = np.array([self._is_allowed(each) for each in configurations])
        configurations = configurations[allowed] if allowed.any() else configurations
        achieved = np.stack([self._achieve(each) for each in configurations])
        walled = np.zeros(goals, bool)
        if self._maze.can_judge:
            walled[:] = [
                self._maze.walled_off(self._achieve(start), goal)
                for goal, start in zip(desired, qpos, strict=True)
            ]
        below = ~walled & np.array([self._floor.below(goal) for goal in desired])
        open_ones = ~walled & ~below
        distances = [
            self._closest(goal, configurations, achieved, start)
            for goal, start in zip(desired[open_ones], qpos[open_ones], strict=True)
        ]
        missed = [distance for distance in distances if distance is not None]
        farthest = max(missed, default=0.0)
        return ReachReport(goals, len(missed), farthest, int(walled.sum()), int(below.sum()))

    def _random_configurations(self, starts: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return starts with every hinge and limited slide anywhere in its range, (count, nq)."""
        chosen = rng.integers(len(starts), size=count)
        configurations = starts[chosen].copy()
        for joint in range(self._model.njnt):
            kind, column = self._model.jnt_type[joint], self._model.jnt_qposadr[joint]
            if kind == _HINGE and not self._model.jnt_limited[joint]:
                configurations[:, column] = rng.uniform(-np.pi, np.pi, len(configurations))
        for column, low, high in self._limited:
            configurations[:, column] = rng.uniform(low, high, len(configurations))
        return configurations

    def _achieve(self, qpos: np.ndarray) -> np.ndarray:
        """Return the achieved goal of a configuration, (goal_dim,)."""
        out = np.zeros((1, self._task.goal_dim))
        self._task.read_achieved_goal(self._read(qpos), out)
        return out[0]

    def _is_allowed(self, qpos: np.ndarray) -> bool:
        """Return whether a configuration does not end the episode early, as far as that can be told."""
        fields = self._read(qpos) if self._ends else {}
        return not any(self._task.early_end_holds(index, fields)[0] for index in self._ends)

    def _read(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Return the fields of a configuration, each (1, width)."""
        self._data.qpos[:] = qpos
        if "sensordata" in self._fields:
            mujoco.mj_fwdPosition(self._model, self._data)
            mujoco.mj_sensorPos(self._model, self._data)
        else:
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
        return {name: getattr(self._data, name).reshape(1, -1) for name in self._fields}

    def _closest(
        self, goal: np.ndarray, configurations: np.ndarray, achieved: np.ndarray, start: np.ndarray
    ) -> float | None:
        """Return how near a configuration comes to a goal; None where it reaches it."""
        regions = self._task.spec.success
        away = sum(region.distance(achieved, goal) / region.radius for region in regions)
        nearest = np.argsort(away)[:_STARTS]
        distances = []
        for qpos in (*configurations[nearest], start):
            found = self._refine(qpos.copy(), goal)
            reached = self._achieve(found)
            allowed = self._is_allowed(found)
            if allowed and self._task.is_success(reached, goal):
                return None
            distances.append((not allowed, float(self._task.goal_distance(reached, goal))))
        return min(distances)[1]

    def _refine(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return a configuration nearer to the goal."""
        damping, residual = 1e-3, self._residual(qpos, goal)
        allowed = self._is_allowed(qpos)
        for _ in range(_ITERATIONS):
            if allowed and self._task.is_success(self._achieve(qpos), goal):
                break
            jacobian = self._jacobian(qpos, goal, residual)
            normal = jacobian.T @ jacobian + damping * np.eye(self._model.nv)
            moved = self._moved(qpos, -np.linalg.solve(normal, jacobian.T @ residual))
            for column, low, high in self._limited:
                moved[column] = np.clip(moved[column], low, high)
            after = self._residual(moved, goal)
            stays = self._is_allowed(moved)
            if after @ after < residual @ residual and (stays or not allowed):
                qpos, residual, damping, allowed = moved, after, max(damping / 3, 1e-6), stays
            else:
                damping *= 10
        return qpos

    def _residual(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return what success is about: of each region, the mean difference of its points."""
        difference = self._achieve(qpos) - goal
        parts = [
            region.mean_point(difference) / (np.asarray(region.scale) if region.scale else 1.0)
            for region in self._task.spec.success
        ]
        return np.concatenate(parts)

    def _jacobian(self, qpos: np.ndarray, goal: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Return the residual's derivative by each degree of freedom, (residuals, nv)."""
        columns = []
        for step in _DIFFERENCE * np.eye(self._model.nv):
            columns.append((self._residual(self._moved(qpos, step), goal) - residual) / _DIFFERENCE)
        return np.stack(columns, axis=1)

    def _moved(self, qpos: np.ndarray, step: np.ndarray) -> np.ndarray:
        moved = qpos.copy()
        mujoco.mj_integratePos(self._model, moved, step, 1.0)
        return moved


def _fields_of(terms: Sequence[Term]) -> set[str]:
    """Return the data fields that some terms read."""
    read = {each.field for term in terms for each in (term, term.minus) if each is not None}
    return read | ({"xmat", "xpos"} if any(term.frame is not None for term in terms) else set())
