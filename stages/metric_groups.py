"""Groups of metrics, by which MLflow's page divides its charts: what a policy achieves, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_EPISODES = frozenset(
    {
        "acting_success",
        "at_goal_at_end",
        "episodes",
        "final_distance",
        "goals_held",
        "reached",
        "same_outcome",
        "smaller_retention",
        "time_at_goal",
        "touched",
        "unstable_episodes",
    }
)
_BEGINNINGS = (
    "clean_",
    "random_",
    "retention",
    "success",
    "teacher_success",
    "time_at_goal_",
    "torch_success",
)


def grouped(metrics: Mapping[str, Any], rest: str) -> dict[str, float]:
    """Return the numbers among metrics, each under its group; lists and texts are left out.

    ``eval/`` is what episodes in closed loop tell, ``latency/`` what is measured in µs; the others come under
    ``<rest>/``.
    """

    def group(name: str) -> str:
        if name.endswith("_us"):
            return "latency"
        return "eval" if name in _OF_EPISODES or name.startswith(_BEGINNINGS) else rest

    return {
        f"{group(name)}/{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
