"""Which goals lie below a floor: an infinite plane that stands still, and that what shall get there meets."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.term_columns import TermResolver

_PLANE, _FREE = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtJoint.mjJNT_FREE)
_NO_CONTACT = int(mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)


@dataclass(frozen=True)
class _Point:
    """Three numbers of the goal that are the position of a point of a body.

    Attributes:
        start: where in the goal they begin.
        body: the body's id.
        position: of the point in the body's frame, (3,) in metres.
    """

    start: int
    body: int
    position: np.ndarray


@dataclass(frozen=True)
class _Floor:
    """A plane that a point cannot be below.

    Attributes:
        start: where in the goal the point's numbers begin.
        normal: of the plane, (3,), upwards.
        lowest: the least ``normal · point`` at which the goal is met.
    """

    start: int
    normal: np.ndarray
    lowest: float


class FloorReach:
    """Looks for goals that a floor keeps out of reach.

    A geom's centre stays above the plane that it collides with. So a point of its body can be below by no
    more than its distance from that centre, and a goal by the success radius more.

    Args:
        task: the compiled task.
    """

    def __init__(self, task: CompiledTask) -> None:
        self._task, self._model = task, task.model
        data = mujoco.MjData(task.model)
        mujoco.mj_kinematics(task.model, data)
        collides = not task.model.opt.disableflags & _NO_CONTACT
        self._floors = [
            floor
            for point in (self._points() if collides else [])
            for plane in np.flatnonzero(task.model.geom_type == _PLANE)
            if (floor := self._floor(point, int(plane), data)) is not None
        ]

    def below(self, goal: np.ndarray) -> bool:
        """Return whether a goal, (goal_dim,), is below a floor by more than the success radius."""
        return any(
            float(floor.normal @ goal[floor.start : floor.start + 3]) < floor.lowest for floor in self._floors
        )

    def _points(self) -> list[_Point]:
        """Return what of the achieved goal is the place of a body, of a site or of a free joint."""
        model, found = self._model, []
        for columns in TermResolver(model, "the task").resolve(self._task.task.achieved_goal):
            term = columns.term
            if term.minus is not None or term.transform != "identity":
                continue
            source = TermResolver(model, "the task").columns(term)[:3]
            if len(source) < 3 or (np.diff(source) != 1).any():
                continue
            first = int(source[0])
            if term.field == "xpos" and first % 3 == 0:
                found.append(_Point(columns.start, first // 3, np.zeros(3)))
            elif term.field == "site_xpos" and first % 3 == 0:
                site = first // 3
                found.append(_Point(columns.start, int(model.site_bodyid[site]), model.site_pos[site]))
            elif term.field == "qpos":
                free = np.flatnonzero((model.jnt_qposadr == first) & (model.jnt_type == _FREE))
                found += [_Point(columns.start, int(model.jnt_bodyid[each]), np.zeros(3)) for each in free]
        return found

    def _floor(self, point: _Point, plane: int, data: mujoco.MjData) -> _Floor | None:
        """Return what a plane means for a point; None where it moves, or nothing of the body meets it."""
        model = self._model
        radii = [
            region.radius
            for region in self._task.task.success
            if region.points == 1
            and region.start <= point.start
            and point.start + 3 <= (self._task.goal_dim if region.stop is None else region.stop)
        ]
        meets = (model.geom_contype & model.geom_conaffinity[plane]) | (
            model.geom_conaffinity & model.geom_contype[plane]
        )
        geoms = np.flatnonzero((model.geom_bodyid == point.body) & (meets != 0))
        if not radii or not len(geoms) or model.body_weldid[model.geom_bodyid[plane]] != 0:
            return None
        normal = data.geom_xmat[plane].reshape(3, 3)[:, 2].copy()
        away = np.linalg.norm(model.geom_pos[geoms] - point.position, axis=1).min()
        return _Floor(point.start, normal, float(normal @ data.geom_xpos[plane]) - min(radii) - float(away))
