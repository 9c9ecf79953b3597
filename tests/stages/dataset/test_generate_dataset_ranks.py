"""Several ranks make one dataset, each the rounds of its turn: the one that a single process makes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import minari
import numpy as np
import pytest

from tests.rank_processes import run_ranks
from tests.stages import rank_work
from tests.stages.rank_work import REFUSED, STOPPED
from tests.stages.tiny_runs import make_context
from tests.stages.untrained_teacher import make_teacher
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset import results as dataset_results
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings, find_resumable

# 6 and 5 evaluation episodes, 6 and 5 training episodes, in rounds of at most 4: eight rounds.
SETTINGS = GenerateDatasetSettings(
    episodes=22, num_worlds=4, noise_levels=(0.0, 0.3), alternative_goals=2, seed=3, device="cpu", threads=1
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a teacher and the datasets that two ranks and one process made."""
    context = make_context(tmp_path_factory.mktemp("datasets"))
    teacher = make_teacher(context)
    root = context.workspace.root
    run_ranks(2, rank_work.make_dataset, root, SETTINGS, root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dataset_results, "draw_coverage", lambda *_, **__: None)
        generate_dataset.run(SETTINGS, context, teacher)
    return root


@pytest.fixture(scope="module")
def datasets(workspace: Path) -> list[Artifact]:
    return Workspace(workspace).artifacts("dataset")[::-1]


def groups_of(dataset: Artifact) -> list[tuple[str, bool]]:
    """Return the distribution of each episode and whether it was noisy."""
    storage = minari.MinariDataset(next(dataset.path.rglob("point_u_maze-v0/data"))).storage
    options = [each["options"] for each in storage.get_episode_metadata(range(storage.total_episodes))]
    return [(str(each["distribution"]), float(each["action_noise"]) > 0) for each in options]


def test_ranks_make_one_whole_dataset(datasets: list[Artifact]):
    assert len(datasets) == 2
    for dataset in datasets:
        dataset.verify()
        results = dataset.manifest.results
        assert results["episodes"] == 22 and results["rows"] == 2200 and results["coverage"] > 0
    found = groups_of(datasets[0])
    assert {name: found.count(name) for name in set(found)} == {
        ("evaluation", False): 6, ("evaluation", True): 5, ("training", False): 6, ("training", True): 5
    }  # fmt: skip


def test_any_number_of_ranks_makes_the_same_dataset(datasets: list[Artifact]):
    assert datasets[0].manifest.files == datasets[1].manifest.files
    assert len(datasets[0].manifest.files) == 2 * 8 + 2
    assert datasets[0].manifest.hash == datasets[1].manifest.hash


def test_every_round_has_starts_and_goals_of_its_own(datasets: list[Artifact]):
    data = load_goal_dataset(datasets[0].path)
    training = data.desired_goal.reshape(22, 100, 2)[11:, 0]
    assert len(np.unique(training, axis=0)) == 11
    starts = data.observation.reshape(22, 100, 4)[:, 0]
    assert len(np.unique(starts, axis=0)) == 22


def test_the_teacher_labels_every_rank_s_rows(datasets: list[Artifact]):
    data = load_goal_dataset(datasets[0].path)
    stray = np.abs(data.action - np.tanh(data.teacher_mean)).max(1)
    noisy = np.repeat([noise for _, noise in groups_of(datasets[0])], 100)
    assert stray[~noisy].max() < 1e-6 and stray[noisy].mean() > 0.05


@pytest.mark.parametrize(
    ("how", "codes"), [("kill", (REFUSED, -signal.SIGKILL)), ("stop", (STOPPED, STOPPED))], ids=str
)
def test_what_is_left_is_gone_on_with_by_any_number_of_ranks(
    workspace: Path, datasets: list[Artifact], how: str, codes: tuple[int, int]
):
    run_ranks(2, rank_work.make_dataset, workspace, SETTINGS, workspace, 1, how, codes=codes)
    settings, unfinished, teacher = find_resumable(Workspace(workspace), None)
    assert settings == SETTINGS and unfinished.manifest.parents["teacher"].hash == teacher.manifest.hash
    told = json.loads((workspace / "told-0.json").read_text())["error"]
    assert f"The shards are kept in {unfinished.path}." in told and "generate-dataset --resume" in told
    shards = len(list(unfinished.path.rglob("shard_*-v0")))
    assert 0 < shards < 8 and not list(unfinished.path.rglob("point_u_maze-v0"))
    run_ranks(3, rank_work.make_dataset, workspace, settings, workspace, -1, "", unfinished.name)
    whole = Artifact.load(unfinished.path)
    whole.verify()
    assert whole.manifest.hash == datasets[0].manifest.hash
