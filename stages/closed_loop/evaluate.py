"""`pipeline evaluate`: fresh closed-loop episodes of a policy, a student or a teacher."""

from __future__ import annotations

import pydantic

from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.pictures import artifact_facts
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.pipeline.settings import MOST_EPISODES
from thousandfold.stages import robustness
from thousandfold.stages.episodes import SamplingSettings, draw_rollouts, run_episodes
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.policies import load_policy
from thousandfold.stages.random_baseline import random_record, warn_of_chance

_EPISODE_STREAM = 41


class EvaluateSettings(SamplingSettings):
    """Settings of `pipeline evaluate`."""

    episodes: int = pydantic.Field(default=1024, ge=1, le=MOST_EPISODES, description="fresh episodes to run")
    distribution: str = pydantic.Field(
        default="evaluation", description="the task's distribution of starts and goals"
    )
    num_paths: int = pydantic.Field(
        default=32, ge=0, le=1024, description="episodes whose path is drawn, for tasks with goals in x and y"
    )
    robustness: bool = pydantic.Field(
        default=False, description="also measure the success when one factor at a time differs from the model"
    )
    robustness_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="fresh episodes of each level of a factor"
    )


def run(settings: EvaluateSettings, context: StageContext, source: Artifact) -> Artifact:
    """Evaluate a policy, a student or a teacher on fresh episodes and return the evaluation's artifact.

    Raises:
        UserError: the task has no such distribution, or the file is damaged.
    """
    task, policy = load_policy(
        source,
        settings.device,
        context.console,
        settings.teacher_samples,
        settings.seed,
        settings.sample_scale,
    )
    task.spec.distribution(settings.distribution)
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
        try:
            if episodes.paths:
                draw_rollouts(
                    work.artifact.file("rollouts.png"), task, episodes, source.kind, artifact_facts(source)
                )
            if settings.robustness:
                levels = robustness.measure_robustness(
                    policy, task, settings.robustness_episodes, settings.seed, context.console
                )
                if levels is not None:
                    results["robustness"] = robustness.first_failures(levels)
                    robustness.keep(work.artifact, levels, artifact_facts(source))
        except ModuleNotFoundError:
            context.console.warn('no picture without matplotlib: pip install "thousandfold[train]".')
        work.artifact.complete(results)
        work.run.log_metrics(grouped(results, "eval"), step=0)
        work.log_files("rollouts.png", *robustness.FILES, "manifest.json")
        low, high = results["success_interval"]
        goals = f"{results['goals_held']:.3f} of all goals were held, " if "goals_held" in results else ""
        context.console.say(
            f"{source.name}: success {results['success']:.3f} [{low:.3f}, {high:.3f}]; {goals}"
            f"{results['touched']:.3f} touched the goal, {results['at_goal_at_end']:.3f} were there at the "
            f"end; time at goal {results['time_at_goal']:.0f} of 1000 steps, over {settings.episodes} "
            "episodes."
        )
        warn_of_chance(context.console, work.artifact)
        return work.artifact
