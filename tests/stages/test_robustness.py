"""Robustness cards: which levels there are, what they cost, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.console import Console
from thousandfold.stages.robustness import (
    DELAY,
    NOISE,
    NOMINAL,
    TOGETHER,
    Level,
    draw_card,
    first_failures,
    levels_of,
    measure_robustness,
    measured_levels,
)

MODEL = """
<mujoco>
  <worldbody>
    <body name="load">
      <joint name="lift" type="slide" axis="0 0 1" range="-1 1" damping="2"/>
      <geom size="0.1" mass="1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor name="lift" joint="lift" ctrlrange="-14 14"/></actuator>
</mujoco>
"""
PAGE = """
name: hoist
model: hoist.xml
control_dt_s: 0.02
episode_steps: 100
observation: [{field: qpos}, {field: qvel}]
achieved_goal: {field: qpos}
goal: {box: {low: [0.3], high: [0.6]}}
success: {radius: 0.15}
"""


def hoist(folder: Path, more: str = "") -> str:
    (folder / "hoist.xml").write_text(MODEL)
    (folder / "hoist.yaml").write_text(PAGE + more)
    return str(folder / "hoist.yaml")


def lift(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Carry the weight of the model, and move towards the goal: at most 14 N."""
    force = 9.81 + 30 * (goal - observation[:, :1]) - 5 * observation[:, 1:2]
    return np.clip(force / 14, -1, 1).astype(np.float32)


def fall(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return -np.ones((len(observation), 1), np.float32)


def test_what_the_motor_cannot_carry_is_not_reached(tmp_path: Path) -> None:
    levels = measure_robustness(lift, compile_task(hoist(tmp_path)), 16, 0, Console())
    success = {(level.factor, level.value): level.success for level in levels}
    assert success[NOMINAL, 0.0] == 1.0
    # 14 N carry 1.3 kg and not 1.5 kg; a weaker motor does not carry 1 kg.
    assert [success["mass", value] for value in (0.85, 1.15, 1.3, 1.5, 2.0)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert success["gain", 0.5] == 0.0 and success["gain", 1.15] == 1.0
    assert success[DELAY, 1.0] == success[NOISE, 0.01] == 1.0
    assert success[TOGETHER, 0.15] == 1.0 and success[TOGETHER, 0.5] < 1.0
    assert first_failures(levels)["mass"] == {"below": None, "above": 1.5}
    assert "friction" not in first_failures(levels), "it touches nothing"
    assert not any(level.trained for level in levels if level.factor != NOMINAL)


def test_levels_tell_how_far_training_went(tmp_path: Path) -> None:
    page = hoist(
        tmp_path,
        "randomize: {mass: {low: 0.8, high: 1.2}, joint_zero: {low: -0.02, high: 0.02}}\n"
        "action_delay: {low: 0, high: 2}\n",
    )
    levels = levels_of(compile_task(page))
    assert [level[1:] for level in levels if level[0] == "action_delay"] == [
        (1, True), (2, True), (3, False), (4, False),
    ]  # fmt: skip
    assert [value for factor, value, trained in levels if factor == "mass" and trained] == [0.85, 1.15]
    assert [level for level in levels if level[0] == "joint_zero"] == [
        ("joint_zero", pytest.approx(-0.04), False),
        ("joint_zero", -0.02, True),
        ("joint_zero", 0.0, True),
        ("joint_zero", 0.02, True),
        ("joint_zero", pytest.approx(0.04), False),
    ]


def test_the_nominal_model_is_what_nothing_varies(tmp_path: Path) -> None:
    """A task that trains on loads too heavy to carry still has its nominal success on the model as it is."""
    page = hoist(tmp_path, "randomize: {mass: {low: 2, high: 3}}\n")
    task = compile_task(page)
    levels = measure_robustness(lift, task, 8, 0, Console())
    assert next(level for level in levels if level.factor == NOMINAL).success == 1.0


def test_the_same_seed_gives_the_same_card(tmp_path: Path) -> None:
    task = compile_task(hoist(tmp_path))
    first, second = (measure_robustness(lift, task, 8, 3, Console()) for _ in range(2))
    assert first == second


def test_a_policy_that_reaches_nothing_has_no_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure_robustness(fall, compile_task(hoist(tmp_path)), 8, 0, Console()) is None
    assert "no goal is reached on the model as it is" in capsys.readouterr().err


def test_noise_grows_old_with_its_reading(tmp_path: Path) -> None:
    page = hoist(tmp_path).replace(".yaml", "_past.yaml")
    text = Path(hoist(tmp_path)).read_text()
    Path(page).write_text(text.replace("[{field: qpos}, ", "[{field: qpos, history: 3}, "))
    seen: list[np.ndarray] = []

    def act(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        seen.append(observation.copy())
        return lift(observation[:, [0, 3]], goal)

    planned = [(NOISE, 0.05, False)]
    list(measured_levels(act, compile_task(page), planned, 4, 0))
    rows = np.stack(seen[-100:])  # of the noisy level
    np.testing.assert_allclose(rows[2:, :, 2], rows[:-2, :, 0], atol=1e-6)
    assert np.abs(np.diff(rows[:, :, 0], n=2, axis=0)).max() > 0.01


@pytest.mark.pictures
def test_the_first_failure_is_the_one_nearest_the_model(tmp_path: Path) -> None:
    counts = {0.5: 10, 0.7: 80, 0.85: 95, 1.15: 91, 1.3: 89, 1.5: 20}
    levels = [Level(NOMINAL, 0.0, True, 100, 100)]
    levels += [Level("mass", value, False, count, 100) for value, count in counts.items()]
    levels += [Level(DELAY, value, False, count, 100) for value, count in ((1.0, 95), (2.0, 80), (3.0, 10))]
    assert first_failures(levels) == {
        "mass": {"below": 0.7, "above": 1.3},
        DELAY: {"below": None, "above": 2.0},
    }
    draw_card(tmp_path / "card.png", levels, ["a policy"])
    assert (tmp_path / "card.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(json.dumps(levels[0].record()))["success_interval"] == pytest.approx(
        [0.963, 1.0], abs=1e-3
    )
