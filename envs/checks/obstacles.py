"""Goals that floors and the walls of a maze keep out of reach.

A floor is an infinite plane that stands still and that the body of the goal collides with. Walls enclose what
lies within them, and all to which no path leads from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mazes import path_lengths, wall_runs
from thousandfold.envs.term_columns import TermResolver

_PLANE, _FREE = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtJoint.mjJNT_FREE)
_PADDING = 2  # cells around the layout: free ones, for a maze that can be left, and a wall around them
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
        resolver = TermResolver(model, "the task")
        for columns in resolver.resolve(self._task.spec.achieved_goal):
            term = columns.term
            if term.transform != "identity" or term.frame is not None:
                continue
            source = resolver.columns(term)[:3]
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
            max(region.number_radius(point.start + index) for index in range(3))
            for region in self._task.spec.success
            if region.points == 1 and region.covers(point.start, point.start + 2)
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


class MazeReach:
    """Looks for goals that the walls of a task's maze keep out of reach.

    Attributes:
        can_judge: whether the model has the walls of the task's maze, and the goal says where in it it lies.
    """

    def __init__(self, task: CompiledTask) -> None:
        self._plane = tuple(task.spec.scene.goal_position or ())
        radii = [
            max(map(region.number_radius, self._plane[:2]), default=region.radius)
            for region in task.spec.success
            if region.points == 1 and region.covers(*self._plane[:2])
        ]
        wall = self._first_wall(task)
        self.can_judge = wall is not None and len(self._plane) >= 2 and bool(radii)
        if wall is None or not self.can_judge or task.spec.maze is None:
            return
        self._origin, self._top = wall
        self._radius, self._scale = min(radii), task.spec.maze.scale
        rows = task.spec.maze.layout.split()
        inner = [f"#.{row}.#" for row in ("." * len(rows[0]), *rows, "." * len(rows[0]))]
        outer = "#" * len(inner[0])
        self._rows = [outer, *inner, outer]
        layout = " ".join(self._rows)
        self._reachable = cache(lambda cell: np.array(list(path_lengths(layout, cell))))

    @staticmethod
    def _first_wall(task: CompiledTask) -> tuple[np.ndarray, float] | None:
        """Return where cell (0, 0) lies and how high the walls are, in metres; None without walls."""
        maze = task.spec.maze
        runs = [] if maze is None else wall_runs(maze.layout)
        if maze is None or not runs:
            return None
        row, first, last = runs[0]
        geom = mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_GEOM, f"wall_{row}_{first}")
        if geom < 0:
            return None
        x, y, z = task.model.geom_pos[geom]
        origin = np.array([x - maze.scale * row, y - maze.scale * (first + last) / 2])
        return origin, float(z + task.model.geom_size[geom, 2])

    def walled_off(self, start: np.ndarray, goal: np.ndarray) -> bool:
        """Return whether nothing within the success radius of a goal can be come to from a start.

        A goal above the walls can, and so can one within a wall that is near enough to a free cell.

        Args:
            start: the goal that is achieved at the start, (goal_dim,).
            goal: the goal, (goal_dim,).
        """
        if len(self._plane) > 2 and goal[self._plane[2]] > self._top:
            return False
        row, column = np.rint(self._in_cells(start)).astype(int)
        away = np.abs(self._in_cells(goal) - self._reachable((int(row), int(column)))) - 0.5
        distances = self._scale * np.sqrt((np.maximum(away, 0.0) ** 2).sum(1))
        return bool(distances.min() >= self._radius)

    def _in_cells(self, goal: np.ndarray) -> np.ndarray:
        """Return row and column of a goal in the padded layout, no whole numbers."""
        cells = (goal[list(self._plane[:2])] - self._origin) / self._scale + _PADDING
        # All that is farther away is as free as the padding.
        return np.clip(cells, 1.0, [len(self._rows) - 2.0, len(self._rows[0]) - 2.0])
