"""Sides of the throughput benchmark do what they say, and the script keeps what was measured."""

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest

from benchmarks import env_throughput
from benchmarks.env_throughput import RK4, as_shipped, with_integrator
from thousandfold.envs.registry import compile_task
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

ROUNDS = ("--rounds=5", "--round-s=0.01")


def test_a_full_step_resets_the_worlds_that_ended() -> None:
    simulator = env_throughput.make_simulator(compile_task("point_u_maze"), worlds=300, threads=1)
    spread_out = simulator.episode_step.copy()
    assert len(np.unique(spread_out)) > 80
    env_throughput.full_step(simulator, np.zeros((300, 2), np.float32))
    last = spread_out == 99
    assert last.any()
    assert not simulator.episode_step[last].any()
    assert np.array_equal(simulator.episode_step[~last], spread_out[~last] + 1)


@pytest.mark.parametrize("name", ["ant", "humanoid"])
def test_as_shipped_has_the_physics_of_gymnasiums_model(name: str) -> None:
    own, variant = compile_task(name).model, as_shipped(name).model
    shipped = load_gymnasium_model(name).compile()
    for option in ("integrator", "solver", "iterations", "timestep"):
        assert getattr(variant.opt, option) == getattr(shipped.opt, option), option
    for field in ("geom_contype", "geom_conaffinity"):
        assert np.array_equal(getattr(variant, field), getattr(shipped, field)), field
    assert own.opt.integrator != shipped.opt.integrator
    assert not np.array_equal(own.geom_contype, shipped.geom_contype)


def test_with_integrator_changes_the_integrator_and_the_timestep_alone() -> None:
    own, variant = compile_task("ant"), with_integrator("ant", RK4, finer=4)
    assert variant.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert variant.model.opt.timestep == pytest.approx(own.model.opt.timestep / 4)
    assert variant.frame_skip == 4 * own.frame_skip
    assert np.array_equal(variant.model.geom_contype, own.model.geom_contype)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gymnasiums_side_steps_as_many_worlds_as_it_says(processes: bool) -> None:
    side = env_throughput.gymnasium_side("Ant-v5", 2, processes=processes)
    side.advance(3)
    side.close()
    assert side.worlds == 2


@pytest.mark.slow
@pytest.mark.parametrize(("worlds", "batch"), [(4, 4), (4, 2)])
def test_envpools_side_steps_as_many_worlds_as_it_says(worlds: int, batch: int) -> None:
    pytest.importorskip("envpool", reason="EnvPool needs `make benchmark-setup`")
    side = env_throughput.envpool_side("Ant-v5", worlds, batch, threads=2)
    side.advance(5)
    side.close()
    assert side.worlds == batch


def test_growth_is_measured_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "throughput.json"
    output.write_text('{"humanoid": "kept"}')
    arguments = ["--only=growth", "--growth=2", "--growth=4", *ROUNDS, f"--output={output}"]
    env_throughput.main(arguments)
    assert "× fewest worlds" in capsys.readouterr().out
    cells = json.loads(output.read_text())
    assert cells["humanoid"] == "kept"
    growth = cells["growth"]
    assert growth["worlds"] == [2, 4] and len(growth["rounds_steps_per_second"]["4"]) == 5
    assert growth["over_fewest_worlds"]["2"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    env_throughput.main(arguments)
    assert json.loads(output.read_text()) == cells


@pytest.mark.slow
def test_the_ant_is_measured_beside_envpool_and_gymnasium(tmp_path: Path) -> None:
    pytest.importorskip("envpool", reason="EnvPool needs `make benchmark-setup`")
    output = tmp_path / "throughput.json"
    arguments = ["--only=ant", "--worlds=16", *ROUNDS, f"--output={output}"]
    env_throughput.main(arguments)
    cell = json.loads(output.read_text())["ant"]
    others = {"EnvPool", "Gymnasium sync", "Gymnasium async"}
    assert set(cell["settings"]) == others
    for name, chosen in cell["settings"].items():
        tried = cell["tried_steps_per_second"][name]
        assert tried[chosen] == max(tried.values())
    assert all(set(times) == others for times in cell["times_as_fast"].values())
    assert len(cell["times_as_fast"]) == 4
    assert all(rate["min"] > 0 for rate in cell["steps_per_second"].values())
