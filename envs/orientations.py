"""Orientations as six numbers: the first two columns of the rotation matrix, one after the other.

A quaternion q and its negative are one orientation, and every representation by three or four numbers jumps
somewhere. The two columns are the same for the same orientation and never jump, so that a network can be
given them and differences of them (Zhou et al. 2019, arXiv 1812.07035).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

MATRIX_FIELDS = ("xmat", "site_xmat", "geom_xmat")
"""The data fields that hold rotation matrices, nine numbers each, row by row."""
ORIENTATION_COLUMNS = (0, 3, 6, 1, 4, 7)
"""Which of a matrix's numbers are its first two columns."""
UP_COLUMNS = (6, 7, 8)
"""Which of them are the world's upward direction as the object sees it: the matrix's third row."""
SIZE = len(ORIENTATION_COLUMNS)
_TINY = 1e-12
_UNIT = 1e-4  # how far columns that are drawn may be from unit length and from a right angle
_TABLE = 4096


def rotation_angle(one: Any, other: Any) -> Any:
    """Return the angle between orientations, in radians from 0 to π, shape (...,).

    With the matrices R and R' it is 2 arcsin(‖R − R'‖ / √8), which keeps its precision near 0, where the
    cosine of the angle has none. Numbers that are no two columns of a rotation are made so first, by
    Gram-Schmidt as in arXiv 1812.07035.

    Args:
        one, other: (..., 6), NumPy's or torch's, of shapes that go together.
    """
    squares = sum((first - second) ** 2 for first, second in zip(_numbers(one), _numbers(other), strict=True))
    sine = ((squares / 8.0) ** 0.5).clip(max=1.0)
    return 2.0 * (np.arcsin(sine) if isinstance(sine, np.ndarray | np.generic) else sine.arcsin())


def _numbers(orientation: Any) -> list[Any]:
    """Return the nine numbers of the rotation matrices, (...,) each, column by column."""
    a, b = ([orientation[..., start + index] for index in range(3)] for start in (0, 3))
    x = _unit(a)
    along = sum(p * q for p, q in zip(x, b, strict=True))
    y = _unit([q - along * p for p, q in zip(x, b, strict=True)])
    z = [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]]
    return [*x, *y, *z]


def _unit(vector: list[Any]) -> list[Any]:
    length = sum(each * each for each in vector) ** 0.5
    return [each / (length + _TINY) for each in vector]


def from_quaternions(quaternions: np.ndarray) -> np.ndarray:
    """Return the six numbers of quaternions (n, 4) of any length but 0, (n, 6)."""
    matrices, unit = np.empty((len(quaternions), 9)), np.array(quaternions, float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for matrix, quaternion in zip(matrices, unit, strict=True):
        mujoco.mju_quat2Mat(matrix, quaternion)
    return matrices[:, ORIENTATION_COLUMNS]


def are_orientations(numbers: np.ndarray) -> bool:
    """Tell whether all of (n, 6) are two columns of a rotation."""
    a, b = numbers[:, :3], numbers[:, 3:]
    products = np.stack([(a * a).sum(1) - 1, (b * b).sum(1) - 1, (a * b).sum(1)])
    return bool((np.abs(products) < _UNIT).all())


@dataclass(frozen=True)
class Orientations:
    """Given orientations, turned at random.

    They are turned about `axis` by an angle uniform between `low` and `high`, or without an axis about any
    one, by up to `within`, such that all orientations that near are as likely; π means any orientation.

    Attributes:
        quaternions: (w, x, y, z) each, of any length but 0; each as likely.
        within: in radians.
        axis: in the frame in which the orientation is told; of any length but 0.
        low, high: in radians.
    """

    quaternions: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0, 0.0),)
    within: float = 0.0
    axis: tuple[float, ...] | None = None
    low: float = 0.0
    high: float = 0.0

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` orientations, shape (count, 6)."""
        given = np.asarray(self.quaternions, float)
        given = given[rng.integers(len(given), size=count)]
        if self.axis is None:
            axes, angles = rng.standard_normal((count, 3)), self._angles(rng.uniform(size=count))
        else:
            axes, angles = np.tile(self.axis, (count, 1)), rng.uniform(self.low, self.high, count)
        axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
        turns = np.hstack([np.cos(angles / 2)[:, None], np.sin(angles / 2)[:, None] * axes])
        turned = np.empty_like(given)
        for result, turn, quaternion in zip(turned, turns, given, strict=True):
            mujoco.mju_mulQuat(result, turn, quaternion)
        return from_quaternions(turned)

    def _angles(self, uniform: np.ndarray) -> np.ndarray:
        """Return angles with density ∝ 1 − cos θ up to `within`: that of uniform rotations (Miles 1965)."""
        grid = np.linspace(0.0, min(self.within, np.pi), _TABLE)
        mass = grid - np.sin(grid)
        return np.interp(uniform * mass[-1], mass, grid) if mass[-1] > 0 else np.zeros_like(uniform)
