"""The best of several actions: sampled from a teacher's Gaussian, chosen by its critic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thousandfold.models.contrastive_critic import paired_energy
from thousandfold.models.goal_actor import Gaussian
from thousandfold.pipeline.runtime import torch_seed
from thousandfold.stages.episodes import Policy
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.teacher_critic import TeacherCritic

_SAMPLE_STREAM = 42


@torch.no_grad()
def best_mean(
    gaussian: Gaussian,
    observation: Tensor,
    goal: Tensor,
    critic: TeacherCritic,
    samples: int,
    generator: torch.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Return the critic's best action before the tanh, (batch, action_dim).

    It chooses from the mean and `samples` − 1 draws, so that with one sample the mean is left.

    Args:
        gaussian: of the teacher, (batch, action_dim) each.
        observation: (batch, observation_dim).
        goal: (batch, goal_dim).
        critic: on the device of the others.
        samples: how many actions to choose from, at least 1.
        generator: of the draws, on the same device.
        scale: times the teacher's standard deviation is that of the draws.
    """
    mean, std = gaussian.mean, scale * gaussian.log_std.exp()
    shape = (samples - 1, *mean.shape)
    noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
    candidates = torch.cat([mean[None], mean + std * noise])
    target = critic.critic.encode_goal(goal)
    energies = [
        paired_energy(critic.critic.encode_state_action(observation, actions), target, critic.energy)
        for actions in candidates.tanh()
    ]
    best = torch.stack(energies).argmax(0)
    return candidates[best, torch.arange(len(mean), device=mean.device)]


def best_action_policy(
    trained: TrainedActor,
    critic: TeacherCritic,
    samples: int,
    seed: int,
    device: str = "cpu",
    scale: float = 1.0,
) -> Policy:
    """Return the policy that takes the critic's best of `samples` actions, the mean among them.

    Args:
        trained: the teacher.
        critic: the teacher's critic.
        samples: how many actions it chooses from, at least 1.
        seed: of the draws.
        device: where both networks run.
        scale: as of `best_mean`.
    """
    actor = trained.actor.to(device)
    critic.critic.to(device)
    generator = torch.Generator(device).manual_seed(torch_seed(seed, _SAMPLE_STREAM))

    @torch.no_grad()
    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        state, target = (torch.as_tensor(array, device=device) for array in (observation, goal))
        gaussian = actor(state, target)
        best = best_mean(gaussian, state, target, critic, samples, generator, scale)
        return best.tanh().cpu().numpy()

    return policy
