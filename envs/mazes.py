"""Maze layouts, the walls, cells, paths and episodes that come from them, and what was visited of a maze.

A layout is rows of ``#`` wall, ``R`` start, ``G`` goal and ``.`` free, separated by spaces. The cell in
row i and column j has its centre at (x, y) = scale * (i, j).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property

import mujoco
import numpy as np

from thousandfold.envs.distributions import (
    CellPositions,
    ConcatenatedPositions,
    PositionDistribution,
    constant,
)
from thousandfold.envs.task import EpisodeDistribution, MazePicture, Reset, ScenePicture, TaskError

FREE = "RG."
"""The kinds of cells that are no wall."""

LAYOUTS = {
    "u": "##### #RGG# ###G# #GGG# #####",
    "u_eval": "##### #R..# ###.# #GGG# #####",
    "u2": "###### #RGGG# ####G# #GGGG# ######",
    "u2_eval": "###### #R...# ####.# #GGGG# ######",
    "u3": "####### #RGGGG# #####G# #GGGGG# #######",
    "u3_eval": "####### #R....# #####.# #GGGGG# #######",
    "u4": "##### #GGG# #R#G# ###G# #G#G# #GGG# #####",
    "u4_eval": "##### #...# #R#.# ###.# #G#.# #GGG# #####",
    "u5": "######## #GGGGGG# #R####G# ######G# #G####G# #GGGGGG# ########",
    "u5_eval": "######## #......# #R####.# ######.# #G####G# #GGGGGG# ########",
    "big": "######## #RG##GG# #GG#GGG# ##GGG### #GG#GGG# #G#GG#G# #GGG#GG# ########",
    "big_eval": "######## #R.##GG# #..#..G# ##...### #..#...# #.#G.#G# #.GG#GG# ########",
    "hardest": (
        "############ #RGGG#GGGGG# #G##G#G#G#G# #GGGGGG#GGG# #G####G###G# #GG#G#GGGGG# ##G#G#G#G### "
        "#GG#GGG#GGG# ############"
    ),
}

_PATCHES_PER_CELL = 8  # along each side
_ANYWHERE_JITTER_CELLS = 0.2  # far enough from a cell's edge that no start touches a wall


def evaluation_layout(name: str) -> str:
    """Return the layout that `name` is evaluated on: the far cells are goals; itself where it has no such."""
    return LAYOUTS.get(f"{name}_eval", LAYOUTS[name])


def cells(layout: str, kinds: str, scale: float) -> tuple[tuple[float, float], ...]:
    """Return the centres (x, y) in metres of all cells whose character is in `kinds`, row by row."""
    found = tuple(
        (scale * i, scale * j)
        for i, row in enumerate(layout.split())
        for j, character in enumerate(row)
        if character in kinds
    )
    if not found:
        raise TaskError(f"The maze layout {layout!r} has no cell of kind {kinds!r}.")
    return found


def wall_runs(layout: str) -> list[tuple[int, int, int]]:
    """Return walls as horizontal runs (row, first column, last column): fewer boxes for the broad phase."""
    runs = []
    for i, row in enumerate(layout.split()):
        j = 0
        while j < len(row):
            first = j
            while j < len(row) and row[j] == "#":
                j += 1
            if j > first:
                runs.append((i, first, j - 1))
            j += 1
    return runs


def add_walls(
    spec: mujoco.MjSpec,
    layout: str,
    scale: float,
    height: float,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    contype: int = 1,
    conaffinity: int = 1,
) -> None:
    """Add the layout's walls to the world body as boxes standing on z = 0.

    Args:
        spec: the model to add them to.
        layout: the maze.
        scale: metres from cell to cell.
        height: of the walls, in metres.
        origin: where the centre of the cell in row 0 and column 0 lies, in metres.
        contype, conaffinity: the boxes' contact bits, as MuJoCo takes them.
    """
    for row, first, last in wall_runs(layout):
        spec.worldbody.add_geom(
            name=f"wall_{row}_{first}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[origin[0] + scale * row, origin[1] + scale * (first + last) / 2, height / 2],
            size=[scale / 2, scale * (last - first + 1) / 2, height / 2],
            rgba=[0.55, 0.60, 0.68, 1.0],
            contype=contype,
            conaffinity=conaffinity,
            material="",  # else the default of the model's own geoms would colour them
        )


def path_lengths(layout: str, start: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Return how many steps between neighbouring free cells lead from `start` to each cell, itself at 0.

    Args:
        layout: the maze.
        start: (row, column) of a free cell.
    """
    rows = layout.split()
    lengths, queue = {start: 0}, deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if cell not in lengths and rows[cell[0]][cell[1]] in FREE:
                lengths[cell] = lengths[i, j] + 1
                queue.append(cell)
    return lengths


