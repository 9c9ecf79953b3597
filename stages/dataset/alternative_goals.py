"""Other goals for the states of a round, each labelled by the teacher: labels are cheap beside simulation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from thousandfold.replay.goal_dataset import GoalEpisode
from thousandfold.replay.hindsight import truncated_geometric
from thousandfold.stages.dataset.labels import TeacherLabels


def add_alternatives(
    episodes: Sequence[GoalEpisode],
    labels: TeacherLabels,
    rng: np.random.Generator,
    *,
    count: int,
    hindsight_fraction: float,
    discount: float,
) -> list[GoalEpisode]:
    """Return the episodes with `count` alternative goals for each of their states.

    A share of them the same episode achieves later, so that the teacher is asked about what lies ahead; the
    others were commanded in other episodes of the round. The last state has itself ahead of it.

    Args:
        episodes: of a round.
        labels: the teacher.
        rng: what goals are drawn from.
        count: K, the goals a state.
        hindsight_fraction: share of them that are achieved later in the episode.
        discount: γ of the distance ahead, as in `replay.hindsight`.
    """
    if not count or not episodes:
        return list(episodes)
    ahead = round(hindsight_fraction * count)
    lengths = np.array([len(episode.success) for episode in episodes])
    goals_ahead = _goals_ahead(episodes, lengths, rng, ahead, discount)
    goals = np.concatenate([goals_ahead, _other_goals(episodes, lengths, rng, count - ahead)], axis=1)
    observation = np.concatenate([episode.observation for episode in episodes])
    mean, log_std = labels.alternatives(observation, goals)
    stops = np.cumsum(lengths)[:-1]
    parts = (np.split(column, stops) for column in (goals, mean, log_std))
    return [
        dataclasses.replace(episode, alternative_goal=g, alternative_mean=m, alternative_log_std=s)
        for episode, g, m, s in zip(episodes, *parts, strict=True)
    ]


def _goals_ahead(
    episodes: Sequence[GoalEpisode],
    lengths: np.ndarray,
    rng: np.random.Generator,
    count: int,
    discount: float,
) -> np.ndarray:
    """Return goals that are achieved later in the same episode, (rows, count, goal_dim)."""
    achieved = np.concatenate([episode.achieved_goal for episode in episodes])
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    row = np.arange(len(achieved))
    remaining = np.repeat((last - row)[:, None], count, axis=1)
    uniform = torch.from_numpy(rng.random(remaining.shape))
    offset = truncated_geometric(uniform, torch.from_numpy(np.maximum(remaining, 1)), discount).numpy()
    return achieved[row[:, None] + np.minimum(offset, remaining)]


def _other_goals(
    episodes: Sequence[GoalEpisode], lengths: np.ndarray, rng: np.random.Generator, count: int
) -> np.ndarray:
    """Return goals commanded in other episodes, (rows, count, goal_dim); its own where there is no other."""
    commanded = np.stack([episode.desired_goal for episode in episodes])
    own = np.repeat(np.arange(len(episodes)), lengths)
    step = 1 + rng.integers(max(len(episodes) - 1, 1), size=(len(own), count))
    return commanded[(own[:, None] + step) % len(episodes)]
