"""The end of a distillation: retention over paired episodes, the student's file, pictures and results."""

from __future__ import annotations

from typing import Any

from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.residual_mlp import parameter_count
from thousandfold.pipeline.artifact_task import task_record
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.files import write_json_atomic
from thousandfold.pipeline.pictures import draw_learning_curve
from thousandfold.pipeline.resume import CHECKPOINT_FOLDER
from thousandfold.pipeline.runtime import StageContext, StageWork, seed_sequence
from thousandfold.stages.distill.episode_cache import TeacherEpisodes
from thousandfold.stages.distill.paired_evaluation import (
    FAILURES_FILE,
    FAILURES_PICTURE,
    PairedEpisodes,
    run_pairs,
    write_failures,
)
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.episodes import EpisodeStream, draw_rollouts
from thousandfold.stages.networks import NETWORK_FILE, TrainedActor, save_network, torch_policy
from thousandfold.stages.random_baseline import random_record, warn_of_chance
from thousandfold.stages.training_progress import HISTORY_FILE

_FINAL_STREAM = 14
_DRAWN_PATHS = 32


def complete_student(
    training: StudentTraining,
    record: dict[str, Any],
    teacher: Artifact,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Measure retention over paired episodes, write the student and complete the artifact.

    Args:
        training: at its end.
        record: what it learned from, for the results.
        teacher: its teacher.
        work: the artifact and its tracking run.
        context: workspace and console.
    """
    artifact, settings = work.artifact, training.settings
    trained, student = training.trained, training.student
    theirs = teachers_closing_episodes(trained, teacher, settings, context)
    pairs = run_pairs(theirs, _closing_episodes(student, trained, settings), settings.budget)
    results = pairs.results() | record | _facts(training) | random_record(teacher.manifest.results)
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
    artifact.complete(results, exclude=(CHECKPOINT_FOLDER,))
    _track(results, training.updates, work, trained.task.name)
    _say(pairs, results, settings, artifact, context)
    warn_of_chance(context.console, artifact, teacher)
    return artifact


def _facts(training: StudentTraining) -> dict[str, Any]:
    """Return what the results say of the training and of the weights that were kept."""
    assert training.kept is not None  # the last update is evaluated
    kept = training.kept.entry
    return {
        "evaluation_seed": [training.settings.seed, _FINAL_STREAM],
        "student_parameters": parameter_count(training.student),
        "teacher_parameters": parameter_count(training.trained.actor),
        "validation_loss": kept["validation_loss"],
        "kept_update": int(kept["updates"]),
        "updates": training.updates,
        "labels": training.labels,
        "rounds": training.progress.rounds,
        "elapsed_s": training.progress.elapsed_s,
    }


def _closing_episodes(
    student: NormalizedActor, trained: TrainedActor, settings: DistillSettings
) -> EpisodeStream:
    """Return the student's closing episodes; the teacher's have the same starts and goals."""
    policy = torch_policy(student, str(next(student.parameters()).device))
    seed = seed_sequence(settings.seed, _FINAL_STREAM)
    return EpisodeStream(trained.task, policy, seed=seed, num_paths=_DRAWN_PATHS)


def teachers_closing_episodes(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> TeacherEpisodes:
    """Return the teacher's closing episodes, from the context's cache where they were run before."""
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
