"""Episodes of random numbers on the point maze, and the dataset that they make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thousandfold.envs.registry import compile_task
from thousandfold.replay import dataset_writer
from thousandfold.replay.dataset_layout import file_sha256
from thousandfold.replay.goal_dataset import GoalEpisode, write_goal_dataset

TASK = compile_task("point_u_maze")


ID = "thousandfold/point_u_maze-v0"


SHARDS = [f"thousandfold/point_u_maze/shard_{index:05d}-v0" for index in range(2)]


LENGTHS = (5, 1, 8)


def make_episode(
    length: int, seed: int = 0, *, noise: float = 0.0, goal_at: int | None = None, alternatives: int = 3
) -> GoalEpisode:
    rng = np.random.default_rng(seed)
    rows = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return GoalEpisode(
        observation=rows(length + 1, 4),
        achieved_goal=rows(length + 1, 2),
        desired_goal=rows(1, 2)[0],
        action=np.clip(rows(length, 2), -1, 1),
        teacher_mean=rows(length + 1, 2),
        teacher_log_std=rows(length + 1, 2),
        alternative_goal=rows(length + 1, alternatives, 2),
        alternative_mean=rows(length + 1, alternatives, 2),
        alternative_log_std=rows(length + 1, alternatives, 2),
        success=np.arange(length + 1) == (-1 if goal_at is None else goal_at),
        terminated=False,
        truncated=True,
        distribution="evaluation",
        action_noise=noise,
    )


def make_episodes() -> list[GoalEpisode]:
    goals = (3, None, 0)  # the last one starts at its goal and leaves it: no success
    return [
        make_episode(length, i, noise=0.2 * (i == 2), goal_at=goal)
        for i, (length, goal) in enumerate(zip(LENGTHS, goals, strict=True))
    ]


def write(root: Path, *arguments) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dataset_writer, "_SHARD_EPISODES", 2)
        write_goal_dataset(root, *arguments)


def rows_file(root: Path, shard: int = 0) -> Path:
    return root / SHARDS[shard] / "data" / "main_data.hdf5"


def record_hash(rows: Path) -> None:
    """Let a shard's metadata say that its rows are as they are, so that only their content can tell."""
    path = rows.with_name("metadata.json")
    metadata = json.loads(path.read_text())
    metadata["thousandfold"]["sha256"] = file_sha256(rows)
    path.write_text(json.dumps(metadata))
