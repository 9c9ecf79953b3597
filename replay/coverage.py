"""How much of a task a dataset covers, repetitions counted once: cells, observations, distances to goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.replay.goal_dataset import GoalDataset

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
_BINS_PER_STD = 10
_HASH_SEED = 0


@dataclass(frozen=True)
class CoverageStatistics:
    """What a dataset covers.

    Attributes:
        rows: states in which an action was taken.
        occupied_cells: cells of the achieved goals with a state in them, their edge the radius of success.
        distinct_observations: share of the rows that is left when observations that are the same to a tenth
            of each number's standard deviation count once.
        distances: to goals, in the goal's unit: ``start_to_goal`` of every episode, ``state_to_goal`` of
            every row, ``state_to_alternative`` of every alternative goal; (n,) each, absent where n is 0.
    """

    rows: int
    occupied_cells: int
    distinct_observations: float
    distances: dict[str, np.ndarray]

    def results(self) -> dict[str, Any]:
        """Return the figures for a manifest: counts, shares, and quantiles of the distances."""
        return {
            "occupied_cells": self.occupied_cells,
            "distinct_observations": self.distinct_observations,
            "distances": {name: _quantiles(values) for name, values in self.distances.items()},
        }


def measure_coverage(data: GoalDataset, task: CompiledTask) -> CoverageStatistics:
    """Return what a dataset of `task` covers."""
    rows = len(data.action)
    edge = cell_edges(task)
    cells = np.floor(data.achieved_goal[:, np.isfinite(edge)] / edge[np.isfinite(edge)])
    width = data.observation.std(0) / _BINS_PER_STD
    bins = np.floor(data.observation / np.where(width > 0, width, 1.0))
    return CoverageStatistics(
        rows, _count_distinct(cells), _count_distinct(bins) / rows, goal_distances(data, task)
    )


def cell_edges(task: CompiledTask) -> np.ndarray:
    """Return a cell's edge along each number of the goal, (goal_dim,); infinite where success ignores it."""
    edge = np.full(task.goal_dim, np.inf)
    for region in task.spec.success:
        for number in range(task.goal_dim)[region.start : region.stop]:
            edge[number] = min(edge[number], region.number_radius(number))
    return edge


def goal_distances(data: GoalDataset, task: CompiledTask) -> dict[str, np.ndarray]:
    """Return the distances of `CoverageStatistics`."""
    _, first = np.unique(data.episode, return_index=True)
    to_goal = task.goal_distance(data.achieved_goal, data.desired_goal)
    distances = {"start_to_goal": to_goal[first], "state_to_goal": to_goal}
    if data.alternative_goal.shape[1]:
        others = task.goal_distance(data.achieved_goal[:, None], data.alternative_goal)
        distances["state_to_alternative"] = others.ravel()
    return distances


def _count_distinct(rows: np.ndarray) -> int:
    """Return how many different rows of whole numbers there are, (n, size) with size at least 1.

    By a hash of 64 bits each: sorting a million rows takes many times as long, and the odds that two of them
    share a hash are one in ten million.
    """
    rng = np.random.default_rng(_HASH_SEED)
    factors = rng.integers(1, 2**63, rows.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    keys = np.zeros(len(rows), np.uint64)
    for column, factor in zip(rows.T, factors, strict=True):
        keys = (keys ^ column.astype(np.int64).view(np.uint64)) * factor
        keys ^= keys >> np.uint64(29)
    return len(np.unique(keys))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))
