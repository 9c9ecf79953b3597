"""Import a dataset that others have made: their episodes, with the teacher's label at every state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import UserError
from thousandfold.ground.files import file_sha256
from thousandfold.pipeline.artifact_task import keep_task, own_task, task_record
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import (
    StageContext,
    resolve_device,
    seed_sequence,
    set_up_torch,
    torch_seed,
)
from thousandfold.replay.dataset_writer import write_shard
from thousandfold.replay.goal_dataset import GoalEpisode
from thousandfold.stages.dataset.files import MINARI_FOLDER
from thousandfold.stages.dataset.foreign_episodes import (
    BadEpisode,
    ForeignDataset,
    ForeignEpisode,
    GoalChoice,
    read_foreign,
)
from thousandfold.stages.dataset.labels import (
    LabelSettings,
    TeacherLabels,
    add_alternatives,
    require_strength,
)
from thousandfold.stages.dataset.results import complete_dataset
from thousandfold.stages.networks import TrainedActor, load_actor, load_critic
from thousandfold.stages.train_teacher.memory_estimate import free_bytes

DISTRIBUTION = "imported"

_SHARD_EPISODES = 256
_GOAL_STREAM, _COMMAND_STREAM, _SAMPLE_STREAM = 31, 32, 33


class ImportDatasetSettings(LabelSettings):
    """Settings of `pipeline dataset import`."""

    goal_columns: tuple[int, ...] = pydantic.Field(
        default=(),
        max_length=1000,
        description="indices of the observation's numbers that are the achieved goal, if the observation "
        "is no dictionary",
    )

    achieved_goal: tuple[str, ...] = pydantic.Field(
        default=(),
        description="keys of the achieved goal to use, and of the desired one, if they are dictionaries",
    )
    skip_bad_episodes: bool = pydantic.Field(
        default=False, description="leave out episodes that are damaged, cut short or contain NaN"
    )

    @pydantic.field_validator("goal_columns", "achieved_goal", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take `0,1` for two, and a number for one."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int) else value


@dataclasses.dataclass
class ClipTally:
    """How many numbers of the actions there were, and how many of them lay outside [−1, 1]."""

    numbers: int = 0
    clipped: int = 0

    @property
    def share(self) -> float:
        """Which share was clipped."""
        return self.clipped / max(self.numbers, 1)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """Return the actions within [−1, 1], and count."""
        self.numbers += action.size
        self.clipped += int((np.abs(action) > 1 + 1e-6).sum())  # rounding is no other scale
        return action.clip(-1.0, 1.0)


def run(settings: ImportDatasetSettings, context: StageContext, teacher: Artifact, source: str) -> Artifact:
    """Label a dataset of others and return it as an artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        teacher: who labels it.
        source: an ``.npz`` file or one of HDF5, or a Minari dataset by its folder or id.

    Raises:
        UserError: a student sees what no source holds; the source cannot be read, has no episode, or is of
            other sizes than the teacher's task; an episode is bad and none may be left out; or the critic's
            best of several actions, which the settings ask for, is weaker than the mean.
    """
    trained = load_actor(teacher)
    set_up_torch(settings.threads)
    task, tally = trained.task, ClipTally()
    if task.student_view is not task:
        raise UserError(
            f"A student of task {task.name} has sensors of its own (student_observation); episodes from "
            "elsewhere lack their readings: make a dataset with `pipeline generate-dataset`."
        )
    goal = GoalChoice(settings.goal_columns, settings.achieved_goal)
    foreign = read_foreign(source, goal, episode_steps=task.spec.episode_steps, limit=free_bytes("cpu"))
    bad = _find_bad(foreign, task, settings, source)  # what does not fit is refused before anything is made
    for note in foreign.notes:
        context.console.say(f"{source}: {note}")
    for warning in foreign.warnings:
        context.console.warn(f"{source}: {warning}")
    device = resolve_device(settings.device, context.console)
    labels, trial = _teacher_labels(settings, context, teacher, trained, device)
    parents = {"teacher": teacher}
    with context.stage(
        "dataset", "dataset import", task=task.name, settings=settings, parents=parents
    ) as work:
        keep_task(task, work.artifact, context.console)
        work.note_device(device)
        metadata = _metadata(settings, task, teacher, work.artifact, source)
        metadata["imported"]["skipped_episodes"] = bad
        coming = _commanded(foreign, bad, task, settings, tally)
        shards = _write_shards(coming, labels, settings, work.artifact, task, metadata)
        context.console.say(f"Imported {source}, labelled by {teacher.name}, in {shards} shards.")
        if bad:
            context.console.warn(f"{len(bad)} of its episodes were left out: {_some(bad)}.")
        if tally.clipped:
            _warn_of_clipping(tally, task, context)
        more = trial | {"clipped_actions": tally.share, "skipped_episodes": len(bad)}
        dataset = complete_dataset(work, context, task, metadata, more, teacher)
    context.console.say(
        f"`pipeline distill` now takes {dataset.name}, the newest dataset of {teacher.name}; --dataset names "
        "another."
    )
    return dataset


def _warn_of_clipping(tally: ClipTally, task: CompiledTask, context: StageContext) -> None:
    context.console.warn(
        f"{tally.share:.2%} of the numbers in its actions lay outside [-1, 1] and were clipped: see "
        f"that its actions are scaled as those of {task.name}."
    )


def _teacher_labels(
    settings: ImportDatasetSettings,
    context: StageContext,
    teacher: Artifact,
    trained: TrainedActor,
    device: str,
) -> tuple[TeacherLabels, dict[str, Any]]:
    """Return what labels, and what came of its trial where the settings ask for one."""
    critic, trial = None, {}
    if settings.teacher_samples > 1:
        critic = load_critic(teacher)
        trial["label_trial"] = require_strength(trained, critic, settings, device, context.console)
    return TeacherLabels(trained, device, critic, settings.teacher_samples, settings.sample_scale), trial


def _write_shards(
    episodes: Iterator[GoalEpisode],
    labels: TeacherLabels,
    settings: ImportDatasetSettings,
    artifact: Artifact,
    task: CompiledTask,
    metadata: dict[str, Any],
) -> int:
    """Label the episodes as they come and write them; return the number of shards."""
    root, facts, number = artifact.file(MINARI_FOLDER), metadata | {"distribution": DISTRIBUTION}, 0
    while shard := list(islice(episodes, _SHARD_EPISODES)):
        labelled = _labelled(shard, labels, settings, number)
        write_shard(root, task, number, labelled, facts, own_task(artifact))
        number += 1
    return number


def _find_bad(
    foreign: ForeignDataset, task: CompiledTask, settings: ImportDatasetSettings, source: str
) -> dict[str, str]:
    """Return which episodes cannot be taken, and why; those without an action among them if any has one.

    Raises:
        UserError: there is one, and none may be left out; or no other is left.
    """
    bad: dict[str, str] = {}
    empty: dict[str, str] = {}
    good = 0
    for episode in foreign.episodes():
        problem = episode.problem if isinstance(episode, BadEpisode) else _problem(episode, task)
        if problem is not None:
            bad[episode.name] = problem
        elif isinstance(episode, ForeignEpisode) and not len(episode.action):
            empty[episode.name] = "it has no action whose outcome is known"
        else:
            good += 1
    count = len(bad) + len(empty) + good
    if not bad and not good:
        why = f": {_some(empty)}" if empty else ""
        raise UserError(f"{source} has no episode with an action: there is nothing to import{why}.")
    if not good:
        raise UserError(f"{source}: none of its {count:,} episodes can be taken: {_some(bad | empty)}.")
    if bad and not settings.skip_bad_episodes:
        raise UserError(
            f"{source}: {len(bad):,} of its {count:,} episodes cannot be taken: {_some(bad)}. Mend them, or "
            "leave them out with --skip-bad-episodes."
        )
    return bad | empty


def _some(problems: Mapping[str, str], most: int = 8) -> str:
    """Return the first problems, and how many more there are."""
    shown = [f"{name}: {problem}" for name, problem in islice(problems.items(), most)]
    return "; ".join(shown) + (f"; and {len(problems) - most:,} more" if len(problems) > most else "")


def _commanded(
    foreign: ForeignDataset,
    bad: Mapping[str, str],
    task: CompiledTask,
    settings: ImportDatasetSettings,
    tally: ClipTally,
) -> Iterator[GoalEpisode]:
    """Yield the episodes without labels, with actions within [−1, 1].

    Where no goal is known, it is what the episode achieves at one of its later states, each as likely.
    """
    rng = np.random.default_rng(seed_sequence(settings.seed, _COMMAND_STREAM))
    for episode in foreign.episodes():
        if episode.name in bad or isinstance(episode, BadEpisode):
            continue
        goal = episode.desired_goal
        if goal is None:
            goal = episode.achieved_goal[rng.integers(1, len(episode.action) + 1)]
        elif (goal == goal[0]).all():
            goal = goal[0]
        unlabelled = _unlabelled(episode, goal, task)
        yield dataclasses.replace(unlabelled, action=tally.clip(unlabelled.action))


def _problem(episode: ForeignEpisode, task: CompiledTask) -> str | None:
    """Return why an episode cannot be taken: of other sizes than the task's, not whole, or not finite."""
    steps = len(episode.action)
    found = {
        "observations": (episode.observation, steps + 1, task.observation_dim),
        "achieved goals": (episode.achieved_goal, steps + 1, task.goal_dim),
        "actions": (episode.action, steps, task.action_dim),
    }
    if episode.desired_goal is not None:
        found["desired goals"] = (episode.desired_goal, steps + 1, task.goal_dim)
    for name, (column, rows, size) in found.items():
        if column.shape[1] != size:
            return (
                f"its {name} have {column.shape[1]} numbers, those of task {task.name} {size} "
                "(choose a teacher of its task)"
            )
        if len(column) != rows:
            return f"it has {len(column):,} {name} for {steps:,} actions, not {rows:,}"
        if not np.isfinite(column).all():
            return f"its {name} hold NaN or infinity"
    return None


