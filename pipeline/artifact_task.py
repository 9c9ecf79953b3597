"""The task of an artifact: a user's travels with it, as a copy that later stages go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thousandfold.envs.checks.goal_judgement import judge_goals
from thousandfold.envs.checks.random_rollout import ended_at_once, roll_out, rollout_warnings
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.user_tasks.task_copy import PAGE_NAME, copy_task, describe_source, read_source
from thousandfold.envs.user_tasks.task_yaml import shown
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import Console

TASK_FOLDER = "task"
_JUDGED_GOALS, _CONFIGURATIONS = 8, 500  # goals of training and of evaluation each
_FIRST_STEPS, _EPISODES, _STEPS = 64, 16, 50  # of a random policy


def own_task(artifact: Artifact) -> str | None:
    """Return the page of the artifact's copy of a user's task; None where its task is a built-in one."""
    page = artifact.file(TASK_FOLDER) / PAGE_NAME
    return str(page) if page.is_file() else None


def load_task(artifact: Artifact) -> CompiledTask:
    """Return the artifact's task, with its changes: from its own copy, or the built-in one of its name.

    Raises:
        DamagedFileError: the copy is of another task.
        UserError: there is no such task, or the copy is damaged.
    """
    reference, changes = own_task(artifact) or artifact.manifest.task, artifact.manifest.task_changes
    task = compile_task(reference, changes)
    if task.name != artifact.manifest.task:
        raise DamagedFileError(f"{reference} is task {task.name!r}, not {artifact.manifest.task!r}.")
    return task


def keep_task(task: CompiledTask, artifact: Artifact, console: Console) -> None:
    """Copy a user's task into the artifact, unless it is there; a built-in one needs no copy."""
    if task.spec.file is None or own_task(artifact) is not None:
        return
    outside = copy_task(task, artifact.file(TASK_FOLDER))
    if outside:
        console.warn(
            f"the model names files by absolute paths ({_shown_all(outside)}), which no copy of it brings "
            "along: name them relative to the model, or leave them where they are."
        )


def require_episodes(task: CompiledTask, distribution: str) -> None:
    """Raise UserError where every episode of a user's task ends at its first step, or diverges in it.

    `distribution` is that of training; evaluation is looked at too.
    """
    if task.spec.file is None:
        return
    for name in dict.fromkeys((distribution, "evaluation")):
        rollout = roll_out(task, _FIRST_STEPS, 0, distribution=name, steps=1)
        if rollout.ended_at_once.all():
            raise UserError(f"{ended_at_once(rollout, task)} None of {name} has a second step to learn from.")
        if rollout.unstable.all():
            raise UserError(
                f"the physics diverged in the first step of all {_FIRST_STEPS} episodes of {name}: lower the "
                "timestep or the gains, or raise damping and armature; `pipeline tasks check` looks closer."
            )


def warn_of_what_looks_wrong(task: CompiledTask, distribution: str, console: Console) -> None:
    """Say what looks wrong in a user's task, as `pipeline tasks check` does, but after seconds at most."""
    if task.spec.file is None:
        return
    rollout = roll_out(task, _EPISODES, 0, distribution=distribution, steps=_STEPS)
    goals = judge_goals(task, 0, goals=_JUDGED_GOALS, configurations=_CONFIGURATIONS)
    warnings = [*rollout_warnings(rollout, task), *judge_task(task, 0), *goals.warnings]
    if warnings:
        warnings[-1] += f" `pipeline tasks check {shown(Path(task.spec.file))}` looks closer."
    for warning in warnings:
        console.warn(warning)


def task_record(artifact: Artifact) -> dict[str, Any]:
    """Return ``task_file`` and ``task_sha256`` of a user's task, for metadata; nothing of a built-in one."""
    if own_task(artifact) is None:
        return {}
    return describe_source(artifact.file(TASK_FOLDER))


def warn_of_changed_task(artifact: Artifact, console: Console) -> None:
    """Say so where the files of a user's task are no longer what the artifact was made with."""
    page = own_task(artifact)
    if page is None:
        return
    changed = read_source(artifact.file(TASK_FOLDER)).changed_files()
    if changed:
        console.warn(
            f"{_shown_all(changed)} changed since {artifact.name} was made, which goes on with its own copy "
            f"({page}): train another teacher to use the change."
        )


def _shown_all(paths: list[str]) -> str:
    """Return paths as people write them, the first three."""
    names = [shown(Path(path)) for path in paths[:3]]
    return ", ".join(names) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
