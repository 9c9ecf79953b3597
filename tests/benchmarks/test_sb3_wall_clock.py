"""The clock of both sides stops at the first evaluation that meets the target; cells are not run twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sb3_wall_clock
from benchmarks.sb3_wall_clock import OWN, SB3, Limits, cell_key, clock
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

    def other(task: str, seed: int, limits: Limits) -> dict[str, Any]:
        ran.append(f"other {seed}")
        return cell(None if seed else 40.0)

    monkeypatch.setattr(sb3_wall_clock, "run_own", own)
    monkeypatch.setattr(sb3_wall_clock, "run_sb3", other)
    output = tmp_path / "clock.json"
    output.write_text(json.dumps({cell_key("point_u_maze", 0, OWN): cell(20.0)}))
    arguments = ["--task=point_u_maze", "--seed=0", "--seed=1", "--limit-s=60", f"--output={output}"]
    sb3_wall_clock.main(arguments)
    assert ran == ["other 0", "own 1", "other 1"]
    cells = json.loads(output.read_text())
    assert len(cells) == 4
    assert cells[cell_key("point_u_maze", 1, SB3)]["host"]["usable_cpus"] >= 1
    said = capsys.readouterr().out
    for text in ("0.500", "not in 60", "0.183", "0.342"):  # 20 / 40, 11 / 60 and their median
        assert text in said


@pytest.mark.slow
@pytest.mark.parametrize(("target", "limit_s"), [(0.001, 300.0), (1.0, 60.0)])
def test_the_product_is_stopped_at_the_target_or_when_time_is_up(
    target: float, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    easy = ["--preset=smoke", "--set=evaluate_every=1", "--set=evaluation_distribution=training"]
    monkeypatch.setitem(sb3_wall_clock.OWN_ARGUMENTS, "point_u_maze", easy)
    limits = Limits(limit_s=limit_s, target_success=target, episodes=64, threads=1)
    outcome = sb3_wall_clock.run_own("point_u_maze", 0, limits, tmp_path)
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
def test_the_other_side_learns_until_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 comes with the extra `dev`")
    tiny = {"width": 8, "layers": 1, "batch_size": 8, "evaluate_every_s": 2.0}
    monkeypatch.setitem(sb3_wall_clock.SB3_SETTINGS, "point_u_maze", tiny)
    outcome = sb3_wall_clock.run_sb3("point_u_maze", 3, Limits(6.0, 1.0, 8, 1))
    assert outcome["reached_s"] is None
    assert outcome["settings"]["seed"] == 3 and outcome["settings"]["width"] == 8
    last = outcome["history"][-1]
    assert last["elapsed_s"] >= 6.0 and last["updates"] > 0
    assert 0 <= outcome["final_success"] <= 1


def test_successes_are_counted_as_the_products_evaluation_counts_them() -> None:
    sb3_learner = pytest.importorskip(
        "benchmarks.sb3_learner", reason="Stable-Baselines3 comes with the extra `dev`"
    )
    from thousandfold.envs.registry import compile_task
    from thousandfold.stages.episodes import run_episodes

    def towards(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.clip(goal - position, -1, 1).astype(np.float32)

    task, episodes, seed = compile_task("point_u_maze"), 64, 5
    env = GoalVectorEnv(episodes, task=task)
    counted = sb3_learner.count_successes(
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
