"""A teacher's episodes are run once and read back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.artifacts import Artifact
from pipeline.core.errors import DamagedFileError
from pipeline.core.runtime import StageContext
from stages.episode_cache import episodes_of_teacher, read_episodes, write_episodes
from stages.evaluate import Episodes
from tests.stages.tiny_runs import make_context


def episodes(seed: int = 0) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes(
        success=rng.random(5) < 0.5,
        time_at_goal=rng.random(5),
        final_distance=rng.random(5),
        closest_distance=np.array([0.1, 0.2, np.inf, 0.4, 0.5]),
        start=rng.random((5, 2)).astype(np.float32),
        goal=rng.random((5, 2)).astype(np.float32)[:, ::-1],  # as a simulator's views may be, not contiguous
        unstable=np.array([False, True, False, False, False]),
        paths=[rng.random((length, 2)) for length in (3, 7, 1)],
        other_radii={"easy": 0.5},
    )


def same(one: Episodes, other: Episodes) -> bool:
    columns = ("success", "time_at_goal", "final_distance", "closest_distance", "start", "goal", "unstable")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    paths = [np.array_equal(a, b) for a, b in zip(one.paths, other.paths, strict=True)]
    return equal and all(paths) and one.summary() == other.summary()


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return replace(make_context(tmp_path), episode_cache=tmp_path / "episodes")


def teacher(context: StageContext, content: str = "network") -> Artifact:
    artifact = context.workspace.create("teacher", task="point_u_maze", settings={})
    artifact.file("network").write_text(content)
    artifact.complete({})
    return artifact


def test_episodes_are_read_back_as_they_were(tmp_path: Path) -> None:
    written = episodes()
    write_episodes(tmp_path / "one.safetensors", written)
    read = read_episodes(tmp_path / "one.safetensors")
    assert same(read, written)
    assert read.success.dtype == bool and read.start.dtype == np.float32
    assert "success_easy" in read.summary()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_episodes(path, episodes())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=r"one\.safetensors"):
        read_episodes(path)


def test_what_was_run_once_is_not_run_again(context: StageContext) -> None:
    ours, runs = teacher(context), []

    def run() -> Episodes:
        runs.append(1)
        return episodes(len(runs))

    first = episodes_of_teacher(ours, context, run, seed=[0, 14], episodes=5)
    assert same(episodes_of_teacher(ours, context, run, seed=[0, 14], episodes=5), first)
    assert len(runs) == 1
    episodes_of_teacher(ours, context, run, seed=[1, 14], episodes=5)
    episodes_of_teacher(ours, context, run, seed=[0, 14], episodes=6)
    episodes_of_teacher(teacher(context, "other"), context, run, seed=[0, 14], episodes=5)
    assert len(runs) == 4


def test_without_a_cache_episodes_are_run_each_time(context: StageContext, tmp_path: Path) -> None:
    context = replace(context, episode_cache=None)
    ours, runs = teacher(context), []
    for _ in range(2):
        episodes_of_teacher(ours, context, lambda: runs.append(1) or episodes(), seed=[0])
    assert len(runs) == 2 and not (tmp_path / "episodes").exists()
