"""The network of a policy in what else could run it: torch, AOTInductor and plain NumPy, each on one thread.

Imports torch; `stages.benchmark.runtimes` imports it where torch is there.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandfold.models.block_stack import LAYERS_PER_BLOCK, BlockStack
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.norm_swish import LAYER_NORM_EPS
from thousandfold.models.residual_mlp import PlainBlock, ResidualMLP
from thousandfold.stages.benchmark.loops import Step


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch and NumPy's matrix library to one thread each; give them back what they had."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def torch_step(module: nn.Module) -> Step:
    """Return a step that calls a module eagerly, without gradients; inputs and outputs share its memory."""

    def step(observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            action, control = module(torch.from_numpy(observation)[None], torch.from_numpy(goal)[None])
        return action[0].numpy(), control[0].numpy()

    return step


def compiled_step(module: DeployablePolicy, folder: Path) -> Step:
    """Return a step of the module as AOTInductor compiles it; raise whatever the compiler raises.

    The compiled package lies in `folder`, which is needed as long as the step.
    """
    import torch._inductor  # not part of torch until it is asked for

    traced = copy.deepcopy(module)
    trunk = traced.actor.actor.trunk
    if isinstance(trunk.body, BlockStack):
        trunk.body = _TracedStack(trunk.body)
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    example = tuple(torch.zeros(1, len(each.mean)) for each in normalizers)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.export.export(_Outputs(traced).eval(), example)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "policy.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
    return torch_step(cast(nn.Module, compiled))


class _Outputs(nn.Module):
    """A policy whose outputs are a plain tuple, which torch can put on record."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Return action and control."""
        action, control = self.policy(observation, goal)
        return action, control


