"""Worlds whose physics are lost: noticed, counted by kind, hidden until they are reset, and no one else's."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from tests.envs.any_simulator import (
    WORLDS,
    MakeSimulator,
    assert_same,
    make_cpu,
    mask,
    numpy,
    still,
)
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator

CORNER, FREE = (0.6, 0.6), (1.0, 2.0)  # a sphere of 0.15 m touches two walls; none


@pytest.fixture(scope="module")
def cramped(make: MakeSimulator, task: CompiledTask) -> Simulator:
    """A simulator without room for the 8 constraints of a corner."""
    if make is not make_cpu:
        return make(task, njmax=1)
    point = get_task("point_u_maze")

    def build_spec() -> mujoco.MjSpec:
        spec = point.build_spec()
        spec.memory = 2000  # bytes
        return spec

    return make(CompiledTask(dataclasses.replace(point, build_spec=build_spec)))


def counts(simulator: Simulator) -> tuple[int, int]:
    return simulator.diverged_count, simulator.overflow_count


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_unstable_world_is_noticed_counted_and_recovers(simulator: Simulator, value: float) -> None:
    simulator.reset()
    counted = simulator.unstable_count
    state = np.tile([1.0, 2.0], (WORLDS, 1))
    velocity = np.zeros((WORLDS, 2))
    velocity[1] = value
    simulator.set_state(state, velocity)
    simulator.set_goal(np.zeros(2, np.float32))
    result = simulator.step(still(simulator))
    assert numpy(result.unstable).tolist() == [False, True, False, False]
    assert not numpy(result.success).any()
    assert simulator.unstable_count == counted + 1
    assert np.isfinite(numpy(simulator.observation)).all()
    assert np.array_equal(numpy(simulator.observation)[0], numpy(simulator.observation)[3])

    simulator.reset(result.unstable)
    for _ in range(2):
        assert not numpy(simulator.step(still(simulator)).unstable).any()
    assert simulator.unstable_count == counted + 1


def test_world_that_diverges_again_without_a_reset_is_noticed_again(simulator: Simulator) -> None:
    simulator.reset()
    counted = simulator.unstable_count
    for _ in range(3):
        simulator.set_state(np.ones((WORLDS, 2)), np.full((WORLDS, 2), np.nan))
        assert numpy(simulator.step(still(simulator)).unstable).all()
    assert simulator.unstable_count == counted + 3 * WORLDS


def test_action_that_is_not_a_number_makes_the_world_unstable(simulator: Simulator) -> None:
    simulator.reset()
    action = still(simulator)
    action[2] = np.nan
    assert numpy(simulator.step(action).unstable).tolist() == [False, False, True, False]
    simulator.reset()


def test_kinds_are_counted_apart(simulator: Simulator, cramped: Simulator) -> None:
    for one in (simulator, cramped):
        one.reset()
    before = counts(simulator), counts(cramped)
    simulator.set_state(np.ones((WORLDS, 2)), np.full((WORLDS, 2), np.nan))
    simulator.step(still(simulator))
    assert counts(simulator) == (before[0][0] + WORLDS, before[0][1])

    cramped.set_state(np.array([CORNER, FREE, CORNER, FREE]), np.zeros((WORLDS, 2)))
    assert numpy(cramped.step(still(cramped)).unstable).tolist() == [True, False, True, False]
    assert counts(cramped) == (before[1][0], before[1][1] + 2)
    assert cramped.unstable_count == sum(counts(cramped))


def test_world_stays_in_quarantine_until_it_is_reset(cramped: Simulator) -> None:
    """Also where it goes on well, away from what it lost."""
    cramped.reset()
    counted = cramped.overflow_count
    cramped.set_state(np.array([CORNER, CORNER, FREE, FREE]), np.zeros((WORLDS, 2)))
    away = np.ones((WORLDS, 2), np.float32)
    for _ in range(4):
        result = cramped.step(away)
        assert numpy(result.unstable).tolist() == [True, True, False, False]
        assert not numpy(cramped.observation)[:2].any() and not numpy(cramped.achieved_goal)[:2].any()
        assert numpy(cramped.observation)[2:].all()
    assert cramped.overflow_count == counted + 2

    cramped.reset(mask(cramped, 0))
    assert numpy(cramped.observation)[0, :2].all() and not numpy(cramped.observation)[1].any()
    assert numpy(cramped.step(still(cramped)).unstable).tolist()[1:] == [True, False, False]


def test_quarantine_outlives_a_checkpoint(cramped: Simulator) -> None:
    cramped.reset()
    cramped.set_state(np.array([CORNER, FREE, FREE, FREE]), np.zeros((WORLDS, 2)))
    cramped.step(np.ones((WORLDS, 2), np.float32))
    saved, counted = cramped.state_dict(), counts(cramped)
    cramped.reset()
    cramped.load_state_dict(saved)
    assert counts(cramped) == counted
    for _ in range(2):
        result = cramped.step(np.ones((WORLDS, 2), np.float32))
        assert numpy(result.unstable).tolist() == [True, False, False, False]
    assert counts(cramped) == counted


def test_state_of_an_older_checkpoint_is_one_without_quarantine(simulator: Simulator) -> None:
    simulator.reset()
    saved = simulator.state_dict()
    del saved["quarantined"], saved["overflow_count"]
    saved["unstable_count"] = np.array(7)
    simulator.load_state_dict(saved)
    assert counts(simulator) == (7, 0)
    assert not numpy(simulator.step(still(simulator)).unstable).any()


def test_lost_world_does_not_touch_the_others(make: MakeSimulator, task: CompiledTask) -> None:
    """World 1 diverges; the others end where they end without it."""
    ends, simulators = [], [make(task, seed=3) for _ in range(2)]
    for simulator, velocity in zip(simulators, (0.0, np.nan), strict=True):
        speed = np.zeros((WORLDS, 2))
        speed[1] = velocity
        simulator.set_state(np.array([CORNER, FREE, FREE, CORNER]), speed)
        for action in np.random.default_rng(0).uniform(-1, 1, (6, WORLDS, 2)):
            simulator.step(action.astype(np.float32))
        ends.append(np.delete(numpy(simulator.observation), 1, 0))
    assert_same(simulators[0], *ends)


def test_physics_that_fail_in_a_call_are_a_divergence(task: CompiledTask, monkeypatch) -> None:
    """`mujoco.batch` leaves the worlds of a failed call where they were."""
    from mujoco.batch import SimulationError

    simulator = CpuSimulator(task, WORLDS)

    def fail(**_: object) -> None:
        raise SimulationError(np.array([2]), "stack overflow")

    monkeypatch.setattr(simulator._batch, "step", fail)
    assert simulator.step(still(simulator)).unstable.tolist() == [False, False, True, False]
    assert counts(simulator) == (1, 0)
