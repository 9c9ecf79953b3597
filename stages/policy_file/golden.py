"""Golden rows: inputs and outputs that a policy file carries to prove itself in any runtime.

They stand in the ONNX metadata under the key ``thousandfold_golden``, computed by the network that the file
was made from. A runner that gives other numbers is wrong, or its file is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydantic

from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.metadata import (
    Described,
    PolicyMetadata,
    Precision,
    damaged_metadata,
    shortest,
)
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN

TOLERANCE = 1e-5
LARGEST_FLOAT32_TOLERANCE = 1e-3
"""Up to `SHALLOW_DEPTH`; grows as `rounding_growth`."""
LARGEST_FLOAT16_TOLERANCE, LARGEST_INT8_TOLERANCE = 0.1, 0.5
SHALLOW_DEPTH = 16
MOST_ROWS = 1024
"""`export-onnx` writes sixteen; all of them are computed at once."""

Rows = tuple[tuple[float, ...], ...]
Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Maps observations and goals to actions and controls, (n, size) float32 each."""


class GoldenArrays(NamedTuple):
    """Golden rows as arrays, (n, size) float32 each."""

    observation: np.ndarray
    goal: np.ndarray
    action: np.ndarray
    control: np.ndarray


class GoldenSet(Described):
    """Rows of inputs and the outputs that belong to them; some inputs lie beyond their limits."""

    observation: Rows
    """Inputs, a row a state."""
    goal: Rows
    """Inputs, a row a state."""
    action: Rows
    """Expected outputs, a row a state."""
    control: Rows
    """Expected outputs, a row a state."""
    tolerance: float = pydantic.Field(gt=0, le=LARGEST_INT8_TOLERANCE)
    """Largest difference: absolute of an action, as a share of the actuator's bound of a control."""

    @classmethod
    def of(cls, rows: GoldenArrays, tolerance: float) -> GoldenSet:
        """Return the set of arrays of float32, which it keeps exactly."""
        written = {
            name: tuple(tuple(shortest(value) for value in row) for row in array)
            for name, array in rows._asdict().items()
        }
        return cls(**written, tolerance=tolerance)

    def arrays(self) -> GoldenArrays:
        """Return the rows as arrays."""
        with np.errstate(over="ignore"):  # infinity is refused by whoever takes the rows
            return GoldenArrays(*(np.array(getattr(self, name), np.float32) for name in GoldenArrays._fields))


def rounding_growth(depth: int) -> float:
    """Return how much larger rounding errors are allowed to be than in a shallow network.

    Those of single layers are independent, so their sum grows as the root of the depth.
    """
    return math.sqrt(max(1.0, depth / SHALLOW_DEPTH))


def largest_tolerance(precision: Precision, depth: int) -> float:
    """Return the largest tolerance with which golden rows still show that a runtime computes rightly.

    The depth counts for float32 alone, whose errors are those of rounding.
    """
    single = LARGEST_FLOAT32_TOLERANCE * rounding_growth(depth)
    return {"float32": single, "float16": LARGEST_FLOAT16_TOLERANCE, "int8": LARGEST_INT8_TOLERANCE}[
        precision
    ]


def parse_golden(text: str | None, metadata: PolicyMetadata, path: Path) -> GoldenSet:
    """Return the golden rows of a file from the text under `GOLDEN_KEY`; None where nothing stands there.

    Raises:
        DamagedFileError: there are none, they are not of the policy's sizes, or their tolerance is beyond
            `largest_tolerance`.
    """
    if text is None:
        raise DamagedFileError(f"{path} has no golden rows: {EXPORT_AGAIN}.")
    try:
        golden = GoldenSet.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise damaged_metadata(path, error) from error
    for name, size in metadata.sizes().items():
        rows: Rows = getattr(golden, name)
        if not rows or len(rows) != len(golden.observation) or any(len(row) != size for row in rows):
            raise DamagedFileError(
                f"{path} has damaged golden rows ({name} is not as many rows of {size}): {EXPORT_AGAIN}."
            )
    if len(golden.observation) > MOST_ROWS:
        raise DamagedFileError(
            f"{path} has {len(golden.observation):,} golden rows, {MOST_ROWS:,} at most: {EXPORT_AGAIN}."
        )
    largest = largest_tolerance(metadata.precision, metadata.network.depth)
    if golden.tolerance > largest:
        raise DamagedFileError(
            f"{path} has golden rows that prove too little: a tolerance of {golden.tolerance:.2g}, at most "
            f"{largest:.2g} for {metadata.precision} of depth {metadata.network.depth}; {EXPORT_AGAIN}."
        )
    return golden


def control_bounds(metadata: PolicyMetadata) -> np.ndarray:
    """Return what an error of each control is a share of, (num_actuators,): its larger bound, 1 for 0."""
    bounds = [max(abs(element.low), abs(element.high)) for element in metadata.outputs.control]
    return np.array([bound or 1.0 for bound in bounds])


def golden_error(run: Run, golden: GoldenSet, metadata: PolicyMetadata) -> float:
    """Return how far a runtime's outputs are off the golden ones, at most; NaN where it gives NaN."""
    rows = golden.arrays()
    action, control = run(rows.observation, rows.goal)
    differences = np.abs(action - rows.action), np.abs(control - rows.control) / control_bounds(metadata)
    return float(np.max([part.max() for part in differences]))
