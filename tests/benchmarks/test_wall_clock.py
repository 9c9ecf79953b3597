"""The clock of both sides stops at the first evaluation that meets the target; cells are not run twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 comes with the extra `dev`")

from benchmarks import stable_baselines_learner, wall_clock
from benchmarks.wall_clock import OWN, Limits, cell_key, clock, table
from thousandfold.envs.goal_env import GoalVectorEnv

LIMITS = Limits(limit_s=10.0, target_success=0.5, episodes=8, threads=1)


def cell(reached_s: float | None, **rest: Any) -> dict[str, Any]:
    return {"reached_s": reached_s, "limit_s": 60.0, "final_success": 0.9} | rest


def test_a_side_that_did_not_get_there_counts_with_the_limit() -> None:
    assert (clock(cell(12.0)), clock(cell(None))) == (12.0, 60.0)


def test_cells_are_run_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def own(task: str, seed: int, limits: Limits, workspace: Path) -> dict[str, Any]:
        ran.append(f"own {seed}")
        return cell(10.0 + seed)

    def other(learner: str, task: str, seed: int, limits: Limits) -> dict[str, Any]:
        ran.append(f"{learner} {seed}")
        return cell(None if seed else 40.0)

    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)  # of the process that runs the tests
    monkeypatch.setattr(wall_clock, "run_own", own)
    monkeypatch.setattr(wall_clock, "run_other", other)
    output = tmp_path / "clock.json"
    output.write_text(json.dumps({cell_key("point_u_maze", 0, OWN): cell(20.0)}))
    arguments = ["--task=point_u_maze", "--seeds", "0", "1", "--limit-s=60", f"--output={output}"]
    wall_clock.main([*arguments, "--sides", OWN, "SB3 SAC"])
    assert ran == ["SB3 SAC 0", "own 1", "SB3 SAC 1"]
    cells = json.loads(output.read_text())
    assert len(cells) == 4
    assert cells[cell_key("point_u_maze", 1, "SB3 SAC")]["host"]["usable_cpus"] >= 1
    said = capsys.readouterr().out
    # The median of 20 / 40 and 11 / 60.
    for text in ("16 (20, 11)", "50 (40, not in 60)", "0.34 of SB3 SAC's"):
        assert text in said


def test_ours_is_compared_with_the_fastest_other_side() -> None:
    clocks = {OWN: (10.0, 20.0), "SB3 SAC": (40.0, 80.0), "SBX CrossQ": (15.0, 25.0), "SBX TQC": (None, None)}
    cells = {
        cell_key("reacher", seed, side): cell(found)
        for side, pair in clocks.items()
        for seed, found in enumerate(pair)
    }
    assert "0.73 of SBX CrossQ's" in table(cells)  # of 10 / 15 and 20 / 25
    assert "-" in table({cell_key("reacher", 0, OWN): cell(3.0)}).splitlines()[-1].split("|")[-2]


def test_every_learner_of_another_library_can_be_made() -> None:
    pytest.importorskip("sbx", reason="SBX comes with the extra `benchmark`")
    for name in wall_clock.LEARNERS:
        settings = stable_baselines_learner.Settings(name, "point_u_maze", width=8, layers=1)
        assert stable_baselines_learner.make_learner(settings).num_timesteps == 0


@pytest.mark.slow
@pytest.mark.parametrize(("target", "limit_s"), [(0.001, 300.0), (1.0, 60.0)])
def test_the_product_is_stopped_at_the_target_or_when_time_is_up(
    target: float, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    easy = ["--preset=smoke", "--set=evaluate_every=1", "--set=evaluation_distribution=training"]
    monkeypatch.setattr(wall_clock, "OWN_ARGUMENTS", easy)
    limits = Limits(limit_s=limit_s, target_success=target, episodes=64, threads=1)
    outcome = wall_clock.run_own("point_u_maze", 0, limits, tmp_path)
    history = outcome["history"]
    assert outcome["settings"]["evaluation_episodes"] == 64
    assert [entry["env_steps"] for entry in history] == sorted(entry["env_steps"] for entry in history)
    if target == 1.0:
        assert outcome["reached_s"] is None and outcome["final_success"] is None
        assert history
    else:
        assert outcome["reached_s"] == history[-1]["elapsed_s"]
        assert history[-1]["success"] >= target
        assert 0 <= outcome["final_success"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("learner", wall_clock.LEARNERS)
def test_the_other_side_learns_until_time_is_up(learner: str) -> None:
    pytest.importorskip(wall_clock.LEARNERS[learner][0], reason="SBX comes with the extra `benchmark`")
    tiny = {"width": 8, "layers": 1, "batch_size": 8, "evaluate_every_s": 2.0}
    outcome = wall_clock.run_other(learner, "point_u_maze", 3, Limits(20.0, 1.0, 8, 1), **tiny)
    assert outcome["reached_s"] is None
    assert outcome["settings"]["seed"] == 3 and outcome["settings"]["width"] == 8
    last = outcome["history"][-1]
    assert last["elapsed_s"] >= 20.0 and last["updates"] > 0
    assert 0 <= outcome["final_success"] <= 1


def test_successes_are_counted_as_the_products_evaluation_counts_them() -> None:
    from thousandfold.envs.registry import compile_task
    from thousandfold.stages.episodes import run_episodes

    def towards(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.clip(goal - position, -1, 1).astype(np.float32)

    task, episodes, seed = compile_task("point_u_maze"), 64, 5
    env = GoalVectorEnv(episodes, task=task)
    counted = stable_baselines_learner.count_successes(
        env, lambda each: towards(each["achieved_goal"], each["desired_goal"]), seed
    )
    own = run_episodes(
        task,
        lambda observation, goal: towards(observation[:, :2], goal),
        episodes=episodes,
        seed=seed,
        distribution="training",
    )
    assert counted == own.success.sum()
    assert 0 < counted < episodes
