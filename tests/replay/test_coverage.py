from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import SuccessRegion
from thousandfold.replay.coverage import cell_edges, measure_coverage
from thousandfold.replay.goal_dataset import GoalDataset

TASK = compile_task("point_u_maze")  # success within 0.3 of a goal in the plane


def make_data(achieved: np.ndarray, desired: np.ndarray, alternatives: np.ndarray, episode: list[int]):
    rows = len(achieved)
    return GoalDataset(
        observation=np.concatenate([achieved, np.zeros_like(achieved)], 1).astype(np.float32),
        achieved_goal=achieved.astype(np.float32),
        desired_goal=desired.astype(np.float32),
        action=np.zeros((rows, 2), np.float32),
        teacher_mean=np.zeros((rows, 2), np.float32),
        teacher_log_std=np.zeros((rows, 2), np.float32),
        alternative_goal=alternatives.astype(np.float32),
        alternative_mean=np.zeros(alternatives.shape, np.float32),
        alternative_log_std=np.zeros(alternatives.shape, np.float32),
        episode=np.array(episode),
        success=np.zeros(len(set(episode)), bool),
        metadata={},
    )


def test_cells_count_once_and_their_edge_is_the_radius_of_success():
    achieved = np.array([[0.1, 0.1], [0.29, 0.0], [0.31, 0.1], [-0.1, 0.1], [0.1, 0.1]])
    data = make_data(achieved, np.zeros((5, 2)), np.zeros((5, 0, 2)), [0] * 5)
    assert measure_coverage(data, TASK).occupied_cells == 3
    assert measure_coverage(data, TASK).rows == 5


def test_numbers_that_success_ignores_split_no_cells():
    regions = (SuccessRegion(0.5, 0, 1), SuccessRegion(0.2, 0, 1))
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), success=regions))
    assert cell_edges(task).tolist() == [0.2, np.inf]
    achieved = np.array([[0.1, 0.1], [0.1, 7.0], [0.3, 0.1]])
    data = make_data(achieved, np.zeros((3, 2)), np.zeros((3, 0, 2)), [0] * 3)
    assert measure_coverage(data, task).occupied_cells == 2


def test_repeated_observations_count_once():
    rng = np.random.default_rng(0)
    once = rng.uniform(-3, 3, (300, 2))
    goals, none = np.zeros((300, 2)), np.zeros((300, 0, 2))
    apart = measure_coverage(make_data(once, goals, none, [0] * 300), TASK).distinct_observations
    assert apart > 0.8
    thrice = np.concatenate([once[:100]] * 3)
    found = measure_coverage(make_data(thrice, goals, none, [0] * 300), TASK).distinct_observations
    assert 0.28 < found <= 1 / 3


def test_distances_are_those_to_the_goals():
    achieved = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    desired = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    others = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]])
    found = measure_coverage(make_data(achieved, desired, others, [0, 0, 1]), TASK)
    assert found.distances["start_to_goal"].tolist() == [5.0, 4.0]
    assert found.distances["state_to_goal"].tolist() == [5.0, 4.0, 4.0]
    assert found.distances["state_to_alternative"].tolist() == [1.0, 2.0, 0.0, 6.0, 4.0, 0.0]
    results = found.results()["distances"]
    assert results["state_to_goal"]["p50"] == 4.0
    assert results["state_to_alternative"]["p95"] == pytest.approx(5.5)
    without = measure_coverage(make_data(achieved, desired, np.zeros((3, 0, 2)), [0, 0, 1]), TASK)
    assert set(without.distances) == {"start_to_goal", "state_to_goal"}
