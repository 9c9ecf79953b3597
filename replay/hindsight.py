"""Hindsight goals: how far ahead in its episode the goal of a transition lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated_geometric(uniform: Tensor, remaining: Tensor, discount: float) -> Tensor:
    """Return offsets k in 1..remaining with probability proportional to discount^k.

    One inverse-CDF draw: with F(k) = (1 − γ^k) / (1 − γ^n), k = ⌈log(1 − u·(1 − γ^n)) / log γ⌉.

    Args:
        uniform: draws in [0, 1), float64, any shape.
        remaining: n, how many later rows the episode has, at least 1; int64, same shape.
        discount: γ in (0, 1].

    Returns:
        Offsets, int64, same shape.
    """
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must lie in (0, 1], not {discount}")
    if discount == 1.0:
        offset = (uniform * remaining).floor() + 1
    else:
        log_discount = math.log(discount)
        mass = -torch.expm1(remaining * log_discount)
        offset = (torch.log1p(-uniform * mass) / log_discount).floor() + 1
    return offset.long().clamp(min=1).minimum(remaining)


def beyond_the_end(
    uniform: Tensor, remaining: Tensor, discount: float, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Tell which draws of an untruncated geometric offset lie beyond the end, and return fresh draws.

    An offset k ≥ 1 has probability ∝ γᵏ, so that γⁿ of them lie beyond n rows. What is left of a draw once
    that is known is uniform again.

    Args:
        uniform: draws in [0, 1), float64, any shape.
        remaining: n, as of `truncated_geometric`, same shape.
        discount: γ in (0, 1).
        ends: bool, where there is nothing after the n rows; elsewhere no draw lies beyond, same shape.

    Returns:
        Whether a draw lies beyond, bool, and draws for `truncated_geometric`; same shape each.
    """
    within = torch.where(ends, -torch.expm1(remaining * math.log(discount)), 1.0)
    beyond = uniform >= within
    left = torch.where(beyond, (uniform - within) / (1.0 - within), uniform / within)
    return beyond, left.clamp(0.0, 1.0 - 2.0**-53)
