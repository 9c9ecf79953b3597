"""Energies and losses against values worked by hand and gradients against finite differences."""

import math

import pytest
import torch

from thousandfold.models.contrastive_critic import (
    COSINE_TEMPERATURE,
    ContrastiveCritic,
    actor_loss,
    alpha_loss,
    contrastive_loss,
    log_not_lost,
    paired_energy,
    pairwise_energy,
)
from thousandfold.models.residual_mlp import NetworkShape

STATE_ACTION = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
GOAL = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        ("norm", [[-5.0, -1.0], [0.0, -math.sqrt(18)]]),
        ("squared", [[-25.0, -1.0], [0.0, -18.0]]),
        ("dot", [[0.0, 0.0], [25.0, 4.0]]),
        ("cosine", [[0.0, 0.0], [1.0 / COSINE_TEMPERATURE, 0.8 / COSINE_TEMPERATURE]]),
    ],
)
def test_energies_by_hand(energy, expected):
    pairwise = pairwise_energy(STATE_ACTION, GOAL, energy)
    torch.testing.assert_close(pairwise, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(paired_energy(STATE_ACTION, GOAL, energy), pairwise.diagonal())


@pytest.mark.parametrize("energy", ["norm", "squared", "dot", "cosine"])
def test_energy_gradients_agree_with_finite_differences(energy):
    torch.manual_seed(0)
    phi, psi = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: pairwise_energy(a, b, energy), (phi, psi))
    assert torch.autograd.gradcheck(lambda a, b: paired_energy(a, b, energy), (phi, psi))


def test_norm_energy_has_a_finite_gradient_at_distance_zero():
    for energy in (pairwise_energy, paired_energy):
        phi = torch.ones(2, 3, requires_grad=True)
        energy(phi, torch.ones(2, 3), "norm").sum().backward()
        assert torch.equal(phi.grad, torch.zeros(2, 3))


def embeddings(logits, goals=None):
    """Embeddings and an energy that give these logits."""
    return logits, torch.eye(goals or logits.shape[1], logits.shape[1], dtype=logits.dtype), "dot"


def test_info_nce_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    rows = [math.log(math.exp(2) + 1), math.log(math.exp(1) + math.exp(3))]
    columns = [math.log(math.exp(2) + math.exp(1)), math.log(1 + math.exp(3))]
    forward = sum(r - p for r, p in zip(rows, (2, 3), strict=True)) / 2
    backward = sum(c - p for c, p in zip(columns, (2, 3), strict=True)) / 2
    row_penalty, column_penalty = (sum(x * x for x in part) / 2 for part in (rows, columns))
    expected = {
        "forward": forward + 0.1 * row_penalty,
        "backward": backward + 0.1 * column_penalty,
        "symmetric": (forward + backward) / 2 + 0.1 * (row_penalty + column_penalty) / 2,
    }
    for variant, value in expected.items():
        loss, metrics = contrastive_loss(*embeddings(logits), variant)
        assert loss.item() == pytest.approx(value)
    _, metrics = contrastive_loss(*embeddings(logits))
    assert metrics["info_nce"].item() == pytest.approx(forward)
    assert metrics["positive_logit"].item() == pytest.approx(2.5)
    assert metrics["negative_logit"].item() == pytest.approx(0.5)
    assert metrics["logsumexp"].item() == pytest.approx(sum(rows) / 2)
    assert metrics["categorical_accuracy"].item() == 1.0


def test_a_lost_row_has_no_goal_for_its_positive():
    logits = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, 0.5]], dtype=torch.float64)
    totals = [math.log(sum(map(math.exp, row))) for row in logits.tolist()]
    no_goal = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    loss, metrics = contrastive_loss(
        *embeddings(logits, goals=2), no_goal=no_goal, lost=torch.tensor([False, True])
    )
    info_nce = (totals[0] - 2.0 + totals[1] - 0.5) / 2
    assert metrics["info_nce"].item() == pytest.approx(info_nce)
    assert loss.item() == pytest.approx(info_nce + 0.1 * sum(total**2 for total in totals) / 2)
    assert metrics["positive_logit"].item() == pytest.approx(2.5)  # of goals alone
    free = [torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (5, 5, 1)]
    assert torch.autograd.gradcheck(
        lambda a, b, c: contrastive_loss(a, b, no_goal=c[0], lost=torch.arange(5) % 2 == 0)[0], free
    )


@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_what_is_not_lost_is_what_the_softmax_leaves_to_goals(energy):
    generator = torch.Generator().manual_seed(0)
    rows, goals, none = (torch.randn(shape, generator=generator) for shape in ((5, 64), (7, 64), (64,)))
    energies = pairwise_energy(rows, torch.cat([goals, none[None]]), energy).double()
    expected = energies.softmax(1)[:, :-1].sum(1).log()
    assert log_not_lost(rows, goals, none, energy).double() == pytest.approx(expected, abs=1e-5)


def test_accuracy_counts_rows_whose_own_goal_scores_highest():
    _, metrics = contrastive_loss(*embeddings(torch.tensor([[0.0, 1.0], [0.0, 1.0]])))
    assert metrics["categorical_accuracy"].item() == 0.5
    _, metrics = contrastive_loss(*embeddings(torch.zeros(4, 4)))  # a critic that tells nothing apart
    assert metrics["categorical_accuracy"].item() == 0.0


@pytest.mark.parametrize("variant", ["forward", "backward", "symmetric"])
def test_contrastive_gradient_agrees_with_finite_differences(variant):
    torch.manual_seed(0)
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(*embeddings(x), variant)[0], logits)


def test_actor_and_alpha_losses_by_hand():
    energy, log_prob = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 4.0])
    loss, metrics = actor_loss(energy, log_prob, torch.tensor(0.5))
    assert loss.item() == pytest.approx((0.5 * -2 - 1 + 0.5 * 4 - 3) / 2)
    assert metrics["entropy"].item() == pytest.approx(-1.0)
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    value = alpha_loss(log_alpha, log_prob, target_entropy=-1.0)
    assert value.item() == pytest.approx(0.5 * (-1.0 + 1.0))


def test_alpha_rises_while_entropy_is_below_its_target():
    log_alpha = torch.tensor(0.0, requires_grad=True)
    alpha_loss(log_alpha, torch.tensor([5.0]), target_entropy=-1.0).backward()
    assert log_alpha.grad < 0  # descent raises it


def test_critic_encodes_to_64_numbers():
    critic = ContrastiveCritic(4, 2, 3, NetworkShape(4, 16))
    assert critic.encode_state_action(torch.zeros(5, 4), torch.zeros(5, 3)).shape == (5, 64)
    assert critic.encode_goal(torch.zeros(5, 2)).shape == (5, 64)
