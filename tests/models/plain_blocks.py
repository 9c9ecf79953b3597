"""Residual blocks in the plain formulation, a module a layer: slower, and the same mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thousandfold.models.block_stack import LAYERS_PER_BLOCK, BlockStack
from thousandfold.models.residual_mlp import NetworkShape, dense_layer


class ResidualBlock(nn.Module):
    """One block of a `BlockStack`, with a module for every layer.

    Args:
        stack: the stack.
        index: which of its blocks.
    """

    def __init__(self, stack: BlockStack, index: int) -> None:
        super().__init__()
        width = stack.weight.shape[-1]
        shape = NetworkShape(LAYERS_PER_BLOCK, width)
        self.layers = nn.Sequential(*[dense_layer(width, width, shape) for _ in range(LAYERS_PER_BLOCK)])
        self.scale = stack.scale
        self.gain = None if stack.gain is None else nn.Parameter(stack.gain.detach()[index])
        first = index * LAYERS_PER_BLOCK
        with torch.no_grad():
            for place, (linear, norm, _) in enumerate(self.layers, start=first):  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
                linear.weight.copy_(stack.weight[place])
                linear.bias.copy_(stack.bias[place])
                norm.weight.copy_(stack.norm_weight[place])
                norm.bias.copy_(stack.norm_bias[place])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width) to (batch, width)."""
        branch = self.layers(hidden) if self.gain is None else self.gain * self.layers(hidden)
        return hidden + branch if self.scale == 1.0 else torch.add(hidden, branch, alpha=self.scale)


def unroll_blocks(module: nn.Module) -> nn.Module:
    """Replace, in place, every `BlockStack` inside a module by the same blocks in the plain formulation."""
    for name, child in module.named_children():
        if isinstance(child, BlockStack):
            blocks = [ResidualBlock(child, index) for index in range(child.num_blocks)]
            setattr(module, name, nn.Sequential(*blocks))
        else:
            unroll_blocks(child)
    return module
