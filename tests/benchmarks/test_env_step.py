"""Both sides of the step benchmark step the same worlds, and the script keeps other tasks' figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import env_step
from thousandfold.envs.registry import compile_task


def test_both_sides_go_the_same_way() -> None:
    pair = env_step.StepPair(compile_task("ant"), worlds=8, threads=1)
    pair._simulator.episode_step[:] = 0
    for _ in range(2):
        seconds = pair.turn()
        assert set(seconds) == {"full", "bare"} and min(seconds.values()) > 0
        # A world that ended was reset on the full side, and its clock with it.
        went_on = pair._simulator.episode_step >= env_step._STEPS_A_TURN
        assert went_on.any()
        full = pair._simulator.state_dict()["state"]
        assert np.array_equal(full[went_on], pair._batch.state[went_on])


def test_the_figures_of_a_task_are_those_of_its_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "step.json"
    arguments = ["--tasks=point_u_maze", "--worlds=4", "--rounds=5", "--round-s=0.01", f"--output={output}"]
    env_step.main(arguments)
    assert "| full / bare |" in capsys.readouterr().out
    cells = json.loads(output.read_text())
    cell = cells["point_u_maze"]
    full, bare = (cell["rounds_steps_per_second"][side] for side in ("full", "bare"))
    assert len(full) == len(bare) == 5
    ratios = [one / other for one, other in zip(full, bare, strict=True)]
    assert cell["full_over_bare"]["max"] == pytest.approx(max(ratios), rel=1e-4)
