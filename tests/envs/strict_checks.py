"""What holds for every task, for the tests of each family."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator


def check_env_strictly(env: gymnasium.Env) -> None:
    """Run Gymnasium's checker; every warning is an error, but that state and goals declare no bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (min|max)imum value is.*")
        check_env(env, skip_render_check=True)


def require_goal_apart_from_state(name: str, shift: float) -> None:
    """Play the same actions under two goals, `shift` apart, and require the same states, bit for bit."""
    one, other = (CpuSimulator(compile_task(name), 3, seed=5, num_threads=1) for _ in range(2))
    other.set_goal(one.desired_goal + shift)
    assert not np.array_equal(one.desired_goal, other.desired_goal)
    action = np.random.default_rng(5).uniform(-1, 1, (3, one.task.action_dim))
    for _ in range(3):
        one.step(action)
        other.step(action)
    assert np.array_equal(one.observation, other.observation)
