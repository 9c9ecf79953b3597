"""Closed-loop episodes as videos and strips of key frames, each frame labelled reached or missed."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.scene_rendering import SceneRenderer, Shape, world_shape
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import UserError
from thousandfold.ground.files import atomic_file
from thousandfold.ground.picture_style import INK, MISSED, REACHED
from thousandfold.ground.runs import every_goal_held
from thousandfold.pipeline.console import Progress
from thousandfold.stages.episodes import Policy, steps

_STRIP_GAP_PIXELS = 4
_QUALITY = 6  # of 10: a rate factor of 20 for H.264, hardly to be told from lossless
_PAPER, _GREEN = (255, 255, 255, 205), "#14824A"


class VideoError(UserError):
    """FFmpeg cannot write a video here: there is none, or it failed."""


def require_ffmpeg() -> None:
    """Raise VideoError where there is no FFmpeg to write videos with."""
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise VideoError(" ".join(str(error).split())) from error


@dataclass(frozen=True)
class RecordedEpisode:
    """What there is to draw of an episode: its start, then the state after each control step.

    Attributes:
        qpos: (steps + 1, nq) joint positions.
        achieved: (steps + 1, goal_dim).
        goal: (steps + 1, goal_dim) what was commanded; (goal_dim,) the same throughout.
        at_goal: (steps + 1,) bool, within the success region.
        unstable: the physics diverged; the state that it led to is left out.
        hold_steps: states in a row at a goal that make it a success.
        shape: of the episode's model, as `world_shape` returns it; None: the task's.
        cut: it ended early, where several goals were to be commanded.
    """

    qpos: np.ndarray
    achieved: np.ndarray
    goal: np.ndarray
    at_goal: np.ndarray
    unstable: bool
    hold_steps: int = 1
    shape: Shape | None = None
    cut: bool = False

    @property
    def goals(self) -> np.ndarray:
        """What was commanded in each state, (steps + 1, goal_dim)."""
        return np.broadcast_to(self.goal, self.achieved.shape)

    @property
    def success(self) -> bool:
        """Whether every goal was held for long enough and the physics never diverged."""
        held = every_goal_held(self.at_goal[1:], self.goals[1:], self.hold_steps)
        return held and not self.unstable and not self.cut

    @property
    def outcome(self) -> str:
        """``reached`` or ``missed``, as frames are labelled."""
        return "reached" if self.success else "missed"


class Starts(NamedTuple):
    """Where episodes start, and what they are commanded, as `CompiledTask.sample_start` draws it."""

    qpos: np.ndarray
    """(episodes, nq)"""
    qvel: np.ndarray
    """(episodes, nv)"""
    goals: np.ndarray
    """(episodes, goal_dim)"""


def record_episodes(
    task: CompiledTask,
    policy: Policy,
    *,
    episodes: int,
    seed: int | np.random.SeedSequence,
    distribution: str = "evaluation",
    max_steps: int | None = None,
    starts: Starts | None = None,
) -> list[RecordedEpisode]:
    """Run episodes to their end, or for `max_steps` control steps, and keep what can be drawn.

    `starts` are those of the episodes, each with one goal throughout; None: the seed draws them.
    """
    simulator = CpuSimulator(task, episodes, seed=seed, distribution=distribution)
    if starts is not None:
        simulator.set_state(starts.qpos, starts.qvel)
        simulator.set_goal(starts.goals)
    rows: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(episodes)]
    unstable, cut = np.zeros((2, episodes), bool)

    def keep(worlds: np.ndarray) -> None:
        qpos = simulator.qpos
        for world in np.flatnonzero(worlds).tolist():
            shown = simulator.achieved_goal[world].copy(), simulator.desired_goal[world].copy()
            rows[world].append((qpos[world], *shown))

    shapes = [world_shape(simulator.world_model(world)) for world in range(episodes)]
    keep(~unstable)
    for step in itertools.islice(steps(simulator, policy), max_steps):
        unstable |= step.unstable
        cut |= step.running & step.result.terminated & bool(task.later_goals)
        keep(step.running & ~step.unstable)
    found = []
    for kept, diverged, shape, fell in zip(rows, unstable.tolist(), shapes, cut.tolist(), strict=True):
        qpos, achieved, goal = (np.stack(column) for column in zip(*kept, strict=True))
        at_goal = task.is_success(achieved, goal)
        held = task.spec.hold_steps
        found.append(RecordedEpisode(qpos, achieved, goal, at_goal, diverged, held, shape, fell))
    return found


class EpisodePainter:
    """Draws frames of recorded episodes.

    At the bottom of each frame stand its time and the distance to the goal; at its top which episode it is,
    and whether that episode reached its goal or missed it.
    """

    def __init__(self, renderer: SceneRenderer) -> None:
        self.renderer = renderer
        self._unit = renderer.task.distance_unit(renderer.task.spec.success[0])
        self._font = ImageFont.load_default(max(10, round(renderer.height / 26)))

    def frame(self, episode: RecordedEpisode, step: int, name: str = "") -> Image.Image:
        """Return the world after `step` control steps, 0 being the start; `name` goes before the outcome."""
        picture = self.renderer.draw(
            episode.qpos[step],
            episode.goals[step],
            reached=bool(episode.at_goal[step]),
            trail=episode.achieved[: step + 1],
            shape=episode.shape,
        )
        image = Image.fromarray(picture)
        outcome = episode.outcome if not name else f"{name}: {episode.outcome}"
        self._write(image, outcome, REACHED if episode.success else MISSED, top=True)
        self._write(image, self._caption(episode, step), _GREEN if episode.at_goal[step] else INK)
        return image

    def _caption(self, episode: RecordedEpisode, step: int) -> str:
        task = self.renderer.task
        seconds = f"{step * task.spec.control_dt_s:.1f} s"
        if episode.at_goal[step]:
            return f"{seconds}   at the goal"
        distance = float(task.goal_distance(episode.achieved[step], episode.goals[step]))
        return f"{seconds}   {distance:.2f} {self._unit}".rstrip() + " to the goal"

    def _write(self, image: Image.Image, text: str, colour: str, *, top: bool = False) -> None:
        """Write a line at the left, on a patch of paper that lets a little through."""
        brush = ImageDraw.Draw(image, "RGBA")
        inset = round(self._font.size / 2) if isinstance(self._font, ImageFont.FreeTypeFont) else 6
        place, anchor = (2 * inset, 2 * inset if top else image.height - 2 * inset), "lt" if top else "ls"
        left, above, right, below = brush.textbbox(place, text, font=self._font, anchor=anchor)
        patch = (left - inset, above - inset, right + inset, below + inset)
        brush.rounded_rectangle(patch, radius=inset, fill=_PAPER)
        brush.text(place, text, fill=colour, font=self._font, anchor=anchor)


def write_video(
    path: Path, painter: EpisodePainter, episodes: Sequence[RecordedEpisode], progress: Progress | None = None
) -> int:
    """Write the episodes one after another as MP4, a frame a control step, in real time.

    The file appears complete or not at all.

    Returns:
        How many frames were written.

    Raises:
        VideoError: FFmpeg failed.
    """
    try:
        return _write_video(path, painter, episodes, progress)
    except OSError as error:  # imageio's has FFmpeg's own words at its end
        last = str(error).strip().splitlines()[-1:]
        raise VideoError(" ".join([f"FFmpeg could not write {path}:", *last])) from error


def _write_video(
    path: Path, painter: EpisodePainter, episodes: Sequence[RecordedEpisode], progress: Progress | None
) -> int:
    frames, renderer = 0, painter.renderer
    rate: Any = 1.0 / renderer.task.spec.control_dt_s
    with atomic_file(path) as temporary:
        # FFmpeg's process: it takes None once, and then the bytes of frames.
        writer: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(temporary),
            (renderer.width, renderer.height),
            fps=rate,
            codec="libx264",
            quality=_QUALITY,
            macro_block_size=2,
            output_params=["-movflags", "+faststart"],  # plays before it is loaded
            ffmpeg_log_level="error",
        )
        writer.send(None)
        try:
            for number, episode in enumerate(episodes, start=1):
                name = f"episode {number} of {len(episodes)}"
                for step in range(len(episode.qpos)):
                    writer.send(painter.frame(episode, step, name).tobytes())
                    frames += 1
                    if progress is not None:
                        progress.advance()
        finally:
            writer.close()
        if (written := imageio_ffmpeg.count_frames_and_secs(str(temporary))[0]) != frames:
            raise OSError(f"it wrote {written} of {frames} frames")
    return frames


def write_strip(
    path: Path, painter: EpisodePainter, episodes: Sequence[RecordedEpisode], key_frames: int
) -> None:
    """Write key frames of an episode side by side as PNG, half as large as the video, a row an episode.

    They are evenly spaced from its start to its end. The file appears complete or not at all.
    """
    width, height = painter.renderer.width // 2, painter.renderer.height // 2
    size = (_spread(key_frames, width), _spread(len(episodes), height))
    strip = Image.new("RGB", size, "white")
    for row, episode in enumerate(episodes):
        steps = np.linspace(0, len(episode.qpos) - 1, key_frames).round().astype(int)
        for column, step in enumerate(steps):
            small = painter.frame(episode, int(step)).resize((width, height), Image.Resampling.LANCZOS)
            strip.paste(small, (_spread(column + 1, width) - width, _spread(row + 1, height) - height))
    with atomic_file(path) as temporary:
        strip.save(temporary, optimize=True)


def _spread(count: int, size: int) -> int:
    """Return the pixels that so many tiles take with gaps between them."""
    return count * size + (count - 1) * _STRIP_GAP_PIXELS
