"""Where goals lie in the world, for pictures."""

from __future__ import annotations

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask


def goal_positions(task: CompiledTask, goals: np.ndarray) -> np.ndarray | None:
    """Return the positions that goals stand for, in metres; None where a goal is no position.

    Goals over several points, such as two fingertips, stand for the mean of these.

    Args:
        task: the compiled task; `ScenePicture.goal_position` tells which numbers of its goal are x, y and z.
        goals: (..., goal_dim), commanded or achieved.

    Returns:
        (..., 1 to 3): x, or x and y, or all three.
    """
    columns, region = task.spec.scene.goal_position or (), task.spec.success[0]
    if not 1 <= len(columns) <= 3 or max(columns) >= task.goal_dim:
        return None
    goals = np.asarray(goals, float)
    if region.points > 1:
        return region.mean_point(goals)[..., : len(columns)]
    return goals[..., list(columns)]
