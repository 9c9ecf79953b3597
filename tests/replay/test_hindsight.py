from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandfold.replay.hindsight import beyond_the_end, truncated_geometric

DRAWS = 200_000


def expected(discount: float, remaining: int) -> torch.Tensor:
    """γ^k for k = 1..n, normalised."""
    weights = discount ** torch.arange(1, remaining + 1, dtype=torch.float64)
    return weights / weights.sum()


@pytest.mark.parametrize("discount", [0.3, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("remaining", [1, 2, 7, 500])
def test_offsets_have_the_frequencies_of_the_truncated_geometric(discount: float, remaining: int):
    # Evenly spaced numbers instead of random ones: each frequency is then right to one draw.
    uniform = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    offsets = truncated_geometric(uniform, torch.full((DRAWS,), remaining), discount)
    frequency = torch.bincount(offsets, minlength=remaining + 1)[1:] / DRAWS
    assert (frequency - expected(discount, remaining)).abs().max() <= 1.5 / DRAWS


@given(
    uniform=st.floats(0, 1, exclude_max=True),
    remaining=st.integers(1, 10**6),
    discount=st.floats(1e-3, 1.0),
)
@settings(max_examples=300, deadline=None)
def test_an_offset_stays_within_the_episode(uniform: float, remaining: int, discount: float):
    offset = truncated_geometric(
        torch.tensor([uniform], dtype=torch.float64), torch.tensor([remaining]), discount
    )
    assert offset.dtype == torch.int64
    assert 1 <= int(offset) <= remaining


def test_every_offset_is_reached_at_the_ends_of_the_uniform():
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    for discount in (0.5, 0.99, 1.0):
        assert truncated_geometric(ends, torch.tensor([20, 20]), discount).tolist() == [1, 20]


def test_each_element_has_its_own_remaining():
    remaining = torch.tensor([[1, 2], [3, 4]])
    offsets = truncated_geometric(torch.full((2, 2), 0.999999, dtype=torch.float64), remaining, 0.99)
    assert torch.equal(offsets, remaining)


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.5])
def test_a_discount_outside_its_range_is_refused(discount: float):
    with pytest.raises(ValueError, match="discount must lie in"):
        truncated_geometric(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64), discount)


@pytest.mark.parametrize("discount", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("remaining", [1, 7, 60])
def test_an_untruncated_offset_lies_beyond_the_end_as_often_as_it_should(discount: float, remaining: int):
    """γⁿ of the draws, and the others have the frequencies that they had; so do those of the lost."""
    uniform = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    rows = torch.full((DRAWS,), remaining)
    beyond, left = beyond_the_end(uniform, rows, discount, torch.ones(DRAWS, dtype=torch.bool))
    assert beyond.float().mean().item() == pytest.approx(discount**remaining, abs=2 / DRAWS)
    offsets = truncated_geometric(left, rows, discount)
    for part in (offsets[beyond], offsets[~beyond]):
        if len(part) > 1000:
            frequency = torch.bincount(part, minlength=remaining + 1)[1:] / len(part)
            assert (frequency - expected(discount, remaining)).abs().max() <= 2 / len(part)


def test_nothing_lies_beyond_an_end_that_is_none():
    uniform = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    beyond, left = beyond_the_end(uniform, torch.ones(1000).long(), 0.9, torch.zeros(1000, dtype=torch.bool))
    assert not beyond.any() and torch.equal(left, uniform)
