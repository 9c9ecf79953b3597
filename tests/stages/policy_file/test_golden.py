"""Golden rows: how far a runtime is off, and rows that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import expected_action, expected_control, golden, metadata
from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.golden import GoldenSet, control_bounds, golden_error, parse_golden
from thousandfold.stages.policy_file.metadata import PolicyMetadata

DESCRIPTION = PolicyMetadata.model_validate(metadata())


def with_ends(*ends: tuple[float, float]) -> PolicyMetadata:
    """Return the description of actuators with other ends."""
    whole = metadata()
    for element, (low, high) in zip(whole["outputs"]["control"], ends, strict=True):
        element |= {"low": low, "high": high}
    return PolicyMetadata.model_validate(whole)


GOLDEN = GoldenSet.model_validate(golden())
ROWS = {name: rows for name, rows in golden().items() if name != "tolerance"}


def shifted(action: float = 0.0, control: float = 0.0) -> Any:
    """Return the right function, off by so much in one action and in the last control."""

    def run(observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = expected_action(observation, goal)
        wrong, sent = right.copy(), expected_control(right)
        wrong[3, 0] += action
        sent[-1, -1] += control
        return wrong, sent

    return run


def test_the_error_is_absolute_of_actions_and_a_share_of_the_bound_of_controls() -> None:
    assert golden_error(shifted(), GOLDEN, DESCRIPTION) < 1e-6
    assert golden_error(shifted(action=-0.25), GOLDEN, DESCRIPTION) == pytest.approx(0.25, abs=1e-6)
    wider = with_ends((-2.0, 2.0), (5.0, 0.0))
    np.testing.assert_array_equal(control_bounds(wider), [2.0, 5.0])
    assert golden_error(shifted(control=1.0), GOLDEN, wider) == pytest.approx(0.2, abs=1e-6)
    assert math.isnan(golden_error(shifted(action=math.nan), GOLDEN, DESCRIPTION))


def test_an_actuator_that_is_held_at_zero_has_an_absolute_error() -> None:
    np.testing.assert_array_equal(control_bounds(with_ends((-2.0, 2.0), (0.0, 0.0))), [2.0, 1.0])


@pytest.mark.parametrize(
    ("precision", "depth", "largest"),
    [
        ("float32", 1, 1e-3),
        ("float32", 16, 1e-3),
        ("float32", 1024, 8e-3),
        ("float16", 1024, 0.1),
        ("int8", 4, 0.5),
    ],
)
def test_a_tolerance_that_proves_nothing_is_refused(precision: str, depth: int, largest: float) -> None:
    changes = {"precision": precision, "network": metadata()["network"] | {"depth": depth}}
    description = PolicyMetadata.model_validate(metadata(**changes))
    path = Path("policy.onnx")
    text = json.dumps(golden(tolerance=largest))
    assert parse_golden(text, description, path).tolerance == largest
    with pytest.raises(DamagedFileError, match="tolerance"):
        parse_golden(json.dumps(golden(tolerance=1.01 * largest)), description, path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no golden rows"),
        ("[]", "damaged metadata"),
        (json.dumps(golden(tolerance=0)), "tolerance"),
        (
            json.dumps({name: rows * 65 for name, rows in ROWS.items()} | {"tolerance": 1e-5}),
            "1,040 golden rows",
        ),
        (json.dumps(golden(tolerance=0.002)), r"of 0\.002, at most 0\.001 for float32 of depth 1; export"),
        (json.dumps(golden(goal=[[0.0, 1.0]])), r"goal is not as many rows of 2"),
        (json.dumps(golden(control=[[0.0]] * 16)), r"control is not as many rows of 2"),
        (json.dumps({name: [] for name in golden()} | {"tolerance": 1e-5}), "observation"),
    ],
)
def test_damaged_rows_are_refused(text: str | None, word: str) -> None:
    with pytest.raises(DamagedFileError, match=word):
        parse_golden(text, DESCRIPTION, Path("policy.onnx"))
