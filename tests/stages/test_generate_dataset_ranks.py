"""Several ranks make one dataset: each its share of every group, assembled by rank 0."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
from pathlib import Path

import minari
import numpy as np
import pytest
import torch

from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.distributed import Ranks
from pipeline.core.errors import SettingsError
from pipeline.core.runtime import StageContext
from replay.goal_dataset import GoalEpisode, load_goal_dataset
from stages import generate_dataset
from stages.episode_round import EpisodeGroup, receive_round, send_round
from stages.generate_dataset import GenerateDatasetSettings, plan_groups, share_groups
from tests.rank_processes import run_ranks
from tests.stages import rank_work
from tests.stages.rank_work import REFUSED, TASK
from tests.stages.test_generate_dataset import make_teacher
from tests.stages.tiny_runs import make_context

# 11 evaluation episodes, of which 5 are noisy, and 11 training episodes alike: no group is even.
SETTINGS = GenerateDatasetSettings(
    episodes=22, num_worlds=8, noisy_fraction=0.45, seed=3, device="cpu", threads=1
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a teacher and the datasets that two ranks, two ranks again and one process made."""
    context = make_context(tmp_path_factory.mktemp("datasets"))
    teacher = make_teacher(context)
    for _ in range(2):
        run_ranks(2, rank_work.make_dataset, context.workspace.root, SETTINGS, context.workspace.root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(generate_dataset, "draw_coverage", lambda *_, **__: None)
        generate_dataset.run(SETTINGS, context, teacher)
    return context.workspace.root


@pytest.fixture(scope="module")
def datasets(workspace: Path) -> list[Artifact]:
    return Workspace(workspace).artifacts("dataset")[::-1]


def rows_file(dataset: Artifact) -> Path:
    (path,) = dataset.path.rglob("*.hdf5")
    return path


def groups_of(dataset: Artifact) -> list[tuple[str, bool]]:
    """Return the distribution of each episode and whether it was noisy."""
    storage = minari.MinariDataset(next(dataset.path.rglob("data"))).storage
    options = [each["options"] for each in storage.get_episode_metadata(range(storage.total_episodes))]
    return [(str(each["distribution"]), float(each["action_noise"]) > 0) for each in options]


def test_ranks_make_one_whole_dataset(datasets: list[Artifact]):
    assert len(datasets) == 3
    for dataset in datasets:
        dataset.verify()
        results = dataset.manifest.results
        assert results["episodes"] == 22 and results["rows"] == 2200 and results["coverage"] > 0
    assert groups_of(datasets[0]) == groups_of(datasets[2])
    assert {name: groups_of(datasets[0]).count(name) for name in set(groups_of(datasets[0]))} == {
        ("evaluation", False): 6, ("evaluation", True): 5, ("training", False): 6, ("training", True): 5
    }  # fmt: skip


def test_the_seed_and_the_number_of_ranks_decide(datasets: list[Artifact]):
    hashes = [hashlib.sha256(rows_file(dataset).read_bytes()).hexdigest() for dataset in datasets]
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_rank_has_starts_and_goals_of_its_own(datasets: list[Artifact]):
    data = load_goal_dataset(datasets[0].path)
    training = data.desired_goal.reshape(22, 100, 2)[11:, 0]
    assert len(np.unique(training, axis=0)) == 11
    starts = data.observation.reshape(22, 100, 4)[:, 0]
    assert len(np.unique(starts, axis=0)) == 22


def test_the_teacher_labels_every_rank_s_rows(datasets: list[Artifact]):
    data = load_goal_dataset(datasets[0].path)
    stray = np.abs(data.action - np.tanh(data.teacher_mean)).max(1)
    noisy = np.repeat([noise for _, noise in groups_of(datasets[0])], 100)
    assert stray[~noisy].max() < 1e-6 < stray[noisy].min() + 1e-3 and stray[noisy].mean() > 0.05


def test_a_lost_rank_leaves_no_dataset(tmp_path: Path):
    context = make_context(tmp_path)
    make_teacher(context)
    codes = (REFUSED, -signal.SIGKILL)
    run_ranks(2, rank_work.make_dataset, tmp_path, SETTINGS, tmp_path, 1, codes=codes)
    told = json.loads((tmp_path / "told-0.json").read_text())
    assert told == {"error": "A rank was lost: there is no dataset; run the command again."}
    (dataset,) = Workspace(tmp_path).artifacts("dataset")
    assert dataset.manifest.status == "failed" and not list(dataset.path.rglob("*.hdf5"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 21}, "episodes 21 cannot be split evenly over 2 ranks: use 20 or 22."),
        ({"num_worlds": 7}, "num_worlds 7 cannot be split evenly over 2 ranks: use 6 or 8."),
    ],
)
def test_what_cannot_be_split_evenly_is_refused_before_anything_is_made(
    tmp_path: Path, values: dict[str, int], message: str
):
    context: StageContext = make_context(tmp_path)
    teacher = make_teacher(context)
    context.ranks = Ranks(0, 2, 0, 2)
    with pytest.raises(SettingsError) as raised:
        generate_dataset.run(SETTINGS.model_copy(update=values), context, teacher)
    assert str(raised.value) == message
    assert not context.workspace.artifacts("dataset")


