"""Distil a teacher into a small student: imitate it, keep what acts best in closed loop, say what is lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from models.deployable_policy import NormalizedActor
from models.goal_actor import GoalActor
from models.residual_mlp import parameter_count
from pipeline.core.artifacts import Artifact
from pipeline.core.atomic import write_json_atomic
from pipeline.core.console import figure
from pipeline.core.errors import DamagedFileError, UserError
from pipeline.core.pictures import draw_learning_curve
from pipeline.core.runtime import (
    StageContext,
    StageWork,
    resolve_device,
    seed_sequence,
    set_up_torch,
    torch_seed,
)
from replay.goal_dataset import GoalDataset
from stages.artifact_task import keep_task, task_record
from stages.dagger import KeptRollout, run_rounds
from stages.dataset_files import SKIPPED, load_dataset
from stages.episode_cache import TeacherEpisodes
from stages.evaluate import EpisodeStream, draw_rollouts
from stages.imitation import split_rows
from stages.network_file import NETWORK_FILE, TrainedActor, load_actor, save_network, torch_policy
from stages.paired_evaluation import (
    FAILURES_FILE,
    FAILURES_PICTURE,
    PairedEpisodes,
    run_pairs,
    write_failures,
)
from stages.student_training import DistillSettings, StudentTraining
from stages.teacher_critic import TeacherCritic, load_critic
from stages.training_progress import HISTORY_FILE

_SPLIT_STREAM, _INITIALISATION_STREAM, _FINAL_STREAM = 11, 12, 14
_DRAWN_PATHS = 32


def run(settings: DistillSettings, context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    """Train a student on the teacher's dataset and return its artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        teacher: the teacher to imitate.
        dataset: its dataset.

    Raises:
        UserError: the dataset is another teacher's, or the teacher does not reproduce its recorded success.
    """
    trained = load_actor(teacher)
    data = _load_dataset(dataset, teacher, settings, context)
    device = resolve_device(settings.device)
    set_up_torch(settings.threads)
    task = teacher.manifest.task
    parents = {"teacher": teacher, "dataset": dataset}
    with context.stage("student", "distill", task=task, settings=settings, parents=parents) as work:
        keep_task(trained.task, work.artifact, context.console)
        _require_reproduction(trained, teacher, settings, context)
        student = _make_student(settings, trained, data, device, context)
        work.run.log_dataset(
            dataset.name, str(dataset.manifest.hash)[:16], str(dataset.path), len(data.action), "training"
        )
        training, record = _train(student, data, settings, trained, teacher, work, context)
        return _finish(training, record, teacher, work, context)


def rehearse(
    settings: DistillSettings, context: StageContext, teacher: Artifact, dataset: Artifact
) -> TrainedActor:
    """Do what is the same for every student of a teacher: check, and fill the context's episode cache.

    Returns the teacher and raises as `run` does.
    """
    trained = load_actor(teacher)
    _load_dataset(dataset, teacher, settings, context)
    set_up_torch(settings.threads)
    _require_reproduction(trained, teacher, settings, context)
    _teachers_closing_episodes(trained, teacher, settings, context).first(settings.final_episodes)
    return trained


def _load_dataset(
    dataset: Artifact, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> GoalDataset:
    if dataset.manifest.task != teacher.manifest.task:
        raise UserError(
            f"Dataset {dataset.name} is of task {dataset.manifest.task!r}, teacher {teacher.name} of "
            f"{teacher.manifest.task!r}: choose a dataset of that teacher."
        )
    made_by = dataset.manifest.parents.get("teacher")
    if made_by is None or made_by.hash != teacher.manifest.hash:
        name = made_by.name if made_by else "no teacher"
        raise UserError(
            f"Dataset {dataset.name} was made by {name}, not by {teacher.name}: make one with "
            f"`pipeline generate-dataset --teacher {teacher.name}`."
        )
    return load_dataset(dataset, context.workspace.cache, settings.skip_damaged_shards, context.console.warn)


def _require_reproduction(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> None:
    """Replay the teacher's recorded evaluation; a wrongly loaded teacher must not be imitated."""
    recorded = teacher.manifest.results
    try:
        seed, episodes = seed_sequence(*recorded["evaluation_seed"]), int(recorded["episodes"])
        success = float(recorded["success"])
        if episodes < 1:
            raise ValueError(f"{episodes} episodes")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{teacher.path}/manifest.json records no evaluation ({error}).") from error
    policy = torch_policy(trained.actor)
    replayed = TeacherEpisodes(teacher, context, trained.task, policy, seed=seed).first(episodes)
    rate = float(replayed.success.mean())
    if not abs(rate - success) <= settings.reproduction_tolerance:  # NaN is no success either
        raise UserError(
            f"Teacher {teacher.name} reaches {rate:.3f} of the goals of its recorded evaluation, which says "
            f"{success:.3f}: it is not the network that was evaluated. Train it again or choose another."
        )
    context.console.say(
        f"Teacher {teacher.name} reproduces its recorded success: {rate:.3f} of {episodes} episodes."
    )


