"""The names of the built-in tasks, known without importing MuJoCo or Gymnasium."""

from __future__ import annotations

TASK_NAMES = (
    "point_u_maze", "point_big_maze", "point_hardest_maze",
    "ant", "ant_u_maze", "ant_u2_maze", "ant_u3_maze", "ant_u4_maze", "ant_u5_maze", "ant_big_maze",
    "ant_hardest_maze", "ant_u_maze_stitch", "ant_u2_maze_stitch", "ant_u3_maze_stitch", "ant_u4_maze_stitch",
    "ant_u5_maze_stitch", "ant_ball", "ant_push",
    "humanoid", "humanoid_u_maze", "humanoid_big_maze",
    "arm_reach", "arm_grasp", "arm_push_easy", "arm_push_hard", "arm_binpick_easy", "arm_binpick_hard",
    "reacher", "pusher", "half_cheetah",
)  # fmt: skip


def environment_id(name: str) -> str:
    """Return the Gymnasium id of a task: point_u_maze is ``thousandfold/PointUMaze-v0``."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    return f"thousandfold/{camel}-v0"
