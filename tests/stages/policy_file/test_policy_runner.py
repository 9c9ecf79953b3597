"""The runner of `run-policy` on a policy of known numbers; tests/examples has it over 200 steps."""

from __future__ import annotations

import json
import math
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
from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.policy_runner import PolicyRunner

GOAL = np.array([0.1, -0.2], np.float32)


def described(names: list[str], version: int = 4, **control: Any) -> dict[str, Any]:
    """Return metadata whose four observations have these names, and whose controls have these facts."""
    found = metadata(format_version=version)
    found["inputs"]["observation"] = [
        element | {"name": name} for element, name in zip(found["inputs"]["observation"], names, strict=True)
    ]
    found["outputs"]["control"] = [element | control for element in found["outputs"]["control"]]
    return found


def opened(folder: Path, names: list[str], **control: Any) -> OnnxPolicy:
    return OnnxPolicy(write_policy(folder / "policy.onnx", json.dumps(described(names, **control))))


def check(runner: PolicyRunner, readings: list[float], observation: list[float]) -> np.ndarray:
    """Check that the runner gives the policy an observation; return what it sends."""
    step = runner.step(np.array(readings), GOAL)
    expected = expected_action(np.array([observation]), GOAL[None])
    assert (step.status, runner.held) == ("ok", 0) and step.action is not None and step.control is not None
    np.testing.assert_allclose(step.action, expected[0], atol=1e-6)
    np.testing.assert_allclose(step.control, expected_control(expected)[0], atol=1e-5)
    return step.control


def test_past_readings_are_stacked_and_begin_as_the_first(tmp_path: Path) -> None:
    runner = PolicyRunner(opened(tmp_path, ["qpos:x[0]", "qpos:x[0]@-1", "qpos:x[0]@-2", "qvel:x[0]"]))
    assert runner.readings == ("qpos:x[0]", "qvel:x[0]")
    for _ in range(2):
        runner.reset()
        check(runner, [0.1, 1], [0.1, 0.1, 0.1, 1])
        check(runner, [0.2, 2], [0.2, 0.1, 0.1, 2])
        check(runner, [0.3, 3], [0.3, 0.2, 0.1, 3])
        check(runner, [0.4, 4], [0.4, 0.3, 0.2, 4])


def test_what_was_sent_last_is_remembered_with_its_past(tmp_path: Path) -> None:
    policy = opened(tmp_path, ["ctrl:y[0]", "ctrl:y[0]@-1", "qpos:x[0]", "ctrl:x[0]"])
    with pytest.raises(ValueError, match="give the start of actuator x: where it stands"):
        PolicyRunner(policy)
    runner = PolicyRunner(policy, {"y": 0.3, "x": 0.7})
    assert runner.readings == ("qpos:x[0]",)
    sent = [np.array([0.7, 0.3])] * 2
    for _ in range(4):
        (x, y), (_, before) = sent[-1], sent[-2]
        sent.append(check(runner, [0.5], [y, before, 0.5, x]))


def test_a_clock_counts_the_steps_since_the_first_good_one(tmp_path: Path) -> None:
    runner = PolicyRunner(
        opened(tmp_path, ["clock:0.35[1]", "qpos:x[0]", "clock:0.35[1]@-2", "clock:1.5[0]"])
    )
    assert runner.readings == ("qpos:x[0]",)

    def turn(period: float, step: int) -> float:
        return 2 * math.pi * max(step, 0) * 0.1 / period

    for _ in range(2):
        runner.reset()
        assert runner.step(None, GOAL).control is None and runner.step([math.nan], GOAL).control is None
        for step in range(8):
            if step == 3:  # a step that is held counts
                assert runner.step(None, GOAL).status == "late"
            elif step == 4:
                assert runner.step([math.inf], GOAL).status == "not_finite"
            else:
                sin, before = math.sin(turn(0.35, step)), math.sin(turn(0.35, step - 2))
                check(runner, [0.5], [sin, 0.5, before, math.cos(turn(1.5, step))])


def test_what_is_sent_is_within_the_ends_and_the_largest_rate(tmp_path: Path) -> None:
    names = ["qpos:x[0]", "qpos:y[0]", "qvel:x[0]", "qvel:y[0]"]
    runner = PolicyRunner(opened(tmp_path, names, low=0.05, high=-0.05, max_rate=0.2, start=0.9))
    far = np.array([runner.step(np.full(4, 3.0), GOAL).control for _ in range(8)])
    np.testing.assert_allclose(far[0], [0.03, 0.03], atol=1e-6)  # from its end on, by 0.2 · 0.1
    np.testing.assert_allclose(far[-1], [-0.05, -0.05], atol=1e-6)


def test_a_held_step_repeats_what_was_sent_and_the_last_good_readings(tmp_path: Path) -> None:
    runner = PolicyRunner(opened(tmp_path, ["qpos:x[0]", "qpos:x[0]@-1", "qvel:x[0]", "qvel:y[0]"]))
    nothing = runner.step(np.array([np.nan, 0, 0]), GOAL)
    assert nothing == (None, "not_finite", None) and runner.held == 1
    sent = check(runner, [0.1, 0.2, 0.3], [0.1, 0.1, 0.2, 0.3])
    held = [runner.step(np.array([0.4, np.nan, 0.6]), GOAL), runner.step(None, GOAL)]
    held.append(runner.step(np.array([0.4, 0.5, 0.6]), np.array([np.inf, 0])))
    assert [step.status for step in held] == ["not_finite", "late", "not_finite"] and runner.held == 3
    for step in held:
        assert step.action is None
        np.testing.assert_array_equal(step.control, sent)
    check(runner, [0.7, 0.5, 0.6], [0.7, 0.1, 0.5, 0.6])


@pytest.mark.parametrize(
    ("names", "version", "said"),
    [
        (["qpos:x[0]", "qpos:x[0]@-1", "a", "b"], 3, r"'qpos:x\[0\]@-1' is a past reading"),
        (["qpos:y[0]", "qpos:x[0]@-1", "a", "b"], 4, r"'qpos:x\[0\]@-1' is a past reading"),
        (
            ["qpos:x[0]", "clock:0.25[0]", "a", "b"],
            3,
            r"'clock:0.25\[0\]' is a clock's, which takes format 4",
        ),
        (["qpos:x[0]", "clock:0[1]", "a", "b"], 4, r"'clock:0\[1\]' is a clock's, .* a period above 0"),
    ],
    ids=["format 3", "without the newest", "clock in format 3", "clock that stands"],
)
def test_inputs_that_no_runner_could_give_are_refused(
    tmp_path: Path, names: list[str], version: int, said: str
) -> None:
    path = write_policy(tmp_path / "policy.onnx", json.dumps(described(names, version)))
    with pytest.raises(DamagedFileError, match=said):
        OnnxPolicy(path)
