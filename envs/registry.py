"""The built-in tasks, by name."""

from __future__ import annotations

import difflib
from functools import cache

from envs.compiled_task import CompiledTask
from envs.task import GoalTask, TaskError
from envs.tasks import point


@cache
def _tasks() -> dict[str, GoalTask]:
    return {task.name: task for task in point.tasks()}


def task_names() -> list[str]:
    """Return the names of all built-in tasks."""
    return list(_tasks())


def get_task(name: str) -> GoalTask:
    """Return the task `name`; raise TaskError with the nearest name when there is none."""
    if name in _tasks():
        return _tasks()[name]
    nearest = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid: {', '.join(task_names())}."
    raise TaskError(f"Unknown task {name!r}: {hint} `pipeline tasks` lists them.")


@cache
def compile_task(name: str) -> CompiledTask:
    """Return the task `name` with its model compiled. Models are compiled once a process."""
    return CompiledTask(get_task(name))


def environment_id(name: str) -> str:
    """Return the Gymnasium id of a task: point_u_maze is ``thousandfold/PointUMaze-v0``."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    return f"thousandfold/{camel}-v0"
