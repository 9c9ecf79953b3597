"""Stable-Baselines3's SAC with hindsight replay trains on the tasks as `gymnasium.make` makes them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

import thousandfold  # noqa: F401, registers the environments
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task_names import environment_id

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 comes with the extra `dev`")

from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

TASKS = ("point_u_maze", "ant")
NUM_ENVS = 4
UPDATES = 8


def make_learner(env: Any, learning_starts: int) -> SAC:
    return SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        buffer_size=20_000,
        learning_starts=learning_starts,
        batch_size=64,
        gradient_steps=2,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    )


def weights(learner: SAC) -> np.ndarray:
    return np.concatenate([each.detach().numpy().ravel() for each in learner.policy.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_it_learns_from_relabelled_transitions(name: str) -> None:
    env = make_vec_env(environment_id(name), n_envs=NUM_ENVS, seed=0)
    task = compile_task(name)
    # Relabelling needs whole episodes.
    first = NUM_ENVS * (task.spec.episode_steps + 1)
    learner = make_learner(env, first)
    before = weights(learner)
    learner.learn(first + NUM_ENVS * UPDATES)
    assert learner._n_updates >= 2 * UPDATES
    assert np.isfinite(weights(learner)).all()
    assert not np.array_equal(weights(learner), before)
    assert_relabelled(learner, name)


def assert_relabelled(learner: SAC, name: str) -> None:
    """Four of five goals were achieved later; rewards are those of the goals that the batch holds."""
    buffer = learner.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    batch = buffer.sample(500)
    achieved = batch.next_observations["achieved_goal"].numpy()
    desired = batch.next_observations["desired_goal"].numpy()
    expected = compile_task(name).is_success(achieved, desired).astype(float) - 1.0
    assert batch.rewards.numpy()[:, 0].tolist() == expected.tolist()
    commanded = np.unique(buffer.next_observations["desired_goal"].reshape(-1, desired.shape[1]), axis=0)
    is_commanded = (desired[:, None] == commanded[None]).all(-1).any(1)
    assert 0.1 < is_commanded.mean() < 0.3


@pytest.mark.parametrize("name", TASKS)
def test_its_own_checker_passes(name: str) -> None:
    # Its checker looks for `compute_reward`, which Gymnasium's wrappers do not pass on.
    check_env(gymnasium.make(environment_id(name)).unwrapped, skip_render_check=True)


@pytest.mark.slow
def test_it_runs_worlds_in_processes_of_their_own() -> None:
    # The part before the colon is imported where the environment is made.
    env_id = f"thousandfold:{environment_id('point_u_maze')}"
    env = make_vec_env(env_id, n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    learner = make_learner(env, learning_starts=2 * 101)
    learner.learn(2 * 105)
    assert learner._n_updates > 0
    env.close()