def _unlabelled(episode: ForeignEpisode, goal: np.ndarray, task: CompiledTask) -> GoalEpisode:
    """Return an episode with one goal, (goal_dim,), or with one a state, (T + 1, goal_dim)."""
    achieved = episode.achieved_goal
    count, actions = len(achieved), task.action_dim
    none = np.zeros((count, 0, actions), np.float32)
    return GoalEpisode(
        observation=episode.observation,
        achieved_goal=achieved,
        desired_goal=goal,
        action=episode.action,
        teacher_mean=np.zeros((count, actions), np.float32),
        teacher_log_std=np.zeros((count, actions), np.float32),
        alternative_goal=np.zeros((count, 0, task.goal_dim), np.float32),
        alternative_mean=none,
        alternative_log_std=none,
        success=task.is_success(achieved, np.broadcast_to(goal, achieved.shape)),
        terminated=episode.terminated,
        truncated=not episode.terminated,
        distribution=DISTRIBUTION,
        action_noise=float("nan"),
        hold_steps=task.spec.hold_steps,
    )


def _labelled(
    episodes: list[GoalEpisode], labels: TeacherLabels, settings: ImportDatasetSettings, number: int
) -> list[GoalEpisode]:
    """Return the episodes of a shard with the teacher's labels for the commanded and for other goals."""
    labels.reseed(torch_seed(settings.seed, _SAMPLE_STREAM, number))
    lengths = [len(episode.observation) for episode in episodes]
    goals = [np.broadcast_to(episode.desired_goal, episode.achieved_goal.shape) for episode in episodes]
    observations = np.concatenate([episode.observation for episode in episodes])
    _, mean, log_std = labels(observations, np.concatenate(goals))
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
        "control_dt_s": task.spec.control_dt_s,
        "teacher": {"name": teacher.name, "hash": teacher.manifest.hash},
        "imported": {
            "name": path.name if path.exists() else source,
            "sha256": file_sha256(path) if path.is_file() else None,
        },
        **settings.label_facts(),
        "versions": artifact.manifest.versions,
    }
