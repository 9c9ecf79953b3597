"""Every built-in task resets, runs and passes Gymnasium's checker, on both simulators, without a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import thousandfold  # noqa: F401, registers the environments
from tests.envs.any_simulator import MakeSimulator, numpy
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.task_names import environment_id

STEPS = 1000
FEW_STEPS = 20
REPRESENTATIVE = ("point_u_maze", "ant_u_maze", "arm_push_easy")
EVERY_TASK = [
    pytest.param(name, marks=() if name in REPRESENTATIVE else pytest.mark.slow) for name in task_names()
]


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # State and goals have no bounds to declare.
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is.*")
        yield


def run(simulator: Simulator, steps: int) -> dict[str, int]:
    """Act at random, reset what ended; check what a learner would read; count ends and diverged worlds."""
    rng, counts = np.random.default_rng(0), {"ended": 0, "unstable": 0}
    start = numpy(simulator.observation)
    for step in range(steps):
        action = rng.uniform(-1, 1, (simulator.num_worlds, simulator.task.action_dim)).astype(np.float32)
        result = simulator.step(action)
        unstable = numpy(result.unstable)
        ended = (numpy(result.terminated) | numpy(result.truncated)) & ~unstable
        for array in (simulator.observation, simulator.achieved_goal, simulator.desired_goal):
            assert np.isfinite(numpy(array)[~unstable]).all()
        assert step or not np.array_equal(numpy(simulator.observation), start)
        counts["ended"] += int(ended.sum())
        counts["unstable"] += int(unstable.sum())
        if (ended | unstable).any():
            simulator.reset(ended | unstable)
            assert not numpy(simulator.episode_step)[ended | unstable].any()
    return counts


def test_the_representative_tasks_are_there() -> None:
    assert set(REPRESENTATIVE) <= set(task_names())


@pytest.mark.parametrize("name", EVERY_TASK)
def test_check_env_passes(name: str) -> None:
    check_env(gymnasium.make(environment_id(name)).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", EVERY_TASK)
def test_make_vec_runs_for_a_thousand_steps(name: str) -> None:
    env = gymnasium.make_vec(environment_id(name), num_envs=4)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    ends = 0
    for _ in range(STEPS):
        observation, rewards, terminations, truncations, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert not info["unstable"].any()
        assert set(np.unique(rewards)) <= {-1.0, 0.0}
        ends += int((terminations | truncations).sum())
        if "final_info" in info:
            assert not info["final_info"]["unstable"].any()
    episode_steps = compile_task(name).spec.episode_steps
    assert ends >= 4 * (STEPS // episode_steps)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", task_names())
def test_a_simulator_runs_for_a_thousand_steps(make: MakeSimulator, name: str) -> None:
    task = compile_task(name)
    counts = run(make(task, num_worlds=4, seed=0), STEPS)
    assert counts["ended"] >= 4 * (STEPS // task.spec.episode_steps)
    assert counts["unstable"] == 0


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_simulator_runs_for_a_few_steps(make: MakeSimulator, name: str) -> None:
    assert run(make(compile_task(name), num_worlds=4, seed=0), FEW_STEPS)["unstable"] == 0
