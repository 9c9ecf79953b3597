"""`pipeline evaluate`: fresh closed-loop episodes of a policy, a student or a teacher."""

from __future__ import annotations

import pydantic

from envs.compiled_task import CompiledTask
from envs.model_hash import model_sha256
from envs.task import TaskError
from pipeline.core.artifacts import Artifact
from pipeline.core.errors import SettingsError
from pipeline.core.runtime import StageContext, as_user_error, seed_sequence
from pipeline.core.settings import MOST_EPISODES
from stages.artifact_task import load_task
from stages.episodes import Episodes, Policy, draw_rollouts, run_episodes
from stages.random_baseline import random_record, warn_of_chance
from stages.sampling_settings import SamplingSettings

_EPISODE_STREAM = 41


class EvaluateSettings(SamplingSettings):
    """Settings of `pipeline evaluate`."""

    episodes: int = pydantic.Field(default=1024, ge=1, le=MOST_EPISODES, description="fresh episodes to run")
    distribution: str = pydantic.Field(
        default="evaluation", description="the task's episode distribution to draw from"
    )
    num_paths: int = pydantic.Field(
        default=32, ge=0, le=1024, description="episodes whose path is drawn, for tasks with goals in x and y"
    )


def run(settings: EvaluateSettings, context: StageContext, source: Artifact) -> Artifact:
    """Evaluate a policy, a student or a teacher on fresh episodes and return the evaluation's artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        source: what to evaluate.

    Raises:
        UserError: the task has no such distribution, or the file is damaged.
    """
    task, policy = load_policy(
        source, settings.device, settings.teacher_samples, settings.seed, settings.sample_scale
    )
    as_user_error(lambda: task.task.distribution(settings.distribution), TaskError)
    parents = {source.kind: source}
    with context.stage("evaluation", "evaluate", task=task.name, settings=settings, parents=parents) as work:
        episodes = run_episodes(
            task,
            policy,
            episodes=settings.episodes,
            seed=seed_sequence(settings.seed, _EPISODE_STREAM),
            distribution=settings.distribution,
            num_paths=settings.num_paths,
        )
        results = episodes.summary()
        if settings.distribution == "evaluation":  # the episodes that random actions were measured in
            results |= random_record(source.manifest.results)
        _draw_paths(work.artifact, task, episodes, source, context)
        work.artifact.complete(results)
        numbers = {name: float(value) for name, value in results.items() if not isinstance(value, list)}
        work.run.log_metrics(numbers, step=0)
        work.log_files("rollouts.png", "manifest.json")
        low, high = results["success_interval"]
        context.console.say(
            f"{source.name}: success {results['success']:.3f} [{low:.3f}, {high:.3f}], time at goal "
            f"{results['time_at_goal']:.0f} of 1000 steps, over {settings.episodes} episodes."
        )
        warn_of_chance(context.console, work.artifact)
        return work.artifact


def load_policy(
    source: Artifact, device: str, teacher_samples: int = 1, seed: int = 0, sample_scale: float = 1.0
) -> tuple[CompiledTask, Policy]:
    """Return task and policy of a policy's, a student's or a teacher's artifact.

    torch is imported for networks alone.

    Args:
        source: the artifact.
        device: where a network runs.
        teacher_samples: actions that a teacher's critic chooses from; 1: the mean.
        seed: of their draws.
        sample_scale: times the teacher's standard deviation is what they are drawn with.

    Raises:
        UserError: a file is damaged, the task is not there or has another model now, or no teacher is to
            have a critic choose.
    """
    if teacher_samples > 1 and source.kind != "teacher":
        raise SettingsError(f"teacher_samples {teacher_samples}: a {source.kind} has no critic to choose.")
    if source.kind == "policy":
        from stages.onnx_policy import POLICY_FILE, OnnxPolicy

        source.verify()
        policy, task = OnnxPolicy(source.file(POLICY_FILE), task=source.manifest.task), load_task(source)
        policy.expect_model(model_sha256(task.model))
        return task, policy
    from pipeline.core.runtime import resolve_device
    from stages.network_file import load_actor, torch_policy

    trained, place = load_actor(source), resolve_device(device)
    if teacher_samples > 1:
        from stages.best_action import best_action_policy
        from stages.teacher_critic import load_critic

        critic = load_critic(source)
        policy = best_action_policy(trained, critic, teacher_samples, seed, place, scale=sample_scale)
        return trained.task, policy
    return trained.task, torch_policy(trained.actor.to(place), place)


def _draw_paths(
    artifact: Artifact, task: CompiledTask, episodes: Episodes, source: Artifact, context: StageContext
) -> None:
    """Draw the kept paths; without matplotlib say what would bring the picture."""
    if not episodes.paths:
        return
    try:
        draw_rollouts(artifact.file("rollouts.png"), task, episodes, source.name)
    except ModuleNotFoundError:
        context.console.warn('no picture without matplotlib: pip install "thousandfold[train]".')
