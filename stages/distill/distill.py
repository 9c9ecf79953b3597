"""Distil a teacher into a small student: imitate it, keep what acts best in closed loop, say what is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError, SettingsError, UserError
from thousandfold.ground.files import write_json_atomic
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import parameter_count
from thousandfold.pipeline.artifact_task import keep_task, task_record
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.pictures import artifact_facts, draw_learning_curve
from thousandfold.pipeline.resume import (
    CHECKPOINT_FOLDER,
    CONTINUED,
    ResumableWork,
    checkpoint_of,
    find_parent,
    find_trainable,
    resumable_stage,
    stored_settings,
    to_go_on_with,
)
from thousandfold.pipeline.runtime import (
    StageContext,
    StageWork,
    resolve_device,
    seed_sequence,
    set_up_torch,
    torch_seed,
)
from thousandfold.replay.goal_dataset import GoalDataset
from thousandfold.stages.dataset.files import SKIPPED, load_dataset
from thousandfold.stages.distill.dagger import ROUNDS_FOLDER, KeptRollout, run_rounds
from thousandfold.stages.distill.imitation import split_rows
from thousandfold.stages.distill.retention import (
    FAILURES_FILE,
    FAILURES_PICTURE,
    PairedEpisodes,
    TeacherEpisodes,
    run_pairs,
    write_failures,
)
from thousandfold.stages.distill.settings import (
    CHANGEABLE_ON_RESUME,
    CHANGEABLE_WHEN_COMPLETED,
    DistillSettings,
)
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.episodes import HISTORY_FILE, EpisodeStream, draw_rollouts, with_intervals
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.network_model import register_network
from thousandfold.stages.networks import (
    NETWORK_FILE,
    TeacherCritic,
    TrainedActor,
    load_actor,
    load_critic,
    save_network,
    torch_policy,
)
from thousandfold.stages.random_baseline import random_record, warn_of_chance
from thousandfold.stages.train_teacher.memory_estimate import require_student_memory

__all__ = ["DistillSettings", "changeable", "find_resumable", "rehearse", "run"]
_SPLIT_STREAM, _INITIALISATION_STREAM = 11, 12


def run(
    settings: DistillSettings,
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    resumed: Artifact | None = None,
    on_start: Callable[[Artifact], None] = lambda _: None,
    on_evaluation: Callable[[dict[str, float]], object] = lambda _: None,
) -> Artifact:
    """Train a student on the teacher's dataset and return its artifact.

    Args:
        settings: of the stage; those of `resumed` when it is given.
        context: workspace, console and tracking.
        teacher: the teacher to imitate.
        dataset: its dataset.
        resumed: an unfinished student to go on with from its checkpoint, or a completed one to train on, as
            another student with this one among its parents.
        on_start: told the artifact before the training begins.
        on_evaluation: told what each evaluation within the training found, as the history has it.

    Raises:
        UserError: the dataset is another teacher's, or the teacher does not reproduce its recorded success.
        SettingsError: a completed student that has taken all of its updates already.
        DamagedFileError: it has other parents or other settings, or its checkpoint or a round is damaged.
        StoppedByUser: after Ctrl-C, once the state is saved.
    """
    trained = load_actor(teacher)
    settings = settings.with_rounds(trained.task.spec.student_observation is not None)
    if resumed is not None and resumed.is_completed:
        _require_more(settings, resumed)
    resumed, continued = to_go_on_with(resumed, context.workspace)
    device = resolve_device(settings.device, context.console)
    require_student_memory(settings, trained, dataset, device)
    data = _load_dataset(dataset, teacher, settings, context)
    set_up_torch(settings.threads)
    with resumable_stage(
        context,
        "student",
        "distill",
        task=teacher.manifest.task,
        settings=settings,
        parents={"teacher": teacher, "dataset": dataset},
        resumed=resumed,
        continued=continued,
    ) as work:
        on_start(work.artifact)
        keep_task(trained.task, work.artifact, context.console)
        work.note_device(device)
        if not work.checkpoint.exists:
            _require_reproduction(trained, teacher, settings, context)
            _take_rounds(work.artifact, continued)
            digest, rows = str(dataset.manifest.hash)[:16], len(data.action)
            work.run.log_dataset(dataset.name, digest, str(dataset.path), rows, "training")
        student = _make_student(settings, trained, data, device, context)
        training, rollout, record = _prepare(student, data, settings, trained, teacher, work, on_evaluation)
        _train(training, rollout, work)
        return complete_student(training, record, teacher, work, context)


def changeable(student: Artifact) -> frozenset[str]:
    """Return the settings that a student may go on with in another value."""
    return CHANGEABLE_WHEN_COMPLETED if student.is_completed else CHANGEABLE_ON_RESUME


def _require_more(settings: DistillSettings, completed: Artifact) -> None:
    """Raise SettingsError where a completed student has taken all of its updates already."""
    taken = int(checkpoint_of(completed).progress["position"])
    if settings.total_updates <= taken:
        raise SettingsError(
            f"Student {completed.name} is completed after {taken:,} updates, rounds included: train it "
            "further, as a new student, with --set updates=MORE."
        )


def _take_rounds(student: Artifact, continued: Artifact | None) -> None:
    """Give a student without a checkpoint the rounds of the one that it continues, or none."""
    rounds = student.file(ROUNDS_FOLDER)
    shutil.rmtree(rounds, ignore_errors=True)
    if continued is not None and continued.file(ROUNDS_FOLDER).is_dir():
        shutil.copytree(continued.file(ROUNDS_FOLDER), rounds)


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
    teachers_closing_episodes(trained, teacher, settings, context).first(settings.final_episodes)
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
    except BAD_CONTENT as error:
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
    task, goals = trained.task.student_view, data.desired_goal
    if settings.alternative_fraction > 0:
        goals = np.concatenate([goals, data.alternative_goal.reshape(-1, task.goal_dim)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
        actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, settings.shape)
    student = NormalizedActor.around(actor, task.observation_dim, task.goal_dim)
    student.observation_normalizer.fit(torch.from_numpy(data.seen_by_student))
    student.goal_normalizer.fit(torch.from_numpy(goals))
    own, teachers = parameter_count(student), parameter_count(trained.actor)
    if own > teachers:
        context.console.warn(f"the student has {own:,} parameters, more than its teacher's {teachers:,}.")
    context.console.say(
        f"Student: {settings.shape.kind}, depth {settings.student_depth}, width {settings.student_width}, "
        f"{own:,} parameters; teacher: {teachers:,}. Dataset: {len(data.action):,} transitions."
    )
    return student.to(device)


def _prepare(
    student: NormalizedActor,
    data: GoalDataset,
    settings: DistillSettings,
    trained: TrainedActor,
    teacher: Artifact,
    work: StageWork,
    on_evaluation: Callable[[dict[str, float]], object],
) -> tuple[StudentTraining, KeptRollout, dict[str, Any]]:
    """Return the training at its start, what rolls its rounds out, and the results' facts of its rows."""
    device = str(next(student.parameters()).device)
    made_with, choices = data.metadata["thousandfold"], data.alternative_goal.shape[1]
    rows, validation = split_rows(
        data,
        device,
        np.random.default_rng(seed_sequence(settings.seed, _SPLIT_STREAM)),
        validation_fraction=settings.validation_fraction,
        most_rows=settings.offline_rows(choices, trained.task.spec.episode_steps),
    )
    record: dict[str, Any] = {
        "dataset_rows": len(rows) + len(validation),
        "held_out_rows": len(validation),
        "skipped_shards": made_with.get(SKIPPED, []),
    }
    guided = settings.objective == "critic"
    sampled = int(made_with.get("teacher_samples", 1)) > 1 and settings.rounds > 0
    critic = _critic(teacher, device) if guided or sampled else None

    def report(entry: dict[str, float]) -> None:
        work.run.log_metrics(grouped(entry, "train"), step=int(entry["updates"]))
        on_evaluation(dict(entry))

    training = StudentTraining(
        student,
        rows,
        validation,
        settings,
        trained,
        critic=critic,
        report=report,
    )
    rollout = KeptRollout(trained, critic, made_with, choices, settings, work.artifact, device)
    return training, rollout, record


