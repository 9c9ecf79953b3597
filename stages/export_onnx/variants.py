"""Smaller variants of an exported policy: kept only where they are faster here and act as well.

float16 stores and computes the layers between stem and head in half precision. int8 computes their products
in integers, with inputs between the least and the greatest that the policy's states give. Which of them pays
depends on the processor and on the width, so each is built, timed against the float32 file in turns and let
act in the same episodes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from thousandfold.ground.errors import UserError
from thousandfold.ground.files import write_atomic
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.onnx_graph import InputRanges, body_dense_inputs, to_onnx
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back
from thousandfold.stages.episodes import wilson_interval
from thousandfold.stages.export_onnx.gate import GateStates, act_in_same_episodes, largest_action_error
from thousandfold.stages.export_onnx.writing import PolicyDraft, describe, golden_rows
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenSet, largest_tolerance
from thousandfold.stages.policy_file.metadata import Evaluation
from thousandfold.stages.policy_file.onnx_bytes import split_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

Variant = Literal["float16", "int8"]

VARIANT_FILES: Mapping[Variant, str] = {"float16": "policy-float16.onnx", "int8": "policy-int8.onnx"}

MAX_SUCCESS_LOSS = 0.01
# Two runs of one file differ by some percent: less is no gain.
MAX_LATENCY_SHARE = 0.95

_WARMUP_S, _TIMED_S = 0.3, 1.5
_TIMED_STATES = 1024
_CALIBRATION_ROWS = 128  # at a time: every layer's input is kept
# Another processor rounds otherwise, by about as much as this one is off.
_TOLERANCE_FACTOR = 2.0


@dataclass(frozen=True)
class Exported:
    """A policy whose float32 file is complete, and what it was made and checked with.

    Attributes:
        policy: the float32 file.
        success, episodes: what it reached, and over how many episodes.
        source, trained: the artifact and its network.
        module: the network as it is exported, on the CPU.
        states: what it was compared on.
        opset, licence: of the file.
        seed: of the episodes.
    """

    policy: OnnxPolicy
    success: float
    episodes: int
    source: Artifact
    trained: TrainedActor
    module: DeployablePolicy
    states: GateStates
    opset: int
    licence: str
    seed: int


@dataclass(frozen=True)
class VariantFigures:
    """What was measured of a variant, and of the float32 file beside it.

    Attributes:
        max_action_error: largest difference of an action from torch's; NaN where the variant gives NaN.
        latency_us, float32_latency_us: median of a call.
        success, float32_success: over the same `episodes`; None where the variant was not let near them.
        bytes: size of the variant.
    """

    max_action_error: float
    latency_us: float
    float32_latency_us: float
    success: float | None
    float32_success: float
    episodes: int
    bytes: int

    def refusal(self) -> str | None:
        """Say why the variant is not offered; None where it is."""
        if self.success is None:
            return "its actions are not finite"
        if self.success < self.float32_success - MAX_SUCCESS_LOSS - 1e-9:
            return (
                f"it reaches {self.success:.3f} of the goals where float32 reaches "
                f"{self.float32_success:.3f}, over the same {self.episodes} episodes"
            )
        if self.latency_us > MAX_LATENCY_SHARE * self.float32_latency_us:
            return (
                f"its median call takes {self.latency_us:.3g} µs here, that of float32 "
                f"{self.float32_latency_us:.3g} µs"
            )
        return None


@dataclass(frozen=True)
class VariantTrial:
    """How a variant came out.

    Attributes:
        variant: which.
        figures: what was measured.
        refusal: why it was not kept; None: it was.
    """

    variant: Variant
    figures: VariantFigures
    refusal: str | None

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {"offered": self.refusal is None, "refusal": self.refusal, **vars(self.figures)}

    def sentence(self) -> str:
        """Return the line that tells the user."""
        if self.refusal is not None:
            return f"No {self.variant} variant: {self.refusal}."
        figures = self.figures
        return (
            f"Beside it {VARIANT_FILES[self.variant]}: median {figures.latency_us:.3g} µs a call, float32 "
            f"{figures.float32_latency_us:.3g} µs; success {figures.success:.3f}, float32 "
            f"{figures.float32_success:.3f}; actions off torch's by at most {figures.max_action_error:.2g}."
        )


def try_variant(variant: Variant, path: Path, exported: Exported) -> VariantTrial:
    """Build a variant and measure it; write it to `path` if it is worth it.

    Args:
        variant: which.
        path: where it goes.
        exported: the policy.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = _draft(variant, Path(folder) / path.name, exported)
        figures = measure(draft.policy, exported)
        refusal = figures.refusal()
        if refusal is None:
            try:
                _finish(draft, figures, exported)
            except UserError as error:  # the export does not depend on it
                return VariantTrial(variant, figures, str(error).rstrip("."))
            write_atomic(path, draft.policy.path.read_bytes())
    return VariantTrial(variant, figures, refusal)


