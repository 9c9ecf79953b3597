"""Orientations in several representations: all are judged by the same angle."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.orientation_goals import TERMS, make_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

TURN = (np.cos(0.2), np.sin(0.2), 0.0, 0.0)  # by 0.4 rad about x
SIX = (1.0, 0.0, 0.0, 0.0, np.cos(0.4), np.sin(0.4))


@pytest.mark.parametrize("representation", TERMS)
def test_both_are_judged_by_the_angle(representation: str) -> None:
    task = make_task(representation, np.pi)
    simulator = CpuSimulator(task, 3, num_threads=1)
    starts = [(1.0, 0, 0, 0), TURN, tuple(-each for each in TURN)]
    simulator.set_state(np.array(starts), np.zeros((3, 3)))
    simulator.set_goal(np.array(SIX if representation == "six numbers" else TURN, np.float32))
    angles = task.goal_distance(simulator.achieved_goal, simulator.desired_goal)
    assert angles == pytest.approx([0.4, 0.0, 0.0], abs=1e-3)
    assert simulator.step(np.zeros((3, 3), np.float32)).success.tolist() == [False, True, True]
    if representation.endswith("w >= 0"):
        assert (simulator.achieved_goal[:, 0] >= 0).all() and (simulator.observation[:, 3] >= 0).all()
    goals = task.sample_start("evaluation", np.random.default_rng(0), 50)[2]
    assert (goals[:, 0] >= 0).all() or task.goal_dim == 6
