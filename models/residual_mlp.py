"""The one shape of network that teacher, critic and student share: a stem, residual blocks, no head.

Source of the residual form: Wang et al., "1000 Layer Networks for Self-Supervised RL", arXiv 2503.14858.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thousandfold.models.block_stack import LAYERS_PER_BLOCK, BlockStack, Compute
from thousandfold.models.norm_swish import LAYER_NORM_EPS, Layer

Kind = Literal["residual", "plain"]
Activation = Literal["swish", "relu"]
ResidualScale = Literal["none", "inverse_sqrt_blocks", "learned_from_zero"]

# Without LayerNorm the first kernels decide how large activations are. He et al. ("Delving Deep into
# Rectifiers", ICCV 2015) derive √6 for ReLU; Swish lets less through: at 2.6 their mean square stays between
# 0.4 and 2.5 from 1 to 32 plain layers, where √6 leaves 5e-6 and √(3 / E[swish²]) = 2.90 makes 2e4 of it.
_GAIN_WITHOUT_NORM: dict[Activation, float] = {"swish": 2.6, "relu": math.sqrt(6.0)}
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"swish": nn.SiLU, "relu": nn.ReLU}


@dataclass(frozen=True)
class NetworkShape:
    """Size and form of a network.

    Attributes:
        depth: Dense layers inside blocks (residual, a multiple of 4) or hidden layers (plain).
        width: units of every hidden layer.
        kind: ``residual`` blocks of four layers, or a ``plain`` stack of layers.
        residual_scale: what multiplies each block's branch: ``none`` is the published sum,
            ``learned_from_zero`` a number a block that starts at 0.
        final_norm: a LayerNorm between the last block and the head.
        layer_norm: a LayerNorm after every Dense layer; without, layers are [Dense, activation].
        activation: what ends every layer.
    """

    depth: int
    width: int
    kind: Kind = "residual"
    residual_scale: ResidualScale = "none"
    final_norm: bool = False
    layer_norm: bool = True
    activation: Activation = "swish"

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"depth and width must be at least 1, not {self.depth} and {self.width}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: use {' or '.join(_ACTIVATIONS)}")
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
        scaled = self.residual_scale == "inverse_sqrt_blocks"
        return 1.0 / math.sqrt(max(self.num_blocks, 1)) if scaled else 1.0

    @property
    def is_stacked(self) -> bool:
        """Whether its blocks are those of `BlockStack`: [Dense, LayerNorm, Swish] with residual sums."""
        return self.kind == "residual" and self.layer_norm and self.activation == "swish"


def dense(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """Return a Dense layer with kernel U(±gain/√fan_in) and zero bias."""
    layer = nn.Linear(inputs, outputs)
    bound = gain / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def dense_layer(inputs: int, outputs: int, shape: NetworkShape) -> nn.Sequential:
    """Return Dense, LayerNorm, activation; without LayerNorm its outputs start as large as its inputs."""
    activation = _ACTIVATIONS[shape.activation]()
    if not shape.layer_norm:
        return nn.Sequential(dense(inputs, outputs, gain=_GAIN_WITHOUT_NORM[shape.activation]), activation)
    return nn.Sequential(dense(inputs, outputs), nn.LayerNorm(outputs, eps=LAYER_NORM_EPS), activation)


class ResidualMLP(nn.Module):
    """Stem and blocks: (batch, inputs) to (batch, width). Heads are their owner's.

    Args:
        inputs: numbers in.
        shape: size and form of the network.
        compute: precision and memory of the blocks.
    """

    def __init__(self, inputs: int, shape: NetworkShape, compute: Compute | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.stem = dense_layer(inputs, shape.width, shape)
        if shape.kind == "plain":
            layers = [dense_layer(shape.width, shape.width, shape) for _ in range(shape.depth - 1)]
            self.body: nn.Module = nn.Sequential(*layers)
        elif shape.is_stacked:
            gain = shape.residual_scale == "learned_from_zero"
            self.body = BlockStack(
                shape.width, shape.num_blocks, scale=shape.branch_scale, learned_gain=gain, compute=compute
            )
        else:
            self.body = nn.Sequential(*[PlainBlock(shape) for _ in range(shape.num_blocks)])
        norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.final_norm = norm if shape.final_norm else nn.Identity()

    def forward(self, inputs: Tensor, frozen_rows: int = 0) -> Tensor:
        """Map (batch, inputs) to (batch, width).

        Args:
            inputs: what the network is asked about.
            frozen_rows: so many leading rows pass their gradient on to `inputs` and give none to the
                parameters.
        """
        if isinstance(self.body, BlockStack):
            hidden = self.body(inputs, frozen_rows, self._stem_layer())
        else:
            hidden = apply_rows(self.body, apply_rows(self.stem, inputs, frozen_rows), frozen_rows)
        return apply_rows(self.final_norm, hidden, frozen_rows)

    def _stem_layer(self) -> Layer:
        linear, norm = self.stem[0], self.stem[1]
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm)
        return Layer(linear.weight, linear.bias, norm.weight, norm.bias)

    def gradient_by_block(self) -> Tensor:
        """Return the gradient's norm of each block's kernels, (blocks,), or of each layer's of a plain stack.

        Empty where there is no gradient.
        """
        if isinstance(self.body, BlockStack):
            stacked = self.body.weight.grad
            blocks = [] if stacked is None else [[each] for each in stacked.chunk(self.shape.num_blocks)]
        else:
            layers = [
                [m for m in part.modules() if isinstance(m, nn.Linear)] for part in self.body.children()
            ]
            blocks = [[m.weight.grad for m in part if m.weight.grad is not None] for part in layers]
        norms = [nn.utils.get_total_norm(gradients) for gradients in blocks if gradients]
        return torch.stack(norms) if norms else torch.empty(0)


def apply_rows(module: nn.Module, inputs: Tensor, frozen_rows: int) -> Tensor:
    """Return module(inputs), whose parameters take no gradient from the first `frozen_rows` rows."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not (frozen_rows and learned):
        return module(inputs)
    # The gradient of a split is one matrix, those of two slices are added.
    frozen, learning = inputs.split([frozen_rows, len(inputs) - frozen_rows])
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        outputs = module(frozen)
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
    return torch.cat([outputs, module(learning)]) if len(learning) else outputs