def convert(variant: Variant, module: DeployablePolicy, states: GateStates, opset: int) -> onnx.ModelProto:
    """Return the graph of a variant.

    Args:
        variant: which.
        module: the policy, on the CPU.
        states: what the ranges of an int8 variant are taken from.
        opset: ONNX operator set.
    """
    if variant == "float16":
        return to_onnx(module, opset, "float16")
    ranges = dense_input_ranges(to_onnx(module, opset), states)
    return to_onnx(module, opset, input_ranges=ranges)


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


def measure(policy: OnnxPolicy, exported: Exported) -> VariantFigures:
    """Compare a variant with torch on states, and with the float32 file in time and in closed loop."""
    own, single = time_in_turns(policy, exported.policy, exported.states)
    error, success = largest_action_error(policy, exported.module, exported.states), None
    if math.isfinite(error):
        task = exported.trained.task
        outcome = act_in_same_episodes(policy, task, episodes=exported.episodes, seed=exported.seed)
        success = float(outcome.success.mean())
    return VariantFigures(
        max_action_error=error,
        latency_us=own,
        float32_latency_us=single,
        success=success,
        float32_success=exported.success,
        episodes=exported.episodes,
        bytes=policy.path.stat().st_size,
    )


def time_in_turns(policy: OnnxPolicy, other: OnnxPolicy, states: GateStates) -> tuple[float, float]:
    """Return the median latency of a call of each, in µs: they take turns over the same states."""
    rows = slice(0, _TIMED_STATES)
    arguments = list(zip(states.observation[rows], states.goal[rows], strict=True))
    calls = {index: TimedCall(each.step, arguments) for index, each in enumerate((policy, other))}
    samples = back_to_back(calls, _WARMUP_S, _TIMED_S)
    return float(np.median(samples[0])), float(np.median(samples[1]))


def _draft(variant: Variant, path: Path, exported: Exported) -> PolicyDraft:
    """Write a variant, with its evaluation still open."""
    model = convert(variant, exported.module, exported.states, exported.opset)
    graph = split_model(model.SerializeToString())
    metadata = describe(
        exported.source,
        exported.trained,
        exported.states,
        graph,
        opset=exported.opset,
        licence=exported.licence,
        precision=variant,
    )
    return PolicyDraft.write(path, graph, metadata, golden_rows(exported.module, exported.states))


def _finish(draft: PolicyDraft, figures: VariantFigures, exported: Exported) -> None:
    """Write a variant as it leaves: what it reaches, and golden rows with the tolerance that it needs.

    Raises:
        UserError: with that tolerance they would prove nothing, or it does not keep to it.
    """
    description = draft.metadata
    tolerance = max(TOLERANCE, _TOLERANCE_FACTOR * figures.max_action_error)
    largest = largest_tolerance(description.precision, description.network.depth)
    if tolerance > largest:
        raise UserError(
            f"its actions are off torch's by {figures.max_action_error:.2g}, and golden rows that allow for "
            f"more than {largest / _TOLERANCE_FACTOR:.2g} prove nothing."
        )
    rows = golden_rows(exported.module, exported.states, switch_margin=tolerance)
    draft.golden = GoldenSet.of(rows, tolerance)
    assert figures.success is not None  # or it would have been refused
    reached, episodes = round(figures.success * figures.episodes), figures.episodes
    evaluation = Evaluation(
        success=figures.success,
        success_interval=wilson_interval(reached, episodes),
        episodes=episodes,
        runtime="onnxruntime",
    )
    draft.finish(evaluation, tolerance)
