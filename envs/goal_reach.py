"""Whether goals can be reached at all: what the joints' ranges allow, without contacts and dynamics.

Random configurations and, from the nearest of them, damped least squares on the distance to the goal
(Levenberg-Marquardt) with the joints kept in their ranges. A goal for which a configuration is found can be
reached as far as geometry goes; one for which none is found most likely cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.compiled_task import CompiledTask

_OF_CONFIGURATION = {"qpos", "xpos", "xquat", "site_xpos", "cinert", "sensordata"}
_RANDOM_CONFIGURATIONS, _STARTS, _ITERATIONS = 1500, 3, 25
_DIFFERENCE = 1e-6
_FREE, _BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
_HINGE = int(mujoco.mjtJoint.mjJNT_HINGE)


@dataclass(frozen=True)
class ReachReport:
    """What became of some goals.

    Attributes:
        goals: how many were tried.
        out_of_reach: how many no configuration was found for.
        farthest: the largest of their distances to the nearest configuration found, over the first success
            region; 0 where all can be reached.
    """

    goals: int
    out_of_reach: int
    farthest: float


class GoalReach:
    """Looks for configurations of a task's model that reach its goals.

    Args:
        task: the compiled task.
        seed: of the random configurations.
    """

    def __init__(self, task: CompiledTask, seed: int = 0) -> None:
        self._task, self._model = task, task.model
        self._data = mujoco.MjData(task.model)
        self._rng = np.random.default_rng(seed)
        terms = task.task.achieved_goal
        self._fields = {term.field for term in terms} | {term.minus.field for term in terms if term.minus}
        self._limited = [
            (int(self._model.jnt_qposadr[joint]), *map(float, self._model.jnt_range[joint]))
            for joint in range(self._model.njnt)
            if self._model.jnt_limited[joint] and self._model.jnt_type[joint] not in (_FREE, _BALL)
        ]

    @property
    def can_judge(self) -> bool:
        """Whether the achieved goal follows from the positions of the joints alone."""
        if not self._fields <= _OF_CONFIGURATION:
            return False
        positional = self._model.sensor_needstage <= int(mujoco.mjtStage.mjSTAGE_POS)
        return "sensordata" not in self._fields or bool(positional.all())

    def judge(self, distribution: str, goals: int) -> ReachReport:
        """Draw so many goals of an episode distribution, and look for configurations that reach them."""
        qpos, _, desired = self._task.sample_start(distribution, self._rng, goals)
        configurations = self._random_configurations(qpos)
        achieved = np.stack([self._achieve(each) for each in configurations])
        distances = [
            self._closest(goal, configurations, achieved, start)
            for goal, start in zip(desired, qpos, strict=True)
        ]
        missed = [distance for distance in distances if distance is not None]
        return ReachReport(goals, len(missed), max(missed, default=0.0))

    def _random_configurations(self, starts: np.ndarray) -> np.ndarray:
        """Return starts with every hinge and limited slide anywhere in its range, (configurations, nq)."""
        chosen = self._rng.integers(len(starts), size=_RANDOM_CONFIGURATIONS)
        configurations = starts[chosen].copy()
        for joint in range(self._model.njnt):
            kind, column = self._model.jnt_type[joint], self._model.jnt_qposadr[joint]
            if kind == _HINGE and not self._model.jnt_limited[joint]:
                configurations[:, column] = self._rng.uniform(-np.pi, np.pi, len(configurations))
        for column, low, high in self._limited:
            configurations[:, column] = self._rng.uniform(low, high, len(configurations))
        return configurations

    def _achieve(self, qpos: np.ndarray) -> np.ndarray:
        """Return the achieved goal of a configuration, (goal_dim,)."""
        self._data.qpos[:] = qpos
        if "sensordata" in self._fields:
            mujoco.mj_fwdPosition(self._model, self._data)
            mujoco.mj_sensorPos(self._model, self._data)
        else:
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
        out = np.zeros((1, self._task.goal_dim))
        fields = {name: getattr(self._data, name).reshape(1, -1) for name in self._fields}
        self._task.read_achieved_goal(fields, out)
        return out[0]

    def _closest(
        self, goal: np.ndarray, configurations: np.ndarray, achieved: np.ndarray, start: np.ndarray
    ) -> float | None:
        """Return how near a configuration comes to a goal; None where it reaches it."""
        nearest = np.argsort(self._task.goal_distance(achieved, goal))[:_STARTS]
        distances = []
        for qpos in (*configurations[nearest], start):
            found = self._refine(qpos.copy(), goal)
            reached = self._achieve(found)
            if self._task.is_success(reached, goal):
                return None
            distances.append(float(self._task.goal_distance(reached, goal)))
        return min(distances)

    def _refine(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return a configuration nearer to the goal."""
        damping, residual = 1e-3, self._residual(qpos, goal)
        for _ in range(_ITERATIONS):
            if self._task.is_success(self._achieve(qpos), goal):
                break
            jacobian = self._jacobian(qpos, goal, residual)
            normal = jacobian.T @ jacobian + damping * np.eye(self._model.nv)
            moved = self._moved(qpos, -np.linalg.solve(normal, jacobian.T @ residual))
            after = self._residual(moved, goal)
            if after @ after < residual @ residual:
                qpos, residual, damping = moved, after, max(damping / 3, 1e-6)
            else:
                damping *= 10
        return qpos

    def _residual(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return what success is about: of each region, the mean difference of its points."""
        difference = self._achieve(qpos) - goal
        return np.concatenate(
            [
                difference[region.start : region.stop].reshape(region.points, -1).mean(0)
                for region in self._task.task.success
            ]
        )

    def _jacobian(self, qpos: np.ndarray, goal: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Return the residual's derivative by each degree of freedom, (residuals, nv)."""
        columns = []
        for step in _DIFFERENCE * np.eye(self._model.nv):
            columns.append((self._residual(self._integrated(qpos, step), goal) - residual) / _DIFFERENCE)
        return np.stack(columns, axis=1)

    def _integrated(self, qpos: np.ndarray, step: np.ndarray) -> np.ndarray:
        moved = qpos.copy()
        mujoco.mj_integratePos(self._model, moved, step, 1.0)
        return moved

    def _moved(self, qpos: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return the configuration after a step, with the joints in their ranges."""
        moved = self._integrated(qpos, step)
        for column, low, high in self._limited:
            moved[column] = np.clip(moved[column], low, high)
        return moved
