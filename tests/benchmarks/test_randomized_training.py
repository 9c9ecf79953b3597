"""Trainings on models that vary: every task has what is varied, and the table says medians."""

from __future__ import annotations

import pytest

from benchmarks.randomized_training import TASKS, table
from thousandfold.envs.registry import compile_task


@pytest.mark.parametrize("task", TASKS)
def test_every_task_varies_in_randomized_and_in_nominal_nothing(task: str) -> None:
    distributions = compile_task(TASKS[task]).spec.distributions
    assert distributions["randomized"].varies and not distributions["nominal"].varies


def test_the_table_has_shares_of_the_nominal_success() -> None:
    def cell(reached: float, randomized: float) -> dict:
        return {
            "reached_s": reached,
            "reached_steps": 1000 * reached,
            "success": {"nominal": 0.8, "randomized": randomized, "together": 0.2},
        }

    cells = {f"reacher, seed {seed}, randomized": cell(10.0 * seed, 0.2 * seed) for seed in (1, 2, 3)}
    row = next(line for line in table(cells).splitlines() if "reacher" in line)
    assert [part.strip() for part in row.strip("|").split("|")] == [
        "reacher", "randomized", "3", "20", "20,000", "0.800", "0.500", "0.250"
    ]  # fmt: skip
