"""A runner stacks past readings and what was sent as simulators do, and holds where an input fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import (
    expected_action,
    expected_control,
    metadata,
    write_policy,
)
from thousandfold.ground.errors import DamagedFileError, NonFiniteError
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.policy_runner import PolicyRunner

GOAL = np.array([0.1, -0.2], np.float32)


def described(names: list[str], version: int = 4) -> dict[str, Any]:
    """Return metadata whose four observations have these names."""
    found = metadata(format_version=version)
    found["inputs"]["observation"] = [
        element | {"name": name} for element, name in zip(found["inputs"]["observation"], names, strict=True)
    ]
    return found


def runner(folder: Path, names: list[str]) -> PolicyRunner:
    return PolicyRunner(OnnxPolicy(write_policy(folder / "policy.onnx", json.dumps(described(names)))))


def test_past_readings_are_stacked_and_begin_as_the_first(tmp_path: Path) -> None:
    each = runner(tmp_path, ["qpos:x[0]", "qpos:x[0]@-1", "qpos:x[0]@-2", "qvel:x[0]"])
    assert each.readings == ("qpos:x[0]", "qvel:x[0]") and each.told == ()
    readings = np.array([[0.1, 1], [0.2, 2], [0.3, 3], [0.4, 4]], np.float32)
    stacked = [[0.1, 0.1, 0.1, 1], [0.2, 0.1, 0.1, 2], [0.3, 0.2, 0.1, 3], [0.4, 0.3, 0.2, 4]]
    for _ in range(2):
        each.reset()
        for row, whole in zip(readings, np.array(stacked, np.float32), strict=True):
            found = each.step(row, GOAL)
            np.testing.assert_allclose(found.action, expected_action(whole[None], GOAL[None])[0], atol=1e-6)
            assert found.held is None


def test_what_was_sent_last_is_remembered_with_its_past(tmp_path: Path) -> None:
    each = runner(tmp_path, ["ctrl:y[0]", "ctrl:y[0]@-1", "qpos:x[0]", "ctrl:x[0]"])
    assert each.readings == ("qpos:x[0]",) and each.told == ("y", "x")
    with pytest.raises(ValueError, match="call reset before the first step"):
        each.step(np.array([0.5]), GOAL)
    with pytest.raises(ValueError, match="must be given, 2 numbers: the policy reads y, x"):
        each.reset()
    each.reset(np.array([0.7, 0.3]))
    sent = [np.array([0.7, 0.3], np.float32)] * 2
    for _ in range(4):
        (x, y), (_, before) = sent[-1], sent[-2]
        whole = np.array([[y, before, 0.5, x]], np.float32)
        found = each.step(np.array([0.5]), GOAL)
        np.testing.assert_allclose(
            found.control, expected_control(expected_action(whole, GOAL[None]))[0], atol=1e-5
        )
        sent.append(found.control)
    each.sent = np.array([1.0, 2.0], np.float32)  # something else had the last word
    whole = np.array([[2.0, sent[-2][1], 0.5, 1.0]], np.float32)
    found = each.step(np.array([0.5]), GOAL)
    np.testing.assert_allclose(found.action, expected_action(whole, GOAL[None])[0], atol=1e-6)


def test_the_last_control_is_held_and_said_where_an_input_is_no_number(tmp_path: Path) -> None:
    each = runner(tmp_path, ["qpos:x[0]", "qpos:x[0]@-1", "qvel:x[0]", "qvel:y[0]"])
    each.reset()
    with pytest.raises(NonFiniteError):  # nothing was sent that could be held
        each.step(np.array([np.nan, 0, 0]), GOAL)
    before = each.step(np.array([0.1, 0.2, 0.3]), GOAL)
    held = each.step(np.array([np.nan, 0.5, 0.6]), GOAL)
    np.testing.assert_array_equal(held.control, before.control)
    assert held.held is not None and "qpos:x[0]" in held.held and "What was sent last is held." in held.held
    again = each.step(np.array([0.4, 0.5, 0.6]), np.array([np.inf, 0]))
    np.testing.assert_array_equal(again.control, before.control)
    found = each.step(np.array([0.7, 0.5, 0.6]), GOAL)
    whole = np.array([[0.7, 0.4, 0.5, 0.6]], np.float32)
    np.testing.assert_allclose(found.action, expected_action(whole, GOAL[None])[0], atol=1e-6)
    each.step(np.array([np.nan, 0.5, 0.6]), GOAL)
    found = each.step(np.array([0.8, 0.5, 0.6]), GOAL)  # the last that was a number stands before it
    whole = np.array([[0.8, 0.7, 0.5, 0.6]], np.float32)
    np.testing.assert_allclose(found.action, expected_action(whole, GOAL[None])[0], atol=1e-6)


def test_shapes_are_told(tmp_path: Path) -> None:
    each = runner(tmp_path, ["qpos:x[0]", "qpos:x[0]@-1", "qvel:x[0]", "qvel:y[0]"])
    with pytest.raises(ValueError, match=r"readings have shape \(4,\), not \(3,\)"):
        each.step(np.zeros(4), GOAL)
    with pytest.raises(ValueError, match=r"has shape \(3,\), not \(2,\)"):
        each.reset(np.zeros(3))


@pytest.mark.parametrize(
    ("names", "version"),
    [(["qpos:x[0]", "qpos:x[0]@-1", "a", "b"], 3), (["qpos:y[0]", "qpos:x[0]@-1", "a", "b"], 4)],
    ids=["format 3", "without the newest"],
)
def test_past_readings_that_no_runner_could_give_are_refused(
    tmp_path: Path, names: list[str], version: int
) -> None:
    path = write_policy(tmp_path / "policy.onnx", json.dumps(described(names, version)))
    with pytest.raises(DamagedFileError, match=r"'qpos:x\[0\]@-1' is a past reading"):
        OnnxPolicy(path)
