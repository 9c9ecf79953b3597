"""What a student learns from: labelled rows, and the objectives that it descends. Losses are pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thousandfold.ground.errors import UserError
from thousandfold.models.goal_actor import Gaussian
from thousandfold.replay.goal_dataset import GoalDataset

Objective = Literal["kl", "mse", "critic"]
Critic = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps observations, actions and goals to energies, (batch,): see `TeacherCritic`."""

_SMALLEST_SPREAD = 1e-6


class ImitationBatch(NamedTuple):
    """Rows to imitate at once."""

    observation: Tensor
    """(batch, observation_dim)"""
    goal: Tensor
    """(batch, goal_dim), the commanded one or an alternative"""
    teacher: Gaussian
    """under that goal, (batch, action_dim) each"""
    state: Tensor
    """(batch, its size), what the teacher sees: `observation` where the student sees the same"""


@dataclass(frozen=True)
class ImitationRows:
    """Rows to imitate, on the training device; the first dimension is the row.

    Attributes:
        observation: (rows, observation_dim), what the student sees.
        state: (rows, its size), what the teacher sees: `observation` itself where that is the same.
        goal: (rows, goal_dim), commanded.
        teacher: under it, (rows, action_dim) each.
        alternative_goal: (rows, K, goal_dim); K may be 0.
        alternative_teacher: under these, (rows, K, action_dim) each.
    """

    observation: Tensor
    state: Tensor
    goal: Tensor
    teacher: Gaussian
    alternative_goal: Tensor
    alternative_teacher: Gaussian

    def __len__(self) -> int:
        return len(self.observation)

    @property
    def choices(self) -> int:
        """K, the alternative goals of a row."""
        return self.alternative_goal.shape[1]

    @classmethod
    def of(cls, data: GoalDataset, mask: np.ndarray, device: torch.device | str) -> ImitationRows:
        """Return the rows of a dataset that a mask, (rows,) bool, holds."""

        def tensor(column: np.ndarray) -> Tensor:
            return torch.from_numpy(column[mask]).to(device)

        state = tensor(data.observation)
        return cls(
            state if data.student_observation is None else tensor(data.student_observation),
            state,
            tensor(data.desired_goal),
            Gaussian(tensor(data.teacher_mean), tensor(data.teacher_log_std)),
            tensor(data.alternative_goal),
            Gaussian(tensor(data.alternative_mean), tensor(data.alternative_log_std)),
        )

    def joined(self, others: ImitationRows) -> ImitationRows:
        """Return these rows and then the others. Both have as many alternative goals a row."""

        def both(name: str) -> Tensor:
            return torch.cat([getattr(self, name), getattr(others, name)])

        def gaussians(name: str) -> Gaussian:
            pairs = zip(getattr(self, name), getattr(others, name), strict=True)
            return Gaussian(*(torch.cat(pair) for pair in pairs))

        observation = both("observation")
        return ImitationRows(
            observation,
            observation if self.state is self.observation else both("state"),
            both("goal"),
            gaussians("teacher"),
            both("alternative_goal"),
            gaussians("alternative_teacher"),
        )

    def commanded(self) -> ImitationBatch:
        """Return every row under the goal that was commanded."""
        return ImitationBatch(self.observation, self.goal, self.teacher, self.state)

    def draw(
        self, count: int, alternative_fraction: float, generator: torch.Generator | None = None
    ) -> ImitationBatch:
        """Return rows drawn uniformly with replacement, a share of them under one of their alternative goals.

        Args:
            count: rows to draw.
            alternative_fraction: the share, rounded to whole rows; none where rows have no alternatives.
            generator: what is drawn from, on the rows' device.
        """
        device, choices = self.observation.device, self.choices
        rows = torch.randint(len(self), (count,), generator=generator, device=device)
        observation = self.observation[rows]
        state = observation if self.state is self.observation else self.state[rows]
        replaced = round(alternative_fraction * count) if choices else 0
        if not replaced:
            return ImitationBatch(observation, self.goal[rows], _rows_of(self.teacher, rows), state)
        # Rows come in random order, so that the first ones are as good as any.
        place = rows[:replaced], torch.randint(choices, (replaced,), generator=generator, device=device)
        kept = rows[replaced:]
        teachers = zip(_rows_of(self.alternative_teacher, place), _rows_of(self.teacher, kept), strict=True)
        return ImitationBatch(
            observation,
            torch.cat([self.alternative_goal[place], self.goal[kept]]),
            Gaussian(*(torch.cat(pair) for pair in teachers)),
            state,
        )


