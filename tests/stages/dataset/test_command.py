"""`pipeline dataset` on a workspace with two datasets of two shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.test_cli import invoke
from tests.stages.tiny_runs import make_context
from tests.stages.untrained_teacher import make_teacher
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:

    context = make_context(tmp_path_factory.mktemp("datasets"))
    settings = GenerateDatasetSettings(
        episodes=4, noise_levels=(0.0,), alternative_goals=0, device="cpu", threads=1
    )
    for seed in (0, 1):
        generate_dataset.run(
            settings.model_copy(update={"seed": seed}),
            context,
            make_teacher(context) if seed == 0 else context.workspace.newest("teacher"),
        )
    return context.workspace.root


def test_info_shows_every_shard(workspace: Path):
    result = invoke(workspace, "dataset", "info", "--json")
    shown = json.loads(result.stdout.splitlines()[-1])
    assert [shard["files"] for shard in shown["shards"]] == ["whole", "whole"]
    assert shown["results"]["occupied_cells"] > 0 and "shard_00001-v0" in result.stderr


def test_merge_names_what_it_made_and_refuses_one(workspace: Path):
    names = [path.name for path in sorted((workspace / "runs").glob("dataset-*"))]
    result = invoke(workspace, "dataset", "merge", *names, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["results"]["episodes"] == 8
    result = invoke(workspace, "dataset", "merge", names[0], code=2)
    assert "two datasets or more" in result.stderr


def test_import_labels_an_npz_file_with_the_newest_teacher(workspace: Path):
    rows = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    np.savez(workspace / "maze.npz", observations=rows, actions=rows[:, :2], terminals=np.eye(6)[5])
    source = str(workspace / "maze.npz")
    arguments = ("dataset", "import", source, "--goal-columns", "0,1", "--device", "cpu", "--json")
    result = invoke(workspace, *arguments)
    assert json.loads(result.stdout.splitlines()[-1])["results"]["rows"] == 5
    result = invoke(workspace, "dataset", "import", source, "--goal-columns", "x", code=2)
    assert "goal_columns" in result.stderr
    result = invoke(workspace, *arguments, "--achieved-goal", "hand", code=2)
    assert "chooses from a dictionary" in result.stderr
    rows[1, 0] = np.nan
    np.savez(source, observations=rows, actions=rows[:, 2:], terminals=np.isin(range(6), (2, 5)))
    result = invoke(workspace, *arguments, code=2)
    assert "1 of its 2 episodes cannot be taken: episode 0 (rows 0 to 2): its observations" in result.stderr
    result = invoke(workspace, *arguments, "--skip-bad-episodes")
    assert json.loads(result.stdout.splitlines()[-1])["results"]["skipped_episodes"] == 1


def test_there_is_nothing_to_resume(workspace: Path):
    result = invoke(workspace, "generate-dataset", "--resume", code=2)
    assert "No unfinished dataset in" in result.stderr


def test_info_shows_a_damaged_view(workspace: Path):
    view = next((workspace / "runs").glob("dataset-*/minari/thousandfold/point_u_maze-v0/data/metadata.json"))
    whole = view.read_bytes()
    view.write_bytes(whole[:-1])
    result = invoke(workspace, "dataset", "info", view.relative_to(workspace / "runs").parts[0], "--json")
    view.write_bytes(whole)
    damaged = json.loads(result.stdout.splitlines()[-1])["damaged"]
    assert list(damaged) == ["minari/thousandfold/point_u_maze-v0/data/metadata.json"]
    assert "Damaged files" in result.stderr
