"""Errors are those of positions and joint angles, and a finer method makes smaller ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import integrators
from thousandfold.envs.registry import compile_task


def test_errors_are_distances_and_root_mean_squares() -> None:
    one, other = np.zeros((3, 9)), np.zeros((3, 9))
    one[:, 0], one[:, 1] = [3.0, 6.0, 0.0], [4.0, 8.0, 0.0]  # 5, 10 and 0 m
    one[:, 3:7] = 9.0  # the orientation does not count
    other[:, 7], other[:, 8] = [1.0, 2.0, 0.0], [7.0, 2.0, 0.0]  # sqrt(50 / 2), 2 and 0 rad
    found = integrators.errors(one, other)
    assert found["position_m"] == pytest.approx({"median": 5.0, "p90": 9.0})
    assert found["joints_rad"] == pytest.approx({"median": 2.0, "p90": 4.4})


def test_a_world_that_ended_does_not_come_back() -> None:
    task = compile_task("ant")
    passed = np.tile(task.model.qpos0, (3, 2, 1))
    passed[:, :, 2] = [[0.5, 0.5], [0.5, 0.1], [0.5, 0.5]]  # the second lies on the floor for a while
    assert integrators.running(task, passed).tolist() == [[True, True], [True, False], [True, False]]


def test_positions_follow_the_actions() -> None:
    task = compile_task("point_u_maze")
    qpos, qvel = np.array([[1.0, 1.0]]), np.zeros((1, 2))
    ahead = integrators.positions(task, qpos, qvel, np.array([[[1.0, 0.0]], [[1.0, 0.0]]]), threads=1)
    assert ahead.shape == (2, 1, 2)
    assert 1.0 < ahead[0, 0, 0] < ahead[1, 0, 0]
    assert ahead[:, 0, 1].tolist() == pytest.approx([1.0, 1.0])


def test_rk4_is_nearer_to_the_reference(tmp_path: Path) -> None:
    output = tmp_path / "integrators.json"
    integrators.main(["--worlds=32", "--horizons", "1", "5", f"--output={output}"])
    cell = json.loads(output.read_text())["ant"]
    assert cell["own_integrator"] == "mjINT_IMPLICITFAST"
    assert cell["reference_timestep_s"] == pytest.approx(cell["timestep_s"] / 4)
    first, later = cell["horizons"]
    assert 32 >= first["worlds"] >= later["worlds"] > 0
    own, rk4 = (first["errors"][f"{side} - reference"]["joints_rad"] for side in ("own", "RK4"))
    assert own["median"] > 2 * rk4["median"] > 0
    grown = later["errors"]["own - reference"]["joints_rad"]
    assert grown["median"] > own["median"]
