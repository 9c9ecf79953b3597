"""One contract, run over every simulator."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from tests.envs.any_simulator import WORLDS, MakeSimulator, assert_same, mask, numpy, still
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.task import SuccessRegion, TaskError, Term


def put(simulator: Simulator, positions: list[tuple[float, float]], velocity: float = 0.0) -> None:
    simulator.reset()
    simulator.set_state(np.array(positions), np.full((simulator.num_worlds, 2), velocity))


def test_shapes_and_dtypes(simulator: Simulator) -> None:
    simulator.reset()
    result = simulator.step(still(simulator))
    for array, width in (
        (simulator.observation, 4),
        (simulator.achieved_goal, 2),
        (simulator.desired_goal, 2),
    ):
        assert numpy(array).shape == (WORLDS, width)
        assert numpy(array).dtype == np.float32
    for flags in result:
        assert numpy(flags).shape == (WORLDS,)
        assert numpy(flags).dtype == bool
    assert numpy(simulator.episode_step).tolist() == [1] * WORLDS


def test_every_reset_draws_a_fresh_start_and_a_fresh_goal(simulator: Simulator) -> None:
    drawn = []
    for _ in range(3):
        simulator.reset()
        drawn.append(np.hstack([numpy(simulator.achieved_goal), numpy(simulator.desired_goal)]))
    flat = np.concatenate(drawn)
    for column in flat.T:
        assert len(np.unique(column)) == len(flat)


def test_seed_decides_starts_and_goals(make: MakeSimulator, task: CompiledTask) -> None:
    starts = []
    for seed in (5, 5, 6):
        simulator = make(task, seed=seed)
        starts.append(np.hstack([numpy(simulator.observation), numpy(simulator.desired_goal)]))
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


def test_distribution_decides_starts_and_goals(make: MakeSimulator, task: CompiledTask) -> None:
    simulator = make(task, distribution="evaluation")
    assert np.abs(numpy(simulator.achieved_goal) - 1.0).max() <= 0.25
    goals = {tuple(goal) for goal in numpy(simulator.desired_goal).tolist()}
    assert goals <= {(3.0, 1.0), (3.0, 2.0), (3.0, 3.0)}


def test_bad_arguments_are_refused(make: MakeSimulator, task: CompiledTask) -> None:
    with pytest.raises(TaskError, match="no episode distribution 'elsewhere'"):
        make(task, distribution="elsewhere")
    with pytest.raises(ValueError, match="at least 1"):
        make(task, 0)


def test_masked_reset_leaves_the_other_worlds_untouched(simulator: Simulator) -> None:
    """Not what is read of them, and not where they go from there."""
    actions = np.random.default_rng(0).uniform(-1, 1, (7, WORLDS, 2)).astype(np.float32)
    simulator.reset()
    for action in actions[:4]:
        simulator.step(action)
    snapshot = simulator.state_dict()
    for action in actions[4:]:
        simulator.step(action)
    unbroken = numpy(simulator.observation)

    simulator.load_state_dict(snapshot)
    before = [numpy(a) for a in (simulator.observation, simulator.desired_goal, simulator.episode_step)]
    simulator.reset(mask(simulator, 0, 2))
    after = [numpy(a) for a in (simulator.observation, simulator.desired_goal, simulator.episode_step)]
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[[1, 3]], new[[1, 3]])
        assert (old[[0, 2]] != new[[0, 2]]).any(axis=-1).all()
    assert after[2].tolist() == [0, 4, 0, 4]
    for action in actions[4:]:
        simulator.step(action)
    assert_same(simulator, numpy(simulator.observation)[[1, 3]], unbroken[[1, 3]])


def test_resets_inside_an_unroll_are_as_fresh_and_leave_the_other_worlds_untouched(
    make: MakeSimulator,
) -> None:
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), episode_steps=2))
    actions = np.random.default_rng(0).uniform(-1, 1, (8, WORLDS, 2)).astype(np.float32)
    masks = [(0,), (1, 2), (), (0, 2), (2,), (), (1,), (0, 1, 2)]
    simulator, unbroken = make(task, seed=3), make(task, seed=3)
    starts = []
    with simulator.unroll(len(actions)):
        for action, worlds in zip(actions, masks, strict=True):
            simulator.step(action)
            unbroken.step(action)
            before = [numpy(a) for a in (simulator.observation, simulator.desired_goal)]
            simulator.reset(mask(simulator, *worlds))
            after = [numpy(a) for a in (simulator.observation, simulator.desired_goal)]
            others = np.delete(np.arange(WORLDS), worlds)
            for old, new in zip(before, after, strict=True):
                assert np.array_equal(old[others], new[others])
            assert (numpy(simulator.episode_step)[list(worlds)] == 0).all()
            starts.append(np.hstack(after)[list(worlds)])
    drawn = np.concatenate(starts)
    assert (drawn[:, 2:4] == 0).all()  # at rest
    for column in drawn[:, [0, 1, 4, 5]].T:
        assert len(np.unique(column)) == len(drawn) == 10
    assert_same(simulator, numpy(simulator.observation)[3], numpy(unbroken.observation)[3])


def test_unrolls_with_resets_continue_bit_for_bit_from_a_state_between_them(
    make: MakeSimulator, task: CompiledTask
) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 5, WORLDS, 2)).astype(np.float32)

    def unroll(simulator: Simulator, index: int) -> None:
        with simulator.unroll(len(actions[index])):
            for step, action in enumerate(actions[index]):
                simulator.step(action)
                simulator.reset(mask(simulator, step % WORLDS))

    simulator, other = make(task, seed=4), make(task, seed=99)
    unroll(simulator, 0)
    other.load_state_dict(simulator.state_dict())
    for one in (simulator, other):
        unroll(one, 1)
        one.reset(mask(one, 3))
        unroll(one, 2)
    right = other.state_dict()
    for name, array in simulator.state_dict().items():
        assert_same(simulator, array, right[name])


def test_empty_reset_mask_changes_nothing(simulator: Simulator) -> None:
    simulator.reset()
    before = simulator.state_dict()
    simulator.reset(mask(simulator))
    after = simulator.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_episodes_are_truncated_at_the_tasks_number_of_steps(make: MakeSimulator) -> None:
    simulator = make(CompiledTask(dataclasses.replace(get_task("point_u_maze"), episode_steps=3)))
    truncated = [numpy(simulator.step(still(simulator)).truncated).all() for _ in range(3)]
    assert truncated == [False, False, True]


def test_success_is_within_the_radius_of_the_goal(simulator: Simulator) -> None:
    put(simulator, [(3.0, 1.0)] * WORLDS)
    goals = np.array([[3.0, 1.0], [3.0, 1.29], [3.0, 1.31], [3.22, 1.22]], np.float32)
    simulator.set_goal(goals)
    result = simulator.step(still(simulator))
    assert numpy(result.success).tolist() == [True, True, False, False]
    assert np.array_equal(numpy(simulator.desired_goal), goals)


def test_goals_of_some_worlds_can_be_commanded(simulator: Simulator) -> None:
    simulator.reset()
    before = numpy(simulator.desired_goal)
    simulator.set_goal(np.array([3.0, 2.0], np.float32), mask(simulator, 1))
    after = numpy(simulator.desired_goal)
    assert after[1].tolist() == [3.0, 2.0]
    assert np.array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))


def test_actions_are_clipped(simulator: Simulator) -> None:
    put(simulator, [(1.0, 2.0)] * WORLDS)
    simulator.step(np.array([[0.0, 1.0], [0.0, 50.0], [0.0, -1.0], [0.0, -9.0]], np.float32))
    position = numpy(simulator.achieved_goal)
    assert np.array_equal(position[0], position[1])
    assert np.array_equal(position[2], position[3])
    assert position[0, 1] > 2.0 > position[2, 1]


def test_walls_hold(simulator: Simulator) -> None:
    """Full thrust at the four walls of the start's end of the U: a sphere of 0.15 m stops 0.15 m short."""
    put(simulator, [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 2.0)])
    thrust = np.array([[-1, 0], [1, 0], [0, -1], [1, 0]], np.float32)
    for _ in range(20):
        simulator.step(thrust)
    position = numpy(simulator.achieved_goal)
    reached = [position[0, 0], position[1, 0], position[2, 1], position[3, 0]]
    assert reached == pytest.approx([0.65, 1.35, 0.65, 1.35], abs=0.05)


