"""Thousandfold: its version, and its tasks as Gymnasium environments.

``import thousandfold`` registers every built-in task, and one environment for tasks of your own::

    gymnasium.make("thousandfold/PointUMaze-v0")
    gymnasium.make_vec("thousandfold/PointUMaze-v0", num_envs=64)
    gymnasium.make("thousandfold/UserTask-v0", task="robot.yaml")
    gymnasium.make("thousandfold/PointUMaze-v0", episode_steps=50, distribution="evaluation")

Neither Gymnasium nor MuJoCo is imported by it, and no model is compiled before an environment is made.
"""

from __future__ import annotations

from thousandfold.registration import USER_TASK_ID, register_environments_with_gymnasium

__version__ = "0.1.0"
__all__ = ["USER_TASK_ID", "__version__"]

register_environments_with_gymnasium()
