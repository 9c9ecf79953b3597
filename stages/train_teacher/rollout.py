"""Collecting experience: the actor explores every world of a simulator and the memory keeps the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

import torch
from torch import Tensor

from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer
from thousandfold.stages.train_teacher.learner import ContrastiveLearner


@dataclass
class RolloutStatistics:
    """What happened in a collection.

    Attributes:
        env_steps: control steps over all worlds.
        successes: steps that ended within the success region.
        episodes: episodes that ended.
        unstable: episodes dropped because the physics diverged or found no room for contacts or constraints.
        overflowed: how many of them found no room.
    """

    env_steps: int = 0
    successes: int = 0
    episodes: int = 0
    unstable: int = 0
    overflowed: int = 0

    def over(self, ranks: Ranks) -> RolloutStatistics:
        """Return the sums over the ranks, which all call this together."""
        return RolloutStatistics(*ranks.gather(torch.tensor(astuple(self))).sum(0).tolist())


def collect(
    simulator: Simulator,
    learner: ContrastiveLearner,
    buffer: TrajectoryBuffer,
    steps: int,
    generator: torch.Generator,
    act: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> RolloutStatistics:
    """Step every world `steps` times with sampled actions, store the rows, reset what ends.

    Away from the CPU no step waits for the device: masks are applied whether or not a world is in them, and
    what happened is counted there and read once.

    Args:
        simulator, learner, buffer: what acts, and where the rows go.
        steps: control steps of each world.
        generator: what actions are drawn from.
        act: maps observations and goals to actions in place of the learner.
    """
    act = act or partial(learner.act, generator=generator)
    overflowed = simulator.overflow_count
    counts = torch.zeros(3, dtype=torch.int64, device=learner.device)
    with simulator.unroll(steps):
        for _ in range(steps):
            _step(simulator, buffer, act, counts)
    successes, episodes, unstable = counts.tolist()
    overflowed = simulator.overflow_count - overflowed
    return RolloutStatistics(steps * simulator.num_worlds, successes, episodes, unstable, overflowed)


def _step(
    simulator: Simulator,
    buffer: TrajectoryBuffer,
    act: Callable[[Tensor, Tensor], Tensor],
    counts: Tensor,
) -> None:
    """Take one control step; add successes, episodes that ended and unstable ones to `counts`, (3,)."""
    tensor = partial(torch.as_tensor, device=counts.device)
    observation = tensor(simulator.observation)
    action = act(observation, tensor(simulator.desired_goal))
    buffer.add(observation, action, tensor(simulator.achieved_goal))
    result = simulator.step(action)
    unstable = tensor(result.unstable)
    ended = (tensor(result.terminated) | tensor(result.truncated)) & ~unstable
    counts += torch.stack([tensor(result.success).sum(), ended.sum(), unstable.sum()])
    over = ended | unstable
    if _asking_is_free(counts.device) and not over.any():
        return
    buffer.end_episodes(ended, tensor(simulator.observation), tensor(simulator.achieved_goal))
    buffer.drop_episodes(unstable)
    simulator.reset(over)


def _asking_is_free(device: torch.device) -> bool:
    """Tell whether looking at a number costs nothing; elsewhere it waits for everything in the queue."""
    return device.type == "cpu"
