"""Episodes as a video and a strip: what is recorded, how many frames are written, and who made it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("imageio_ffmpeg")
import imageio.v3
from PIL import Image

from tests.envs.opengl_here import needs_opengl
from tests.stages.policy_file.handmade_policy import policy_artifact
from tests.stages.tiny_runs import make_context
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures import opengl
from thousandfold.envs.pictures.scene_rendering import SceneRenderer
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import EarlyEnd, Term
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.cli import cli
from thousandfold.stages import videos
from thousandfold.stages.closed_loop import render
from thousandfold.stages.closed_loop.render import STRIP_FILE, VIDEO_FILE, RenderSettings
from thousandfold.stages.recordings import RECORDING_FILE
from thousandfold.stages.videos import (
    EpisodePainter,
    RecordedEpisode,
    VideoError,
    record_episodes,
    write_strip,
    write_video,
)

TASK = compile_task("point_u_maze")
WIDTH, HEIGHT = 96, 64


def towards_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(5 * (goal - observation[:, :2]), -1, 1)


def still(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 2), np.float32)


@pytest.fixture
def painter() -> Any:
    with SceneRenderer(TASK, WIDTH, HEIGHT) as renderer:
        yield EpisodePainter(renderer)


def recorded(steps: int) -> RecordedEpisode:
    """Return an episode that moves along x into its goal with its last step."""
    places = np.stack([np.linspace(1.0, 3.0, steps + 1), np.ones(steps + 1)], axis=1)
    return RecordedEpisode(places, places, np.array([3.0, 1.0]), places[:, 0] > 2.9, unstable=False)


# -- recording ----------------------------------------------------------------------------------------


def test_an_episode_holds_its_start_and_a_row_for_each_step() -> None:
    episodes = record_episodes(TASK, towards_goal, episodes=6, seed=0, distribution="training")
    for episode in episodes:
        assert episode.qpos.shape == (101, 2) and episode.achieved.shape == (101, 2)
        assert np.allclose(episode.qpos, episode.achieved, atol=1e-6)
        within = np.linalg.norm(episode.achieved - episode.goal, axis=1) < 0.3
        assert np.array_equal(episode.at_goal, within)
        assert episode.success == within[1:].any()
    assert 0 < sum(episode.success for episode in episodes) < 6  # not around the wall


def test_a_success_may_have_to_be_held() -> None:
    episode = recorded(5)
    there = np.array([True, False, True, True, False, True])
    for hold_steps, success in ((1, True), (2, True), (3, False)):
        held = dataclasses.replace(episode, at_goal=there, hold_steps=hold_steps)
        assert held.success is success
        assert not dataclasses.replace(held, unstable=True).success


def test_max_steps_cuts_an_episode_off() -> None:
    (episode,) = record_episodes(TASK, still, episodes=1, seed=0, max_steps=7)
    assert len(episode.qpos) == 8
    (whole,) = record_episodes(TASK, still, episodes=1, seed=0, max_steps=1000)
    assert len(whole.qpos) == 101


def test_the_same_seed_gives_the_same_starts_and_goals() -> None:
    one, other = (record_episodes(TASK, policy, episodes=3, seed=5) for policy in (still, towards_goal))
    for first, second in zip(one, other, strict=True):
        assert np.array_equal(first.qpos[0], second.qpos[0]) and np.array_equal(first.goal, second.goal)


def test_an_episode_that_ends_early_ends_there() -> None:
    left = EarlyEnd(Term("qpos", "x"), low=-10.0, high=1.3)  # the wall stops the point at 1.35
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), early_end=(left,)))

    def to_the_right(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(observation), 1))

    episodes = record_episodes(task, to_the_right, episodes=4, seed=0)
    for x in (episode.qpos[:, 0] for episode in episodes):
        assert 2 < len(x) < 101 and x[-1] > 1.3 and (x[:-1] <= 1.3).all()


def test_a_state_after_divergence_is_left_out_and_counts_as_a_failure() -> None:
    def poison(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        action = still(observation, goal)
        action[0] = np.nan
        return action

    broken, sound = record_episodes(TASK, poison, episodes=2, seed=0, max_steps=5)
    assert broken.unstable and not broken.success and len(broken.qpos) == 1
    assert not sound.unstable and len(sound.qpos) == 6


# -- pictures -----------------------------------------------------------------------------------------


@needs_opengl
def test_the_video_has_a_frame_a_step_in_real_time(tmp_path: Path, painter: EpisodePainter) -> None:
    path = tmp_path / "film.mp4"
    assert write_video(path, painter, [recorded(5), recorded(8)]) == 6 + 9
    frames = imageio.v3.imread(path)
    assert frames.shape == (15, HEIGHT, WIDTH, 3)
    assert imageio.v3.immeta(path)["fps"] == 10.0  # the control rate
    for index, step, number in ((0, 0, 1), (5, 5, 1), (6, 0, 2)):
        drawn = np.asarray(painter.frame(recorded(5), step, f"episode {number} of 2")).astype(int)
        assert np.abs(frames[index].astype(int) - drawn).mean() < 6, index
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@needs_opengl
def test_the_strip_has_key_frames_side_by_side_and_a_row_an_episode(
    tmp_path: Path, painter: EpisodePainter
) -> None:
    write_strip(tmp_path / "strip.png", painter, [recorded(9), recorded(4)], key_frames=4)
    strip = Image.open(tmp_path / "strip.png")
    assert strip.size == (4 * 48 + 3 * 4, 2 * 32 + 4)
    pixels = np.asarray(strip).astype(int)
    last = painter.frame(recorded(9), 9).resize((48, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels[:32, 3 * 52 :], np.asarray(last))
    assert (pixels[:, 48:52] == 255).all()  # the gap between two frames


@needs_opengl
def test_the_caption_tells_time_and_distance(painter: EpisodePainter) -> None:
    episode = recorded(4)
    assert painter._caption(episode, 0) == "0.0 s   2.00 m to the goal"
    assert painter._caption(episode, 1) == "0.1 s   1.50 m to the goal"
    assert painter._caption(episode, 4) == "0.4 s   at the goal"
    plain = painter.renderer.draw(episode.qpos[0], episode.goal, trail=episode.achieved[:1])
    changed = (np.asarray(painter.frame(episode, 0)) != plain).any(-1)
    assert changed[: HEIGHT // 2, : WIDTH // 8].any() and changed[HEIGHT // 2 :, : WIDTH // 8].any()


@needs_opengl
@pytest.mark.parametrize(("places", "outcome"), [(4, "reached"), (3, "missed")])
def test_every_frame_is_labelled_reached_or_missed(
    painter: EpisodePainter, monkeypatch: pytest.MonkeyPatch, places: int, outcome: str
) -> None:
    whole, written = recorded(4), list[str]()
    episode = dataclasses.replace(
        whole,
        qpos=whole.qpos[: places + 1],
        achieved=whole.achieved[: places + 1],
        at_goal=whole.at_goal[: places + 1],
    )
    write = painter._write
    monkeypatch.setattr(
        painter, "_write", lambda image, text, *a, **k: (written.append(text), write(image, text, *a, **k))
    )
    for step in range(places + 1):
        painter.frame(episode, step, "episode 1 of 2")
    assert written[::2] == [f"episode 1 of 2: {outcome}"] * (places + 1)


@needs_opengl
def test_a_video_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, painter: EpisodePainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = painter.renderer.draw

    def fail_at_the_third(*arguments: Any, trail: np.ndarray, **options: Any) -> np.ndarray:
        if len(trail) == 3:
            raise MemoryError("no more")
        return draw(*arguments, trail=trail, **options)

    monkeypatch.setattr(painter.renderer, "draw", fail_at_the_third)
    with pytest.raises(MemoryError):
        write_video(tmp_path / "film.mp4", painter, [recorded(5)])
    assert not list(tmp_path.iterdir())


@needs_opengl
def test_a_video_with_lost_frames_is_refused(
    tmp_path: Path, painter: EpisodePainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos.imageio_ffmpeg, "count_frames_and_secs", lambda path: (4, 0.4))
    with pytest.raises(VideoError, match="wrote 4 of 6 frames"):
        write_video(tmp_path / "film.mp4", painter, [recorded(5)])
    assert not list(tmp_path.iterdir())


# -- the stage ----------------------------------------------------------------------------------------

SMALL = RenderSettings(episodes=2, width=WIDTH, height=HEIGHT, max_steps=6, key_frames=3, recorded_goals=4)


@pytest.fixture
def policy(tmp_path: Path) -> Artifact:
    return policy_artifact(tmp_path)


def run_stage(policy: Artifact, **changes: Any) -> Artifact:
    settings = RenderSettings(**(SMALL.model_dump() | changes))
    return render.run(settings, make_context(policy.path.parents[1]), policy)


@needs_opengl
def test_a_rendering_knows_what_it_shows(policy: Artifact) -> None:
    made = run_stage(policy, distribution="training")
    made.verify()
    assert made.kind == "rendering"
    assert set(made.manifest.files) == {VIDEO_FILE, STRIP_FILE, RECORDING_FILE}
    assert made.manifest.parents["policy"].hash == policy.manifest.hash
    assert imageio.v3.imread(made.file(VIDEO_FILE)).shape == (2 * 7, HEIGHT, WIDTH, 3)
    assert Image.open(made.file(STRIP_FILE)).size == (3 * 48 + 2 * 4, 2 * 32 + 4)
    results = made.manifest.results
    assert (results["episodes"], results["frames"], results["frame_rate_hz"]) == (2, 14, 10.0)
    assert results["duration_s"] == pytest.approx(1.4) and results["success"] == results["reached"] / 2
    recorded = json.loads(made.file(RECORDING_FILE).read_text())["episodes"]
    assert results["recorded_goals"] == len(recorded) <= 4
    assert results["recorded_reached"] == sum(each["success_s"] is not None for each in recorded)


@needs_opengl
def test_the_strip_shows_the_first_four_of_many_episodes(policy: Artifact) -> None:
    made = run_stage(policy, episodes=6, max_steps=1)
    assert Image.open(made.file(STRIP_FILE)).size[1] == 4 * 32 + 3 * 4


def refusal(policy: Artifact, **changes: Any) -> str:
    """Return the error's message, after which the workspace holds nothing but the policy."""
    with pytest.raises(UserError) as caught:
        run_stage(policy, **changes)
    assert [path.name for path in policy.path.parent.iterdir()] == [policy.name]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_opengl_it_says_what_to_install(policy: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for there in ("_has_egl", "_has_osmesa"):
        monkeypatch.setattr(opengl, there, lambda: False)
    message = refusal(policy)
    assert "neither egl nor osmesa can be opened here" in message
    assert "apt install libegl1 libgl1-mesa-dri" in message and "libosmesa6" in message


def test_a_recording_alone_needs_no_opengl_and_no_ffmpeg(
    policy: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    monkeypatch.setattr(render, "require_ffmpeg", lambda: pytest.fail("no video is asked for"))
    made = run_stage(policy, video=False)
    assert list(made.manifest.files) == [RECORDING_FILE] and "frames" not in made.manifest.results


@needs_opengl
def test_a_video_alone_is_not_recorded(policy: Artifact) -> None:
    made = run_stage(policy, recorded_goals=0, episodes=1, max_steps=1)
    assert set(made.manifest.files) == {VIDEO_FILE, STRIP_FILE}


def test_nothing_to_render_is_refused(policy: Artifact) -> None:
    with pytest.raises(ValueError, match="leave nothing to render"):
        RenderSettings(video=False, recorded_goals=0)
    assert "no episode distribution 'elsewhere'" in refusal(
        policy, video=False, recorded_distribution="elsewhere"
    )


def test_without_ffmpeg_it_says_so(policy: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.\nInstall ffmpeg on your system.")

    monkeypatch.setattr(videos.imageio_ffmpeg, "get_ffmpeg_exe", missing)
    assert refusal(policy).startswith("No ffmpeg exe could be found.")


def test_an_unknown_distribution_is_refused(policy: Artifact) -> None:
    assert "no episode distribution 'elsewhere'; it has evaluation" in refusal(
        policy, distribution="elsewhere"
    )


# -- the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "width=101"), "width must be a multiple of 2"),
        (("--episodes", "0"), "episodes must be greater than or equal to 1"),
        (("--policy", "a", "--teacher", "b"), "Give one of --policy, --teacher, not several."),
        (("--set", "key_frame=3"), "did you mean 'key_frames'?"),
        ((), "make one with `pipeline train-teacher`"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(cli, ["--workspace", str(tmp_path), "render", *arguments])
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert words in line and "Traceback" not in result.output
