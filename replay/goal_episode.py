"""An episode of a goal-reaching policy, with what the teacher would have done in each of its states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thousandfold.ground.errors import UserError
from thousandfold.ground.runs import every_goal_held

OTHER_POLICY = "another policy"
"""In place of a level of noise where it was not the teacher that acted."""

_COUNTS = ("episodes", "rows", "successes", "clean_episodes", "clean_successes")


class DatasetError(UserError, ValueError):
    """A dataset that is damaged, foreign, empty or already there. The message is one line naming the file."""


@dataclass(frozen=True)
class GoalEpisode:
    """An episode of T actions, T at least 1, every state with K alternative goals, K at least 0.

    Attributes:
        observation: (T + 1, observation_dim), float32, as are all arrays but `success`.
        achieved_goal: (T + 1, goal_dim).
        desired_goal: (goal_dim,), commanded throughout; or (T + 1, goal_dim), commanded in each state.
        action: (T, action_dim) in [−1, 1], as executed.
        teacher_mean, teacher_log_std: (T + 1, action_dim), before the tanh, at every state.
        alternative_goal: (T + 1, K, goal_dim), goals that might have been commanded in the state.
        alternative_mean, alternative_log_std: (T + 1, K, action_dim), the teacher's Gaussian under them.
        success: (T + 1,) bool, the state lies within the success region.
        terminated, truncated: how it ended; an early end, the last of its steps, or both.
        distribution: the episode distribution that start and goal were drawn from.
        action_noise: standard deviation of the noise on its actions; 0 for a clean episode, NaN where another
            policy than the teacher acted.
        hold_steps: states in a row within the success region of a goal that make it a success; of every
            goal, where several were commanded one after the other.
        student_observation: (T + 1, its size), what a student saw; None where it sees `observation`.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    action: np.ndarray
    teacher_mean: np.ndarray
    teacher_log_std: np.ndarray
    alternative_goal: np.ndarray
    alternative_mean: np.ndarray
    alternative_log_std: np.ndarray
    success: np.ndarray
    terminated: bool
    truncated: bool
    distribution: str
    action_noise: float
    hold_steps: int = 1
    student_observation: np.ndarray | None = None

    @property
    def succeeded(self) -> bool:
        """Whether actions led into the success region of every goal, and held it for long enough.

        An episode of several goals that ends early is none: who falls holds no goal that would have come.
        """
        if self.desired_goal.ndim == 2 and self.terminated:
            return False
        goals = self.desired_goal[1:] if self.desired_goal.ndim == 2 else self.desired_goal
        return every_goal_held(self.success[1:], goals, self.hold_steps)


@dataclass
class DatasetStatistics:
    """What a dataset, or a shard of one, holds.

    Attributes:
        episodes, rows: episodes and actions in it.
        successes: episodes that succeeded.
        clean_episodes, clean_successes: the same of the episodes without action noise.
        by_noise: episodes and successes by level of action noise, as text, or `OTHER_POLICY`.
    """

    episodes: int = 0
    rows: int = 0
    successes: int = 0
    clean_episodes: int = 0
    clean_successes: int = 0
    by_noise: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def from_metadata(cls, facts: Mapping[str, Any]) -> DatasetStatistics:
        """Return what `vars` of the statistics said once. Raises KeyError, TypeError or ValueError."""
        by_noise = {str(level): [int(n) for n in counts] for level, counts in facts["by_noise"].items()}
        return cls(**{name: int(facts[name]) for name in _COUNTS}, by_noise=by_noise)

    def add(self, episode: GoalEpisode) -> None:
        """Count one episode."""
        clean = episode.action_noise == 0.0
        level = OTHER_POLICY if math.isnan(episode.action_noise) else f"{episode.action_noise:g}"
        self._merge_noise({level: [1, int(episode.succeeded)]})
        self.episodes += 1
        self.rows += len(episode.action)
        self.successes += episode.succeeded
        self.clean_episodes += clean
        self.clean_successes += clean and episode.succeeded

    def merge(self, other: DatasetStatistics) -> None:
        """Count what others have counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._merge_noise(other.by_noise)

    def _merge_noise(self, by_noise: Mapping[str, list[int]]) -> None:
        for level, (episodes, successes) in by_noise.items():
            before = self.by_noise.get(level, [0, 0])
            self.by_noise[level] = [before[0] + episodes, before[1] + successes]
