"""What a goal-reaching task is, as data: a model, terms that read it, goals, resets and success.

A task speaks in the names of MuJoCo's own data fields, so that every simulator reads it the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import mujoco
import numpy as np

Transform = Literal["identity", "cos", "sin", "difference"]


class TaskError(ValueError):
    """A task that cannot be built, or a name in it that its model does not have."""


@dataclass(frozen=True)
class Term:
    """One reading of a MuJoCo data field.

    Attributes:
        field: a name of `compiled_task.FIELDS`, such as ``qpos`` or ``site_xpos``.
        object: the joint, actuator, body, site or sensor to read; None reads every one of them.
        columns: which numbers of that object to keep (``(0, 1)`` keeps x and y); None keeps all.
        transform: applied element-wise; ``difference`` subtracts the term `minus`.
        minus: the term to subtract, for ``difference`` alone.
        unit: the unit of the numbers that come out, for documentation and exported metadata.
    """

    field: str
    object: str | None = None
    columns: tuple[int, ...] | None = None
    transform: Transform = "identity"
    minus: Term | None = None
    unit: str = ""


@dataclass(frozen=True)
class SuccessRegion:
    """A ball around a slice of the goal: ``|achieved[start:stop] - desired[start:stop]| < radius``."""

    radius: float
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class EarlyEnd:
    """The episode ends when any number of `term` leaves [low, high]."""

    term: Term
    low: float
    high: float


class PositionDistribution(Protocol):
    """Draws positions or goals."""

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` draws, shape (count, dim), float64."""
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
class Reset:
    """How an episode starts: the model's initial state, a position drawn for some joints, and noise.

    Attributes:
        joints: joints whose positions `position` draws, in its order; slide or hinge joints.
        position: what to draw for them; None leaves the model's initial position.
        qpos_noise: added to every joint position, uniform in ±qpos_noise.
        qvel_noise: standard deviation of the normal noise on every joint velocity.
    """

    joints: tuple[str, ...] = ()
    position: PositionDistribution | None = None
    qpos_noise: float = 0.0
    qvel_noise: float = 0.0


@dataclass(frozen=True)
class EpisodeDistribution:
    """Where episodes start and which goals they command. Both are drawn anew at every reset."""

    starts: Reset
    goals: PositionDistribution


@dataclass(frozen=True)
class MazePicture:
    """What a top-down picture of a maze task needs: the layout and the size of a cell in metres."""

    layout: str
    scale: float


@dataclass(frozen=True)
class GoalTask:
    """A goal-reaching task, complete but for the simulator that runs it.

    Attributes:
        name: the task's name, lower case with underscores.
        description: one line for tables.
        build_spec: returns a fresh `mujoco.MjSpec` of the model.
        observation: terms that make up the state a policy sees; the goal never leaks into it.
        achieved_goal: terms in the space of goals.
        success: regions that must all hold.
        distributions: episode distributions by name; ``training`` and ``evaluation`` are always there.
        control_dt_s: seconds between two actions; a multiple of the model's timestep.
        episode_steps: control steps until an episode is truncated.
        early_end: conditions that end an episode before that.
        maze: the maze to draw, for maze tasks.
    """

    name: str
    description: str
    build_spec: Callable[[], mujoco.MjSpec]
    observation: tuple[Term, ...]
    achieved_goal: tuple[Term, ...]
    success: tuple[SuccessRegion, ...]
    distributions: Mapping[str, EpisodeDistribution] = field(default_factory=dict)
    control_dt_s: float = 0.05
    episode_steps: int = 200
    early_end: tuple[EarlyEnd, ...] = ()
    maze: MazePicture | None = None

    def __post_init__(self) -> None:
        for required in ("training", "evaluation"):
            if required not in self.distributions:
                raise TaskError(f"Task {self.name!r} has no {required!r} episode distribution.")
        if self.episode_steps < 1:
            raise TaskError(
                f"Task {self.name!r}: episode_steps must be at least 1, not {self.episode_steps}."
            )

    def distribution(self, name: str) -> EpisodeDistribution:
        """Return the episode distribution `name`, or raise TaskError listing the valid ones."""
        if name not in self.distributions:
            valid = ", ".join(sorted(self.distributions))
            raise TaskError(f"Task {self.name!r} has no episode distribution {name!r}; it has {valid}.")
        return self.distributions[name]