def _rows_of(gaussian: Gaussian, index: Tensor | tuple[Tensor, Tensor]) -> Gaussian:
    return Gaussian(gaussian.mean[index], gaussian.log_std[index])


def split_rows(
    data: GoalDataset,
    device: torch.device | str,
    rng: np.random.Generator,
    *,
    validation_fraction: float,
    most_rows: int | None = None,
) -> tuple[ImitationRows, ImitationRows]:
    """Return training and validation rows; an episode's rows are all on one side.

    Args:
        data: the dataset.
        device: where the rows go.
        rng: what decides on the sides.
        validation_fraction: share of the episodes that are held out, at least one.
        most_rows: leave out as many whole episodes as leave no more rows; None: none.

    Raises:
        UserError: there are too few episodes.
    """
    numbers, rows = np.unique(data.episode, return_counts=True)
    order = rng.permutation(len(numbers))
    if most_rows is not None:
        order = order[np.cumsum(rows[order]) <= most_rows]
    held_out = max(1, round(validation_fraction * len(order)))
    if held_out >= len(order):
        left = 0 if most_rows is None else max(most_rows, 0)
        limit = "" if most_rows is None else f", max_labels leaves {left:,} rows beside DAgger's rounds"
        raise UserError(
            f"The dataset has {len(numbers)} episode(s){limit}: too few to hold {held_out} out "
            "for validation."
        )
    sides = numbers[order[held_out:]], numbers[order[:held_out]]
    training, validation = (ImitationRows.of(data, np.isin(data.episode, side), device) for side in sides)
    return training, validation


# -- objectives -----------------------------------------------------------------------------------


def gaussian_kl(teacher: Gaussian, student: Gaussian) -> Tensor:
    """Return KL(teacher ‖ student) of diagonal Gaussians, (batch,): Σ log(σs/σt) + (σt² + Δμ²) / 2σs² − ½."""
    ratio = (2.0 * (teacher.log_std - student.log_std)).exp()
    shift = ((teacher.mean - student.mean) / student.log_std.exp()).square()
    return (student.log_std - teacher.log_std + 0.5 * (ratio + shift - 1.0)).sum(-1)


def imitation_loss(
    teacher: Gaussian, student: Gaussian, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the imitation's mean over the batch, and its metrics: the squared error and, of ``kl``, the KL.

    The imitation of ``critic`` is that of ``mse``. Both train the mean alone: a KL beside a log-std that
    stays as it began would say nothing.
    """
    action_error = (teacher.mean.tanh() - student.mean.tanh()).square().mean()
    metrics = {"action_mse": action_error.detach()}
    if objective != "kl":
        return action_error, metrics
    divergence = gaussian_kl(teacher, student).mean()
    return divergence, metrics | {"kl": divergence.detach()}


def critic_guided_loss(
    batch: ImitationBatch, student: Gaussian, critic: Critic, imitation_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return weight · (squared error of the actions) − (energy of the student's − of the teacher's) / scale.

    The mixture is that of TD3+BC (Fujimoto and Gu, NeurIPS 2021), which divides Q by its mean absolute value.
    InfoNCE determines energies up to a shift a goal, so here the scale is the standard deviation of the
    teacher's own energies over the batch, which no shift of all of them changes. It takes no gradient.

    Args:
        batch: (batch, ...) rows.
        student: its Gaussian for them.
        critic: the teacher's; its parameters take no gradient.
        imitation_weight: of the squared error.

    Returns:
        The loss, and as metrics the squared error and the energy gained on the teacher, in scales.
    """
    error, metrics = imitation_loss(batch.teacher, student, "critic")
    with torch.no_grad():
        reference = critic(batch.state, batch.teacher.mean.tanh(), batch.goal)
        scale = reference.std(correction=0).clamp_min(_SMALLEST_SPREAD)
    gain = ((critic(batch.state, student.mean.tanh(), batch.goal) - reference) / scale).mean()
    return imitation_weight * error - gain, metrics | {"energy_gain": gain.detach()}
