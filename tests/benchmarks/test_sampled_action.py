"""The mean action beside sampled ones, at a tiny size: what a cell records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sampled_action
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.train_teacher.train_teacher import run as train


@pytest.mark.slow
def test_both_sides_run_the_same_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train(TINY_TEACHER, make_context(tmp_path / "workspace"))
    found, actions = [], []

    def noted(task: Any, policy: Any, **options: Any) -> Any:
        found.append(run_episodes(task, policy, **options))
        actions.append(policy(np.zeros((1, 4), np.float32), np.ones((1, 2), np.float32)))
        return found[-1]

    monkeypatch.setattr(sampled_action, "run_episodes", noted)
    path = tmp_path / "found.json"
    sampled_action.main([f"--teacher={teacher.path}", "--episodes=32", "--seed=3", f"--output={path}"])
    (cell,) = json.loads(path.read_text())["cells"].values()
    mean, sampled = found
    assert np.array_equal(mean.start, sampled.start) and np.array_equal(mean.goal, sampled.goal)
    assert not np.array_equal(*actions)
    assert cell["mean_time_at_goal"] == mean.time_at_goal.mean()
    assert cell["sampled_success"] == sampled.success.mean()
    assert (cell["task"], cell["teacher_seed"], cell["episodes"]) == ("point_u_maze", 0, 32)
    assert f"{cell['sampled_success']:.3f}" in capsys.readouterr().out
