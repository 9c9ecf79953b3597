"""Rates are steps over seconds, sides do what they say, and the script keeps what was measured."""

import json
from pathlib import Path

import mujoco
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import env_sides, env_throughput, turns
from benchmarks.task_variants import RK4, as_shipped, with_integrator
from benchmarks.turns import Side
from thousandfold.envs.registry import compile_task
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

ROUNDS = ("--rounds=5", "--round-s=0.01")


class Clock:
    """Stands in for the module `time`: only what works or sleeps takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(turns, "time", made)
    return made


def working(clock: Clock, seconds: float, worlds: int = 1) -> Side:
    return Side(lambda count: clock.sleep(count * seconds), worlds)


def test_a_rate_counts_every_world(clock: Clock) -> None:
    assert working(clock, 0.01, worlds=6).rate(3) == pytest.approx(600)


def test_a_round_takes_as_long_as_asked(clock: Clock) -> None:
    assert turns.calls_for(working(clock, 0.001), seconds=0.5) == 500
    assert turns.calls_for(working(clock, 0.05), seconds=0.01) == 1


def test_sides_take_turns(clock: Clock) -> None:
    order: list[str] = []

    def noting(name: str, seconds: float) -> Side:
        def advance(count: int) -> None:
            clock.sleep(count * seconds)
            order.append(f"{name} {count}")

        return Side(advance, worlds=2)

    rates = turns.take_turns({"a": noting("a", 0.1), "b": noting("b", 0.5)}, rounds=3, round_s=1.0)
    assert order[-6:] == ["a 10", "b 2"] * 3
    assert rates == {"a": [20.0] * 3, "b": [4.0] * 3}


def test_ratios_are_taken_round_by_round() -> None:
    rates = {"own": [10.0, 30.0, 20.0], "other": [5.0, 5.0, 20.0]}
    assert turns.ratios(rates, "own", "other") == {"median": 2.0, "min": 1.0, "max": 6.0}


def test_the_fastest_candidate_is_chosen_and_all_are_closed(clock: Clock) -> None:
    closed: list[str] = []

    def candidate(name: str, seconds: float) -> Side:
        return Side(lambda count: clock.sleep(count * seconds), 1, lambda: closed.append(name))

    makers = {"slow": lambda: candidate("slow", 0.02), "quick": lambda: candidate("quick", 0.001)}
    name, medians = turns.fastest(makers, rounds=3, round_s=0.02)
    assert name == "quick" and medians == {"slow": 50.0, "quick": 1000.0}
    assert closed == ["slow", "quick"]


def test_a_full_step_resets_the_worlds_that_ended() -> None:
    simulator = env_sides.make_simulator(compile_task("point_u_maze"), worlds=300, threads=1)
    spread_out = simulator.episode_step.copy()
    assert len(np.unique(spread_out)) > 80
    env_sides.full_step(simulator, np.zeros((300, 2), np.float32))
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
    side = env_sides.gymnasium_side("Ant-v5", 2, processes=processes)
    side.advance(3)
    side.close()
    assert side.worlds == 2


@pytest.mark.slow
@pytest.mark.parametrize(("worlds", "batch"), [(4, 4), (4, 2)])
def test_envpools_side_steps_as_many_worlds_as_it_says(worlds: int, batch: int) -> None:
    pytest.importorskip("envpool", reason="EnvPool needs `make benchmark-setup`")
    side = env_sides.envpool_side("Ant-v5", worlds, batch, threads=2)
    side.advance(5)
    side.close()
    assert side.worlds == batch


def test_growth_is_measured_once_and_kept(tmp_path: Path) -> None:
    output = tmp_path / "throughput.json"
    output.write_text('{"humanoid": "kept"}')
    arguments = ["--only=growth", "--growth=2", "--growth=4", *ROUNDS, f"--output={output}"]
    first = CliRunner().invoke(env_throughput.main, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "× fewest worlds" in first.output
    cells = json.loads(output.read_text())
    assert cells["humanoid"] == "kept"
    growth = cells["growth"]
    assert growth["worlds"] == [2, 4] and len(growth["rounds_steps_per_second"]["4"]) == 5
    assert growth["over_fewest_worlds"]["2"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    CliRunner().invoke(env_throughput.main, arguments, catch_exceptions=False)
    assert json.loads(output.read_text()) == cells
    CliRunner().invoke(env_throughput.main, [*arguments, "--again"], catch_exceptions=False)
    assert json.loads(output.read_text()) != cells


@pytest.mark.slow
def test_the_ant_is_measured_beside_envpool_and_gymnasium(tmp_path: Path) -> None:
    pytest.importorskip("envpool", reason="EnvPool needs `make benchmark-setup`")
    output = tmp_path / "throughput.json"
    arguments = ["--only=ant", "--worlds=16", *ROUNDS, f"--output={output}"]
    done = CliRunner().invoke(env_throughput.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    cell = json.loads(output.read_text())["ant"]
    others = {"EnvPool", "Gymnasium sync", "Gymnasium async"}
    assert set(cell["settings"]) == others
    for name, chosen in cell["settings"].items():
        tried = cell["tried_steps_per_second"][name]
        assert tried[chosen] == max(tried.values())
    assert all(set(times) == others for times in cell["times_as_fast"].values())
    assert len(cell["times_as_fast"]) == 4
    assert all(rate["min"] > 0 for rate in cell["steps_per_second"].values())


def test_fewer_than_five_rounds_are_refused() -> None:
    done = CliRunner().invoke(env_throughput.main, ["--rounds=4"])
    assert done.exit_code == 2 and "not in the range x>=5" in done.output
