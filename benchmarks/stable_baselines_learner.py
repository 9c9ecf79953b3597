"""A learner of Stable-Baselines3 or of SBX, its JAX sibling, with hindsight replay; one run a process.

    python -m benchmarks.stable_baselines_learner '{"learner": "SBX CrossQ", "task": "reacher", "seed": 0}'

The task comes from `gymnasium.make`, unchanged. Each evaluation writes one line of JSON; the last line is the
result. Starting from the documentation's example of HER (3 layers of 256 units, a batch of 256, 4 goals a
transition from its future), `Settings` says what was changed and why.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import thousandfold  # noqa: F401, registers the environments
from benchmarks.wall_clock import LEARNERS
from thousandfold.envs.goal_env import GoalVectorEnv
from thousandfold.envs.registry import get_task
from thousandfold.envs.task_names import environment_id
from thousandfold.registration import USER_TASK_ID
from thousandfold.stages.episodes import wilson_interval

_NO_END = 10**12
_FINAL_SEED = 10**6  # away from those of the evaluations on the way

Act = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        learner: a name of `wall_clock.LEARNERS`.
        task, seed: what is learned, and the seed of everything random.
        limit_s: seconds after which it is given up.
        target_success: success that ends the run.
        evaluate_every_s: seconds from one evaluation to the next.
        episodes: of each evaluation.
        threads: of torch.
        num_envs: environments in one process. Eight instead of one share the cost of asking the policy.
        updates_per_step: gradient steps for each environment step. 0.5 instead of 1: as many updates teach no
            less with twice the experience, and a step costs little beside an update.
        discount: of rewards. 0.98 instead of 0.95 where goals lie up to some 50 steps away.
        layers: 2, their default, instead of 3: as many updates, each a third cheaper.
        learning_rate, batch_size, width, sampled_goals: as in the documentation's example.
        first_episodes: episodes of each environment before the first update; relabelling needs whole ones.
    """

    learner: str
    task: str
    seed: int = 0
    limit_s: float = 1800.0
    target_success: float = 0.8
    evaluate_every_s: float = 10.0
    episodes: int = 128
    threads: int = 2
    num_envs: int = 8
    updates_per_step: float = 0.5
    discount: float = 0.98
    learning_rate: float = 1e-3
    batch_size: int = 256
    width: int = 256
    layers: int = 2
    sampled_goals: int = 4
    first_episodes: int = 1


def made_with(task: str) -> dict[str, Any]:
    """Return the Gymnasium id of a built-in task or of a page of YAML, and what it is made with."""
    if task.endswith(".yaml"):
        return {"id": USER_TASK_ID, "kwargs": {"task": task}}
    return {"id": environment_id(task), "kwargs": {}}


def make_learner(settings: Settings) -> OffPolicyAlgorithm:
    """Return the learner with its environments."""
    made = made_with(settings.task)
    env = make_vec_env(made["id"], n_envs=settings.num_envs, seed=settings.seed, env_kwargs=made["kwargs"])
    episode_steps = get_task(settings.task).episode_steps
    module, name = LEARNERS[settings.learner]
    return getattr(importlib.import_module(module), name)(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={
            "n_sampled_goal": settings.sampled_goals,
            "goal_selection_strategy": "future",
        },
        buffer_size=1_000_000,
        learning_rate=settings.learning_rate,
        gamma=settings.discount,
        batch_size=settings.batch_size,
        train_freq=1,
        gradient_steps=max(1, round(settings.updates_per_step * settings.num_envs)),
        learning_starts=settings.num_envs * (settings.first_episodes * episode_steps + 1),
        policy_kwargs={"net_arch": [settings.width] * settings.layers},
        seed=settings.seed,
        device="cpu",
    )


def count_successes(env: GoalVectorEnv, act: Act, seed: int) -> int:
    """Return in how many worlds an episode came to its goal and did not diverge, as evaluations count.

    Args:
        env: one episode runs in each of its worlds.
        act: maps a batch of observations to actions.
        seed: seed of starts and goals.
    """
    observation, _ = env.reset(seed=seed)
    running, reached = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    while running.any():
        observation, reward, terminated, truncated, info = env.step(act(cast(Any, observation)))
        reached |= running & (reward == 0)
        if "final_info" in info:
            reached &= ~(running & info["final_info"]["unstable"])
        running &= ~(terminated | truncated)
    return int(reached.sum())


class Evaluations(BaseCallback):
    """Evaluates the mean action now and then, and ends the run at the target or when time is up.

    Attributes:
        history: seconds since the training began, environment steps, updates and success of each evaluation.
        reached_s: seconds at which the target was met; None before.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        made = made_with(settings.task)
        self._env = cast(
            GoalVectorEnv,
            gymnasium.make_vec(
                made["id"], num_envs=settings.episodes, distribution="evaluation", **made["kwargs"]
            ),
        )
        self._begun = self._last = 0.0
        self.history: list[dict[str, float]] = []
        self.reached_s: float | None = None

    def _on_training_start(self) -> None:
        self._begun = self._last = time.perf_counter()

    def successes(self, seed: int) -> int:
        """Return the successes of fresh episodes."""
        learner = cast(OffPolicyAlgorithm, self.model)

        def act(observation: dict[str, np.ndarray]) -> np.ndarray:
            return learner.predict(observation, deterministic=True)[0]

        return count_successes(self._env, act, seed)

    def _on_step(self) -> bool:
        if time.perf_counter() - self._last < self._settings.evaluate_every_s:
            return True
        seed = 1000 * self._settings.seed + len(self.history)
        success = self.successes(seed) / self._settings.episodes
        self._last = time.perf_counter()
        entry = {
            "elapsed_s": self._last - self._begun,
            "env_steps": self.num_timesteps,
            "updates": cast(OffPolicyAlgorithm, self.model)._n_updates,
            "success": success,
        }
        self.history.append(entry)
        print(json.dumps(entry), flush=True)
        if success >= self._settings.target_success:
            self.reached_s = entry["elapsed_s"]
        return self.reached_s is None and entry["elapsed_s"] < self._settings.limit_s


def run(settings: Settings) -> dict[str, Any]:
    """Learn until the target is met or time is up; return the result."""
    torch.set_num_threads(settings.threads)
    evaluations = Evaluations(settings)
    make_learner(settings).learn(_NO_END, callback=evaluations)
    final = evaluations.successes(_FINAL_SEED + settings.seed)
    return {
        "reached_s": evaluations.reached_s,
        "final_success": final / settings.episodes,
        "final_success_interval": wilson_interval(final, settings.episodes),
        "history": evaluations.history,
        "settings": asdict(settings),
    }


def main() -> None:
    """Run what the argument asks for."""
    print(json.dumps(run(Settings(**json.loads(sys.argv[1])))), flush=True)


if __name__ == "__main__":
    main()
