"""How a policy file is written: its description and its golden rows, put behind the graph with their hash."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.control_map import ControlMap
from thousandfold.envs.model_hash import model_sha256
from thousandfold.ground.errors import UserError
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.residual_mlp import parameter_count
from thousandfold.pipeline.artifact_task import task_record
from thousandfold.pipeline.artifacts import Artifact, Parent
from thousandfold.stages.export_onnx.gate import SWITCH_MARGIN, GateStates, at_a_switch, beyond_limits
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenArrays, GoldenSet, golden_error
from thousandfold.stages.policy_file.integrity import with_hash
from thousandfold.stages.policy_file.metadata import (
    METADATA_VERSION,
    Element,
    Evaluation,
    InputElement,
    Inputs,
    Network,
    Origin,
    Outputs,
    PolicyMetadata,
    Precision,
    shortest,
)
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

_EXPORTERS = ("thousandfold", "torch", "onnx", "onnxruntime", "mujoco")
_WITHIN, _BEYOND = 12, 4  # golden rows
_CANDIDATES = 240


def describe(
    source: Artifact,
    trained: TrainedActor,
    states: GateStates,
    graph: ModelBytes,
    *,
    opset: int,
    licence: str = "",
    precision: Precision = "float32",
) -> PolicyMetadata:
    """Return the metadata of a policy file; its evaluation is still open.

    Args:
        source: the student or teacher.
        trained: its network.
        states: give the ranges and the limits of the inputs.
        graph: what the file computes.
        opset: of the graph.
        licence: of the file.
        precision: of the numbers inside.
    """
    task = trained.task
    parents: Mapping[str, Parent] = {**source.manifest.parents, source.kind: source.parent_entry()}
    return PolicyMetadata(
        format_version=METADATA_VERSION,
        role="student" if source.kind == "student" else "teacher",
        task=task.name,
        model_sha256=model_sha256(task.model),
        **task_record(source),
        task_changes=dict(source.manifest.task_changes),
        control_dt_s=task.spec.control_dt_s,
        episode_steps=task.spec.episode_steps,
        inputs=_inputs(task, states),
        outputs=_outputs(task.control),
        non_finite="refuse",
        out_of_range="clip",
        precision=precision,
        opset=opset,
        licence=licence,
        graph_sha256=graph.graph_sha256,
        network=_network(trained),
        parents={role: Origin.model_validate(vars(parent)) for role, parent in parents.items()},
        evaluation=None,
        exporter={name: importlib.metadata.version(name) for name in _EXPORTERS},
    )


def _inputs(task: CompiledTask, states: GateStates) -> Inputs:
    limits = states.limits()
    return Inputs(
        observation=_input_elements(
            task.describe("observation"), states.observation, limits.observation_low, limits.observation_high
        ),
        goal=_input_elements(task.describe("achieved_goal"), states.goal, limits.goal_low, limits.goal_high),
    )


def _outputs(control: ControlMap) -> Outputs:
    return Outputs(
        action=tuple(Element(name=name, unit="1", low=-1.0, high=1.0) for name in control.actions),
        control=tuple(
            # A gripper may open at -1 and close at +1: who clips to the range needs its least first.
            Element(name=name, unit="actuator", low=shortest(min(ends)), high=shortest(max(ends)))
            for name, *ends in zip(control.actuators, control.low, control.high, strict=True)
        ),
    )


def _network(trained: TrainedActor) -> Network:
    """Return form and size; the head of the standard deviation stays behind."""
    shape, actor = trained.shape, trained.actor.actor
    parameters = parameter_count(actor.trunk) + parameter_count(actor.mean_head)
    return Network(kind=shape.kind, depth=shape.depth, width=shape.width, parameters=parameters)


def _input_elements(
    named: list[dict[str, str]], seen: np.ndarray, low: Tensor, high: Tensor
) -> tuple[InputElement, ...]:
    """Return names and units, with the range of each number over the states (n, size) and its limits."""
    ranges = zip(named, seen.min(0), seen.max(0), low.numpy(), high.numpy(), strict=True)
    return tuple(
        InputElement(
            name=entry["name"],
            unit=entry["unit"],
            low=shortest(least),
            high=shortest(most),
            limit_low=shortest(limit_low),
            limit_high=shortest(limit_high),
        )
        for entry, least, most, limit_low, limit_high in ranges
    )


@torch.no_grad()
def golden_rows(
    module: DeployablePolicy, states: GateStates, switch_margin: float = SWITCH_MARGIN
) -> GoldenArrays:
    """Return twelve of the states and four beyond the limits, with the network's outputs.

    Args:
        module: the network in torch, on the CPU.
        states: what to choose from; fewer than twelve are taken several times.
        switch_margin: how near to 0 an action that turns a switch must not be.

    Raises:
        UserError: no state is far enough from the switching of an actuator.
    """
    # Thousands of states through a thousand layers would take most of the export's time.
    observation, goal = _spread((states.observation, states.goal), _CANDIDATES)
    few = GateStates(observation, goal, {})
    chosen = [
        _spread(_away_from_switches(module, rows, switch_margin), count)
        for rows, count in ((few, _WITHIN), (beyond_limits(few, module), _BEYOND))
    ]
    observation, goal = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    action, control = module(torch.from_numpy(observation), torch.from_numpy(goal))
    return GoldenArrays(observation, goal, action.numpy(), control.numpy())


def _spread(rows: tuple[np.ndarray, ...], count: int) -> list[np.ndarray]:
    """Return so many rows of each, from the first to the last."""
    chosen = np.linspace(0, len(rows[0]) - 1, count).round().astype(int)
    return [part[chosen] for part in rows]


def _away_from_switches(
    module: DeployablePolicy, states: GateStates, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return those states in which an action that is off by `margin` turns no switch over."""
    action = module(torch.from_numpy(states.observation), torch.from_numpy(states.goal)).action
    usable = ~at_a_switch(module, action, margin).any(1)
    if not usable.any():
        raise UserError(
            "Every state lies where the least rounding switches an actuator: such a policy cannot be "
            "checked. Train it further."
        )
    return states.observation[usable], states.goal[usable]