def _make_student(
    settings: DistillSettings, trained: TrainedActor, data: GoalDataset, device: str, context: StageContext
) -> NormalizedActor:
    task, goals = trained.task, data.desired_goal
    if settings.alternative_fraction > 0:
        goals = np.concatenate([goals, data.alternative_goal.reshape(-1, task.goal_dim)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
        actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, settings.shape)
    student = NormalizedActor(actor, task.observation_dim, task.goal_dim)
    student.observation_normalizer.fit(torch.from_numpy(data.observation))
    student.goal_normalizer.fit(torch.from_numpy(goals))
    own, teachers = parameter_count(student), parameter_count(trained.actor)
    if own > teachers:
        context.console.warn(f"the student has {own:,} parameters, more than its teacher's {teachers:,}.")
    context.console.say(
        f"Student: {settings.shape.kind}, depth {settings.student_depth}, width {settings.student_width}, "
        f"{own:,} parameters; teacher: {teachers:,}. Dataset: {len(data.action):,} transitions."
    )
    return student.to(device)


def _train(
    student: NormalizedActor,
    data: GoalDataset,
    settings: DistillSettings,
    trained: TrainedActor,
    teacher: Artifact,
    work: StageWork,
    context: StageContext,
) -> tuple[StudentTraining, dict[str, Any]]:
    """Train on the dataset, then over the rounds; return the training and what it learned from."""
    device = str(next(student.parameters()).device)
    made_with, choices = data.metadata["thousandfold"], data.alternative_goal.shape[1]
    rows, validation = split_rows(
        data,
        device,
        np.random.default_rng(seed_sequence(settings.seed, _SPLIT_STREAM)),
        validation_fraction=settings.validation_fraction,
        most_rows=settings.offline_rows(choices, trained.task.task.episode_steps),
    )
    record: dict[str, Any] = {
        "dataset_rows": len(rows) + len(validation),
        "held_out_rows": len(validation),
        "skipped_shards": made_with.get(SKIPPED, []),
    }
    guided = settings.objective == "critic"
    sampled = int(made_with.get("teacher_samples", 1)) > 1 and settings.dagger_rounds > 0
    critic = _critic(teacher, device) if guided or sampled else None
    with context.console.progress("distill", settings.total_updates, unit="updates") as bar:
        training = StudentTraining(
            student,
            rows,
            validation,
            settings,
            trained,
            critic=critic,
            report=lambda entry: work.run.log_metrics(entry, step=int(entry["updates"])),
            on_update=lambda update, success: bar.update(update, success=success),
        )
        training.descend(settings.updates)
        rollout = KeptRollout(trained, critic, made_with, choices, settings, work.artifact, device)
        rounds = run_rounds(training, rollout, lambda entry, number: work.run.log_metrics(entry, step=number))
        training.finish()
    return training, record | {"rounds": rounds}


def _critic(teacher: Artifact, device: str) -> TeacherCritic:
    critic = load_critic(teacher)
    return dataclasses.replace(critic, critic=critic.critic.to(device))


def _finish(
    training: StudentTraining,
    record: dict[str, Any],
    teacher: Artifact,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Measure retention over paired episodes, write the student and complete the artifact."""
    artifact, settings = work.artifact, training.settings
    trained, student = training.trained, training.student
    assert training.kept is not None  # the last update is evaluated
    kept = training.kept.entry
    theirs = _teachers_closing_episodes(trained, teacher, settings, context)
    pairs = run_pairs(theirs, _closing_episodes(student, trained, settings), settings.budget)
    results = pairs.results() | record
    results |= {
        "evaluation_seed": [settings.seed, _FINAL_STREAM],
        "student_parameters": parameter_count(student),
        "teacher_parameters": parameter_count(trained.actor),
        "validation_loss": kept["validation_loss"],
        "kept_update": int(kept["updates"]),
        "updates": training.updates,
        "labels": training.labels,
    }
    save_network(
        artifact.file(NETWORK_FILE),
        dict(student.state_dict()),
        kind="student",
        task=trained.task,
        shape=settings.shape,
        extra={"evaluation": pairs.student.summary()} | task_record(artifact),
    )
    write_json_atomic(artifact.file(HISTORY_FILE), {"history": training.history})
    _draw(artifact, trained, training.history, pairs)
    write_failures(artifact.path, trained.task, pairs)
    artifact.complete(results)
    _track(results, training.updates, work, trained.task.name)
    _say(pairs, results, settings, artifact, context)
    return artifact


def _closing_episodes(
    student: NormalizedActor, trained: TrainedActor, settings: DistillSettings
) -> EpisodeStream:
    """Return the student's closing episodes; the teacher's have the same starts and goals."""
    policy = torch_policy(student, str(next(student.parameters()).device))
    seed = seed_sequence(settings.seed, _FINAL_STREAM)
    return EpisodeStream(trained.task, policy, seed=seed, num_paths=_DRAWN_PATHS)


def _teachers_closing_episodes(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> TeacherEpisodes:
    policy = torch_policy(trained.actor, str(next(trained.actor.parameters()).device))
    seed = seed_sequence(settings.seed, _FINAL_STREAM)
    return TeacherEpisodes(teacher, context, trained.task, policy, seed=seed)


def _track(results: dict[str, Any], updates: int, work: StageWork, task: str) -> None:
    """Send what was measured to the tracking store, and register the student."""
    measured = ("success", "retention", "time_at_goal_retention")
    # Retention is undefined beside a teacher that never succeeds.
    finals = {f"final_{name}": float(results[name]) for name in measured if results[name] is not None}
    work.run.log_metrics(finals, step=updates)
    pictures = ("learning_curve.png", "rollouts.png", FAILURES_PICTURE)
    work.log_files(NETWORK_FILE, *pictures, HISTORY_FILE, FAILURES_FILE, "manifest.json")
    artifact = work.artifact
    work.run.register_model(f"student-{task}", artifact.file(NETWORK_FILE), {"artifact": artifact.name})


def _say(
    pairs: PairedEpisodes,
    results: dict[str, Any],
    settings: DistillSettings,
    artifact: Artifact,
    context: StageContext,
) -> None:
    """Say what was retained, and warn where the episodes do not tell it well enough."""
    for entry in results["rounds"]:
        context.console.say(
            f"Round {entry['round']:.0f}: success {figure(entry['acting_success'])} while it acted, "
            f"{figure(entry['success'])} after training; {entry['labels']:,.0f} labels."
        )
    episodes = results["episodes"]
    context.console.say(
        f"Student {artifact.name}: success {figure(results['success'])} beside the teacher's "
        f"{figure(results['teacher_success'])} over the same {episodes} episodes; retention "
        f"{_with_interval(pairs.retained['retention'])}, of time at goal "
        f"{_with_interval(pairs.retained['time_at_goal_retention'])}."
    )
    if pairs.half_width is not None and pairs.half_width > settings.interval_half_width:
        context.console.warn(
            f"{episodes} episodes leave retention's interval at ±{pairs.half_width:.3f}, not "
            f"±{settings.interval_half_width:g}: raise max_final_episodes."
        )


def _draw(
    artifact: Artifact, trained: TrainedActor, history: list[dict[str, float]], pairs: PairedEpisodes
) -> None:
    """Draw how the student learned and, in a maze, where it goes."""
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        history,
        f"Student on {trained.task.name}",
        x="updates",
        x_label="updates",
        metrics=("success", "validation_loss", "kl", "action_mse", "energy_gain"),
    )
    draw_rollouts(artifact.file("rollouts.png"), trained.task, pairs.student, "Student")


def _with_interval(retained: dict[str, Any]) -> str:
    if retained["retention"] is None:
        return "undefined (the teacher has none)"
    return f"{figure(retained['retention'])} {figure(retained['interval'])}"