def test_state_dict_round_trip_continues_bit_for_bit(make: MakeSimulator, simulator: Simulator) -> None:
    """In a new simulator, through contact (see `assert_same`) and a reset: the generator is taken along."""
    actions = np.random.default_rng(1).uniform(-1, 1, (6, WORLDS, 2)).astype(np.float32)
    put(simulator, [(0.7, 1.0), (1.3, 1.0), (1.0, 2.0), (3.0, 0.7)], velocity=0.5)
    simulator.step(actions[0])
    saved = simulator.state_dict()
    other = make(simulator.task, seed=99)
    other.load_state_dict(saved)
    for one in (simulator, other):
        for action in actions[1:4]:
            one.step(action)
        one.reset(mask(one, 1))
        for action in actions[4:]:
            one.step(action)
    left, right = simulator.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert_same(simulator, left[name], right[name])
    assert numpy(other.episode_step).tolist() == [6, 2, 6, 6]


def test_state_dict_is_a_copy(simulator: Simulator) -> None:
    simulator.reset()
    saved = simulator.state_dict()
    copies = {name: array.copy() for name, array in saved.items()}
    simulator.step(np.ones((WORLDS, 2), np.float32))
    simulator.reset()
    assert all(np.array_equal(saved[name], copies[name]) for name in saved)