@dataclass
class PolicyDraft:
    """A policy file being made: written to be compared with its network, then once more with what came out.

    Attributes:
        policy: the file, opened.
        graph: what it computes.
        metadata: its description.
        golden: inputs, and the outputs that the network gives.
    """

    policy: OnnxPolicy
    graph: ModelBytes
    metadata: PolicyMetadata
    golden: GoldenSet

    @classmethod
    def write(
        cls, path: Path, graph: ModelBytes, metadata: PolicyMetadata, rows: GoldenArrays
    ) -> PolicyDraft:
        """Write a first version and open it; its golden rows are not looked at yet.

        Args:
            path: the file, written as it is: give the temporary path of `atomic_file`.
            graph, metadata: its parts.
            rows: what `golden_rows` gave.
        """
        golden = GoldenSet.of(rows, TOLERANCE)
        return cls(_write(path, graph, metadata, golden), graph, metadata, golden)

    def finish(self, evaluation: Evaluation | None, tolerance: float) -> None:
        """Write the file as it leaves; its graph stays as it is.

        Args:
            evaluation: how well it does.
            tolerance: what its golden outputs may be off by.

        Raises:
            UserError: it does not give the golden outputs.
        """
        self.metadata = self.metadata.model_copy(update={"evaluation": evaluation})
        self.golden = self.golden.model_copy(update={"tolerance": tolerance})
        self.policy = _write(self.policy.path, self.graph, self.metadata, self.golden)
        if not (error := golden_error(self.policy.run, self.golden, self.metadata)) <= tolerance:
            raise UserError(
                f"The exported file is {error:.2g} off the network's golden outputs, more than "
                f"{tolerance:.2g}: it was not kept. Allow more with --set max_action_error=, at most 0.001."
            )


def _write(path: Path, graph: ModelBytes, metadata: PolicyMetadata, golden: GoldenSet) -> OnnxPolicy:
    """Write a file and read it back."""
    path.write_bytes(with_hash(graph, metadata.model_dump_json(), golden.model_dump_json()).joined())
    return OnnxPolicy(path, task=metadata.task)
