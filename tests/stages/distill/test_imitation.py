"""Rows to imitate and the objectives over them: by hand, against torch, and by finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from thousandfold.ground.errors import UserError
from thousandfold.models.contrastive_critic import ContrastiveCritic
from thousandfold.models.goal_actor import Gaussian
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.replay.goal_dataset import GoalDataset
from thousandfold.stages.distill.imitation import (
    ImitationBatch,
    ImitationRows,
    critic_guided_loss,
    gaussian_kl,
    imitation_loss,
    split_rows,
)
from thousandfold.stages.networks import TeacherCritic


def gaussian(mean: Any, log_std: Any) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(log_std, dtype=torch.float64))


# -- objectives -------------------------------------------------------------------------------------


def test_kl_by_hand():
    # One action: log(2/1) + (1 + 3²) / (2·4) − 1/2; a second one that agrees adds nothing.
    teacher, student = gaussian([[3.0, 0.5]], [[0.0, -1.0]]), gaussian([[0.0, 0.5]], [[math.log(2), -1.0]])
    expected = math.log(2) + 10 / 8 - 0.5
    torch.testing.assert_close(gaussian_kl(teacher, student), torch.tensor([expected], dtype=torch.float64))
    # The divergence is no distance: the other way round it is another number.
    other = -math.log(2) + (4 + 9) / 2 - 0.5
    torch.testing.assert_close(gaussian_kl(student, teacher), torch.tensor([other], dtype=torch.float64))
    assert gaussian_kl(teacher, teacher).item() == 0.0


def random_gaussians() -> tuple[Gaussian, Gaussian]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64) * 2
    log_stds = torch.rand(2, 7, 3, generator=generator, dtype=torch.float64) * 7 - 5
    return Gaussian(means[0], log_stds[0]), Gaussian(means[1], log_stds[1])


def test_kl_is_that_of_torch():
    teacher, student = random_gaussians()
    ours, theirs = (Independent(Normal(g.mean, g.log_std.exp()), 1) for g in (teacher, student))
    torch.testing.assert_close(gaussian_kl(teacher, student), kl_divergence(ours, theirs))


@pytest.mark.parametrize("objective", ["kl", "mse"])
def test_gradients_of_the_objectives(objective: str):
    teacher, student = random_gaussians()

    def loss(mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
        return imitation_loss(teacher, Gaussian(mean, log_std), objective)[0]

    assert torch.autograd.gradcheck(loss, [value.clone().requires_grad_() for value in student])


def test_the_divergence_is_reported_where_it_is_descended():
    teacher, student = random_gaussians()
    expected = {
        "kl": gaussian_kl(teacher, student).mean(),
        "action_mse": (teacher.mean.tanh() - student.mean.tanh()).square().mean(),
    }
    for objective, name in (("kl", "kl"), ("mse", "action_mse")):
        loss, metrics = imitation_loss(teacher, student, objective)
        reported = expected if objective == "kl" else {"action_mse": expected["action_mse"]}
        torch.testing.assert_close(metrics, reported)
        torch.testing.assert_close(loss, expected[name])


# -- the critic's guidance --------------------------------------------------------------------------


def random_batch() -> tuple[ImitationBatch, Gaussian, TeacherCritic]:
    """Return a batch, a student's Gaussian and a critic, all in float64."""
    teacher, student = random_gaussians()
    generator = torch.Generator().manual_seed(1)
    observation, goal = (torch.randn(7, size, generator=generator, dtype=torch.float64) for size in (4, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        critic = ContrastiveCritic(4, 2, 3, NetworkShape(4, 8)).double().eval().requires_grad_(False)
    batch = ImitationBatch(observation, goal, teacher, observation)
    return batch, student, TeacherCritic(critic, "norm")


def test_the_critic_is_asked_about_what_the_teacher_sees():
    batch, student, critic = random_batch()
    blind = batch._replace(observation=torch.full_like(batch.observation, torch.nan))
    assert torch.equal(
        critic_guided_loss(blind, student, critic, 1.0)[0], critic_guided_loss(batch, student, critic, 1.0)[0]
    )


@pytest.mark.parametrize("weight", [0.0, 1.0, 30.0])
def test_gradient_of_the_critic_guided_objective(weight: float):
    batch, student, critic = random_batch()

    def loss(mean: torch.Tensor) -> torch.Tensor:
        return critic_guided_loss(batch, Gaussian(mean, student.log_std), critic, weight)[0]

    mean = student.mean.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, [mean])
    loss(mean).backward()
    assert mean.grad is not None and mean.grad.abs().max() > 1e-3  # no comparison of zeros


def test_critic_guided_objective_by_hand():
    batch, student, critic = random_batch()
    energies = [
        critic(batch.observation, mean.tanh(), batch.goal) for mean in (batch.teacher.mean, student.mean)
    ]
    gain = ((energies[1] - energies[0]) / energies[0].std(correction=0)).mean()
    error = (batch.teacher.mean.tanh() - student.mean.tanh()).square().mean()
    loss, metrics = critic_guided_loss(batch, student, critic, 3.0)
    torch.testing.assert_close(loss, 3.0 * error - gain)
    torch.testing.assert_close(metrics["energy_gain"], gain)
    torch.testing.assert_close(metrics["action_mse"], error)
    assert critic_guided_loss(batch, batch.teacher, critic, 3.0)[0].item() == 0.0


@pytest.mark.parametrize(("factor", "shift"), [(50.0, 0.0), (0.01, 3.0)])
def test_another_scale_and_shift_of_the_energies_change_nothing(factor: float, shift: float):
    batch, student, critic = random_batch()

    def other(*arguments: torch.Tensor) -> torch.Tensor:
        return factor * critic(*arguments) + shift

    losses = [critic_guided_loss(batch, student, each, 1.0)[0] for each in (critic, other)]
    torch.testing.assert_close(*losses)


def test_the_student_climbs_the_energy():
    batch, student, critic = random_batch()
    mean = student.mean.clone().requires_grad_()
    optimizer = torch.optim.Adam([mean], lr=0.05)
    gains = []
    for _ in range(60):
        loss, metrics = critic_guided_loss(batch, Gaussian(mean, student.log_std), critic, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gains.append(metrics["energy_gain"].item())
    assert gains[-1] > gains[0] + 0.1


# -- rows -------------------------------------------------------------------------------------------


def numbered_data(choices: int, lengths: tuple[int, ...] = (3, 5, 2, 4)) -> GoalDataset:
    """Return rows whose numbers say which row, and which of its goals, they belong to."""
    rows = sum(lengths)
    number = np.arange(rows, dtype=np.float32)[:, None]
    alternative = number[:, :, None] + 100 * (1 + np.arange(choices, dtype=np.float32))[None, :, None]
    return GoalDataset(
        observation=number,
        achieved_goal=number,
        desired_goal=number,
        action=number,
        teacher_mean=number,
        teacher_log_std=-number,
        alternative_goal=alternative,
        alternative_mean=alternative,
        alternative_log_std=-alternative,
        episode=np.repeat(np.arange(len(lengths)), lengths),
        success=np.ones(len(lengths), bool),
        metadata={},
    )


def all_rows(data: GoalDataset) -> ImitationRows:
    return ImitationRows.of(data, np.ones(len(data.action), bool), "cpu")


@pytest.mark.parametrize(
    ("choices", "fraction", "replaced"),
    [(3, 0.25, 1000), (3, 0.0, 0), (0, 0.5, 0), (2, 1.0, 4000)],
)
def test_a_share_of_a_batch_is_under_alternative_goals(choices: int, fraction: float, replaced: int):
    batch = all_rows(numbered_data(choices)).draw(4000, fraction, torch.Generator().manual_seed(0))
    number, goal = batch.observation[:, 0], batch.goal[:, 0]
    assert torch.equal(batch.teacher.mean[:, 0], goal) and torch.equal(batch.teacher.log_std[:, 0], -goal)
    choice = (goal - number) / 100
    assert (choice > 0).sum() == replaced and torch.equal(choice, choice.round())
    # Rows and goals are drawn uniformly: every count lies within five standard deviations.
    for values, groups in ((number, 14), (choice[choice > 0], choices if replaced else 0)):
        if groups:
            counts = torch.unique(values, return_counts=True)[1].float()
            mean = len(values) / groups
            assert len(counts) == groups and (counts - mean).abs().max() < 5 * math.sqrt(mean)


def test_rows_are_joined_with_all_that_belongs_to_them():
    first, second = all_rows(numbered_data(2)), all_rows(numbered_data(2, (6,)))
    joined = first.joined(second)
    assert len(joined) == 14 + 6 and joined.choices == 2
    assert torch.equal(joined.observation[14:], second.observation)
    assert torch.equal(joined.teacher.log_std[14:], second.teacher.log_std)
    assert torch.equal(joined.alternative_goal[:14], first.alternative_goal)
    assert torch.equal(joined.alternative_teacher.mean[14:], second.alternative_teacher.mean)


def episodes_of(rows: ImitationRows, data: GoalDataset) -> set[int]:
    return set(data.episode[rows.observation[:, 0].long().numpy()].tolist())


def split(data: GoalDataset, seed: int = 0, **limits: Any) -> tuple[ImitationRows, ImitationRows]:
    return split_rows(data, "cpu", np.random.default_rng(seed), validation_fraction=0.25, **limits)


def test_no_episode_is_on_both_sides_of_the_split():
    data = numbered_data(2, (7,) * 20)
    training, validation = split(data)
    assert len(training) == 15 * 7 and len(validation) == 5 * 7
    sides = episodes_of(training, data), episodes_of(validation, data)
    assert len(sides[0]) == 15 and len(sides[1]) == 5 and not sides[0] & sides[1]
    assert episodes_of(split(data)[1], data) == sides[1] != episodes_of(split(data, seed=1)[1], data)


def test_whole_episodes_are_left_out_where_labels_are_limited():
    data = numbered_data(0, (7,) * 20)
    training, validation = split(data, most_rows=62)
    assert len(training) + len(validation) == 8 * 7  # a ninth episode would be one too many
    for rows in (training, validation):
        counts = np.bincount(data.episode[rows.observation[:, 0].long().numpy()])
        assert set(counts.tolist()) <= {0, 7}


@pytest.mark.parametrize(
    ("most_rows", "line"),
    [(10, "max_labels leaves 10 rows beside"), (-5, "leaves 0 rows beside DAgger's rounds: too few")],
)
def test_too_few_rows_to_split_are_refused(most_rows: int, line: str):
    with pytest.raises(UserError, match=line):
        split(numbered_data(0, (7,) * 20), most_rows=most_rows)
