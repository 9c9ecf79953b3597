"""Where in a maze states lie: how often each patch of it was visited, and which share of its cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from thousandfold.envs.task import MazePicture

_PATCHES_PER_CELL = 8


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
    def share(self) -> float:
        """The share of free cells that were visited."""
        rows, columns = self.free.shape
        visits = self.visits.reshape(rows, _PATCHES_PER_CELL, columns, _PATCHES_PER_CELL).sum((1, 3))
        return float((visits > 0)[self.free].mean())

    def add(self, positions: np.ndarray) -> None:
        """Count positions (n, 2) in metres; cell (i, j) has its centre at origin + (i, j) x scale."""
        cells = np.subtract(positions, self.maze.origin) / self.maze.scale
        patches = np.floor((cells + 0.5) * _PATCHES_PER_CELL).astype(np.int64)
        inside = ((patches >= 0) & (patches < self.visits.shape)).all(1)
        flat = np.ravel_multi_index(tuple(patches[inside].T), self.visits.shape)
        self.visits += np.bincount(flat, minlength=self.visits.size).reshape(self.visits.shape)
