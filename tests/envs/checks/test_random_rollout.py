"""What a random policy meets."""

from __future__ import annotations

import dataclasses

from thousandfold.envs.checks.random_rollout import roll_out
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task


def test_a_goal_that_must_be_held_is_met_less_often() -> None:
    task = get_task("reacher")
    met = {
        steps: int(
            roll_out(CompiledTask(dataclasses.replace(task, hold_steps=steps)), 64, seed=0).reached.sum()
        )
        for steps in (1, 5, task.episode_steps)
    }
    assert met[1] > met[5] > met[task.episode_steps] == 0
