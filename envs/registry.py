"""Tasks by name, and users' tasks by file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.task import CHANGES, GoalTask, TaskError
from thousandfold.envs.task_names import TASK_NAMES
from thousandfold.envs.tasks import ant, ant_objects, arm, humanoid, planar, point
from thousandfold.envs.user_tasks.task_copy import is_copy
from thousandfold.envs.user_tasks.user_task import (
    compile_user_task,
    file_stamps,
    is_task_file,
    load_user_task,
)
from thousandfold.ground.errors import nearest_name

_BUILT_IN = (point, ant, ant_objects, humanoid, arm, planar)


@cache
def _tasks() -> dict[str, GoalTask]:
    return {task.name: task for module in _BUILT_IN for task in module.tasks()}


def task_names() -> list[str]:
    """Return the names of all built-in tasks."""
    return list(TASK_NAMES)


def get_task(name: str) -> GoalTask:
    """Return the built-in task `name`, or the one that the file `name` describes.

    Raises:
        TaskError: there is no such task, with the nearest name; a file that describes none.
    """
    if name in _tasks():
        return _tasks()[name]
    if is_task_file(name):
        return load_user_task(name, reserved_names(name))
    if os.path.isfile(f"{name}.yaml"):
        raise TaskError(f"Unknown task {name!r}: did you mean the file {name}.yaml?")
    nearest = nearest_name(name, task_names())
    hint = f"did you mean {nearest!r}?" if nearest else f"valid: {', '.join(task_names())}."
    raise TaskError(f"Unknown task {name!r}: {hint} `pipeline tasks` lists them.")


def compile_task(name: str, changes: Mapping[str, Any] | None = None) -> CompiledTask:
    """Return the task `name`, or of the file `name`, with its model compiled.

    Models are compiled once a process; that of a file again where it or a file of its model has changed.

    Args:
        name: of a built-in task, or the path of a user's.
        changes: arguments of `GoalTask.changed`; None or empty leaves the task as it is.

    Raises:
        TaskError: there is no such task, or the file or its model is wrong.
    """
    changes = changes or {}
    if unknown := changes.keys() - set(CHANGES):
        raise TaskError(
            f"Task {name!r} was changed in a way that this version does not know "
            f"({', '.join(sorted(unknown))}); it knows {' and '.join(CHANGES)}: update thousandfold."
        )
    if name not in _tasks() and is_task_file(name):
        page = os.path.abspath(os.path.expanduser(name))
        compiled = _compile_file(page, file_stamps(page))
    else:
        compiled = _compile_named(name)
    return compiled.changed(**changes)


@cache
def _compile_named(name: str) -> CompiledTask:
    return CompiledTask(get_task(name))


@lru_cache(maxsize=32)
def _compile_file(page: str, stamps: tuple[tuple[str, int, int], ...]) -> CompiledTask:
    """Compile a user's task; `stamps` make it another call once a file has changed."""
    return compile_user_task(page, reserved_names(page))


def reserved_names(page: str) -> list[str]:
    """Return the names that a user's task must not have."""
    # A copy was made when its name was free.
    return [] if is_copy(page) else task_names()
