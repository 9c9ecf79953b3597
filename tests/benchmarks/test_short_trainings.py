"""Short trainings: what a cell runs, what it is compared with, and what it records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import harness, short_trainings
from benchmarks.short_trainings import TRAININGS, Training, describe, draw, random_policy, run_cell, told
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

TINY = Training(
    "point_u_maze",
    {
        "depth": 4,
        "width": 8,
        "num_worlds": 4,
        "unroll_steps": 30,
        "env_steps": 4 * 30 * 5,
        "updates_per_unroll": 2,
        "batch_size": 16,
        "min_rows_per_world": 20,
        "evaluate_every": 2,
        "evaluation_episodes": 4,
        "final_episodes": 4,
        "episode_steps": 20,
    },
)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_trainer_takes_what_a_cell_tells_it(name: str) -> None:
    pairs = [argument.removeprefix("--set=") for argument in told(TRAININGS[name], 3)[4:]]
    flags = {"task": TRAININGS[name].reference, "seed": 3}
    settings = resolve_settings(TrainTeacherSettings, "train_teacher", overrides=pairs, flags=flags)
    assert settings.threads == 1 and settings.env_steps == TRAININGS[name].settings["env_steps"]


def test_random_actions_fill_the_range() -> None:
    task = compile_task("reacher")
    policy = random_policy(task, 0)
    actions = np.concatenate([policy(np.zeros((500, 10)), np.zeros((500, 3))) for _ in range(4)])
    assert actions.shape == (2000, 2) and actions.dtype == np.float32
    assert actions.min() < -0.99 and actions.max() > 0.99 and abs(actions.mean()) < 0.05


@pytest.mark.pictures
@pytest.mark.slow
def test_a_cell_compares_over_the_same_episodes_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_trainings, "EPISODES", 16)
    cell = run_cell(TINY, 0, tmp_path)
    assert cell["env_steps"] == 600 and len(cell["curve"]) == 3
    assert cell["trained"]["episodes"] == cell["random"]["episodes"] == 16
    trained, random = cell["trained"], cell["random"]
    apart = trained["final_distance_interval"][1] < random["final_distance_interval"][0]
    assert cell["intervals_disjoint"] == apart
    assert cell["settings"]["episode_steps"] == 20

    monkeypatch.setattr(harness, "run_pipeline", None)  # would be called for a training
    again = run_cell(TINY, 0, tmp_path)
    assert again == cell
    assert describe("tiny seed 0", cell).startswith(
        f"tiny seed 0: final distance {trained['final_distance']:.3f}"
    )

    draw({"tiny seed 0": cell, "other task seed 0": cell}, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 600
