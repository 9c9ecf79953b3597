"""Train a teacher: collect, relabel, update, evaluate, checkpoint, until budget or target is met."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from thousandfold.envs.checks.goal_judgement import require_comparable_goals
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import LostRankError, NonFiniteError, SettingsError, StoppedByUser, UserError
from thousandfold.ground.files import write_json_atomic
from thousandfold.models.tensor_state import strip_prefix
from thousandfold.pipeline.artifact_task import (
    keep_task,
    own_task,
    require_episodes,
    task_record,
    warn_of_changed_task,
    warn_of_what_looks_wrong,
)
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.console import Progress
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.pictures import draw_gradient_map, draw_learning_curve
from thousandfold.pipeline.resume import (
    CHECKPOINT_FOLDER,
    CONTINUED,
    checkpoint_of,
    continued_by,
    find_trainable,
    has_checkpoint,
    is_completed,
    still_unfinished,
    stored_settings,
)
from thousandfold.pipeline.runtime import (
    StageContext,
    StageWork,
    require_precision,
    resolve_device,
    seed_sequence,
    set_up_torch,
)
from thousandfold.pipeline.stopping import stop_on_interrupt
from thousandfold.stages.episodes import HISTORY_FILE, Episodes, draw_rollouts, run_episodes
from thousandfold.stages.networks import NETWORK_FILE, save_network, torch_policy
from thousandfold.stages.random_baseline import measure_random, warn_of_chance
from thousandfold.stages.train_teacher.memory_estimate import require_memory
from thousandfold.stages.train_teacher.training import (
    CHANGEABLE_ON_RESUME,
    RolloutStatistics,
    TeacherTraining,
    TrainTeacherSettings,
)

__all__ = ["CHANGEABLE_ON_RESUME", "TrainTeacherSettings", "find_resumable", "run"]
PICTURES = ("learning_curve.png", "gradients.png", "rollouts.png")
_FINAL_STREAM, _RANDOM_STREAM = 5, 6


def run(
    settings: TrainTeacherSettings,
    context: StageContext,
    resumed: Artifact | None = None,
    on_start: Callable[[Artifact], None] | None = None,
    on_evaluation: Callable[[dict[str, float]], object] | None = None,
) -> Artifact:
    """Train a teacher and return its artifact.

    Args:
        settings: of the stage; those of `resumed` when it is given.
        context: workspace, console and tracking.
        resumed: an unfinished teacher to go on with from its checkpoint, or a completed one to train on, as
            another teacher with this one among its parents.
        on_start: told the artifact before the training begins.
        on_evaluation: told what each evaluation within the training found, as the history has it.

    Raises:
        UserError: the task's goals hold orientations that success would compare number by number, or every
            episode of a user's task ends at its first step.
        SettingsError: unknown task or distribution; worlds or batch that the ranks cannot share evenly; a
            completed teacher that has spent `env_steps` already.
        NonFiniteError: a loss became NaN or infinite; the last checkpoint is kept.
        StoppedByUser: after Ctrl-C, once the state is saved.
        LostRankError: another rank is gone; the last checkpoint is kept.
    """
    ranks, continued = context.ranks, None
    if resumed is not None:
        settings = _with_own_task(settings, resumed)
        if is_completed(resumed):
            _require_more(settings, resumed)
            continued, resumed = resumed, None
        else:
            continued = continued_by(resumed, context.workspace)
    training = _prepare(settings, ranks, is_new=resumed is None and continued is None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ranks.connect(training.device))
        if resumed is not None:
            stack.enter_context(checkpoint_of(resumed, ranks).lock())
            resumed = still_unfinished(resumed) if ranks.leads else resumed
        work = stack.enter_context(_open_stage(training, context, resumed, continued))
        stack.enter_context(stop_on_interrupt(context.stop, ranks))
        if on_start is not None:
            on_start(work.artifact)
        folder = checkpoint_of(work.artifact, ranks)
        if resumed is None:
            stack.enter_context(folder.lock())
        with _told_how_to_go_on(training, folder, work, context):
            if ranks.from_leader(lambda: folder.exists):
                training.load(folder)
                name, steps = work.artifact.name, training.progress.env_steps
                context.console.say(f"Resuming {name} at {steps:,} steps.")
            elif continued is not None:
                training.train_on(checkpoint_of(continued, ranks))
                name, steps = work.artifact.name, training.progress.env_steps
                context.console.say(f"Training on from {continued.name} at {steps:,} steps, as {name}.")
            _announce(context, training)
            _train(training, folder, work, context, on_evaluation)
            ranks.disconnect()
        return _finish(training, work, context) if ranks.leads else work.artifact


def _require_more(settings: TrainTeacherSettings, completed: Artifact) -> None:
    """Raise SettingsError where a completed teacher has spent its budget already."""
    spent = int(checkpoint_of(completed).progress["env_steps"])
    if settings.env_steps <= spent:
        raise SettingsError(
            f"Teacher {completed.name} is completed at {spent:,} steps: train it on, as another teacher, "
            "with --set env_steps=MORE."
        )


def _prepare(settings: TrainTeacherSettings, ranks: Ranks, *, is_new: bool) -> TeacherTraining:
    """Return the training at its start, once the machine has what it needs."""
    task = compile_task(settings.task, settings.task_changes)
    if is_new:
        require_comparable_goals(task)
        require_episodes(task, settings.training_distribution)
    device = resolve_device(settings.device)
    set_up_torch(settings.threads, ranks.local_size)
    require_precision(settings.precision, device)
    require_memory(task, settings, device, ranks.local_size, ranks.size)
    return TeacherTraining(settings, task, ranks.place(device), ranks)


@contextlib.contextmanager
def _open_stage(
    training: TeacherTraining, context: StageContext, resumed: Artifact | None, continued: Artifact | None
) -> Iterator[StageWork]:
    """Open the stage's artifact and tracking, with a copy of the task where it is a user's."""
    task = training.task
    with context.stage(
        "teacher",
        "train-teacher",
        task=task.name,
        settings=training.settings,
        parents={} if continued is None else {CONTINUED: continued},
        resumed=resumed,
        task_changes=task.spec.changes,
        saved=has_checkpoint,
    ) as work:
        if context.ranks.leads:
            keep_task(task, work.artifact, context.console)
            warn_of_changed_task(work.artifact, context.console)
            if resumed is None and continued is None:
                warn_of_what_looks_wrong(task, training.settings.training_distribution, context.console)
        yield work


def _with_own_task(settings: TrainTeacherSettings, teacher: Artifact) -> TrainTeacherSettings:
    """Return the settings with the teacher's copy of the task, where it is a user's and has been copied."""
    page = own_task(teacher)
    return settings if page is None else settings.model_copy(update={"task": page})


@contextlib.contextmanager
def _told_how_to_go_on(
    training: TeacherTraining, folder: CheckpointFolder, work: StageWork, context: StageContext
) -> Iterator[None]:
    """Say what is kept, and which command goes on with it, where a rank is lost."""
    try:
        yield
    except LostRankError as error:
        command = context.resume_command("train-teacher", work.artifact)
        kept = f"The last checkpoint is kept in {folder.path}. Go on with: {command}"
        raise LostRankError(
            f"{error} at {training.progress.env_steps:,} steps. "
            f"{kept if folder.exists else 'No checkpoint had been saved yet: start again.'}"
        ) from error


def _train(
    training: TeacherTraining,
    folder: CheckpointFolder,
    work: StageWork,
    context: StageContext,
    on_evaluation: Callable[[dict[str, float]], object] | None,
) -> None:
    """Collect, relabel, update, evaluate, checkpoint."""
    settings, progress = training.settings, training.progress
    started = time.perf_counter() - progress.elapsed_s
    with context.console.progress("train-teacher", settings.env_steps, completed=progress.env_steps) as bar:
        while not training.finished:
            statistics = training.collect()
            _require_stable(statistics, training, folder)
            for batch in training.relabel():
                training.update(batch)
            training.check_finite(folder.path if folder.exists else None)
            if progress.unrolls % settings.evaluate_every == 0 or training.finished:
                entry = training.take_metrics()
                training.note_gradients()
                summary = training.evaluate()
                progress.elapsed_s = time.perf_counter() - started
                _record(training, entry, summary, statistics, work)
                if on_evaluation is not None:
                    on_evaluation(dict(progress.history[-1]))
            stopping = context.ranks.any(context.stop.requested)
            if progress.unrolls % settings.checkpoint_every == 0 or training.finished or stopping:
                progress.elapsed_s = time.perf_counter() - started
                work.run.flush()
                training.save(folder)
            _show(bar, training)
            if stopping:
                raise StoppedByUser(
                    f"Stopped at {progress.env_steps:,} steps, state saved in {folder.path}. "
                    f"Go on with: {context.resume_command('train-teacher', work.artifact)}"
                )


def _require_stable(
    statistics: RolloutStatistics, training: TeacherTraining, folder: CheckpointFolder
) -> None:
    """Raise NonFiniteError when as many episodes were dropped as there are worlds: nothing can be learned."""
    if statistics.unstable >= training.settings.num_worlds:
        kept = f" The last good checkpoint is kept in {folder.path}." if folder.exists else ""
        if 2 * statistics.overflowed > statistics.unstable:
            raise NonFiniteError(
                f"The physics of {training.task.name} found no room for contacts or constraints in "
                f"{statistics.overflowed} episodes within {statistics.env_steps:,} steps, at step "
                f"{training.progress.env_steps:,}: let fewer of the model's geoms touch each other.{kept}"
            )
        raise NonFiniteError(
            f"The physics of {training.task.name} diverged {statistics.unstable} times within "
            f"{statistics.env_steps:,} steps, at step {training.progress.env_steps:,}: check the model, its "
            f"timestep and its gains.{kept}"
        )


def _record(
    training: TeacherTraining,
    metrics: dict[str, float],
    summary: dict[str, Any],
    statistics: RolloutStatistics,
    work: StageWork,
) -> None:
    """Add an evaluation to the history, the learning curve and the tracking store."""
    progress = training.progress
    numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, list)}
    entry = (
        metrics
        | numbers
        | {
            "env_steps": progress.env_steps,
            "updates": progress.updates,
            "exploration_success_rate": statistics.successes / statistics.env_steps,
            "unstable": progress.unstable,
            "overflowed": progress.overflowed,
            "elapsed_s": progress.elapsed_s,
        }
    )
    progress.history.append(entry)
    work.run.log_metrics(entry, step=progress.env_steps)


def _show(bar: Progress, training: TeacherTraining) -> None:
    progress = training.progress
    success = f"{progress.history[-1]['success']:.2f}" if progress.history else "not evaluated yet"
    bar.update(min(progress.env_steps, training.settings.env_steps), success=success)


def _announce(context: StageContext, training: TeacherTraining) -> None:
    settings, counts = training.settings, training.learner.parameter_counts()
    form = f", branches {settings.residual_scale}" if settings.residual_scale != "none" else ""
    form += ", LayerNorm before the heads" if settings.final_norm else ""
    together = f", over {context.ranks.size} ranks" if context.ranks.size > 1 else ""
    context.console.say(
        f"Teacher: depth {settings.depth}, width {settings.width}{form}, "
        f"actor {counts['actor_parameters']:,} and critic {counts['critic_parameters']:,} parameters; "
        f"task {training.task.name}, {settings.num_worlds} worlds on {training.device}{together}."
    )
    if context.ranks.size > 1 and settings.cuda_graph and training.device.startswith("cuda"):
        context.console.say("Updates run without CUDA graphs, which are for one rank.")


def _finish(training: TeacherTraining, work: StageWork, context: StageContext) -> Artifact:
    """Write the kept teacher, evaluate it on fresh episodes, draw it, and complete the artifact."""
    settings, artifact = training.settings, work.artifact
    _require_updates(training)
    episodes = _evaluate_kept(training)
    results = _results(training, episodes)
    save_network(
        artifact.file(NETWORK_FILE),
        training.kept_weights,
        kind="teacher",
        task=training.task,
        shape=settings.shape,
        extra={"energy": settings.energy, "evaluation": episodes.summary()} | task_record(artifact),
    )
    _write_history(training, artifact)
    _draw(training, artifact, episodes)
    artifact.complete(results, exclude=(CHECKPOINT_FOLDER,))
    work.run.log_metrics({"final_success": float(results["success"])}, step=training.progress.env_steps)
    work.log_files(NETWORK_FILE, *PICTURES, HISTORY_FILE, "manifest.json")
    work.run.register_model(
        f"teacher-{training.task.name}", artifact.file(NETWORK_FILE), {"artifact": artifact.name}
    )
    low, high = results["success_interval"]
    context.console.say(
        f"Teacher {artifact.name}: success {results['success']:.3f} [{low:.3f}, {high:.3f}] over "
        f"{results['episodes']} fresh episodes, after {training.progress.elapsed_s:.0f} s."
    )
    warn_of_chance(context.console, artifact)
    return artifact


def _require_updates(training: TeacherTraining) -> None:
    """Raise UserError where the budget ended before anything was learned."""
    settings = training.settings
    if training.progress.updates == 0:
        raise UserError(
            f"The budget of {settings.env_steps:,} env_steps ended before each world had min_rows_per_world "
            f"{settings.min_rows_per_world} rows: nothing was learned. Raise env_steps, or lower "
            "min_rows_per_world."
        )


def _evaluate_kept(training: TeacherTraining) -> Episodes:
    """Run the kept actor on fresh episodes, which no choice was made on."""
    settings, kept = training.settings, training.learner.averaged_actor
    kept.load_state_dict(strip_prefix(training.kept_weights, "actor."))
    return run_episodes(
        training.task,
        torch_policy(kept, training.device),
        episodes=settings.final_episodes,
        seed=seed_sequence(settings.seed, _FINAL_STREAM),
        num_paths=32,
    )


def _results(training: TeacherTraining, episodes: Episodes) -> dict[str, Any]:
    """Return what the manifest says of a finished teacher."""
    progress = training.progress
    counters = {
        "evaluation_seed": [training.settings.seed, _FINAL_STREAM],
        "env_steps": progress.env_steps,
        "updates": progress.updates,
        "unstable": progress.unstable,
        "overflowed": progress.overflowed,
        "elapsed_s": progress.elapsed_s,
    }
    seed = training.settings.seed
    chance = measure_random(
        training.task,
        training.settings.final_episodes,
        seed_sequence(seed, _FINAL_STREAM),
        seed_sequence(seed, _RANDOM_STREAM),
    )
    return episodes.summary() | chance | training.learner.parameter_counts() | counters


def _write_history(training: TeacherTraining, artifact: Artifact) -> None:
    """Write every evaluation and every gradient norm as JSON."""
    progress = training.progress
    write_json_atomic(
        artifact.file(HISTORY_FILE), {"history": progress.history, "gradient_by_block": progress.gradients}
    )


def _draw(training: TeacherTraining, artifact: Artifact, episodes: Episodes) -> None:
    """Draw how the teacher learned, what its gradients did, and where it went."""
    progress, task = training.progress, training.task
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        progress.history,
        f"Teacher on {task.name}",
        x="env_steps",
        metrics=("success", "time_at_goal", "info_nce", "categorical_accuracy", "entropy"),
    )
    draw_rollouts(artifact.file("rollouts.png"), task, episodes, "Teacher")
    if progress.gradients:
        draw_gradient_map(
            artifact.file("gradients.png"), progress.gradients, f"Gradients of the teacher on {task.name}"
        )


def find_resumable(workspace: Workspace, reference: str | None) -> tuple[TrainTeacherSettings, Artifact]:
    """Return the unfinished teacher to resume, or the completed one to train on, and its settings.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one.

    Raises:
        SettingsError: there is none, or nothing to go on from.
        DamagedFileError: its manifest holds settings that are none of this version's.
    """
    artifact = find_trainable(workspace, "teacher", reference)
    page = own_task(artifact)
    changes = {} if page is None else {"task": page}
    return stored_settings(artifact, TrainTeacherSettings, **changes), artifact
