"""A teacher's episodes are run once, and read back as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stages.tiny_runs import make_context
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import save_tensors
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.stages import episodes as episodes_module
from thousandfold.stages.distill.retention import TeacherEpisodes, read_episodes, write_episodes
from thousandfold.stages.episodes import Episodes, EpisodeStream

TASK = compile_task("point_u_maze", {"evaluation": "training", "episode_steps": 30})
COLUMNS = ("success", "time_at_goal", "final_distance", "closest_distance", "start", "goal", "unstable")


class Straight:
    """Accelerates towards the goal; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.clip(2 * (goal - observation[:, :2]) - observation[:, 2:4], -1, 1).astype(np.float32)


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes_module, "MAX_WORLDS", 8)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return replace(make_context(tmp_path), episode_cache=tmp_path / "episodes")


def make_teacher(context: StageContext, content: str = "network") -> Artifact:
    artifact = context.workspace.create("teacher", task="point_u_maze", settings={})
    artifact.file("network").write_text(content)
    artifact.complete({})
    return artifact


@pytest.fixture
def teacher(context: StageContext) -> Artifact:
    return make_teacher(context)


def same(one: Episodes, other: Episodes) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS) and (
        one.summary() == other.summary()
    )


@pytest.fixture
def run(context: StageContext, teacher: Artifact) -> Callable[..., tuple[Episodes, int]]:
    def first(
        episodes: int, seed: int = 14, of: Artifact = teacher, within: StageContext = context
    ) -> tuple[Episodes, int]:
        """Return the first episodes of a new stream, and how often the policy was asked."""
        policy = Straight()
        stream = TeacherEpisodes(of, within, TASK, policy, seed=seed_sequence(0, seed))
        return stream.first(episodes), policy.calls

    return first


def test_what_was_run_once_is_read_as_it_was(run: Callable[..., tuple[Episodes, int]]) -> None:
    expected = EpisodeStream(TASK, Straight(), seed=seed_sequence(0, 14)).first(24)
    assert 0 < expected.success.mean() < 1
    ran, calls = run(24)
    read, none = run(24)
    assert (calls, none) == (3 * 30, 0)
    assert same(ran, expected) and same(read, expected)
    assert read.success.dtype == bool


def test_more_episodes_go_on_after_those_that_are_there(run: Callable[..., tuple[Episodes, int]]) -> None:
    expected = EpisodeStream(TASK, Straight(), seed=seed_sequence(0, 14)).first(32)
    assert run(16)[1] == 2 * 30
    longer, calls = run(32)
    assert calls == 2 * 30, "the first two rounds were read"
    assert same(longer, expected)


def test_other_episodes_are_run(
    run: Callable[..., tuple[Episodes, int]], context: StageContext, tmp_path: Path
) -> None:
    run(8)
    assert run(8, seed=15)[1] == 30
    assert run(8, of=make_teacher(context, "another"))[1] == 30
    assert run(4)[1] == 30, "fewer worlds at a time have other starts"
    within = replace(context, episode_cache=tmp_path / "elsewhere")
    assert run(8, within=within)[1] == 30


def test_without_a_cache_episodes_are_run_each_time(
    run: Callable[..., tuple[Episodes, int]], context: StageContext, tmp_path: Path
) -> None:
    uncached = replace(context, episode_cache=None)
    assert [run(8, within=uncached)[1] for _ in range(2)] == [30, 30]
    assert not (tmp_path / "episodes").exists()


def test_how_many_goals_were_held_is_kept_too(tmp_path: Path) -> None:
    task = CompiledTask(replace(get_task("point_u_maze"), episode_steps=30, resample_every=10))
    expected = EpisodeStream(task, Straight(), seed=0, distribution="training").first(8)
    write_episodes(tmp_path / "one.safetensors", expected)
    assert read_episodes(tmp_path / "one.safetensors").summary() == expected.summary()
    assert "goals_held" in expected.summary()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_episodes(path, EpisodeStream(TASK, Straight(), seed=0).first(8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=r"one\.safetensors"):
        read_episodes(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    save_tensors(tmp_path / "one.safetensors", {"weights": torch.zeros(2)}, {})
    with pytest.raises(DamagedFileError, match=r"one\.safetensors holds no episodes"):
        read_episodes(tmp_path / "one.safetensors")


def test_a_damaged_round_is_run_again_and_written(
    run: Callable[..., tuple[Episodes, int]], tmp_path: Path
) -> None:
    expected, _ = run(16)
    one, _ = sorted((tmp_path / "episodes").iterdir())
    whole = one.read_bytes()
    one.write_bytes(whole[:200])
    again, calls = run(16)
    assert calls == 30 and same(again, expected)
    assert one.read_bytes() == whole and run(16)[1] == 0
