"""The senses of a student: pages that compile with a history and without, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.student_senses import PAGES, SEES, TASKS, page_with, table
from thousandfold.envs.registry import compile_task


@pytest.mark.parametrize("task", TASKS)
def test_a_student_sees_less_and_less(task: str, tmp_path: Path) -> None:
    page = PAGES / f"{task}_senses.yaml"
    tasks = {sees: compile_task(str(page_with(sees, page, tmp_path / task / sees))) for sees in SEES}
    assert len({each.observation_dim for each in tasks.values()}) == 1, "the teacher sees what it saw"
    seen = {sees: each.student_view.observation_dim for sees, each in tasks.items()}
    assert seen["history"] == compile_task(str(page)).student_view.observation_dim
    assert seen["history"] > seen["readings"] > seen["reading"] > 0
    assert seen["history"] > seen["newest"] >= seen["reading"]


def test_the_table_has_a_row_a_cell() -> None:
    cell = {
        "teacher": {"success": 0.99},
        "student": {
            "success": 0.97,
            "retention": 0.98,
            "retention_interval": [0.97, 0.99],
            "time_at_goal_retention": 0.9,
        },
    }
    shown = table({"cable_arm, seed 20, newest": cell, "cable_arm, seed 20, history": cell})
    rows = [line for line in shown.splitlines() if "cable_arm" in line]
    assert [("history" in row, "0.980 [0.970, 0.990]" in row) for row in rows] == [
        (True, True),
        (False, True),
    ]
