"""What the comparison of the simulators counts, what it calls beyond a bound, and what it measures again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch comes with the extra `train`")
pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")
pytest.importorskip("scipy", reason="scipy comes with Minari and MLflow, of the extra `train`")

from benchmarks import parity
from benchmarks.parity import makers, play, visited_states
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import BoxPositions, ListPositions
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import EpisodeDistribution, GoalTask, Reset, SuccessRegion, Term

BALL_ON_A_SLIDE = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <geom type="plane" size="5 5 1"/>
    <body name="ball"><joint name="z" type="slide" axis="0 0 1" range="-1 2" limited="true"/>
      <geom size="0.5"/></body>
  </worldbody>
  <actuator><motor joint="z" ctrllimited="true" ctrlrange="-1 1" gear="1e-9"/></actuator>
</mujoco>
"""


def ball_at(*heights: float) -> CompiledTask:
    """Return a task whose worlds start at one of the heights, and stay there."""
    episodes = EpisodeDistribution(
        Reset(joints=("z",), position=ListPositions([(height,) for height in heights])),
        BoxPositions((0,), (1,)),
    )
    return CompiledTask(
        GoalTask(
            name="ball",
            description="a ball on a slide",
            build_spec=lambda: mujoco.MjSpec.from_string(BALL_ON_A_SLIDE),
            observation=(Term("qpos"), Term("qvel")),
            achieved_goal=(Term("qpos"),),
            success=(SuccessRegion(0.1),),
            distributions={"training": episodes, "evaluation": episodes},
        )
    )


def test_states_are_told_apart_by_what_touches():
    """The ball touches below 0.5 m; the slide ends at 2 m, which a world at 2 m has just reached, or not."""
    states = visited_states(ball_at(0.4, 1.0, 2.0), 200, seed=0)
    height = states.qpos[:, 0]
    assert len(states) == 200 and states.action.shape == (200, 1) and np.abs(states.action).max() <= 1
    assert np.array_equal(states.touching, height < 0.5)
    assert np.array_equal(states.undecided, np.abs(height - 2.0) < 1e-6)
    assert states.touching.any() and states.undecided.any()
    assert np.array_equal(states.qpos, states.qpos.astype(np.float32))


def test_outcomes_are_of_the_worlds_from_their_starts():
    """A ball that stays has moved nowhere and is as far from its goal as it was."""
    simulator = makers("cpu")["cpu"](ball_at(1.0), 8, seed=0)
    simulator.set_goal(np.array([1.0] * 4 + [0.5] * 4, np.float32)[:, None])
    found = play(simulator, 5, seed=0)
    assert found.displacement == pytest.approx(np.zeros(8), abs=1e-6)
    assert found.closest_distance == pytest.approx(np.array([0.0] * 4 + [0.5] * 4), abs=1e-6)
    assert found.at_goal.tolist() == [5] * 4 + [0] * 4 and not found.unstable.any()


def test_steps_and_rollouts_of_like_simulators_are_alike():
    task = compile_task("point_u_maze")
    steps, rollout = parity.compare_steps(task, 64, "cpu"), parity.compare_rollouts(task, 8, 3, "cpu")
    assert steps["free"]["states"] + steps["touching"]["states"] + steps["undecided"] == 64
    assert steps["free"]["state"]["max"] < 1e-6
    assert rollout["p"] == {"displacement": 1.0, "closest_distance": 1.0, "at_goal": 1.0}
    assert rollout["cpu"]["displacement"] == pytest.approx(rollout["warp"]["displacement"], rel=1e-5)


def test_rounding_is_no_difference_and_a_shift_is():
    same, rng = np.full(512, 0.03882), np.random.default_rng(0)
    assert parity._p_alike(same, same + 1e-6) == 1.0
    spread = rng.normal(size=512)
    assert parity._p_alike(spread, rng.normal(size=512)) > 0.01
    assert parity._p_alike(spread, rng.normal(size=512) + 0.3) < 1e-3