class _TracedStack(nn.Module):
    """A `BlockStack` in torch's own operators: a compiler cannot look into its kernels."""

    def __init__(self, stack: BlockStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, width) to (batch, width)."""
        stack, size = self.stack, hidden.shape[-1:]
        for block in range(stack.num_blocks):
            branch = hidden
            for layer in range(block * LAYERS_PER_BLOCK, (block + 1) * LAYERS_PER_BLOCK):
                branch = functional.linear(branch, stack.weight[layer], stack.bias[layer])
                norm = stack.norm_weight[layer], stack.norm_bias[layer]
                branch = functional.silu(functional.layer_norm(branch, size, *norm, LAYER_NORM_EPS))
            branch = branch if stack.gain is None else stack.gain[block] * branch
            hidden = torch.add(hidden, branch, alpha=stack.scale)
        return hidden


def numpy_policy(module: DeployablePolicy) -> NumpyPolicy:
    """Return the same policy in NumPy.

    Raises:
        ValueError: it is that of a teacher whose actions swing with a clock.
    """
    if module.actor.dither is not None:
        raise ValueError("a teacher whose actions swing with a clock has no NumPy form")
    actor = module.actor.actor
    trunk = actor.trunk
    norm, eps = _layer_norm(trunk.final_norm)
    head = Head(
        norm,
        eps,
        _array(actor.mean_head.weight),
        _array(actor.mean_head.bias),
        _array(module.control_low),
        _array(module.control_high),
        None if module.columns is None else _array(module.columns),
        None if module.switched is None else _array(module.switched),
        None
        if module.moderated is None
        else {name: _array(each) for name, each in module.moderated._asdict().items()},
    )
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    mean, std = (
        np.concatenate([_array(getattr(each, name)) for each in normalizers]) for name in ("mean", "std")
    )
    low, high = (
        np.concatenate([_array(getattr(module, f"{name}_{side}")) for name in ("observation", "goal")])
        for side in ("low", "high")
    )
    return NumpyPolicy((low, high), mean, std, _blocks(trunk), head)


def _blocks(trunk: ResidualMLP) -> list[Block]:
    blocks = [Block((_layer(cast(nn.Sequential, trunk.stem)),))]
    if isinstance(stack := trunk.body, BlockStack):
        tensors = (stack.weight, stack.bias, stack.norm_weight, stack.norm_bias)
        weight, bias, scale, shift = map(_array, tensors)
        layers = [
            Layer(weight[index], bias[index], (scale[index], shift[index]), LAYER_NORM_EPS)
            for index in range(len(weight))
        ]
        gains = np.ones(stack.num_blocks) if stack.gain is None else _array(stack.gain)
        return blocks + [
            Block(tuple(layers[first : first + LAYERS_PER_BLOCK]), stack.scale * float(gain))
            for first, gain in zip(range(0, len(layers), LAYERS_PER_BLOCK), gains, strict=True)
        ]
    for part in cast(nn.Sequential, trunk.body):
        if isinstance(part, PlainBlock):
            layers = tuple(_layer(cast(nn.Sequential, layer)) for layer in part.layers)
            blocks.append(Block(layers, part.scale * (1.0 if part.gain is None else part.gain.item())))
        else:
            blocks.append(Block((_layer(cast(nn.Sequential, part)),)))
    return blocks


def _layer(layers: nn.Sequential) -> Layer:
    """Return Dense, perhaps LayerNorm, activation as arrays."""
    linear = cast(nn.Linear, layers[0])
    norm, eps = _layer_norm(layers[1])
    return Layer(_array(linear.weight), _array(linear.bias), norm, eps, isinstance(layers[-1], nn.ReLU))


def _layer_norm(module: nn.Module) -> tuple[tuple[np.ndarray, np.ndarray] | None, float]:
    if not isinstance(module, nn.LayerNorm):
        return None, 0.0
    return (_array(module.weight), _array(module.bias)), module.eps


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


# -- A network's forward pass in NumPy alone, for one state, without allocations: what one would write by hand
# It stands beside the runtime in `pipeline benchmark`. Its buffers are made once and every operation writes
# into one of them.


@dataclass(frozen=True)
class Layer:
    """A Dense layer, a LayerNorm where it has one, and Swish or ReLU.

    Attributes:
        weight: (outputs, inputs) float32.
        bias: (outputs,).
        norm: scale and shift of the LayerNorm, each (outputs,); None where there is none.
        eps: of the LayerNorm.
        relu: whether ReLU ends it and not Swish.
    """

    weight: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, np.ndarray] | None = None
    eps: float = 1e-6
    relu: bool = False


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
        moderated: how what is sent follows its target, in `ModeratedControl`'s names; None: it is the target.
    """

    norm: tuple[np.ndarray, np.ndarray] | None
    eps: float
    weight: np.ndarray
    bias: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    columns: np.ndarray | None = None
    switched: np.ndarray | None = None
    moderated: Mapping[str, np.ndarray] | None = None


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
        ends = head.control_low, head.control_high
        self._ends = np.minimum(*ends), np.maximum(*ends)
        self._last, self._clocks = np.zeros_like(head.control_low), np.zeros(0, np.float32)

    def step(self, observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return action (action_dim,) and control (num_actuators,) for one state."""
        state = self._state
        state[: len(observation)] = observation
        state[len(observation) :] = goal
        np.maximum(state, self._low, out=state)
        np.minimum(state, self._high, out=state)
        if self._head.moderated is not None:
            self._last, self._clocks = (state[self._head.moderated[name]] for name in ("last", "clocks"))
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
        """Return Dense, LayerNorm, activation of a value; two buffers take turns."""
        out = self._spare if value is self._hidden else self._hidden
        np.dot(layer.weight, value, out=out)
        np.add(out, layer.bias, out=out)
        if layer.norm is not None:
            _normalise(out, layer.norm, layer.eps)
        if layer.relu:
            return np.maximum(out, np.float32(0.0), out=out)
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
        if (law := head.moderated) is None:
            return action, head.control_low + (share + np.float32(1.0)) * self._half_range
        least, most = self._ends
        held = np.where(law["stateful"], self._last.clip(least, most), np.float32(0.0))
        target = law["base"] + law["slope"] * share + self._clocks @ law["swing"] + law["carry"] * held
        moved = (law["gain"] * (target - held)).clip(-law["step"], law["step"])
        return action, (held + moved).clip(least, most)


def _normalise(value: np.ndarray, norm: tuple[np.ndarray, np.ndarray], eps: float) -> None:
    """Apply a LayerNorm in place."""
    count = len(value)
    np.subtract(value, np.add.reduce(value) / np.float32(count), out=value)
    np.multiply(value, np.float32(1.0 / np.sqrt(value.dot(value) / count + eps)), out=value)
    np.multiply(value, norm[0], out=value)
    np.add(value, norm[1], out=value)
