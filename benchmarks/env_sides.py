"""The systems whose environment steps are compared: the product's, EnvPool's and Gymnasium's.

All act at random and reset what ends, and first go on for a while: what physics cost depends on where such a
policy brings the worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from benchmarks.turns import Side
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalVectorEnv
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

_ACTION_SETS = 64
_SETTLING_STEPS = 100  # of each world; an ant or humanoid that acts at random falls within some 40


def random_actions(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return sets of actions to go through again and again, uniform between the bounds."""
    rng = np.random.default_rng(1)
    return rng.uniform(low, high, (_ACTION_SETS, *shape)).astype(dtype)


def make_simulator(task: CompiledTask, worlds: int, threads: int) -> CpuSimulator:
    """Return worlds whose episodes are spread out, as they are in training.

    Worlds that all ended in one step would be reset together, which is cheaper than a few at a time.
    """
    simulator = CpuSimulator(task, worlds, num_threads=threads)
    simulator.episode_step[:] = np.random.default_rng(0).integers(task.spec.episode_steps, size=worlds)
    return simulator


def full_step(simulator: CpuSimulator, action: np.ndarray) -> None:
    """Make a full step: observation, goals, success, ends, and the resets of the worlds that ended."""
    result = simulator.step(action)
    ended = result.terminated | result.truncated | result.unstable
    if ended.any():
        simulator.reset(ended)


def own_side(task: CompiledTask, worlds: int, threads: int) -> Side:
    """Return the product's simulator, as its learner steps it."""
    simulator = make_simulator(task, worlds, threads)
    actions = random_actions(-1, 1, (worlds, task.action_dim), np.float32)

    def advance(count: int) -> None:
        for index in range(count):
            full_step(simulator, actions[index % _ACTION_SETS])

    advance(_SETTLING_STEPS)
    return Side(advance, worlds)


def own_vector_side(task: CompiledTask, worlds: int, threads: int) -> Side:
    """Return the product's Gymnasium vector environment, which copies what it returns."""
    return _gymnasium_side(GoalVectorEnv(worlds, task=task, num_threads=threads))


def gymnasium_side(env_id: str, worlds: int, *, processes: bool) -> Side:
    """Return Gymnasium's own vector environment: in this process, or each world in one of its own."""
    makers = [partial(gymnasium.make, env_id)] * worlds
    # Spawned: a fork would take the locks of other sides' threads along.
    return _gymnasium_side(AsyncVectorEnv(makers, context="spawn") if processes else SyncVectorEnv(makers))


def _gymnasium_side(env: Any) -> Side:
    space = env.single_action_space
    actions = random_actions(space.low, space.high, (env.num_envs, *space.shape), space.dtype)
    env.reset(seed=0)

    def advance(count: int) -> None:
        for index in range(count):
            env.step(actions[index % _ACTION_SETS])

    advance(_SETTLING_STEPS)
    return Side(advance, env.num_envs, env.close)


def envpool_side(env_id: str, worlds: int, batch: int, threads: int) -> Side:
    """Return EnvPool's environment; with a batch below the worlds it hands out what is ready first."""
    import envpool  # pyright: ignore[reportMissingImports]

    env: Any = envpool.make(
        env_id, env_type="gymnasium", num_envs=worlds, batch_size=batch, num_threads=threads, seed=0
    )
    space = env.action_space
    actions = random_actions(space.low, space.high, (batch, *space.shape), space.dtype)
    if batch == worlds:
        env.reset()
    else:
        env.async_reset()

    def advance(count: int) -> None:
        for index in range(count):
            action = actions[index % _ACTION_SETS]
            if batch == worlds:
                env.step(action)
            else:
                env.send(action, env.recv()[4]["env_id"])

    advance(_SETTLING_STEPS * worlds // batch)
    return Side(advance, batch, env.close)


def envpool_candidates(env_id: str, threads: int, most_worlds: int = 256) -> dict[str, Callable[[], Side]]:
    """Return EnvPool's settings to choose the best from, the names telling worlds and batch."""
    sizes = [(16, 16), (64, 64), (256, 256), (16, 8), (64, 16), (64, 32), (256, 64), (256, 128)]
    return {
        f"{worlds} worlds, batches of {batch}": partial(envpool_side, env_id, worlds, batch, threads)
        for worlds, batch in sizes
        if worlds <= most_worlds
    }


def gymnasium_candidates(
    env_id: str, *, processes: bool, most_worlds: int = 64
) -> dict[str, Callable[[], Side]]:
    """Return sizes of Gymnasium's vector environment to choose the best from."""
    counts = (2, 4, 8, 16) if processes else (1, 4, 16, 64)
    return {
        f"{worlds} worlds": partial(gymnasium_side, env_id, worlds, processes=processes)
        for worlds in counts
        if worlds <= most_worlds
    }
