"""What varies, on every simulator: the same draws, worlds that move alike, states that bring them back."""

from __future__ import annotations

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
from tests.envs.varied_tasks import EVERY, varied_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Variation
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.task import TaskError

ROOM = {"nconmax": 40, "njmax": 120}
STEPS = 15


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    return varied_task()


def play(simulator: Simulator, steps: int = STEPS) -> np.ndarray:
    """Step under one sequence of actions, and return the observation."""
    rng = np.random.default_rng(7)
    for _ in range(steps):
        simulator.step(rng.uniform(-1, 1, (simulator.num_worlds, 2)).astype(np.float32))
    return numpy(simulator.observation)


def test_starts_and_goals_are_those_of_the_nominal_task(make: MakeSimulator, task: CompiledTask) -> None:
    varied = make(task, seed=5)
    nominal = make(task, seed=5, distribution="nominal")
    for _ in range(2):
        assert np.array_equal(numpy(varied.desired_goal), numpy(nominal.desired_goal))
        positions = slice(0, 9)
        assert np.array_equal(
            numpy(varied.observation)[:, positions], numpy(nominal.observation)[:, positions]
        )
        varied.reset(mask(varied, 1, 2))
        nominal.reset(mask(nominal, 1, 2))
    assert len(np.unique(numpy(varied.factors)[:, 0])) == WORLDS
    assert numpy(nominal.factors).shape == (WORLDS, 0)


def test_a_reset_draws_anew_for_its_worlds_alone(simulator: Simulator) -> None:
    simulator.reset()
    before = numpy(simulator.factors)
    simulator.reset(mask(simulator, 1, 3))
    changed = (numpy(simulator.factors) != before).any(1)
    assert changed.tolist() == [False, True, False, True]
    simulator.set_state(np.tile(simulator.task.model.qpos0, (WORLDS, 1)), np.zeros((WORLDS, 8)))
    simulator.step(still(simulator))
    assert np.array_equal((numpy(simulator.factors) != before).any(1), changed)


def test_a_saved_state_brings_back_models_pushes_and_the_next_draws(
    make: MakeSimulator, task: CompiledTask, simulator: Simulator
) -> None:
    simulator.reset()
    play(simulator, 6)
    state = simulator.state_dict()
    went = play(simulator)
    simulator.reset(mask(simulator, 0))
    drawn = numpy(simulator.factors)
    other = make(task, seed=99)
    other.load_state_dict(state)
    assert_same(simulator, play(other), went)  # the box lies on the floor
    other.reset(mask(other, 0))
    assert np.array_equal(numpy(other.factors), drawn)


def test_a_state_without_draws_is_refused_where_something_varies(simulator: Simulator) -> None:
    state = simulator.state_dict()
    with pytest.raises(ValueError, match="a simulator state without 'draws'"):
        simulator.load_state_dict({name: value for name, value in state.items() if name != "draws"})


def test_what_does_not_vary_saves_what_it_always_has(make: MakeSimulator, task: CompiledTask) -> None:
    state = make(task, seed=5, distribution="nominal").state_dict()
    assert "draws" not in state and "draws_generator" not in state


@pytest.mark.parametrize("varies", EVERY, ids=lambda each: each.name)
def test_worlds_of_the_same_draws_move_alike(make: MakeSimulator, varies: Variation) -> None:
    """Nearer to the CPU's worlds than the nominal ones are, which move otherwise."""
    if make is make_cpu:
        pytest.skip("it is the measure")
    task = varied_task([varies])
    own, reference = make(task, num_worlds=16, seed=2, **ROOM), make_cpu(task, num_worlds=16, seed=2)
    nominal = make_cpu(task, num_worlds=16, seed=2, distribution="nominal")
    assert np.allclose(numpy(own.factors), reference.factors, atol=1e-6)
    moved, expected, plain = play(own), play(reference), play(nominal)
    assert np.abs(moved - expected).max() < 0.1 * np.abs(plain - expected).max()
    assert np.median(np.abs(moved - expected)) < 2e-5


def test_warp_refuses_what_it_has_for_all_worlds_alone(make: MakeSimulator) -> None:
    """The coefficients of an ellipsoid in a fluid follow its size, and are no field of each world there."""
    from tests.envs import varied_tasks

    if make is make_cpu:
        pytest.skip("MuJoCo has them")
    fluid = varied_tasks.MODEL.replace(
        'name="box" type="box"', 'name="box" type="box" fluidshape="ellipsoid"'
    )
    task = varied_task(EVERY[9:10], model=fluid)
    with pytest.raises(TaskError, match="MuJoCo Warp has one geom_fluid for all environments"):
        make(task, **ROOM)
