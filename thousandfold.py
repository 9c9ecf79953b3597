"""Thousandfold: its version, and its tasks as Gymnasium environments.

``import thousandfold`` registers every built-in task, and one environment for tasks of your own::

    gymnasium.make("thousandfold/PointUMaze-v0")
    gymnasium.make_vec("thousandfold/PointUMaze-v0", num_envs=64)
    gymnasium.make("thousandfold/UserTask-v0", task="robot.yaml")
    gymnasium.make("thousandfold/PointUMaze-v0", episode_steps=50, distribution="evaluation")

No model is compiled before an environment is made.
"""

from __future__ import annotations

import gymnasium

from envs.registry import environment_id, task_names

__version__ = "0.1.0"
__all__ = ["USER_TASK_ID", "__version__"]
USER_TASK_ID = "thousandfold/UserTask-v0"
"""The environment of a task of your own: `make` and `make_vec` take its YAML file as `task`."""


def _register_environments() -> None:
    for name in task_names():
        # No max_episode_steps: the environments truncate themselves, after as many steps as they are told.
        gymnasium.register(
            id=environment_id(name),
            entry_point="envs.goal_env:GoalEnv",
            vector_entry_point="envs.goal_env:GoalVectorEnv",
            kwargs={"task": name},
        )
    gymnasium.register(
        id=USER_TASK_ID,
        entry_point="envs.goal_env:GoalEnv",
        vector_entry_point="envs.goal_env:GoalVectorEnv",
    )


_register_environments()