def test_random_worlds_meet_some_of_the_goals_that_they_are_given():
    task = compile_task("reacher")
    goals = parity.reachable_goals(task, 32, 60, seed=0)
    assert goals.shape == (32, 3) and len(np.unique(goals, axis=0)) == 32
    simulator = makers("cpu")["cpu"](task, 32, seed=0)
    simulator.set_goal(goals)
    met = play(simulator, 60, seed=0).at_goal > 0
    assert 0 < met.sum() < 32


def test_a_simulator_that_drifts_is_found_out(monkeypatch: pytest.MonkeyPatch):
    """One whose actions come out a tenth too strong."""

    class Stronger(parity.WarpSimulator):
        def step(self, action: Any) -> Any:
            return super().step(1.1 * np.asarray(action))

    monkeypatch.setattr(parity, "WarpSimulator", Stronger)
    steps = parity.compare_steps(compile_task("point_u_maze"), 64, "cpu")
    assert steps["free"]["state"]["beyond"] > 0.5 * steps["free"]["states"]
    assert steps["free"]["state"]["worst"].startswith("qvel")


def figures(**changes: Any) -> dict[str, Any]:
    """Return a task's figures, all within their bounds but for what is changed."""
    spread = {"median": 1e-7, "p99": 1e-6, "max": 2e-6, "beyond": 0, "worst": "qvel[3]"}
    side = {"displacement": 1.5, "success": 0.25, "diverged": 0, "overflowed": 0}
    found: dict[str, Any] = {
        "step": {
            "undecided": 3,
            "free": {"states": 40, "state": dict(spread), "observation": dict(spread)},
            "touching": {"states": 20, "state": dict(spread), "observation": dict(spread)},
        },
        "rollout": {
            "cpu": dict(side),
            "warp": dict(side),
            "p": {"displacement": 0.9, "closest_distance": 0.8, "at_goal": 0.7},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = found
        for parent in parents:
            place = place[parent]
        place[last] = value
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step__free__state__beyond": 2}, "2 of 40 free steps beyond, worst qvel[3]"),
        ({"step__free__observation__beyond": 1}, "free observations, worst qvel[3]"),
        ({"step__touching__state__median": 1.1e-3}, "steps in contact, worst qvel[3]"),
        ({"rollout__p__closest_distance": 0.01}, "closest distance differs, p 1.0e-02"),
        ({"rollout__warp__overflowed": 4}, "4 worlds overflowed on warp"),
        ({"rollout__cpu__diverged": 1}, "1 worlds diverged on cpu"),
    ],
)
def test_what_is_beyond_its_bound_is_said(change: dict[str, Any], said: str):
    assert parity.shortfalls(figures()) == []
    assert parity.shortfalls(figures(**change)) == [said]


def test_a_task_without_contacts_has_no_bound_on_them():
    assert parity.shortfalls(figures(step__touching={"states": 0}, step__free={"states": 0})) == []


def test_tasks_are_measured_once_for_given_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    measured: list[str] = []

    def measure(task: CompiledTask, **sizes: Any) -> dict[str, Any]:
        measured.append(f"{task.name} {sizes['worlds']}")
        return figures() | sizes | {"shortfalls": []}

    monkeypatch.setattr(parity, "measure", measure)
    output = tmp_path / "parity.json"

    def run(*arguments: str) -> str:
        parity.main([*arguments, "--output", str(output)])
        return capsys.readouterr().out

    both = ("--tasks", "point_u_maze", "--tasks", "point_big_maze")
    said = run(*both)
    assert "point_u_maze: within all bounds" in said and "1.500" in said and "0.250" in said
    run("--tasks", "point_u_maze")
    run(*both, "--worlds", "64")
    with pytest.raises(SystemExit) as refused:
        run("--tasks", "point_v_maze")
    assert refused.value.code == 2 and "did you mean 'point_u_maze'" in capsys.readouterr().err
    assert measured == [
        "point_u_maze 512", "point_big_maze 512", "point_u_maze 64", "point_big_maze 64",
    ]  # fmt: skip
    written = json.loads(output.read_text())
    assert set(written) == {"point_u_maze", "point_big_maze"} and math.isclose(
        written["point_u_maze"]["rollout"]["cpu"]["displacement"], 1.5
    )
