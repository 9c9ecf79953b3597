"""The one shape of network that teacher, critic and student share: a stem, residual blocks, no head.

Source of the residual form: Wang et al., "1000 Layer Networks for Self-Supervised RL", arXiv 2503.14858.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

LAYERS_PER_BLOCK = 4
LAYER_NORM_EPS = 1e-6

Kind = Literal["residual", "plain"]
ResidualScale = Literal["none", "inverse_sqrt_blocks"]


@dataclass(frozen=True)
class NetworkShape:
    """Size and form of a network.

    Attributes:
        depth: Dense layers inside blocks (residual, a multiple of 4) or hidden layers (plain).
        width: units of every hidden layer.
        kind: ``residual`` blocks of four layers, or a ``plain`` stack of layers.
        residual_scale: what multiplies each block's branch; ``none`` is the published sum.
        final_norm: a LayerNorm between the last block and the head.
    """

    depth: int
    width: int
    kind: Kind = "residual"
    residual_scale: ResidualScale = "none"
    final_norm: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"depth and width must be at least 1, not {self.depth} and {self.width}")
        if self.kind == "residual" and self.depth % LAYERS_PER_BLOCK:
            lower = self.depth - self.depth % LAYERS_PER_BLOCK
            nearest = f"{lower} or {lower + LAYERS_PER_BLOCK}" if lower else str(LAYERS_PER_BLOCK)
            raise ValueError(
                f"depth {self.depth} of a residual network is not a multiple of 4: use {nearest}"
            )

    @property
    def num_blocks(self) -> int:
        """Residual blocks in the network; 0 for a plain one."""
        return self.depth // LAYERS_PER_BLOCK if self.kind == "residual" else 0

    @property
    def branch_scale(self) -> float:
        """The factor on each block's branch."""
        return 1.0 if self.residual_scale == "none" else 1.0 / math.sqrt(max(self.num_blocks, 1))


def dense(inputs: int, outputs: int) -> nn.Linear:
    """Return a Dense layer with kernel U(±1/√fan_in) and zero bias."""
    layer = nn.Linear(inputs, outputs)
    bound = 1.0 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def dense_norm_swish(inputs: int, outputs: int) -> nn.Sequential:
    """Return Dense, LayerNorm, Swish."""
    return nn.Sequential(dense(inputs, outputs), nn.LayerNorm(outputs, eps=LAYER_NORM_EPS), nn.SiLU())


class ResidualBlock(nn.Module):
    """Four times [Dense, LayerNorm, Swish], added to the block's input. Nothing follows the addition."""

    def __init__(self, width: int, branch_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[dense_norm_swish(width, width) for _ in range(LAYERS_PER_BLOCK)])
        self.branch_scale = branch_scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width) to (batch, width)."""
        if self.branch_scale == 1.0:
            return hidden + self.layers(hidden)
        return torch.add(hidden, self.layers(hidden), alpha=self.branch_scale)


class ResidualMLP(nn.Module):
    """Stem and blocks: (batch, inputs) to (batch, width). Heads are their owner's.

    Args:
        inputs: numbers in.
        shape: size and form of the network.
    """

    def __init__(self, inputs: int, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = dense_norm_swish(inputs, shape.width)
        if shape.kind == "residual":
            body = [ResidualBlock(shape.width, shape.branch_scale) for _ in range(shape.num_blocks)]
        else:
            body = [dense_norm_swish(shape.width, shape.width) for _ in range(shape.depth - 1)]
        self.body = nn.Sequential(*body)
        norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.final_norm = norm if shape.final_norm else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, width)."""
        return self.final_norm(self.body(self.stem(inputs)))


def parameter_count(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
