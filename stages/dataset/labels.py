"""What the teacher would do: its Gaussian for states and goals, in batches as large as pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from thousandfold.models.goal_actor import Gaussian
from thousandfold.pipeline.errors import NonFiniteError
from thousandfold.pipeline.settings import MOST_THREADS
from thousandfold.stages.best_action import best_mean
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.sampling_settings import SamplingSettings
from thousandfold.stages.teacher_critic import TeacherCritic

LABEL_BATCH = 2048
"""Rows of a forward pass. Larger ones are no faster on a CPU: their activations leave its caches."""

LabelledAction = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The teacher's action tanh(mean), its mean and its log-std, each (rows, action_dim)."""


class LabelSettings(SamplingSettings):
    """How the states of a dataset are labelled."""

    alternative_goals: int = pydantic.Field(
        default=4, ge=0, le=64, description="goals beside the commanded one that label every state"
    )
    hindsight_fraction: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of them that the episode achieves later; the rest other episodes are commanded",
    )
    hindsight_discount: float = pydantic.Field(
        default=0.99, gt=0, le=1, description="how near in time those are, as the discount of training"
    )
    accept_weaker_labels: bool = pydantic.Field(
        default=False, description="label with the best of several actions even where the mean does better"
    )
    threads: int = pydantic.Field(
        default=1,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of torch in each process; 0: every CPU, shared evenly. With another number "
        "the last bits of the labels differ",
    )

    def label_facts(self) -> dict[str, Any]:
        """Return what a dataset's metadata says of its labels."""
        names = (
            "alternative_goals", "hindsight_fraction", "hindsight_discount", "teacher_samples",
            "sample_scale", "seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class TeacherLabels:
    """Labels states with the teacher's Gaussian; its mean is the critic's best of several actions if asked.

    Args:
        trained: the teacher.
        device: where it runs.
        critic: the teacher's critic, for `samples` above 1.
        samples: how many actions the critic chooses from, the mean among them; 1 takes the mean.
        scale: times the teacher's standard deviation is what they are drawn with.
    """

    def __init__(
        self,
        trained: TrainedActor,
        device: str,
        critic: TeacherCritic | None = None,
        samples: int = 1,
        scale: float = 1.0,
    ) -> None:
        if samples > 1 and critic is None:
            raise ValueError(f"the best of {samples} actions is the critic's choice, and none was given")
        self._actor, self._device, self._samples = trained.actor.to(device), device, samples
        self._critic, self._scale = critic, scale
        if critic is not None:
            critic.critic.to(device)
        self._generator = torch.Generator(device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the draws anew, so that what follows depends on nothing before it."""
        self._generator.manual_seed(seed)

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> LabelledAction:
        """Return the teacher's action, mean and log-std.

        Args:
            observation: (rows, observation_dim), float32.
            goal: (rows, goal_dim), float32.

        Raises:
            NonFiniteError: the teacher's output is NaN or infinite.
        """
        batches = [slice(first, first + LABEL_BATCH) for first in range(0, len(goal), LABEL_BATCH)]
        mean, log_std = _joined([self._gaussian(observation[rows], goal[rows]) for rows in batches])
        return np.tanh(mean), mean, log_std

    def alternatives(self, observation: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and log-std for several goals a state, (rows, K, action_dim) each.

        Args:
            observation: (rows, observation_dim), float32.
            goals: (rows, K, goal_dim), float32.

        Raises:
            NonFiniteError: the teacher's output is NaN or infinite.
        """
        rows, count = goals.shape[:2]
        flat = goals.reshape(rows * count, -1)
        labels = []
        for first in range(0, len(flat), LABEL_BATCH):
            own = np.arange(first, min(first + LABEL_BATCH, len(flat)))
            labels.append(self._gaussian(observation[own // count], flat[own]))
        mean, log_std = _joined(labels)
        return mean.reshape(rows, count, -1), log_std.reshape(rows, count, -1)

    @torch.inference_mode()
    def _gaussian(self, observation: np.ndarray, goal: np.ndarray) -> Gaussian:
        state, target = (torch.as_tensor(array, device=self._device) for array in (observation, goal))
        gaussian = self._actor(state, target)
        if self._samples > 1 and self._critic is not None:
            mean = best_mean(
                gaussian, state, target, self._critic, self._samples, self._generator, self._scale
            )
            return Gaussian(mean, gaussian.log_std)
        return gaussian


def _joined(labels: list[Gaussian]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log-std of all batches, (rows, action_dim) each."""
    mean, log_std = (_on_cpu([getattr(label, name) for label in labels]) for name in ("mean", "log_std"))
    if not (np.isfinite(mean).all() and np.isfinite(log_std).all()):
        raise NonFiniteError("The teacher's output became NaN or infinite: train another teacher.")
    return mean, log_std


def _on_cpu(parts: list[Tensor]) -> np.ndarray:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().numpy()
