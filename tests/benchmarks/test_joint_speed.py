"""The largest speed of a joint: looked at between control steps, too, and what was sent beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import joint_speed
from tests.envs.user_tasks.user_pages import PAGE, write
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.stages.train_teacher.train_teacher import run as train


def test_it_is_at_least_what_control_steps_show_and_commands_keep_their_rate(tmp_path: Path) -> None:
    page = PAGE.replace("  - field: site_xpos", "  - {field: qvel}\n  - field: site_xpos")
    page += 'action: {actuators: "*", kind: delta, max_rate: 1.5}\nrandomize: {gain: {low: 0.7, high: 1.3}}\n'
    task = compile_task(str(write(tmp_path, page)))
    policy = joint_speed.drawn_actions(2, 5, np.random.default_rng(0))
    found = joint_speed.largest(task, policy, 3, 0)
    assert found["sent"] == pytest.approx(1.5, rel=1e-5)
    simulator = CpuSimulator(task, 3, seed=np.random.SeedSequence(0), distribution="evaluation")
    again, shown = joint_speed.drawn_actions(2, 5, np.random.default_rng(0)), 0.0
    speeds = [name["name"].startswith("qvel") for name in task.describe("observation")]
    for _ in range(task.spec.episode_steps):
        simulator.step(again(simulator.observation, simulator.desired_goal))
        shown = max(shown, float(np.abs(simulator.observation[:, speeds]).max()))
    assert 0 < shown <= found["joint"] * (1 + 1e-5)


@pytest.mark.slow
def test_a_teacher_and_drawn_actions_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = train(TINY_TEACHER, make_context(tmp_path / "workspace"))
    path = tmp_path / "found.json"
    joint_speed.main([f"--teacher={teacher.path}", "--episodes=2", f"--output={path}"])
    (cell,) = json.loads(path.read_text())["cells"].values()
    assert set(cell["largest"]) == {
        "uniform",
        "±1 for 1",
        "±1 for 5",
        "±1 for 20",
        "teacher",
        "teacher, sampled",
    }
    assert f"{cell['largest']['teacher']['joint']:.2f}" in capsys.readouterr().out
