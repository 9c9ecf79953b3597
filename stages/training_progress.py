"""How far a training has come."""

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
