"""Closed-loop episodes to look at: a video, a strip of key frames, and a recording to play in the report."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import pydantic

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.scene_rendering import SceneRenderer
from thousandfold.envs.task import MOST_EPISODE_STEPS
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext, StageWork, seed_sequence
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.episodes import Policy
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.policies import load_policy
from thousandfold.stages.recordings import RECORDING_FILE, record_goals, write_recording
from thousandfold.stages.videos import (
    EpisodePainter,
    record_episodes,
    require_ffmpeg,
    write_strip,
    write_video,
)

VIDEO_FILE = "episodes.mp4"
STRIP_FILE = "strip.png"

_EPISODE_STREAM, _RECORDING_STREAM = 43, 45
_STRIP_EPISODES = 4


class RenderSettings(StageSettings):
    """Settings of `pipeline render`."""

    BEFORE: ClassVar = {"recorded_goals": 0}

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
    video: bool = pydantic.Field(
        default=True,
        description="draw a video and a strip; false: the recording alone, which needs no OpenGL",
    )
    recorded_goals: int = pydantic.Field(
        default=49,
        ge=0,
        le=256,
        description="goals on a grid, to each of which an episode is recorded, for reports to play; 0: none",
    )
    recorded_distribution: str = pydantic.Field(
        default="training", description="the task's distribution of starts and goals of the recording"
    )
    key_frames: int = pydantic.Field(
        default=6, ge=2, le=24, description="frames of an episode side by side in the strip"
    )

    @pydantic.model_validator(mode="after")
    def _check_there_is_something(self) -> RenderSettings:
        if not (self.video or self.recorded_goals):
            raise ValueError("video=false and recorded_goals=0 leave nothing to render: set one of them")
        return self


def run(settings: RenderSettings, context: StageContext, source: Artifact) -> Artifact:
    """Draw and record episodes of a policy, a student or a teacher; return the rendering's artifact.

    Raises:
        UserError: there is no OpenGL or no FFmpeg for the video that is asked for, nothing is asked for, the
            task has no such distribution, or a file is damaged.
    """
    task, policy = load_policy(source, settings.device, context.console)
    task.spec.distribution(settings.distribution)
    task.spec.distribution(settings.recorded_distribution)
    parents = {source.kind: source}
    with (
        _renderer(settings, task) as renderer,
        context.stage("rendering", "render", task=task.name, settings=settings, parents=parents) as work,
    ):
        results: dict[str, Any] = {}
        if renderer is not None:
            results |= _draw(settings, work, renderer, policy, context.console)
            context.console.say(
                f"{source.name}: {results['reached']} of {results['episodes']} episodes reached their goal; "
                f"{results['duration_s']:.1f} s of video in {work.artifact.file(VIDEO_FILE)}."
            )
        if settings.recorded_goals:
            recorded = record_goals(
                task,
                policy,
                goals=settings.recorded_goals,
                seed=seed_sequence(settings.seed, _RECORDING_STREAM),
                distribution=settings.recorded_distribution,
            )
            path = work.artifact.file(RECORDING_FILE)
            write_recording(path, task, recorded, settings.recorded_distribution)
            reached = sum(episode.success for episode in recorded)
            results |= {"recorded_goals": len(recorded), "recorded_reached": reached}
            context.console.say(
                f"{source.name}: {reached} of {len(recorded)} goals of {settings.recorded_distribution} "
                f"reached in the recording to play, {path.stat().st_size / 2**20:.1f} MiB; a report shows it."
            )
        work.artifact.complete(results)
        work.run.log_metrics(grouped(results, "video"), step=0)
        work.log_files(VIDEO_FILE, STRIP_FILE, RECORDING_FILE, "manifest.json")
        return work.artifact


def _renderer(
    settings: RenderSettings, task: CompiledTask
) -> contextlib.AbstractContextManager[SceneRenderer | None]:
    """Return what draws the video; nothing where none is asked for."""
    if not settings.video:
        return contextlib.nullcontext()
    require_ffmpeg()
    return SceneRenderer(task, settings.width, settings.height, distribution=settings.distribution)


def _draw(
    settings: RenderSettings, work: StageWork, renderer: SceneRenderer, policy: Policy, console: Console
) -> dict[str, Any]:
    """Write the video and the strip; return what they show."""
    episodes = record_episodes(
        renderer.task,
        policy,
        episodes=settings.episodes,
        seed=seed_sequence(settings.seed, _EPISODE_STREAM),
        distribution=settings.distribution,
        max_steps=settings.max_steps,
    )
    total, painter = sum(len(episode.qpos) for episode in episodes), EpisodePainter(renderer)
    with console.progress("Drawing", total, unit="frames") as progress:
        frames = write_video(work.artifact.file(VIDEO_FILE), painter, episodes, progress)
    write_strip(work.artifact.file(STRIP_FILE), painter, episodes[:_STRIP_EPISODES], settings.key_frames)
    reached, dt = sum(episode.success for episode in episodes), renderer.task.spec.control_dt_s
    return {
        "episodes": len(episodes),
        "reached": reached,
        "success": reached / len(episodes),
        "unstable_episodes": sum(episode.unstable for episode in episodes),
        "frames": frames,
        "frame_rate_hz": 1.0 / dt,
        "duration_s": frames * dt,
    }
