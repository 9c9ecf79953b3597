"""The mean action beside sampled ones, at a tiny size: what a cell records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sampled_action
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import load_actor, torch_policy
from thousandfold.stages.train_teacher.train_teacher import run as train


def test_both_sides_run_the_same_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train(TINY_TEACHER, make_context(tmp_path / "workspace"))
    path = tmp_path / "found.json"
    arguments = [f"--teacher={teacher.path}", "--episodes=32", "--seed=3", f"--output={path}"]
    sampled_action.main(arguments)
    (cell,) = json.loads(path.read_text())["cells"].values()
    assert f"{cell['sampled_success']:.3f}" in capsys.readouterr().out
    trained = load_actor(teacher)
    own = run_episodes(trained.task, torch_policy(trained.actor), episodes=32, seed=3)
    assert cell["mean_time_at_goal"] == pytest.approx(own.time_at_goal.mean())
    other = run_episodes(trained.task, torch_policy(trained.actor), episodes=32, seed=4)
    assert own.time_at_goal.mean() != other.time_at_goal.mean()
    monkeypatch.setattr(sampled_action, "sample_action", lambda gaussian, _: (gaussian.mean.tanh(),))
    sampled_action.main([*arguments, "--again"])  # the sampled side, where it takes the mean
    (same,) = json.loads(path.read_text())["cells"].values()
    assert same["sampled_time_at_goal"] == pytest.approx(own.time_at_goal.mean())
    monkeypatch.undo()
    assert (cell["task"], cell["teacher_seed"], cell["episodes"]) == ("point_u_maze", 0, 32)
    sampled_action.main([*arguments, "--again"])
    (again,) = json.loads(path.read_text())["cells"].values()
    assert again["sampled_time_at_goal"] == cell["sampled_time_at_goal"]
