"""Two ranks that share a batch learn what one process learns from all of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.rank_processes import run_ranks
from tests.stages import rank_work
from tests.stages.rank_work import TASK, Tensors, gradients_of, part_of_batch, whole_batch
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.distributed import Ranks
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings

SMALL = LearnerSettings(depth=4, width=16, batch_size=12, device="cpu")
CASES = [
    SMALL.model_copy(update={"info_nce": variant, "energy": energy, "global_negatives": everywhere})
    for variant, energy, everywhere in itertools.product(
        ("forward", "backward", "symmetric"), ("norm", "dot"), (True, False)
    )
]
CASES += [
    SMALL.model_copy(
        update={"early_ends": "lost", "critic_goals": "relative", "global_negatives": everywhere}
    )
    for everywhere in (True, False)
]
CONTRAST = ("info_nce", "categorical_accuracy", "positive_logit", "negative_logit", "logsumexp")


@pytest.fixture(scope="module", params=[2, 3], ids=lambda size: f"{size} ranks")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The gradients and metrics of every case, as so many ranks have them."""
    folder = tmp_path_factory.mktemp("gradients")
    run_ranks(request.param, rank_work.save_gradients, folder, CASES, folder)
    return request.param, folder


def alone(settings: LearnerSettings, size: int, rank: int | None = None) -> tuple[Tensors, dict[str, float]]:
    """Return one process's gradients and metrics: on the whole batch, or on a rank's part of it."""
    learner = ContrastiveLearner(TASK, settings, "cpu")
    count = settings.batch_size
    batch = whole_batch(count, size) if rank is None else part_of_batch(count, Ranks(rank, size))
    loss, metrics = learner.loss(*batch)
    loss.backward()
    return gradients_of(learner), {name: float(value) for name, value in metrics.items()}


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i].info_nce}-{CASES[i].energy}")
def test_the_ranks_gradient_is_that_of_one_process(shared: tuple[int, Path], index: int):
    size, folder = shared
    settings = CASES[index]
    loaded = [load_tensors(folder / f"case-{index}-rank-{rank}.safetensors") for rank in range(size)]
    for tensors, _ in loaded[1:]:
        assert all(torch.equal(tensors[name], value) for name, value in loaded[0][0].items())
    parts = [alone(settings, size, rank) for rank in range(size)]
    halves = {name: torch.stack([part[name] for part, _ in parts]).mean(0) for name in parts[0][0]}
    whole, metrics = alone(settings, size)
    assert_close(loaded[0][0], whole if settings.global_negatives else halves)
    critic = "critic.goal_encoder.head.weight"
    assert not torch.allclose(whole[critic], halves[critic], atol=1e-4), "or this test could not tell"
    if settings.global_negatives:
        for name in CONTRAST:
            mean = sum(found[name] for _, found in loaded) / size
            assert mean == pytest.approx(metrics[name], abs=1e-5), name


def test_alone_the_setting_changes_nothing():
    tensors, metrics = alone(SMALL.model_copy(update={"global_negatives": True}), 1)
    expected, same = alone(SMALL, 1)
    assert metrics == same and all(torch.equal(tensors[name], value) for name, value in expected.items())


@pytest.mark.parametrize("everywhere", [True, False])
def test_networks_stay_the_same_on_every_rank_and_are_clipped_by_the_mean_gradient(
    tmp_path: Path, everywhere: bool
):
    settings = SMALL.model_copy(
        update={"global_negatives": everywhere, "max_gradient_norm": 0.01, "average_decay": 0.5}
    )
    run_ranks(2, rank_work.save_updates, tmp_path, settings, tmp_path)
    (one, norms), (other, same) = (load_tensors(tmp_path / f"rank-{r}.safetensors") for r in range(2))
    assert norms == same and min(norms.values()) > 0.01
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
