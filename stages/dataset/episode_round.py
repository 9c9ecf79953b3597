"""The episodes of a round, recorded world by world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.replay.goal_dataset import GoalEpisode
from thousandfold.stages.dataset.labels import LabelledAction


@dataclass(frozen=True)
class EpisodeGroup:
    """Episodes that are drawn and acted alike.

    Attributes:
        index: number of the group, which its random streams go by.
        distribution: the episode distribution of starts and goals.
        action_noise: standard deviation of the noise on the actions; 0 for clean episodes.
        episodes: how many.
    """

    index: int
    distribution: str
    action_noise: float
    episodes: int


class RoundRecord:
    """One episode of every world, as it happens. What a world does after its episode's end is left out.

    Attributes:
        running: (num_worlds,) bool, the worlds whose episode has not ended.
        desired_goal: (num_worlds, goal_dim), what is commanded in each.
        step: how many actions were taken.
    """

    def __init__(self, task: CompiledTask, simulator: CpuSimulator) -> None:
        worlds, rows = simulator.num_worlds, task.task.episode_steps + 1
        sizes = {"observation": task.observation_dim, "achieved_goal": task.goal_dim}
        sizes |= dict.fromkeys(("action", "teacher_mean", "teacher_log_std"), task.action_dim)
        self._rows = {name: np.zeros((worlds, rows, size), np.float32) for name, size in sizes.items()}
        self._success = np.zeros((worlds, rows), bool)
        self._success[:, 0] = task.is_success(simulator.achieved_goal, simulator.desired_goal)
        self.desired_goal = simulator.desired_goal.copy()
        self._length, self.step = np.zeros(worlds, np.int64), 0
        self._terminated, self._truncated, self._unstable = (np.zeros(worlds, bool) for _ in range(3))
        self.running = np.ones(worlds, bool)

    def visit(self, simulator: CpuSimulator, label: Callable[..., LabelledAction]) -> np.ndarray:
        """Record every world's state with the teacher's label for it; return the teacher's action."""
        action, mean, log_std = label(simulator.observation, simulator.desired_goal)
        self._put(
            observation=simulator.observation,
            achieved_goal=simulator.achieved_goal,
            teacher_mean=mean,
            teacher_log_std=log_std,
        )
        return action

    def act(self, simulator: CpuSimulator, action: np.ndarray) -> None:
        """Take and record an action in every world, and note which episodes it ended."""
        self._put(action=action)
        result = simulator.step(action)
        self.step += 1
        self._success[:, self.step] = result.success
        ended = self.running & (result.terminated | result.truncated | result.unstable)
        self._terminated[ended] = result.terminated[ended]
        self._truncated[ended] = result.truncated[ended]
        self._unstable[ended] = result.unstable[ended]
        self._length[ended] = self.step
        self.running &= ~ended

    def _put(self, **columns: np.ndarray) -> None:
        for name, values in columns.items():
            self._rows[name][:, self.step] = values

    def episode(self, world: int, group: EpisodeGroup) -> GoalEpisode | None:
        """Return the episode of a world once it has ended, without alternative goals; None where the physics
        diverged.
        """
        if self._unstable[world]:
            return None
        stop = int(self._length[world]) + 1
        rows = {name: values[world, :stop] for name, values in self._rows.items()}
        rows["action"] = rows["action"][:-1]
        like = {"goal": "achieved_goal", "mean": "teacher_mean", "log_std": "teacher_log_std"}
        none = {f"alternative_{name}": rows[source][:, None][:, :0] for name, source in like.items()}
        return GoalEpisode(
            **rows,
            **none,
            desired_goal=self.desired_goal[world],
            success=self._success[world, :stop],
            terminated=bool(self._terminated[world]),
            truncated=bool(self._truncated[world]),
            distribution=group.distribution,
            action_noise=group.action_noise,
        )
