"""One network on its way into a policy file: its graph, its description, its golden rows, and the file."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from thousandfold.envs.model_hash import model_sha256
from thousandfold.ground.errors import UserError
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.onnx_graph import InputRanges, body_dense_inputs, to_onnx
from thousandfold.models.residual_mlp import parameter_count
from thousandfold.pipeline.artifact_task import task_record
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.export_onnx.gate import (
    SWITCH_MARGIN,
    ActionError,
    GateStates,
    at_a_switch,
    beyond_limits,
    compare_actions,
)
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.policy_file.controls import describe_controls
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenArrays, GoldenSet, golden_error
from thousandfold.stages.policy_file.metadata import (
    Element,
    Evaluation,
    InputElement,
    Inputs,
    Network,
    Origin,
    Outputs,
    PolicyMetadata,
    Precision,
    RobustnessLevel,
    format_of,
    shortest,
)
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, split_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

_EXPORTERS = ("thousandfold", "torch", "onnx", "onnxruntime", "mujoco")
_ENDS = ("low", "high", "limit_low", "limit_high")
_WITHIN, _BEYOND = 12, 4  # golden rows
_CANDIDATES = 240
_CALIBRATION_ROWS = 128  # at a time: every layer's input is kept


@dataclass
class Export:
    """A student or teacher on its way into one policy file.

    The file is written twice: `draft` writes what is compared with the network, `finish` the same graph with
    what came out.

    Attributes:
        source, trained: the artifact and its network, on the CPU.
        states: what the file is compared on; they give the ranges and limits of its inputs.
        opset, licence, precision: of the file.
        module: the network as it is exported.
        policy, metadata, golden: the file as it was written last, opened, and what it carries.
        error: how far its actions are off the network's.
    """

    source: Artifact
    trained: TrainedActor
    states: GateStates
    opset: int
    licence: str = ""
    precision: Precision = "float32"
    module: DeployablePolicy = field(init=False)
    policy: OnnxPolicy = field(init=False)
    metadata: PolicyMetadata = field(init=False)
    golden: GoldenSet = field(init=False)
    error: ActionError = field(init=False)

    def __post_init__(self) -> None:
        self.module = self.trained.deployable(self.states.limits())

    @functools.cached_property
    def graph(self) -> ModelBytes:
        """What the file computes; raises UserError where that fits into no file."""
        ranges = None
        try:
            if self.precision == "int8":
                ranges = dense_input_ranges(to_onnx(self.module, self.opset), self.states)
            body = "float16" if self.precision == "float16" else "float32"
            model = to_onnx(self.module, self.opset, body, ranges)
        except ValueError as error:
            raise UserError(str(error)) from error
        return split_model(model.SerializeToString())

    def draft(self, path: Path) -> OnnxPolicy:
        """Write a first version, without an evaluation, and open it; its golden rows are not looked at yet.

        Args:
            path: the file, written as it is: give the temporary path of `atomic_file`.
        """
        self.metadata = self.describe()
        self.golden = GoldenSet.of(golden_rows(self.module, self.states), TOLERANCE)
        return self._write(path)

    def compare_actions(self, max_action_error: float) -> None:
        """Note how far the draft is off the network; raises UserError as `gate.compare_actions` does."""
        depth = self.trained.shape.depth
        self.error = compare_actions(
            self.policy, self.module, self.states, depth=depth, max_action_error=max_action_error
        )

    def finish(
        self,
        evaluation: Evaluation | None,
        tolerance: float,
        robustness: Sequence[RobustnessLevel] | None = None,
    ) -> None:
        """Write the file as it leaves.

        Args:
            evaluation: how well it does.
            tolerance: what its golden outputs may be off by, but `TOLERANCE` at least.
            robustness: how well it does where the world is not as the model says.

        Raises:
            UserError: it does not give the golden outputs.
        """
        tolerance = max(TOLERANCE, tolerance)
        levels = None if robustness is None else tuple(robustness)
        self.metadata = self.metadata.model_copy(update={"evaluation": evaluation, "robustness": levels})
        self.golden = self.golden.model_copy(update={"tolerance": tolerance})
        policy = self._write(self.policy.path)
        if not (error := golden_error(policy.run, self.golden, self.metadata)) <= tolerance:
            raise UserError(
                f"The exported file is {error:.2g} off the network's golden outputs, more than "
                f"{tolerance:.2g}: it was not kept. Allow more with --set max_action_error=, at most 0.001."
            )

    def figures(self, path: Path) -> dict[str, Any]:
        """Return what the manifest records of a file that was compared and lies at `path` now."""
        return {
            "max_action_error": self.error.largest,
            "allowed_action_error": self.error.allowed,
            "bytes": path.stat().st_size,
            "parameters": self.metadata.network.parameters,
        }

    def describe(self) -> PolicyMetadata:
        """Return the metadata of the file; its evaluation is still open."""
        source, task, shape = self.source, self.trained.task, self.trained.shape
        actor = self.trained.actor.actor
        inputs = {}
        for part, terms in (("observation", "observation"), ("goal", "achieved_goal")):
            seen: np.ndarray = getattr(self.states, part)
            low, high = (getattr(self.module, f"{part}_{end}").numpy() for end in ("low", "high"))
            ranges = zip(seen.min(0), seen.max(0), low, high, strict=True)
            inputs[part] = tuple(
                InputElement(
                    name=named["name"],
                    unit=named["unit"],
                    **dict(zip(_ENDS, map(shortest, ends), strict=True)),
                )
                for named, ends in zip(task.describe(terms), ranges, strict=True)
            )
        outputs = Outputs(
            action=tuple(Element(name=name, unit="1", low=-1.0, high=1.0) for name in task.control.actions),
            control=describe_controls(task),
        )
        network = Network(
            kind=shape.kind,
            depth=shape.depth,
            width=shape.width,
            # The head of the standard deviation stays behind where nothing swings by it.
            parameters=sum(
                parameter_count(part)
                for part in (actor.trunk, actor.mean_head, actor.log_std_head)
                if part is not actor.log_std_head or self.trained.actor.dither is not None
            ),
        )
        parents = {**source.manifest.parents, source.kind: source.parent_entry()}
        return PolicyMetadata(
            format_version=format_of(element.name for element in inputs["observation"]),
            role="student" if source.kind == "student" else "teacher",
            task=task.name,
            model_sha256=model_sha256(task.model),
            **task_record(source),
            task_changes=dict(source.manifest.task_changes),
            control_dt_s=task.spec.control_dt_s,
            episode_steps=task.spec.episode_steps,
            inputs=Inputs(**inputs),
            outputs=outputs,
            non_finite="refuse",
            out_of_range="clip",
            precision=self.precision,
            opset=self.opset,
            licence=self.licence,
            graph_sha256=self.graph.graph_sha256,
            network=network,
            parents={role: Origin.model_validate(vars(parent)) for role, parent in parents.items()},
            evaluation=None,
            exporter={name: importlib.metadata.version(name) for name in _EXPORTERS},
        )

    def _write(self, path: Path) -> OnnxPolicy:
        """Write the file and read it back."""
        whole = self.graph.sealed(self.metadata.model_dump_json(), self.golden.model_dump_json())
        path.write_bytes(whole.joined())
        self.policy = OnnxPolicy(path, task=self.metadata.task)
        return self.policy


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
    few = _spread(states, _CANDIDATES)
    chosen = []
    for candidates, count in ((few, _WITHIN), (beyond_limits(few, module), _BEYOND)):
        action = module(*candidates.tensors()).action
        usable = np.flatnonzero(~at_a_switch(module, action, switch_margin).any(1))
        if not len(usable):
            raise UserError(
                "In every state the smallest rounding error switches an actuator: such a policy cannot be "
                "checked. Train it further."
            )
        chosen.append(_spread(candidates.rows(usable), count))
    rows = chosen[0].followed_by(chosen[1])
    action, control = module(*rows.tensors())
    return GoldenArrays(rows.observation, rows.goal, action.numpy(), control.numpy())


def _spread(states: GateStates, count: int) -> GateStates:
    """Return so many of the states, from the first to the last."""
    return states.rows(np.linspace(0, len(states.goal) - 1, count).round().astype(int))


def dense_input_ranges(model: onnx.ModelProto, states: GateStates) -> InputRanges:
    """Return the least and the greatest input of every Dense layer between stem and head, over the states.

    Args:
        model: the float32 graph; it is given more outputs.
        states: what it is run on.
    """
    inputs = body_dense_inputs(model)
    names = list(dict.fromkeys(inputs.values()))
    if not names:
        return {}
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for first in range(0, len(states.observation), _CALIBRATION_ROWS):
        rows = slice(first, first + _CALIBRATION_ROWS)
        values = session.run(names, {"observation": states.observation[rows], "goal": states.goal[rows]})
        low = np.minimum(low, [np.min(np.asarray(value)) for value in values])
        high = np.maximum(high, [np.max(np.asarray(value)) for value in values])
    ranges = dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    return {layer: ranges[name] for layer, name in inputs.items()}
