"""Which goals of a maze with walls lie within a wall, or where no path leads from the start."""

from __future__ import annotations

from functools import cache

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mazes import path_lengths, wall_runs

_PADDING = 2  # cells around the layout: free ones, for a maze that can be left, and a wall around them


class MazeReach:
    """Looks for goals that the walls of a task's maze keep out of reach.

    Args:
        task: the compiled task.

    Attributes:
        can_judge: whether the model has the walls of the task's maze, and the goal says where in it it lies.
    """

    def __init__(self, task: CompiledTask) -> None:
        self._plane = tuple(task.task.scene.goal_position or ())
        regions = [
            region.radius
            for region in task.task.success
            if region.points == 1
            and all(
                region.start <= column < (task.goal_dim if region.stop is None else region.stop)
                for column in self._plane[:2]
            )
        ]
        wall = self._first_wall(task)
        self.can_judge = wall is not None and len(self._plane) >= 2 and bool(regions)
        if wall is None or not self.can_judge or task.task.maze is None:
            return
        self._origin, self._top = wall
        self._radius, self._scale = min(regions), task.task.maze.scale
        rows = task.task.maze.layout.split()
        inner = [f"#.{row}.#" for row in ("." * len(rows[0]), *rows, "." * len(rows[0]))]
        outer = "#" * len(inner[0])
        self._rows = [outer, *inner, outer]
        layout = " ".join(self._rows)
        self._reachable = cache(lambda cell: np.array(list(path_lengths(layout, cell))))

    @staticmethod
    def _first_wall(task: CompiledTask) -> tuple[np.ndarray, float] | None:
        """Return where cell (0, 0) lies and how high the walls are, in metres; None without walls."""
        maze = task.task.maze
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