def _train(training: StudentTraining, rollout: KeptRollout, work: ResumableWork) -> None:
    """Train on the dataset, then over the rounds, from the checkpoint where there is one.

    A student that continues another ends with the updates that it has more.
    """

    def rate() -> str:
        rate = training.learning_rate(training.progress.position)
        return f"; the learning rate goes on at {rate:.3g}, where a cosine over all updates has it by now"

    work.restore(training, rate)
    settings, progress = training.settings, training.progress
    started = time.perf_counter() - progress.elapsed_s
    total, done = settings.total_updates, progress.updates
    with (
        work.stoppable(),
        work.context.console.progress("distill", total, unit="updates", completed=done) as bar,
    ):

        def after_update(training: StudentTraining) -> None:
            progress.elapsed_s = time.perf_counter() - started
            _save_or_stop(training, work)
            bar.update(training.updates, success=training.last_success)

        training.on_update = after_update
        if not progress.descents:
            training.descend(settings.updates)
        run_rounds(training, rollout, lambda entry, number: work.run.log_metrics(entry, step=number))
        if CONTINUED in work.artifact.manifest.parents:
            training.descend(settings.total_updates - progress.descent_begin)
    training.finish()


def _save_or_stop(training: StudentTraining, work: ResumableWork) -> None:
    """Save at the end of a descent, every so many updates, and where the user stops, which ends the stage."""
    stopping, progress = work.stopping, training.progress
    ended = progress.position == progress.descent_begin
    if ended or stopping or progress.updates % training.settings.checkpoint_every == 0:
        work.run.flush()
        training.save(work.checkpoint)
    if stopping:
        raise work.stopped()


