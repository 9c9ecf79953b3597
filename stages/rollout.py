"""Collecting experience: the actor explores every world of a simulator and the memory keeps the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.simulator import Simulator
from replay.trajectory_buffer import TrajectoryBuffer
from stages.contrastive_learner import ContrastiveLearner


@dataclass
class RolloutStatistics:
    """What happened in a collection.

    Attributes:
        env_steps: control steps over all worlds.
        successes: steps that ended within the success region.
        episodes: episodes that ended.
        unstable: episodes dropped because the physics diverged.
    """

    env_steps: int = 0
    successes: int = 0
    episodes: int = 0
    unstable: int = 0


def collect(
    simulator: Simulator,
    learner: ContrastiveLearner,
    buffer: TrajectoryBuffer,
    steps: int,
    generator: torch.Generator,
) -> RolloutStatistics:
    """Step every world `steps` times with sampled actions, store the rows, reset what ends."""
    statistics = RolloutStatistics()
    tensor = lambda array: torch.as_tensor(array, device=learner.device)  # noqa: E731
    for _ in range(steps):
        observation, goal = tensor(simulator.observation), tensor(simulator.desired_goal)
        action = learner.act(observation, goal, generator)
        buffer.add(observation, action, tensor(simulator.achieved_goal))
        result = simulator.step(action)
        unstable = tensor(result.unstable)
        ended = (tensor(result.terminated) | tensor(result.truncated)) & ~unstable
        statistics.env_steps += simulator.num_worlds
        statistics.successes += int(result.success.sum())
        if ended.any():
            buffer.end_episodes(ended, tensor(simulator.observation), tensor(simulator.achieved_goal))
        if unstable.any():
            buffer.drop_episodes(unstable)
        over = ended | unstable
        if over.any():
            statistics.episodes += int(ended.sum())
            statistics.unstable += int(unstable.sum())
            simulator.reset(over)
    return statistics
