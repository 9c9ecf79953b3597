"""The senses of a student: pages that compile with a history and without, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.student_senses import PAGES, TASKS, page_without_history, table
from thousandfold.envs.registry import compile_task


@pytest.mark.parametrize("task", TASKS)
def test_without_a_history_a_student_sees_the_newest_readings_alone(task: str, tmp_path: Path) -> None:
    page = PAGES / f"{task}_senses.yaml"
    with_history, newest = (
        compile_task(str(path)) for path in (page, page_without_history(page, tmp_path / task))
    )
    assert newest.observation_dim == with_history.observation_dim
    seen = [each.student_view.observation_dim for each in (with_history, newest)]
    assert seen[0] > seen[1] > 0


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
