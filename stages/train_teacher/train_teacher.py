"""The stage that trains a teacher: what goes before the training, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable

from thousandfold.envs.checks.goal_judgement import require_comparable_goals
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifact_task import (
    keep_task,
    own_task,
    require_episodes,
    task_record,
    warn_of_changed_task,
    warn_of_what_looks_wrong,
)
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cuda import kernel_cache
from thousandfold.pipeline.pictures import artifact_facts, draw_gradient_map, draw_learning_curve
from thousandfold.pipeline.resume import (
    CHECKPOINT_FOLDER,
    ResumableWork,
    checkpoint_of,
    find_trainable,
    resumable_stage,
    stored_settings,
    to_go_on_with,
)
from thousandfold.pipeline.runtime import (
    StageContext,
    require_precision,
    resolve_device,
    seed_sequence,
    set_up_torch,
)
from thousandfold.stages.episodes import (
    HISTORY_FILE,
    Episodes,
    draw_rollouts,
    evaluation_changes,
    run_episodes,
    with_intervals,
)
from thousandfold.stages.network_model import register_network
from thousandfold.stages.networks import NETWORK_FILE, save_network, settled_critic_goals, torch_policy
from thousandfold.stages.random_baseline import measure_random, warn_of_chance
from thousandfold.stages.train_teacher.memory_estimate import require_memory
from thousandfold.stages.train_teacher.settings import (
    CHANGEABLE_ON_RESUME,
    CHANGEABLE_WHEN_COMPLETED,
    TrainTeacherSettings,
)
from thousandfold.stages.train_teacher.training import TeacherTraining, train

__all__ = ["TrainTeacherSettings", "changeable", "find_resumable", "run"]
PICTURES = ("learning_curve.png", "gradients.png", "rollouts.png")
_FINAL_STREAM, _RANDOM_STREAM = 5, 6


def run(
    settings: TrainTeacherSettings,
    context: StageContext,
    resumed: Artifact | None = None,
    on_start: Callable[[Artifact], None] = lambda _: None,
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
    ranks = context.ranks
    if resumed is not None:
        recorded = resumed.manifest.settings.get("critic_goals", settings.critic_goals)
        settings = settings.model_copy(update=_own_task(resumed) | {"critic_goals": recorded})
        if resumed.is_completed:
            _require_more(settings, resumed)
    resumed, continued = to_go_on_with(resumed, context.workspace)
    is_new = resumed is None and continued is None
    training = _prepare(settings, context, is_new=is_new)
    task = training.task
    with (
        ranks.connect(training.device),
        resumable_stage(
            context,
            "teacher",
            "train-teacher",
            task=task.name,
            settings=training.settings,
            resumed=resumed,
            continued=continued,
            task_changes=task.spec.changes,
        ) as work,
        work.stoppable(),
    ):
        if ranks.leads:
            keep_task(task, work.artifact, context.console)
            work.note_device(training.device)
            warn_of_changed_task(work.artifact, context.console)
            if is_new:
                warn_of_what_looks_wrong(task, settings.training_distribution, context.console)
        on_start(work.artifact)
        work.restore(training)
        _announce(context, training)
        train(training, work, on_evaluation or (lambda _: None))
        ranks.disconnect()
        return _finish(training, work, context) if ranks.leads else work.artifact


def changeable(teacher: Artifact) -> frozenset[str]:
    """Return the settings that a teacher may go on with in another value."""
    return CHANGEABLE_WHEN_COMPLETED if teacher.is_completed else CHANGEABLE_ON_RESUME


def _require_more(settings: TrainTeacherSettings, completed: Artifact) -> None:
    """Raise SettingsError where a completed teacher has spent its budget already."""
    spent = int(checkpoint_of(completed).progress["env_steps"])
    if settings.env_steps <= spent:
        raise SettingsError(
            f"Teacher {completed.name} is completed at {spent:,} steps: train it further, as a new teacher, "
            "with --set env_steps=MORE."
        )


def _prepare(settings: TrainTeacherSettings, context: StageContext, *, is_new: bool) -> TeacherTraining:
    """Return the training at its start, once the machine has what it needs."""
    ranks = context.ranks
    task = compile_task(settings.task, settings.task_changes)
    if is_new:
        require_comparable_goals(task)
        for distribution in (*settings.curriculum, settings.training_distribution):
            require_episodes(task, distribution)
        settled = settled_critic_goals(settings.critic_goals, task)
        settings = settings.model_copy(update={"critic_goals": settled})
    # Placed before anything is asked of a device: each question opens the one that is current.
    device = ranks.place(resolve_device(settings.device, context.console))
    set_up_torch(settings.threads, ranks.local_size)
    require_precision(settings.precision, device)
    require_memory(task, settings, device, ranks.local_size, ranks.size)
    if device != "cpu":
        context.console.say(
            f"Warp compiles the kernels of {task.name}'s physics where its cache, {kernel_cache()}, lacks "
            "them: the first time for minutes, without a word."
        )
    return TeacherTraining(settings, task, device, ranks)


def _own_task(teacher: Artifact) -> dict[str, str]:
    """Return the setting that names the teacher's copy of the task, where it is a user's and was copied."""
    page = own_task(teacher)
    return {} if page is None else {"task": page}


def _announce(context: StageContext, training: TeacherTraining) -> None:
    settings, counts = training.settings, training.learner.parameter_counts()
    form = f", branches {settings.residual_scale}" if settings.residual_scale != "none" else ""
    form += "" if settings.residual else ", no residual sums"
    form += "" if settings.layer_norm else ", no LayerNorm"
    form += "" if settings.activation == "swish" else f", {settings.activation}"
    form += ", LayerNorm before the heads" if settings.final_norm else ""
    actor, critic = settings.actor_depth or settings.depth, settings.critic_depth or settings.depth
    depth = f"{actor}" if actor == critic else f"{actor} (actor) and {critic} (critic)"
    together = f", over {context.ranks.size} ranks" if context.ranks.size > 1 else ""
    context.console.say(
        f"Teacher: depth {depth}, width {settings.width}{form}, "
        f"actor {counts['actor_parameters']:,} and critic {counts['critic_parameters']:,} parameters; "
        f"task {training.task.name}, {settings.num_worlds} environments on {training.device}{together}."
    )
    if training.captures and not training.learner.can_be_captured:
        context.console.say("Updates run without CUDA graphs, which cannot hold global_negatives.")


def _finish(training: TeacherTraining, work: ResumableWork, context: StageContext) -> Artifact:
    """Evaluate the kept teacher on fresh episodes, write and draw it, and complete the artifact."""
    settings, artifact, progress, task = training.settings, work.artifact, training.progress, training.task
    if progress.updates == 0:
        raise UserError(
            f"The budget of {settings.env_steps:,} env_steps ended before each environment had "
            f"{settings.min_rows_per_world} rows (min_rows_per_world): nothing was learned. Raise "
            "env_steps, or lower min_rows_per_world."
        )
    seed, count = seed_sequence(settings.seed, _FINAL_STREAM), settings.final_episodes
    weights = training.choose(work.checkpoint)
    policy = torch_policy(training.learner.load_weights(weights), training.device, settings.cuda_graph)
    episodes = run_episodes(task, policy, episodes=count, seed=seed, num_paths=32)
    chance = measure_random(
        task,
        count,
        seed_sequence(settings.seed, _FINAL_STREAM),
        seed_sequence(settings.seed, _RANDOM_STREAM),
    )
    summary = episodes.summary()
    results = summary | chance | training.learner.parameter_counts()
    results |= {
        "evaluation_seed": [settings.seed, _FINAL_STREAM],
        "env_steps": progress.env_steps,
        "updates": progress.updates,
        "unstable": progress.unstable,
        "overflowed": progress.overflowed,
        "elapsed_s": progress.elapsed_s,
    }
    save_network(
        artifact.file(NETWORK_FILE),
        weights,
        kind="teacher",
        task=task,
        shape=settings.actor_shape,
        critic_shape=settings.critic_shape,
        extra={"energy": settings.energy, "evaluation": summary, "dither": settings.dither}
        | task_record(artifact),
    )
    history = {
        "history": progress.history,
        "evaluated": progress.evaluated,
        "gradient_by_block": progress.gradients,
    }
    write_json_atomic(artifact.file(HISTORY_FILE), history)
    _draw(training, artifact, episodes)
    artifact.complete(results, exclude=(CHECKPOINT_FOLDER,))
    headline = {f"teacher_{name}": float(results[name]) for name in ("success", "time_at_goal", "elapsed_s")}
    work.log_headline(headline, progress.env_steps)
    work.log_files(NETWORK_FILE, *PICTURES, HISTORY_FILE, "manifest.json")
    register_network(work.run, artifact, task)
    low, high = summary["success_interval"]
    context.console.say(
        f"Teacher {artifact.name}: success {results['success']:.3f} [{low:.3f}, {high:.3f}] over "
        f"{results['episodes']} fresh episodes, after {progress.elapsed_s:.0f} s."
    )
    if training.lesson:
        context.console.warn(
            f"The budget of {settings.env_steps:,} steps ended in the curriculum, at {training.lesson}: "
            f"train the teacher on, with --resume {artifact.name} --set env_steps=MORE, or lower "
            "curriculum_success."
        )
    warn_of_chance(context.console, artifact)
    return artifact


def _draw(training: TeacherTraining, artifact: Artifact, episodes: Episodes) -> None:
    """Draw how the teacher learned, what its gradients did, and where it went."""
    progress, task, facts = training.progress, training.task, artifact_facts(artifact)
    learned = training.learner.curve_metrics
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        with_intervals(progress.history),
        "How the teacher learned",
        facts,
        x="env_steps",
        metrics=("success", "time_at_goal", *learned, "entropy"),
        changes=evaluation_changes(progress.evaluated),
    )
    draw_rollouts(artifact.file("rollouts.png"), task, episodes, "teacher", facts)
    if progress.gradients:
        title = "Gradients of the teacher, block by block"
        draw_gradient_map(artifact.file("gradients.png"), progress.gradients, title, facts)


def find_resumable(workspace: Workspace, reference: str | None) -> tuple[TrainTeacherSettings, Artifact]:
    """Return the unfinished teacher to resume, or the completed one to train on, and its settings.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one.

    Raises:
        SettingsError: there is none, or nothing to go on from.
        DamagedFileError: its manifest holds settings that this version does not read.
    """
    artifact = find_trainable(workspace, "teacher", reference)
    return stored_settings(artifact, TrainTeacherSettings, **_own_task(artifact)), artifact
