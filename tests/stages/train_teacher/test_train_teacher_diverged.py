"""A teacher's training that becomes NaN or whose physics diverges ends before anything bad is saved."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.tiny_runs import TINY_TEACHER
from tests.stages.train_teacher.teacher_runs import (
    Tensors,
    as_options,
    assert_same_tensors,
    change,
    checkpoint_of,
    invoke,
)
from thousandfold.ground.errors import NonFiniteError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.networks import NETWORK_FILE
from thousandfold.stages.train_teacher import train_teacher, training
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.training import RolloutStatistics


def poison(monkeypatch: pytest.MonkeyPatch, at: int, what: str) -> None:
    """Let the update number `at` go wrong: in its metrics, or in weights while all metrics look good."""
    update, count = ContrastiveLearner.update, [0]

    def poisoned(learner: ContrastiveLearner, *arguments: Any) -> Tensors:
        metrics = update(learner, *arguments)
        count[0] += 1
        if count[0] == at and what == "critic_loss":
            metrics["critic_loss"] = torch.tensor(math.nan)
        elif count[0] == at:
            network = {"actor": learner.actor, "critic": learner.critic}[what]
            with torch.no_grad():
                next(network.parameters())[0, 0] = math.inf
        return metrics

    monkeypatch.setattr(ContrastiveLearner, "update", poisoned)


@pytest.mark.parametrize("what", ["critic_loss", "actor", "critic"])
def test_nan_ends_the_run_before_anything_bad_is_saved(
    context: StageContext, unbroken: Callable[..., Artifact], what: str
):
    settings = change(checkpoint_every=1, evaluate_every=10)  # saved far more often than evaluated
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch, at=15, what=what)  # the last update of the fifth unroll
        with pytest.raises(NonFiniteError) as raised:
            train_teacher.run(settings, context)
    artifact = context.workspace.artifacts("teacher")[0]
    folder = checkpoint_of(artifact)
    assert f"{what} became " in str(raised.value) and " at step 600." in str(raised.value)
    assert str(raised.value).endswith(f"The last good checkpoint is kept in {folder.path}.")
    assert artifact.manifest.status == "failed" and "600" in artifact.manifest.results["error"]
    checkpoint = folder.load()
    assert checkpoint.progress["unrolls"] == 4
    numbers = [value for value in checkpoint.tensors.values() if value.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in numbers)
    # Without whatever went wrong, the run goes on from there as if nothing had happened.
    found, again = train_teacher.find_resumable(context.workspace, artifact.name)
    finished = train_teacher.run(found, context, again)
    expected = load_tensors(unbroken(settings).file(NETWORK_FILE))[0]
    assert_same_tensors(load_tensors(finished.file(NETWORK_FILE))[0], expected)
    assert finished.manifest.status == "completed" and "error" not in finished.manifest.results


@pytest.mark.parametrize("name", ["critic", "actor"])
def test_an_absurd_learning_rate_is_one_clear_line(tmp_path: Path, name: str):
    result = invoke(tmp_path, "train-teacher", *as_options(change(), **{f"{name}_learning_rate": 1e30}))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"Error: [a-z_ ]+ became -?(nan|inf) at step [\d,]+\.(?: The last good.*)?", line)


def test_physics_that_diverges_everywhere_ends_the_run(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        training.Rollout,
        "collect",
        lambda *_: RolloutStatistics(env_steps=120, unstable=TINY_TEACHER.num_worlds),
    )
    with pytest.raises(NonFiniteError, match="diverged"):
        train_teacher.run(TINY_TEACHER, context)
    assert context.workspace.artifacts("teacher")[0].manifest.status == "failed"
