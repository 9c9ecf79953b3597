"""The episodes of a round: recorded world by world, and passed on from rank to rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.compiled_task import CompiledTask
from envs.cpu_simulator import CpuSimulator
from pipeline.core.distributed import Ranks
from replay.goal_dataset import GoalEpisode

LabelledAction = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The teacher's action tanh(mean), its mean and its log-std, each (num_worlds, action_dim)."""


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
    """

    def __init__(self, task: CompiledTask, simulator: CpuSimulator) -> None:
        worlds, rows = simulator.num_worlds, task.task.episode_steps + 1
        sizes = {"observation": task.observation_dim, "achieved_goal": task.goal_dim}
        sizes |= dict.fromkeys(("action", "teacher_mean", "teacher_log_std"), task.action_dim)
        self._rows = {name: np.zeros((worlds, rows, size), np.float32) for name, size in sizes.items()}
        self._success = np.zeros((worlds, rows), bool)
        self._success[:, 0] = task.is_success(simulator.achieved_goal, simulator.desired_goal)
        self._desired_goal = simulator.desired_goal.copy()
        self._length, self._step = np.zeros(worlds, np.int64), 0
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
        self._step += 1
        self._success[:, self._step] = result.success
        ended = self.running & (result.terminated | result.truncated | result.unstable)
        self._terminated[ended] = result.terminated[ended]
        self._truncated[ended] = result.truncated[ended]
        self._unstable[ended] = result.unstable[ended]
        self._length[ended] = self._step
        self.running &= ~ended

    def _put(self, **columns: np.ndarray) -> None:
        for name, values in columns.items():
            self._rows[name][:, self._step] = values

    def episode(self, world: int, group: EpisodeGroup) -> GoalEpisode | None:
        """Return the episode of a world once it has ended; None where the physics diverged."""
        if self._unstable[world]:
            return None
        stop = int(self._length[world]) + 1
        rows = {name: values[world, :stop] for name, values in self._rows.items()}
        rows["action"] = rows["action"][:-1]
        return GoalEpisode(
            **rows,
            desired_goal=self._desired_goal[world],
            success=self._success[world, :stop],
            terminated=bool(self._terminated[world]),
            truncated=bool(self._truncated[world]),
            distribution=group.distribution,
            action_noise=group.action_noise,
        )


# -- from rank to rank ----------------------------------------------------------------------------


def send_round(episodes: Sequence[GoalEpisode | None], ranks: Ranks) -> None:
    """Send the episodes of a round to rank 0, which takes them with `receive_round`; at least one."""
    marks = [
        (0, 0, 0) if episode is None else (len(episode.success), episode.terminated, episode.truncated)
        for episode in episodes
    ]
    rows = [_rows_of(episode) for episode in episodes if episode is not None]
    ranks.send(torch.tensor(marks, dtype=torch.int64))
    ranks.send(torch.from_numpy(np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)))


def receive_round(
    source: int, group: EpisodeGroup, task: CompiledTask, ranks: Ranks
) -> list[GoalEpisode | None]:
    """Return the next round of episodes that a rank has sent.

    Args:
        source: the rank.
        group: what the episodes belong to.
        task: gives the sizes of their columns.
        ranks: the processes that make the dataset.
    """
    marks = ranks.receive(source, torch.int64).tolist()
    rows = ranks.receive(source, torch.float32).numpy()
    episodes: list[GoalEpisode | None] = []
    start = 0
    for length, terminated, truncated in marks:
        own = rows[start : start + length]
        start += length
        episodes.append(_episode_of(own, task, group, terminated, truncated) if length else None)
    return episodes


def _rows_of(episode: GoalEpisode) -> np.ndarray:
    """Return an episode's columns side by side, (T + 1, columns), in the order in which they are read."""
    rows = len(episode.success)
    columns = [
        episode.observation,
        episode.achieved_goal,
        np.tile(episode.desired_goal, (rows, 1)),
        np.pad(episode.action, ((0, 1), (0, 0))),
        episode.teacher_mean,
        episode.teacher_log_std,
        episode.success[:, None],
    ]
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _episode_of(
    rows: np.ndarray, task: CompiledTask, group: EpisodeGroup, terminated: int, truncated: int
) -> GoalEpisode:
    widths = [task.observation_dim, task.goal_dim, task.goal_dim, *[task.action_dim] * 3]
    observation, achieved, desired, action, mean, log_std, success = np.split(rows, np.cumsum(widths), axis=1)
    return GoalEpisode(
        observation=observation,
        achieved_goal=achieved,
        desired_goal=desired[0],
        action=action[:-1],
        teacher_mean=mean,
        teacher_log_std=log_std,
        success=success[:, 0] > 0.5,
        terminated=bool(terminated),
        truncated=bool(truncated),
        distribution=group.distribution,
        action_noise=group.action_noise,
    )
