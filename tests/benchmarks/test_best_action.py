"""The best-action benchmark at a tiny size: what a cell records, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import best_action
from benchmarks.best_action import table, verdict
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.train_teacher.train_teacher import run as train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train(TINY_TEACHER, make_context(tmp_path_factory.mktemp("workspace")))


@pytest.mark.slow
def test_a_cell_is_recorded_for_every_number_and_scale(
    teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(best_action, "SCALES", (0.1, 1.0))
    path = tmp_path / "found.json"
    best_action.main([f"--teacher={teacher.path}", "--episodes=4", f"--output={path}"])
    cells = json.loads(path.read_text())["cells"]
    assert [(cell["samples"], cell["scale"]) for cell in cells.values()] == [
        (4, 0.1), (4, 1.0), (16, 0.1), (16, 1.0)
    ]  # fmt: skip
    assert {cell["episodes"] for cell in cells.values()} == {4}
    assert len({cell["mean_success"] for cell in cells.values()}) == 1  # the mean's episodes are the same
    assert len(table(cells).splitlines()) == 2 + 4


@pytest.mark.parametrize(
    ("success", "time_at_goal", "expected"),
    [
        ([0.9, 0.99], [1.1, 1.2], "weaker"),
        ([0.99, 1.0], [1.1, 1.2], "stronger"),
        ([0.9, 1.1], [0.9, 1.1], "neither"),
        (None, None, "neither"),
    ],
)
def test_the_verdict_is_that_of_the_intervals(success, time_at_goal, expected: str):
    results = {"success_ratio_interval": success, "time_at_goal_ratio_interval": time_at_goal}
    assert verdict(results) == expected
