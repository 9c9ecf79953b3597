"""Import a dataset that others have made: their episodes, with the teacher's label at every state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from envs.compiled_task import CompiledTask
from pipeline.core.artifacts import Artifact
from pipeline.core.atomic import file_sha256
from pipeline.core.errors import UserError
from pipeline.core.runtime import StageContext, resolve_device, seed_sequence, set_up_torch, torch_seed
from replay.dataset_writer import write_shard
from replay.goal_dataset import GoalEpisode
from stages.alternative_goals import add_alternatives
from stages.artifact_task import keep_task, own_task, task_record
from stages.dataset_files import MINARI_FOLDER
from stages.dataset_results import complete_dataset
from stages.foreign_episodes import ForeignEpisode, read_foreign
from stages.network_file import load_actor
from stages.teacher_critic import load_critic
from stages.teacher_labels import LabelSettings, TeacherLabels

DISTRIBUTION = "imported"

_SHARD_EPISODES = 256
_GOAL_STREAM, _COMMAND_STREAM, _SAMPLE_STREAM = 31, 32, 33


class ImportDatasetSettings(LabelSettings):
    """Settings of `pipeline dataset import`."""

    goal_columns: tuple[int, ...] = pydantic.Field(
        default=(),
        description="numbers of an observation that are the achieved goal, where it is no dictionary",
    )

    @pydantic.field_validator("goal_columns", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take `0,1` for two columns, and a number for one."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int) else value


def run(settings: ImportDatasetSettings, context: StageContext, teacher: Artifact, source: str) -> Artifact:
    """Label a dataset of others and return it as an artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        teacher: who labels it.
        source: an ``.npz`` file, or a Minari dataset by its folder or id.

    Raises:
        UserError: the source cannot be read, has no episode, or is of other sizes than the teacher's task.
    """
    trained = load_actor(teacher)
    set_up_torch(settings.threads)
    task, device = trained.task, resolve_device(settings.device)
    critic = load_critic(teacher) if settings.teacher_samples > 1 else None
    labels = TeacherLabels(trained, device, critic, settings.teacher_samples)
    coming = _commanded(read_foreign(source, settings.goal_columns), task, settings, source)
    first = next(coming, None)  # what does not fit is refused before anything is made
    if first is None:
        raise UserError(f"{source} has no episode with an action: there is nothing to import.")
    parents = {"teacher": teacher}
    with context.stage(
        "dataset", "dataset import", task=task.name, settings=settings, parents=parents
    ) as work:
        keep_task(task, work.artifact, context.console)
        metadata = _metadata(settings, task, teacher, work.artifact, source)
        root, number = work.artifact.file(MINARI_FOLDER), 0
        shard = [first, *islice(coming, _SHARD_EPISODES - 1)]
        while shard:
            episodes = _labelled(shard, labels, settings, number)
            facts = metadata | {"distribution": DISTRIBUTION}
            write_shard(root, task, number, episodes, facts, own_task(work.artifact))
            shard, number = list(islice(coming, _SHARD_EPISODES)), number + 1
        context.console.say(f"Imported {source}, labelled by {teacher.name}, in {number} shards.")
        return complete_dataset(work, context, task, metadata)


def _commanded(
    episodes: Iterator[ForeignEpisode], task: CompiledTask, settings: ImportDatasetSettings, source: str
) -> Iterator[GoalEpisode]:
    """Yield the episodes without labels, each with one goal throughout.

    Where the goal changed under way, an episode ends before the change. Where none is known, it is what the
    episode achieves at one of its later states, each as likely.
    """
    rng = np.random.default_rng(seed_sequence(settings.seed, _COMMAND_STREAM))
    for episode in episodes:
        _require_fit(episode, task, source)
        desired, last = episode.desired_goal, len(episode.action)
        if desired is None:
            goal = episode.achieved_goal[rng.integers(1, last + 1)]
            desired = np.tile(goal, (last + 1, 1))
        changes = np.flatnonzero((desired[1:] != desired[:-1]).any(1)) + 1
        bounds = [0, *changes.tolist(), last + 1]
        for start, stop in pairwise(bounds):
            if stop - start > 1:
                yield _part(episode, desired[start], slice(start, stop), task, stop == last + 1)


def _require_fit(episode: ForeignEpisode, task: CompiledTask, source: str) -> None:
    """Raise UserError where an episode is not of the task's sizes, or is not whole."""
    found = {
        "observations": (episode.observation, len(episode.action) + 1, task.observation_dim),
        "achieved goals": (episode.achieved_goal, len(episode.action) + 1, task.goal_dim),
        "actions": (episode.action, len(episode.action), task.action_dim),
    }
    if episode.desired_goal is not None:
        found["desired goals"] = (episode.desired_goal, len(episode.action) + 1, task.goal_dim)
    for name, (column, rows, size) in found.items():
        if column.shape[1] != size:
            raise UserError(
                f"{source}: its {name} have {column.shape[1]} numbers, those of task {task.name} {size}: "
                "choose a teacher of its task."
            )
        if len(column) != rows or not np.isfinite(column).all():
            problem = f"are not finite, or an episode has {len(column)} of them, not {rows}"
            raise UserError(f"{source}: its {name} {problem}.")


