"""Videos of a teacher while it trains: when they are drawn, and that they change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("imageio_ffmpeg")

from tests.envs.opengl_here import needs_opengl
from tests.stages.tiny_runs import make_context
from tests.stages.train_teacher.teacher_runs import (
    assert_same_tensors,
    change,
    checkpoint_of,
    interrupt_after,
    without_time,
)
from thousandfold.envs.pictures import opengl
from thousandfold.ground.errors import StoppedByUser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.stages.networks import NETWORK_FILE
from thousandfold.stages.train_teacher import train_teacher, training_videos
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

SHORT = change(episode_steps=5)  # four evaluations, after 360, 720, 1080 and 1320 steps
FILMED = change(SHORT, video_every=2)
EXPECTED = {"videos/step-000000000720.mp4", "videos/step-000000001320.mp4"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_videos, "_WIDTH", 64)
    monkeypatch.setattr(training_videos, "_HEIGHT", 64)


def videos(artifact: Artifact) -> set[str]:
    return {name for name in artifact.manifest.files if name.startswith("videos/")}


def assert_learned_alike(one: Artifact, other: Artifact) -> None:
    networks = [load_tensors(artifact.file(NETWORK_FILE))[0] for artifact in (one, other)]
    assert_same_tensors(*networks)
    histories: list[Any] = [checkpoint_of(artifact).load().progress["history"] for artifact in (one, other)]
    assert list(map(without_time, histories[0])) == list(map(without_time, histories[1]))


@needs_opengl
def test_a_video_every_second_evaluation_changes_nothing_that_is_learned(
    tmp_path: Path, unbroken: Callable[[TrainTeacherSettings], Artifact]
) -> None:
    teacher = train_teacher.run(FILMED, make_context(tmp_path))
    assert videos(teacher) == EXPECTED
    assert all(teacher.file(name).read_bytes()[4:8] == b"ftyp" for name in EXPECTED)
    plain = unbroken(SHORT)
    assert videos(plain) == set()
    assert_learned_alike(teacher, plain)


@pytest.mark.slow
@needs_opengl
def test_a_training_that_goes_on_has_the_videos_of_one_that_never_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: Callable[[TrainTeacherSettings], Artifact],
) -> None:
    context = make_context(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, context, "stop", 7, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(FILMED, context)
    context = make_context(tmp_path)
    (stopped,) = Workspace(tmp_path).artifacts("teacher")
    teacher = train_teacher.run(FILMED, context, stopped)
    assert videos(teacher) == EXPECTED
    assert_learned_alike(teacher, unbroken(SHORT))


def test_without_opengl_the_training_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for there in ("_has_egl", "_has_osmesa"):
        monkeypatch.setattr(opengl, there, lambda: False)
    teacher = train_teacher.run(change(SHORT, video_every=1), make_context(tmp_path))
    assert teacher.is_completed and videos(teacher) == set()
    assert capsys.readouterr().out.count("No videos are made: drawing needs OpenGL") == 1