# -- shares and rounds ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("episodes", [20, 40, 100, 1000])
def test_every_rank_has_as_many_episodes_and_its_part_of_each_group(size: int, episodes: int):
    groups = plan_groups(SETTINGS.model_copy(update={"episodes": episodes}))
    shared = list(share_groups(groups, size))
    assert [group for group, _ in shared] == groups
    for group, shares in shared:
        assert sum(shares) == group.episodes and max(shares) - min(shares) <= 1
    assert {sum(shares[rank] for _, shares in shared) for rank in range(size)} == {episodes // size}


class Mailbox(Ranks):
    """Keeps what is sent until it is asked for."""

    def __init__(self) -> None:
        super().__init__(1, 2)
        self.sent: list[torch.Tensor] = []

    def send(self, matrix: torch.Tensor) -> None:
        assert matrix.ndim == 2
        self.sent.append(matrix.clone())

    def receive(self, source: int, dtype: torch.dtype) -> torch.Tensor:
        matrix = self.sent.pop(0)
        assert matrix.dtype == dtype
        return matrix


def make_episode(steps: int, group: EpisodeGroup, rng: np.random.Generator) -> GoalEpisode:
    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    actions = TASK.action_dim
    return GoalEpisode(
        observation=draw(steps + 1, TASK.observation_dim),
        achieved_goal=draw(steps + 1, TASK.goal_dim),
        desired_goal=draw(TASK.goal_dim),
        action=draw(steps, actions),
        teacher_mean=draw(steps + 1, actions),
        teacher_log_std=draw(steps + 1, actions),
        success=rng.random(steps + 1) < 0.5,
        terminated=bool(rng.random() < 0.5),
        truncated=bool(rng.random() < 0.5),
        distribution=group.distribution,
        action_noise=group.action_noise,
    )


@pytest.mark.parametrize("steps", [[1], [5, 0, 3], [0, 0], [0, 100, 1]], ids=str)
def test_a_round_arrives_as_it_was_sent(steps: list[int]):
    group, rng, ranks = EpisodeGroup(2, "training", 0.3, 9), np.random.default_rng(0), Mailbox()
    sent = [make_episode(count, group, rng) if count else None for count in steps]
    send_round(sent, ranks)
    received = receive_round(1, group, TASK, ranks)
    assert len(received) == len(sent) and not ranks.sent
    for one, other in zip(sent, received, strict=True):
        assert (one is None) == (other is None)
        for field in dataclasses.fields(GoalEpisode) if one is not None else ():
            values = [getattr(episode, field.name) for episode in (one, other)]
            assert np.array_equal(*values), field.name
            assert not isinstance(values[0], np.ndarray) or values[0].dtype == values[1].dtype