@torch.no_grad()
def centre_kernels(network: nn.Module) -> None:
    """Subtract its mean from every row of the kernels that read activations: all but the stem's.

    Swish's outputs have a mean of 0.2 whatever the input, so plain sums over hundreds of blocks drift along
    (1, …, 1) until different inputs cannot be told apart. Rows that sum to 0 do not see that direction.
    """
    for name, module in network.named_modules():
        if isinstance(module, BlockStack | nn.Linear) and "stem" not in name.split("."):
            module.weight -= module.weight.mean(-1, keepdim=True)


@torch.no_grad()
def spread_first_biases(network: ResidualMLP) -> None:
    """Draw the stem's biases from U(±1/√inputs), as its kernel.

    With biases of 0 an input of zeros stays 0 in every layer, and each LayerNorm makes the gradient on its
    way back 1/√ε = 1000 times as large: 1e11 at depth 4, no number any more at depth 16. Without biases the
    first LayerNorm also cuts away how large an input is.
    """
    stem = network.stem[0]
    assert isinstance(stem, nn.Linear)
    bound = 1.0 / math.sqrt(stem.in_features)
    stem.bias.uniform_(-bound, bound)


class PlainBlock(nn.Module):
    """One residual block of any layers, where `BlockStack` has none of the kind: their sum with the input."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        layers = [dense_layer(shape.width, shape.width, shape) for _ in range(LAYERS_PER_BLOCK)]
        self.layers = nn.Sequential(*layers)
        self.scale = shape.branch_scale
        self.gain = nn.Parameter(torch.zeros(())) if shape.residual_scale == "learned_from_zero" else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width) to (batch, width)."""
        branch = self.layers(hidden) if self.gain is None else self.gain * self.layers(hidden)
        return hidden + branch if self.scale == 1.0 else torch.add(hidden, branch, alpha=self.scale)


def parameter_count(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