def _part(
    episode: ForeignEpisode, goal: np.ndarray, rows: slice, task: CompiledTask, is_end: bool
) -> GoalEpisode:
    """Return the part of an episode in which one goal was commanded, without labels."""
    achieved = episode.achieved_goal[rows]
    count, actions = len(achieved), task.action_dim
    none = np.zeros((count, 0, actions), np.float32)
    return GoalEpisode(
        observation=episode.observation[rows],
        achieved_goal=achieved,
        desired_goal=goal,
        action=episode.action[rows.start : rows.stop - 1].clip(-1.0, 1.0),
        teacher_mean=np.zeros((count, actions), np.float32),
        teacher_log_std=np.zeros((count, actions), np.float32),
        alternative_goal=np.zeros((count, 0, task.goal_dim), np.float32),
        alternative_mean=none,
        alternative_log_std=none,
        success=task.is_success(achieved, goal[None]),
        terminated=episode.terminated and is_end,
        truncated=not (episode.terminated and is_end),
        distribution=DISTRIBUTION,
        action_noise=float("nan"),
    )


def _labelled(
    episodes: list[GoalEpisode], labels: TeacherLabels, settings: ImportDatasetSettings, number: int
) -> list[GoalEpisode]:
    """Return the episodes of a shard with the teacher's labels for the commanded and for other goals."""
    labels.reseed(torch_seed(settings.seed, _SAMPLE_STREAM, number))
    lengths = [len(episode.observation) for episode in episodes]
    goals = np.repeat([episode.desired_goal for episode in episodes], lengths, axis=0)
    _, mean, log_std = labels(np.concatenate([episode.observation for episode in episodes]), goals)
    stops = np.cumsum(lengths)[:-1]
    labelled = [
        dataclasses.replace(episode, teacher_mean=own_mean, teacher_log_std=own_log_std)
        for episode, own_mean, own_log_std in zip(
            episodes, np.split(mean, stops), np.split(log_std, stops), strict=True
        )
    ]
    return add_alternatives(
        labelled,
        labels,
        np.random.default_rng(seed_sequence(settings.seed, _GOAL_STREAM, number)),
        count=settings.alternative_goals,
        hindsight_fraction=settings.hindsight_fraction,
        discount=settings.hindsight_discount,
    )


def _metadata(
    settings: ImportDatasetSettings, task: CompiledTask, teacher: Artifact, artifact: Artifact, source: str
) -> dict[str, Any]:
    path = Path(source).expanduser()
    return {
        "task": task.name,
        **task_record(artifact),
        "control_dt_s": task.task.control_dt_s,
        "teacher": {"name": teacher.name, "hash": teacher.manifest.hash},
        "imported": {
            "name": path.name if path.exists() else source,
            "sha256": file_sha256(path) if path.is_file() else None,
        },
        **settings.label_facts(),
        "versions": artifact.manifest.versions,
    }
