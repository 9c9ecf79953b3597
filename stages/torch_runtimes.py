"""The network of a policy in what else could run it: torch, AOTInductor and plain NumPy, each on one thread.

Imports torch; `stages.runtime_comparison` imports it where torch is there.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from models.deployable_policy import DeployablePolicy
from models.residual_mlp import PlainBlock, ResidualBlock, ResidualMLP, unroll_blocks
from stages.latency import Step
from stages.numpy_network import Block, Head, Layer, NumpyPolicy


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

    Args:
        module: the policy.
        folder: where the compiled package is put; needed as long as the step.
    """
    import torch._inductor  # not part of torch until it is asked for

    plain = _Outputs(unroll_blocks(copy.deepcopy(module))).eval()
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    example = tuple(torch.zeros(1, len(each.mean)) for each in normalizers)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.export.export(plain, example)
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


def numpy_policy(module: DeployablePolicy) -> NumpyPolicy:
    """Return the same policy in NumPy."""
    module = cast(DeployablePolicy, unroll_blocks(copy.deepcopy(module)))
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
    )
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    mean, std = (
        np.concatenate([_array(getattr(each, name)) for each in normalizers]) for name in ("mean", "std")
    )
    return NumpyPolicy(mean, std, _blocks(trunk), head)


def _blocks(trunk: ResidualMLP) -> list[Block]:
    stem = Block((_layer(cast(nn.Sequential, trunk.stem)),))
    body = list(cast(nn.Sequential, trunk.body))
    if not body or not isinstance(body[0], ResidualBlock | PlainBlock):
        return [stem, *(Block((_layer(cast(nn.Sequential, layer)),)) for layer in body)]
    blocks = cast(list[ResidualBlock | PlainBlock], body)
    return [stem, *(Block(tuple(map(_layer, _children(block))), _scale(block)) for block in blocks)]


def _children(block: ResidualBlock | PlainBlock) -> list[nn.Sequential]:
    return [cast(nn.Sequential, layer) for layer in block.layers]


def _scale(block: ResidualBlock | PlainBlock) -> float:
    return block.scale if block.gain is None else block.scale * block.gain.item()


def _layer(layers: nn.Sequential) -> Layer:
    """Return Dense, perhaps LayerNorm, Swish as arrays."""
    linear = cast(nn.Linear, layers[0])
    norm, eps = _layer_norm(layers[1])
    return Layer(_array(linear.weight), _array(linear.bias), norm, eps)


def _layer_norm(module: nn.Module) -> tuple[tuple[np.ndarray, np.ndarray] | None, float]:
    if not isinstance(module, nn.LayerNorm):
        return None, 0.0
    return (_array(module.weight), _array(module.bias)), module.eps


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def compiler_error(error: Exception) -> str:
    """Return in a line why AOTInductor could not build a policy."""
    text = " ".join(str(error).split())
    return f"AOTInductor did not build it ({type(error).__name__}: {text[:160]})"
