"""A normaliser that follows the data of a training as it comes in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thousandfold.models.deployable_policy import MIN_STD, Normalizer

LEAST_SCALE = 1e-3
"""what a number that hardly varies is divided by: more would make an input of its noise"""


class RunningNormalizer(Normalizer):
    """Mean and standard deviation over all rows that it was shown; the identity until then.

    Numbers of a group share a scale, the root mean square of their standard deviations: were each divided by
    its own, the noise of one that hardly varies, such as the height of a cube at rest, would weigh as much as
    what it lies beside. Where a whole group was the same in every row it keeps its scale.

    Args:
        size: numbers in a row.
        groups: the group of each number, from 0 on; None: each is one of its own.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    members: Tensor
    """(size, groups), 1 where a number is in a group"""

    def __init__(self, size: int, groups: Sequence[int] | None = None) -> None:
        super().__init__(size)
        group = torch.tensor(range(size) if groups is None else groups)
        members = torch.nn.functional.one_hot(group).double()
        self.register_buffer("members", members, persistent=False)
        # Sums in float64: squares of numbers far from 0 would drown their spread in float32.
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))

    @staticmethod
    def sums(rows: Tensor, weight: float = 1.0) -> Tensor:
        """Return the number of rows (n, size), their sum and that of their squares, (1 + 2 · size,) float64.

        Those of several sets of rows may be added. Each row counts `weight` times.
        """
        wide = rows.double()
        count = torch.full((1,), float(len(rows)), dtype=torch.float64, device=rows.device)
        return weight * torch.cat([count, wide.sum(0), wide.square().sum(0)])

    @torch.no_grad()
    def add(self, sums: Tensor) -> None:
        """Take more rows into account, by their `sums`."""
        size = len(self.mean)
        self.count += sums[0]
        self.total += sums[1 : 1 + size]
        self.square += sums[1 + size :]
        mean = self.total / self.count
        variance = (self.square / self.count - mean.square()).clamp_min(0)
        noise = MIN_STD * mean.abs().clamp_min(1.0)  # what rounding makes of numbers that are all the same
        varies = (variance > noise.square()).double()
        # A product and no scattered sum, whose order CUDA does not fix: all ranks must find the same scale.
        total, number = torch.stack([variance * varies, varies]) @ self.members
        shared = (total / number.clamp_min(1.0)).sqrt().clamp_min(LEAST_SCALE)
        scale = torch.where(number > 0, shared, 1.0)
        # In place: a captured update reads them where they lie.
        self.mean.copy_(mean)
        self.std.copy_(self.members @ scale)
