"""Closed-loop episodes to look at: a video in real time and a strip of key frames, with the goal drawn."""

from __future__ import annotations

import pydantic

from thousandfold.envs.pictures.scene_rendering import SceneRenderer
from thousandfold.envs.task import MOST_EPISODE_STEPS
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.policies import load_policy
from thousandfold.stages.videos import (
    EpisodePainter,
    record_episodes,
    require_ffmpeg,
    write_strip,
    write_video,
)

VIDEO_FILE = "episodes.mp4"
STRIP_FILE = "strip.png"

_EPISODE_STREAM = 43
_STRIP_EPISODES = 4


class RenderSettings(StageSettings):
    """Settings of `pipeline render`."""

    episodes: int = pydantic.Field(default=3, ge=1, le=100, description="episodes to draw, one after another")
    distribution: str = pydantic.Field(
        default="evaluation", description="the task's distribution of starts and goals"
    )
    max_steps: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=MOST_EPISODE_STEPS,
        description="control steps of an episode to draw; null: to its end",
    )
    width: int = pydantic.Field(
        default=640, ge=64, le=3840, multiple_of=2, description="width of the video, in pixels"
    )
    height: int = pydantic.Field(
        default=480, ge=64, le=2160, multiple_of=2, description="height of the video, in pixels"
    )
    key_frames: int = pydantic.Field(
        default=6, ge=2, le=24, description="frames of an episode side by side in the strip"
    )


def run(settings: RenderSettings, context: StageContext, source: Artifact) -> Artifact:
    """Draw episodes of a policy, a student or a teacher and return the rendering's artifact.

    Raises:
        UserError: there is no OpenGL or no FFmpeg, the task has no such distribution, or a file is damaged.
    """
    task, policy = load_policy(source, settings.device, context.console)
    task.spec.distribution(settings.distribution)
    require_ffmpeg()
    opened = SceneRenderer(task, settings.width, settings.height, distribution=settings.distribution)
    parents = {source.kind: source}
    with (
        opened as renderer,
        context.stage("rendering", "render", task=task.name, settings=settings, parents=parents) as work,
    ):
        episodes = record_episodes(
            task,
            policy,
            episodes=settings.episodes,
            seed=seed_sequence(settings.seed, _EPISODE_STREAM),
            distribution=settings.distribution,
            max_steps=settings.max_steps,
        )
        total, painter = sum(len(episode.qpos) for episode in episodes), EpisodePainter(renderer)
        with context.console.progress("Drawing", total, unit="frames") as progress:
            frames = write_video(work.artifact.file(VIDEO_FILE), painter, episodes, progress)
        write_strip(work.artifact.file(STRIP_FILE), painter, episodes[:_STRIP_EPISODES], settings.key_frames)
        reached = sum(episode.success for episode in episodes)
        results = {
            "episodes": len(episodes),
            "reached": reached,
            "success": reached / len(episodes),
            "unstable_episodes": sum(episode.unstable for episode in episodes),
            "frames": frames,
            "frame_rate_hz": 1.0 / task.spec.control_dt_s,
            "duration_s": frames * task.spec.control_dt_s,
        }
        work.artifact.complete(results)
        work.run.log_metrics(grouped(results, "video"), step=0)
        work.log_files(VIDEO_FILE, STRIP_FILE, "manifest.json")
        context.console.say(
            f"{source.name}: {reached} of {len(episodes)} episodes reached their goal; "
            f"{results['duration_s']:.1f} s of video in {work.artifact.file(VIDEO_FILE)}."
        )
        return work.artifact
