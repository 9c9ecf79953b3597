"""A normaliser that follows a training's data."""

from __future__ import annotations

import pytest
import torch

from thousandfold.models.running_normalizer import LEAST_SCALE, RunningNormalizer


def shown(*sets: torch.Tensor) -> RunningNormalizer:
    normalizer = RunningNormalizer(sets[0].shape[1])
    for rows in sets:
        normalizer.add(RunningNormalizer.sums(rows))
    return normalizer


def test_it_is_the_identity_before_it_has_seen_anything() -> None:
    rows = torch.randn(5, 3)
    assert torch.equal(RunningNormalizer(3)(rows), rows)


def test_mean_and_deviation_are_those_of_all_rows_however_they_came() -> None:
    rows = 1000 + torch.randn(300, 3) * torch.tensor([0.01, 1.0, 100.0])
    for normalizer in (shown(rows), shown(rows[:7], rows[7:200], rows[200:])):
        torch.testing.assert_close(normalizer.mean, rows.double().mean(0).float())
        torch.testing.assert_close(
            normalizer.std, rows.double().std(0, correction=0).float(), rtol=1e-4, atol=0
        )
    found = shown(rows)(rows)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
def test_what_never_varies_keeps_its_scale(value: float) -> None:
    normalizer = shown(torch.full((1000, 1), value))
    assert normalizer.std.item() == 1.0
    torch.testing.assert_close(
        normalizer(torch.tensor([[value + 0.5]])), torch.tensor([[0.5]]), rtol=1e-3, atol=0
    )


def test_what_hardly_varies_is_not_blown_up() -> None:
    assert shown(1e-5 * torch.randn(1000, 1)).std.item() == pytest.approx(LEAST_SCALE)


def test_a_group_shares_the_root_mean_square_of_what_varies_in_it() -> None:
    rows = torch.randn(4000, 4) * torch.tensor([3.0, 1.0, 0.0, 0.1])
    normalizer = RunningNormalizer(4, [0, 0, 0, 1])
    normalizer.add(RunningNormalizer.sums(rows))
    shared = rows[:, :2].std(0, correction=0).square().mean().sqrt().item()
    assert normalizer.std[:3].tolist() == pytest.approx([shared] * 3, rel=1e-4)
    assert normalizer.std[3].item() == pytest.approx(rows[:, 3].std(correction=0).item(), rel=1e-4)
    torch.testing.assert_close(normalizer(rows).mean(0), torch.zeros(4), atol=1e-5, rtol=0)

    still = RunningNormalizer(2, [0, 0])
    still.add(RunningNormalizer.sums(torch.full((10, 2), 7.0)))
    assert still.std.tolist() == [1.0, 1.0]


def test_rows_may_count_several_times() -> None:
    normalizer = RunningNormalizer(1)
    normalizer.add(RunningNormalizer.sums(torch.tensor([[0.0], [0.0]])))
    normalizer.add(RunningNormalizer.sums(torch.tensor([[3.0]]), weight=2.0))
    assert normalizer.mean.item() == pytest.approx(1.5) and normalizer.std.item() == pytest.approx(1.5)


def test_it_goes_on_from_its_state() -> None:
    first, second = torch.randn(50, 2), 5 + torch.randn(50, 2)
    resumed = RunningNormalizer(2)
    resumed.load_state_dict(shown(first).state_dict())
    resumed.add(RunningNormalizer.sums(second))
    assert torch.equal(resumed.mean, shown(first, second).mean)
    assert torch.equal(resumed.std, shown(first, second).std)
