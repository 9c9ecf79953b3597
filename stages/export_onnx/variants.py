"""Smaller variants of an exported policy: kept only where they are faster here and act as well.

float16 stores and computes the layers between stem and head in half precision. int8 computes their products
in integers, with inputs between the least and the greatest that the policy's states give. Which of them pays
depends on the processor and on the width, so each is built, timed against the float32 file in turns and let
act in the same episodes.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from thousandfold.ground.errors import UserError
from thousandfold.ground.files import write_atomic
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back
from thousandfold.stages.episodes import wilson_interval
from thousandfold.stages.export_onnx.export import Export, golden_rows
from thousandfold.stages.export_onnx.gate import GateStates, act_in_same_episodes, largest_action_error
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenSet, largest_tolerance
from thousandfold.stages.policy_file.metadata import Evaluation
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

Variant = Literal["float16", "int8"]

VARIANT_FILES: Mapping[Variant, str] = {"float16": "policy-float16.onnx", "int8": "policy-int8.onnx"}

MAX_SUCCESS_LOSS = 0.01
# Two runs of one file differ by some percent: less is no gain.
MAX_LATENCY_SHARE = 0.95

_WARMUP_S, _TIMED_S = 0.3, 1.5
_TIMED_STATES = 1024
# Another processor rounds otherwise, by about as much as this one is off.
_TOLERANCE_FACTOR = 2.0


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


class VariantTrial(NamedTuple):
    """How a variant came out; `refusal` says why it was not kept, None: it was."""

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


def try_variant(variant: Variant, path: Path, float32: Export, seed: int) -> VariantTrial:
    """Build a variant and measure it; write it to `path` if it is worth it.

    `float32` is an export that is finished, `seed` that of the episodes that both files act in.
    """
    with tempfile.TemporaryDirectory() as folder:
        export = dataclasses.replace(float32, precision=variant)
        export.draft(Path(folder) / path.name)
        figures = measure(export, float32, seed)
        refusal = figures.refusal()
        if refusal is not None or figures.success is None:
            return VariantTrial(variant, figures, refusal)
        tolerance = max(TOLERANCE, _TOLERANCE_FACTOR * figures.max_action_error)
        largest = largest_tolerance(variant, export.trained.shape.depth)
        if tolerance > largest:
            refusal = (
                f"its actions are off torch's by {figures.max_action_error:.2g}, and golden rows that allow "
                f"for more than {largest / _TOLERANCE_FACTOR:.2g} prove nothing"
            )
            return VariantTrial(variant, figures, refusal)
        evaluation = Evaluation(
            success=figures.success,
            success_interval=wilson_interval(round(figures.success * figures.episodes), figures.episodes),
            episodes=figures.episodes,
            runtime="onnxruntime",
        )
        try:
            rows = golden_rows(export.module, export.states, switch_margin=tolerance)
            export.golden = GoldenSet.of(rows, tolerance)
            export.finish(evaluation, tolerance)
        except UserError as error:  # the export does not depend on it
            return VariantTrial(variant, figures, str(error).rstrip("."))
        write_atomic(path, export.policy.path.read_bytes())
    return VariantTrial(variant, figures, None)


def measure(export: Export, float32: Export, seed: int) -> VariantFigures:
    """Compare a variant with torch on states, and with the float32 file in time and in closed loop."""
    evaluation, policy = float32.metadata.evaluation, export.policy
    assert evaluation is not None  # its file is complete
    own, single = time_in_turns(policy, float32.policy, export.states)
    error, success = largest_action_error(policy, export.module, export.states), None
    if math.isfinite(error):
        outcome = act_in_same_episodes(policy, export.trained.task, episodes=evaluation.episodes, seed=seed)
        success = float(outcome.success.mean())
    return VariantFigures(
        max_action_error=error,
        latency_us=own,
        float32_latency_us=single,
        success=success,
        float32_success=evaluation.success,
        episodes=evaluation.episodes,
        bytes=policy.path.stat().st_size,
    )


def time_in_turns(policy: OnnxPolicy, other: OnnxPolicy, states: GateStates) -> tuple[float, float]:
    """Return the median latency of a call of each, in µs: they take turns over the same states."""
    rows = slice(0, _TIMED_STATES)
    arguments = list(zip(states.observation[rows], states.goal[rows], strict=True))
    calls = {index: TimedCall(each.step, arguments) for index, each in enumerate((policy, other))}
    samples = back_to_back(calls, _WARMUP_S, _TIMED_S)
    return float(np.median(samples[0])), float(np.median(samples[1]))
