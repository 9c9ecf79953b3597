"""The policy's network in other runtimes, to be timed in turns with its file, where they are installed.

C code needs a compiler, the others torch and the artifact that the policy was exported from. What is not
there is left out, and said.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.benchmark.loops import Step
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.c_policy import THIS_PROCESSOR, CPolicy
from thousandfold.stages.policy_file.golden import control_bounds
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

if TYPE_CHECKING:
    from thousandfold.models.deployable_policy import DeployablePolicy

C, TORCH, INDUCTOR, NUMPY = "C", "torch eager", "AOTInductor", "numpy"
OF_TORCH = (TORCH, NUMPY, INDUCTOR)

# Different order of sums, and half precision in the file, change an action by less; another network by more.
_SAME_ACTION = 0.02
_COMPARED_STATES = 32


@dataclass
class OtherRuntimes:
    """What else the network runs in.

    Attributes:
        steps: by name of the runtime; called with observation and goal, they return action and control.
        left_out: why a runtime is not there, by name.
        action_difference: the largest difference from the file's actions, by name.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    action_difference: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def other_runtimes(
    policy: OnnxPolicy,
    artifact: Artifact | None,
    workspace: Workspace,
    states: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    inductor: bool,
) -> Iterator[OtherRuntimes]:
    """Yield the runtimes that are there, held to one thread while the block runs.

    Args:
        policy: the opened file.
        artifact: that it belongs to; None for a file by itself, of which nobody knows the source.
        workspace: where the artifact that it was exported from lies.
        states: to compare the actions on.
        inductor: whether to compile the network too, half a minute.
    """
    with contextlib.ExitStack() as stack:
        found = OtherRuntimes()
        _open_c(found, policy, stack)
        missing = [name for name in ("torch", "safetensors", "threadpoolctl") if _absent(name)]
        if missing:
            them = "it" if len(missing) == 1 else "them"
            why = f'{", ".join(missing)} not installed (pip install "thousandfold[train]" brings {them})'
            found.left_out |= dict.fromkeys(OF_TORCH, why)
        else:
            try:
                module = _source_network(policy, artifact, workspace)
            except UserError as error:
                found.left_out |= dict.fromkeys(OF_TORCH, str(error).rstrip("."))
            else:
                _open(found, module, stack, inductor=inductor)
        _compare(found, policy, states)
        yield found


def _open_c(found: OtherRuntimes, policy: OnnxPolicy, stack: contextlib.ExitStack) -> None:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    try:
        files = c_files(read_model(policy.path), policy.path)
        found.steps[C] = CPolicy(files, Path(folder), policy.metadata, THIS_PROCESSOR).step
    except UserError as error:
        found.left_out[C] = str(error).rstrip(".")


def _absent(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def _source_network(policy: OnnxPolicy, artifact: Artifact | None, workspace: Workspace) -> DeployablePolicy:
    """Return the network that the file was exported from. Raises UserError where it is gone or another."""
    import torch

    from thousandfold.models.deployable_policy import InputLimits
    from thousandfold.stages.networks import load_actor

    role = policy.metadata.role
    if artifact is None:
        raise UserError(f"the file lies outside a policy's artifact, which names the {role}")
    recorded = artifact.manifest.parents.get(role)
    if recorded is None:
        raise UserError(f"{artifact.name} names no {role} that it was exported from")
    source = workspace.open(recorded.name, role)
    if source.manifest.hash != recorded.hash:
        raise UserError(f"{source.name} was changed since {artifact.name} was exported from it")
    inputs = policy.metadata.inputs
    limits = {
        f"{name}_{side}": torch.tensor([getattr(element, f"limit_{side}") for element in elements])
        for name, elements in (("observation", inputs.observation), ("goal", inputs.goal))
        for side in ("low", "high")
    }
    return load_actor(source).deployable(InputLimits(**limits))


def _open(
    found: OtherRuntimes, module: DeployablePolicy, stack: contextlib.ExitStack, *, inductor: bool
) -> None:
    from thousandfold.stages.benchmark import torch_runtimes

    stack.enter_context(torch_runtimes.one_thread())
    found.steps[TORCH] = torch_runtimes.torch_step(module)
    try:
        found.steps[NUMPY] = torch_runtimes.numpy_policy(module).step
    except ValueError as error:
        found.left_out[NUMPY] = str(error)
    if not inductor:
        found.left_out[INDUCTOR] = "not asked for (--set aot_inductor=true compiles it, half a minute)"
    elif not any(map(shutil.which, ("g++", "clang++", "c++"))):
        found.left_out[INDUCTOR] = "AOTInductor needs a C++ compiler, and there is none"
    else:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            found.steps[INDUCTOR] = torch_runtimes.compiled_step(module, Path(folder))
        except Exception as error:  # the compiler's errors have no common class
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            found.left_out[INDUCTOR] = f"AOTInductor did not build it ({reason})"


def _compare(
    found: OtherRuntimes, policy: OnnxPolicy, states: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Leave out what computes other actions or controls than the file: its time would say nothing."""
    compared = states[:_COMPARED_STATES]
    bounds = control_bounds(policy.metadata)

    def joined(action: Any, control: Any) -> np.ndarray:
        return np.concatenate([np.ravel(action), np.ravel(control) / bounds])

    expected = np.array([joined(*policy.step(*state)) for state in compared])
    for name, step in list(found.steps.items()):
        outputs: list[Any] = [step(*state) for state in compared]
        difference = float(np.abs(np.array([joined(*each) for each in outputs]) - expected).max())
        found.action_difference[name] = difference
        if difference > _SAME_ACTION:
            del found.steps[name]
            found.left_out[name] = f"its actions are off the file's by up to {difference:.2g}"
