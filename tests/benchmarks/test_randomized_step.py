"""The benchmarks of worlds that vary: every factor is among them, and the figures are those of the rounds."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import randomized_parity, randomized_step
from thousandfold.envs.randomization import FACTORS
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator


def test_every_factor_varies() -> None:
    assert {each.name for each in randomized_step.every_factor("ant")} == {*FACTORS, "push"}


def test_the_figures_of_a_task_are_those_of_its_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "step.json"
    arguments = ["--tasks=ant", "--worlds=4", "--rounds=5", "--round-s=0.01", f"--output={output}"]
    randomized_step.main(arguments)
    assert "| randomized / plain |" in capsys.readouterr().out
    cell = json.loads(output.read_text())["ant"]
    plain, varied = (cell["rounds_steps_per_second"][side] for side in ("plain", "randomized"))
    ratios = [one / other for one, other in zip(varied, plain, strict=True)]
    assert cell["randomized_over_plain"]["max"] == pytest.approx(max(ratios), rel=1e-4)
    assert cell["reset_us_per_world"] > 0


def test_displacement_is_of_the_same_actions() -> None:
    task = compile_task("ant").with_factors(randomized_step.every_factor("ant")[:1])
    moved = [randomized_parity.displacement(CpuSimulator(task, 3, seed=1), 5) for _ in range(2)]
    assert moved[0].shape == (3,) and (moved[0] > 0).all() and np.array_equal(*moved)