def test_state_of_another_size_is_refused(make: MakeSimulator, simulator: Simulator) -> None:
    state = simulator.state_dict()
    with pytest.raises(ValueError, match="'state' of shape"):
        make(simulator.task, 2).load_state_dict(state)
    del state["desired_goal"]
    with pytest.raises(ValueError, match="without 'desired_goal'"):
        simulator.load_state_dict(state)


def test_derived_fields_are_current(make: MakeSimulator) -> None:
    """A body's position is the one at the new state, not one physics step behind it."""
    point = get_task("point_u_maze")
    terms = (Term("qpos"), Term("qvel"), Term("xpos", "point", columns=(0, 1)), Term("cvel", "point", (3, 4)))
    simulator = make(CompiledTask(dataclasses.replace(point, observation=terms)), seed=1)
    for fresh in (True, False, False):
        if not fresh:
            simulator.step(np.ones((WORLDS, 2), np.float32))
        observation = numpy(simulator.observation)
        assert observation[:, 4:] == pytest.approx(observation[:, :4], abs=1e-6)
    assert np.abs(numpy(simulator.observation)[:, 2:4]).max() > 0.1


def test_forces_are_those_of_the_new_episode_after_a_reset(make: MakeSimulator) -> None:
    """And, in the worlds that were not reset, still those of the last step."""
    terms = (Term("qpos"), Term("qfrc_actuator"))
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), observation=terms))
    simulator = make(task, seed=1)
    simulator.step(np.ones((WORLDS, 2), np.float32))
    assert numpy(simulator.observation)[:, 2:] == pytest.approx(3.0)
    simulator.reset(mask(simulator, 0))
    assert numpy(simulator.observation)[:, 2:].tolist() == [[0.0, 0.0]] + [[3.0, 3.0]] * (WORLDS - 1)


def test_no_force_of_before_acts_in_a_state_that_is_set(make: MakeSimulator) -> None:
    terms = (Term("qpos"), Term("qfrc_actuator"))
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), observation=terms))
    simulator = make(task, seed=1)
    simulator.step(np.ones((WORLDS, 2), np.float32))
    simulator.set_state(np.ones((WORLDS, 2)), np.zeros((WORLDS, 2)))
    assert numpy(simulator.observation).tolist() == [[1.0, 1.0, 0.0, 0.0]] * WORLDS


def test_columns_that_are_not_side_by_side_are_read(make: MakeSimulator) -> None:
    swapped = Term("qpos", columns=(1, 0))
    terms = (swapped, Term("qpos", transform="difference", minus=swapped))
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), observation=terms))
    simulator = make(task, seed=1)
    simulator.step(np.ones((WORLDS, 2), np.float32))
    position = numpy(simulator.achieved_goal)
    observation = numpy(simulator.observation)
    assert np.array_equal(observation[:, :2], position[:, ::-1])
    assert observation[:, 2:] == pytest.approx(position - position[:, ::-1], abs=1e-6)


def test_same_states_and_actions_agree_across_simulators(make: MakeSimulator, task: CompiledTask) -> None:
    """Away from walls, to 1e-4 (1 + |x|); `mujoco.mj_step` itself is the reference."""
    actions = np.random.default_rng(2).uniform(-1, 1, (8, WORLDS, 2)).astype(np.float32)
    simulator = make(task)
    position = [(1.0, 1.0), (1.0, 2.0), (3.0, 2.0), (2.0, 3.0)]
    put(simulator, position, velocity=0.1)
    expected = []
    for world in range(WORLDS):
        data = mujoco.MjData(task.model)
        data.qpos[:], data.qvel[:] = position[world], 0.1
        for action in actions[:, world]:
            data.ctrl[:] = action
            mujoco.mj_step(task.model, data, nstep=task.frame_skip)
        assert data.ncon == 0
        expected.append(np.hstack([data.qpos, data.qvel]))
    for action in actions:
        simulator.step(action)
    error = np.abs(numpy(simulator.observation) - expected)
    assert (error <= 1e-4 * (1 + np.abs(expected))).all()


def test_cpu_simulator_is_bit_identical_at_any_number_of_threads(task: CompiledTask) -> None:
    actions = np.random.default_rng(3).uniform(-1, 1, (20, 16, 2))
    ends = []
    for threads in (1, 2, 3):
        simulator = CpuSimulator(task, 16, seed=4, num_threads=threads)
        for action in actions:
            simulator.step(action)
        ends.append(simulator.state_dict()["state"])
    assert np.array_equal(ends[0], ends[1])
    assert np.array_equal(ends[0], ends[2])


def test_radius_is_taken_from_the_task() -> None:
    wide = dataclasses.replace(get_task("point_u_maze"), success=(SuccessRegion(1.0),))
    simulator = CpuSimulator(CompiledTask(wide), 1)
    simulator.set_goal(simulator.achieved_goal + np.float32(0.6))
    assert simulator.step(np.zeros((1, 2))).success.all()
