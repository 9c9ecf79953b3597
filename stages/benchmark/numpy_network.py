"""A network's forward pass in NumPy alone, for one state, without allocations: what one would write by hand.

It stands beside the runtime in `pipeline benchmark`. Its buffers are made once and every operation writes
into one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layer:
    """A Dense layer, a LayerNorm where it has one, and Swish.

    Attributes:
        weight: (outputs, inputs) float32.
        bias: (outputs,).
        norm: scale and shift of the LayerNorm, each (outputs,); None where there is none.
        eps: of the LayerNorm.
    """

    weight: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, np.ndarray] | None = None
    eps: float = 1e-6


@dataclass(frozen=True)
class Block:
    """Layers whose output is scaled and added to their input; without `scale` it takes the input's place."""

    layers: tuple[Layer, ...]
    scale: float | None = None


@dataclass(frozen=True)
class Head:
    """What follows the blocks: a LayerNorm where there is one, the Dense layer of the mean, the actuators.

    Attributes:
        norm: scale and shift of the LayerNorm, or None; eps: its own.
        weight, bias: of the mean, (actions, width) and (actions,).
        control_low, control_high: actuator units at action −1 and +1.
        columns: which action each actuator takes; None: each its own.
        switched: which actuators know only the two ends; None: there are none.
    """

    norm: tuple[np.ndarray, np.ndarray] | None
    eps: float
    weight: np.ndarray
    bias: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    columns: np.ndarray | None = None
    switched: np.ndarray | None = None


class NumpyPolicy:
    """Limits, normaliser, blocks and head, for one state at a time.

    Args:
        limits: the least and the greatest that the joined observation and goal are taken for, float32.
        mean, std: of the joined observation and goal, float32.
        blocks: the stem first.
        head: what follows them.
    """

    def __init__(
        self,
        limits: tuple[np.ndarray, np.ndarray],
        mean: np.ndarray,
        std: np.ndarray,
        blocks: Sequence[Block],
        head: Head,
    ) -> None:
        self._low, self._high = limits
        self._mean, self._factor = mean, (1.0 / std).astype(np.float32)
        self._blocks, self._head = blocks, head
        self._state = np.zeros_like(mean)
        width = len(head.weight[0])
        self._stream = np.zeros(width, np.float32)
        self._hidden, self._spare = (np.zeros(width, np.float32) for _ in range(2))
        self._half_range = 0.5 * (head.control_high - head.control_low)

    def step(self, observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return action (action_dim,) and control (num_actuators,) for one state."""
        state = self._state
        state[: len(observation)] = observation
        state[len(observation) :] = goal
        np.maximum(state, self._low, out=state)
        np.minimum(state, self._high, out=state)
        np.subtract(state, self._mean, out=state)
        np.multiply(state, self._factor, out=state)
        value = state
        for block in self._blocks:
            branch = value
            for layer in block.layers:
                branch = self._layer(layer, branch)
            if block.scale is None:
                np.copyto(self._stream, branch)
            else:
                if block.scale != 1.0:
                    np.multiply(branch, np.float32(block.scale), out=branch)
                np.add(self._stream, branch, out=self._stream)
            value = self._stream
        return self._act(value)

    def _layer(self, layer: Layer, value: np.ndarray) -> np.ndarray:
        """Return Dense, LayerNorm, Swish of a value; two buffers take turns."""
        out = self._spare if value is self._hidden else self._hidden
        np.dot(layer.weight, value, out=out)
        np.add(out, layer.bias, out=out)
        if layer.norm is not None:
            _normalise(out, layer.norm, layer.eps)
        gate = self._hidden if out is self._spare else self._spare  # its content has been read
        np.negative(out, out=gate)
        np.exp(gate, out=gate)
        np.add(gate, np.float32(1.0), out=gate)
        np.divide(out, gate, out=out)
        return out

    def _act(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head = self._head
        if head.norm is not None:
            _normalise(value, head.norm, head.eps)
        action = np.dot(head.weight, value)
        np.add(action, head.bias, out=action)
        np.tanh(action, out=action)
        share = action if head.columns is None else action[head.columns]
        if head.switched is not None:
            share = np.where(head.switched, np.where(share > 0, np.float32(1.0), np.float32(-1.0)), share)
        return action, head.control_low + (share + np.float32(1.0)) * self._half_range


def _normalise(value: np.ndarray, norm: tuple[np.ndarray, np.ndarray], eps: float) -> None:
    """Apply a LayerNorm in place."""
    count = len(value)
    np.subtract(value, np.add.reduce(value) / np.float32(count), out=value)
    np.multiply(value, np.float32(1.0 / np.sqrt(value.dot(value) / count + eps)), out=value)
    np.multiply(value, norm[0], out=value)
    np.add(value, norm[1], out=value)
