"""How far a training has come, of a teacher or a student."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HISTORY_FILE = "history.json"
"""Every evaluation of a training, of a teacher or a student, as ``{"history": [...]}``."""


@dataclass
class TrainingProgress:
    """Counters and history of a run; everything here survives a restart.

    Attributes:
        unrolls, env_steps, updates: how far the run has come.
        unstable, overflowed: episodes dropped for their physics, and how many of them for want of room for
            contacts or constraints.
        target_hits: consecutive evaluations that met `target_success`.
        best_score: success, time at goal and minus the final distance of the best evaluation so far.
        elapsed_s: seconds spent, over all restarts.
        history: one entry an evaluation.
        gradients: beside each entry, the norm of the last update's gradient in each block of each network.
    """

    unrolls: int = 0
    env_steps: int = 0
    updates: int = 0
    unstable: int = 0
    overflowed: int = 0
    target_hits: int = 0
    best_score: list[float] = field(default_factory=lambda: [-1.0, -1.0])
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class StudentProgress:
    """Counters and history of a distillation; everything here survives a restart.

    Attributes:
        updates: how many were taken.
        position: on the schedule; ahead of the updates where a descent ended early.
        descent_begin: where on the schedule the descent under way began, or the next one will.
        descents: how many have ended: the dataset's, then one a round.
        without_better: evaluations of the descent under way since the last better one.
        elapsed_s: seconds spent training, over all restarts.
        history: one entry an evaluation.
        rounds: the figures of every round.
    """

    updates: int = 0
    position: int = 0
    descent_begin: int = 0
    descents: int = 0
    without_better: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)

    def end_descent(self, position: int) -> None:
        """Close the descent under way at this position, where the next one will begin."""
        self.position = self.descent_begin = position
        self.descents += 1
        self.without_better = 0