def _critic(teacher: Artifact, device: str) -> TeacherCritic:
    return load_critic(teacher).to(device)


def find_resumable(
    workspace: Workspace,
    reference: str | None,
    teacher: str | None = None,
    dataset: str | None = None,
) -> tuple[DistillSettings, Artifact, Artifact, Artifact]:
    """Return the settings of the student to resume or to train on, the student, its teacher and dataset.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one.
        teacher, dataset: names or paths of its own, where the workspace does not have them.

    Raises:
        SettingsError: there is none, or nothing to go on from.
        MissingArtifactError: its teacher or its dataset is gone.
        DamagedFileError: its manifest holds settings that this version does not read, or names no parents.
    """
    student = find_trainable(workspace, "student", reference)
    settings = stored_settings(student, DistillSettings)
    source = find_parent(student, "teacher", workspace, teacher)
    return settings, student, source, find_parent(student, "dataset", workspace, dataset)


# -- The end of a distillation: retention over paired episodes, the student's file, pictures and results

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
    mine = _closing_episodes(student, trained, settings)
    pairs = run_pairs(theirs, mine, settings.budget, context.console.say)
    results = pairs.results() | record | _facts(training) | random_record(teacher.manifest.results)
    save_network(
        artifact.file(NETWORK_FILE),
        dict(student.state_dict()),
        kind="student",
        task=trained.task.student_view,
        shape=settings.shape,
        extra={"evaluation": pairs.student.summary()} | task_record(artifact),
    )
    write_json_atomic(artifact.file(HISTORY_FILE), {"history": training.history})
    _draw(artifact, trained, training.history, pairs)
    write_failures(artifact.path, trained.task, pairs, artifact_facts(artifact))
    artifact.complete(results, exclude=(CHECKPOINT_FOLDER,))
    _track(results, training.updates, work, trained.task.student_view)
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
    return EpisodeStream(trained.task.student_view, policy, seed=seed, num_paths=_DRAWN_PATHS)


def teachers_closing_episodes(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> TeacherEpisodes:
    """Return the teacher's closing episodes, from the context's cache where they were run before."""
    policy = torch_policy(trained.actor, str(next(trained.actor.parameters()).device))
    seed = seed_sequence(settings.seed, _FINAL_STREAM)
    return TeacherEpisodes(teacher, context, trained.task, policy, seed=seed)


def _track(results: dict[str, Any], updates: int, work: StageWork, task: CompiledTask) -> None:
    """Send what was measured to the tracking store, and register the student."""
    # Retention is undefined beside a teacher that never succeeds.
    headline = {f"student_{name}": results[name] for name in ("success", "retention")}
    work.log_headline(headline | {"student_parameters": results["student_parameters"]}, updates)
    retained = {name: results[name] for name in ("retention", "time_at_goal_retention")}
    work.run.log_metrics(grouped(retained, "eval"), updates)
    pictures = ("learning_curve.png", "rollouts.png", FAILURES_PICTURE)
    work.log_files(NETWORK_FILE, *pictures, HISTORY_FILE, FAILURES_FILE, "manifest.json")
    register_network(work.run, work.artifact, task)


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
    facts = artifact_facts(artifact)
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        with_intervals(history),
        "How the student learned",
        facts,
        x="updates",
        x_label="updates",
        metrics=("success", "validation_loss", "kl", "action_mse", "energy_gain"),
    )
    draw_rollouts(artifact.file("rollouts.png"), trained.task, pairs.student, "student", facts)


def _with_interval(retained: dict[str, Any]) -> str:
    if retained["retention"] is None:
        return "undefined (the teacher has none)"
    return f"{figure(retained['retention'])} {figure(retained['interval'])}"