@dataclass(frozen=True)
class GoalsByPathLength:
    """Goals whose cell lies between `shortest` and `longest` steps from the start's cell, each as likely.

    Attributes:
        layout: the maze.
        scale: metres from cell to cell.
        shortest: fewest steps between neighbouring free cells on the way to a goal.
        longest: most of them; infinite by default.
        height: z of the goals in metres; None for goals of x and y alone.
    """

    layout: str
    scale: float
    shortest: int = 1
    longest: float = math.inf
    height: float | None = None

    @cached_property
    def _free(self) -> list[tuple[int, int]]:
        return [(round(x), round(y)) for x, y in cells(self.layout, FREE, 1.0)]

    @cached_property
    def _within(self) -> np.ndarray:
        """Whether a goal in one free cell suits a start in another, (starts, goals) bool."""
        lengths = (path_lengths(self.layout, start) for start in self._free)
        return np.array(
            [
                [self.shortest <= found.get(goal, math.inf) <= self.longest for goal in self._free]
                for found in lengths
            ]
        )

    @property
    def start_cells(self) -> tuple[tuple[float, float], ...]:
        """Centres in metres of the free cells that have such a goal, row by row."""
        chosen = np.flatnonzero(self._within.any(axis=1))
        if len(chosen) == 0:
            raise TaskError(
                f"The maze layout {self.layout!r} has no cells {self.shortest} to {self.longest} apart."
            )
        return tuple((self.scale * i, self.scale * j) for i, j in (self._free[index] for index in chosen))

    def sample_for(self, rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
        """Return the centre of a goal cell for each start, (count, 2 or 3) in metres.

        Args:
            rng: the generator to draw from.
            starts: (count, 2 or more), x and y in metres first.

        Raises:
            TaskError: a start from which no cell lies so far away.
        """
        free = np.array(self._free)
        nearest = ((starts[:, None, :2] / self.scale - free) ** 2).sum(-1).argmin(1)
        suits = self._within[nearest]
        if not suits.any(1).all():
            x, y = starts[~suits.any(1)][0, :2]
            raise TaskError(f"No goal is {self.shortest} to {self.longest} cells from ({x:g}, {y:g}).")
        # The largest of uniform numbers falls on every goal that suits with the same probability.
        goals = self.scale * free[np.where(suits, rng.random(suits.shape), -1.0).argmax(1)]
        return goals if self.height is None else np.insert(goals, 2, self.height, axis=1)


def maze_episodes(
    name: str, scale: float, reset: Reset, *, goal_height: float | None = None
) -> dict[str, EpisodeDistribution]:
    """Return a maze's episodes: ``training``, ``training_anywhere``, ``near`` and ``evaluation``.

    Training and evaluation start at R and draw a G cell of the layout or of its evaluation layout;
    ``training_anywhere`` draws start and goal from all free cells, a little off their centres; ``near``
    starts so too, and its goal is the centre of a cell beside the start's.

    Args:
        name: of the layout.
        scale: metres from cell to cell.
        reset: how an episode starts, but for its position; its joints take x and y.
        goal_height: z of the goals in metres; None for goals of x and y alone.
    """
    training, evaluation = LAYOUTS[name], evaluation_layout(name)
    off_centre = _ANYWHERE_JITTER_CELLS * scale

    def episodes(layout: str, starts: str, goals: str, jitter: float) -> EpisodeDistribution:
        place: PositionDistribution = CellPositions(cells(layout, goals, scale), jitter)
        if goal_height is not None:
            place = ConcatenatedPositions((place, constant(goal_height)))
        start = CellPositions(cells(layout, starts, scale), jitter)
        return EpisodeDistribution(replace(reset, position=start), place)

    beside = GoalsByPathLength(training, scale, longest=1, height=goal_height)
    return {
        "training": episodes(training, "R", "G", 0.0),
        "training_anywhere": episodes(training, FREE, FREE, off_centre),
        "near": EpisodeDistribution(
            replace(reset, position=CellPositions(beside.start_cells, off_centre)), beside
        ),
        "evaluation": episodes(evaluation, "R", "G", 0.0),
    }


def maze_scene(
    layout: str, scale: float, *, origin: tuple[float, float] = (0.0, 0.0), goal_height: float = 0.0
) -> ScenePicture:
    """Return the picture of a whole maze from above, x to the right and y upwards, tilted to show heights."""
    rows, columns = len(layout.split()), len(layout.split()[0])
    # A little below the middle: what is nearer to the camera takes more of the picture.
    middle = (origin[0] + scale * (rows - 1) / 2, origin[1] + scale * (0.45 * columns - 0.5), 0.0)
    return ScenePicture(
        lookat=middle,
        distance=1.2 * scale * max(0.75 * rows, columns),
        azimuth=90.0,
        elevation=-70.0,
        goal_height=goal_height,
    )


@dataclass
class MazeCoverage:
    """How often each patch of a maze was visited; a cell has 8 x 8 patches.

    Attributes:
        maze: the maze.
        visits: (8 x rows, 8 x columns) int64, states in each patch; x grows with the row, y with the column.
    """

    maze: MazePicture
    visits: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.visits = np.zeros(np.multiply(self.free.shape, _PATCHES_PER_CELL), np.int64)

    @cached_property
    def free(self) -> np.ndarray:
        """Which cells are no wall, (rows, columns) bool."""
        return np.array([[character != "#" for character in row] for row in self.maze.layout.split()])

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The least and the largest x, and the least and the largest y, of the layout in metres."""
        (x, y), scale, (rows, columns) = self.maze.origin, self.maze.scale, self.free.shape
        return x - scale / 2, x + (rows - 0.5) * scale, y - scale / 2, y + (columns - 0.5) * scale

    @property
    def free_cells(self) -> int:
        """How many cells are no wall."""
        return int(self.free.sum())

    @property
    def visited_cells(self) -> int:
        """How many of the free cells were visited."""
        rows, columns = self.free.shape
        visits = self.visits.reshape(rows, _PATCHES_PER_CELL, columns, _PATCHES_PER_CELL).sum((1, 3))
        return int((visits > 0)[self.free].sum())

    @property
    def share(self) -> float:
        """The share of free cells that were visited."""
        return self.visited_cells / self.free_cells

    @property
    def floor_share(self) -> float:
        """The share of the free cells' patches that were visited."""
        floor = np.kron(self.free, np.ones((_PATCHES_PER_CELL, _PATCHES_PER_CELL), bool))
        return float((self.visits > 0)[floor].mean())

    def add(self, positions: np.ndarray) -> None:
        """Count positions (n, 2) in metres; cell (i, j) has its centre at origin + (i, j) x scale."""
        cells = np.subtract(positions, self.maze.origin) / self.maze.scale
        patches = np.floor((cells + 0.5) * _PATCHES_PER_CELL).astype(np.int64)
        inside = ((patches >= 0) & (patches < self.visits.shape)).all(1)
        flat = np.ravel_multi_index(tuple(patches[inside].T), self.visits.shape)
        self.visits += np.bincount(flat, minlength=self.visits.size).reshape(self.visits.shape)
