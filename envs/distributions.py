"""Where starts and goals lie: distributions over positions, and goals that depend on the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class PositionDistribution(Protocol):
    """Draws positions or goals."""

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` draws, shape (count, dim), float64."""
        ...


@runtime_checkable
class GoalsFromStarts(Protocol):
    """Draws goals for starts that are drawn already."""

    def sample_for(self, rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
        """Return a goal for each start.

        Args:
            rng: the generator to draw from.
            starts: (count, drawn), what the reset drew, in the order of its joints.

        Returns:
            (count, goal_dim), float64.
        """
        ...


@dataclass(frozen=True)
class CellPositions:
    """Uniform over maze cells, then uniform within ±jitter of the centre on each axis.

    Attributes:
        centers: cell centres in metres, shape (cells, 2).
        jitter: half the width of the box around a centre, in metres.
    """

    centers: tuple[tuple[float, float], ...]
    jitter: float = 0.0

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, 2), in metres."""
        centers = np.asarray(self.centers)
        chosen = centers[rng.integers(len(centers), size=count)]
        return chosen + rng.uniform(-self.jitter, self.jitter, size=chosen.shape)


@dataclass(frozen=True)
class BoxPositions:
    """Uniform in the box between `low` and `high`, one pair of bounds a number."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, dim)."""
        return rng.uniform(self.low, self.high, size=(count, len(self.low)))


@dataclass(frozen=True)
class ListPositions:
    """Uniform over a list of positions, shape (positions, dim)."""

    positions: tuple[tuple[float, ...], ...]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, dim)."""
        return np.asarray(self.positions, float)[rng.integers(len(self.positions), size=count)]


@dataclass(frozen=True)
class RingPositions:
    """A ring in the plane: any direction from the centre, a radius uniform in [low, high] metres.

    Attributes:
        low, high: least and largest radius, in metres; equal for a circle.
        center: (x, y) in metres.
    """

    low: float
    high: float
    center: tuple[float, float] = (0.0, 0.0)

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, 2), in metres."""
        angle = rng.uniform(0.0, 2 * np.pi, size=count)
        radius = rng.uniform(self.low, self.high, size=count)
        return np.asarray(self.center) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class ConcatenatedPositions:
    """Draws of several distributions side by side, each for itself."""

    parts: tuple[PositionDistribution, ...]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, sum of the parts' dims)."""
        return np.concatenate([part.sample(rng, count) for part in self.parts], axis=1)


@dataclass(frozen=True)
class RelativePositions:
    """Goals relative to what is achieved at the start, or where a goal is drawn in an episode at that time.

    Attributes:
        away: what is added.
    """

    away: PositionDistribution

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return what `count` goals are away from what is achieved, shape (count, dim)."""
        return self.away.sample(rng, count)


def relative_numbers(goals: PositionDistribution | GoalsFromStarts) -> list[bool]:
    """Return which numbers of drawn goals are relative to the start; none of goals that follow from it."""
    if isinstance(goals, GoalsFromStarts):
        return []
    if isinstance(goals, ConcatenatedPositions):
        return [number for part in goals.parts for number in relative_numbers(part)]
    return [isinstance(goals, RelativePositions)] * goals.sample(np.random.default_rng(0), 1).shape[1]


@dataclass(frozen=True)
class MixedPositions:
    """Every draw from one of several distributions of the same dim, each as likely as the others."""

    parts: tuple[PositionDistribution, ...]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` positions, shape (count, dim)."""
        drawn = np.stack([part.sample(rng, count) for part in self.parts])
        return drawn[rng.integers(len(self.parts), size=count), np.arange(count)]


@dataclass(frozen=True)
class AffineGoals:
    """A goal that follows from the start: ``start @ matrix + offset``.

    Attributes:
        matrix: (drawn, goal_dim).
        offset: (goal_dim,).
    """

    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...]

    def sample_for(self, rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
        """Return the goals, (count, goal_dim); nothing is drawn."""
        return starts @ np.asarray(self.matrix, float) + np.asarray(self.offset, float)


def constant(*numbers: float) -> ListPositions:
    """Return the distribution that always draws the same numbers."""
    return ListPositions((numbers,))
