"""A completed student is trained on as another one: more updates, on a cosine to their end."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from tests.stages.distill.distill_runs import change
from tests.stages.distill.test_distill_resume import Killed
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.resume import CONTINUED
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.report.chain import collect_chain

ROUNDS = {"dagger_rounds": 1, "dagger_episodes": 4, "dagger_updates": 10}


def settings_of(**values: Any) -> DistillSettings:
    sizes = {"batch_size": 32, "evaluation_episodes": 4, "final_episodes": 4, "max_final_episodes": 4}
    return change(evaluate_every=10, checkpoint_every=5, **sizes, **values)


def train_on(context: StageContext, student: Artifact, updates: int, kill_at: int = -1) -> Artifact:
    """Train a completed student on to so many updates, or an unfinished one; be killed before one of them."""
    settings, found, *parents = distill.find_resumable(context.workspace, student.name)
    update = StudentTraining._update

    def counted(training: StudentTraining, *arguments: Any) -> Any:
        if training.updates == kill_at:
            raise Killed
        return update(training, *arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StudentTraining, "_update", counted)
        settings = DistillSettings(**settings.model_dump() | {"updates": updates})
        return distill.run(settings, context, *parents, resumed=found)


@pytest.fixture(scope="module", params=[{}, ROUNDS], ids=["dataset", "rounds"])
def completed(
    request: pytest.FixtureRequest, context: StageContext, teacher: Artifact, dataset: Artifact
) -> Artifact:
    return distill.run(settings_of(updates=20, **request.param), context, teacher, dataset)


def test_it_takes_more_updates_and_says_where_it_comes_from(context: StageContext, completed: Artifact):
    before = {path: path.read_bytes() for path in completed.path.rglob("*") if path.is_file()}
    rates = list[float]()
    with pytest.MonkeyPatch.context() as monkeypatch:
        rate = StudentTraining.learning_rate
        monkeypatch.setattr(
            StudentTraining, "learning_rate", lambda *args: rates.append(rate(*args)) or rates[-1]
        )
        made = train_on(context, completed, 40)
    done = completed.manifest.results["updates"]
    assert made.manifest.results["updates"] == done + 20
    # The first rate is the one that is told; what follows falls to nearly nothing.
    assert len(rates) == 21 and rates[0] == rates[1] > 0.3 * made.manifest.settings["learning_rate"]
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 0.01 * rates[0]
    assert {path: path.read_bytes() for path in completed.path.rglob("*") if path.is_file()} == before
    assert made.manifest.parents[CONTINUED].hash == completed.manifest.hash
    assert made.manifest.parents["dataset"] == completed.manifest.parents["dataset"]
    assert made.manifest.results["rounds"] == completed.manifest.results["rounds"]
    assert made.manifest.results["labels"] == completed.manifest.results["labels"]
    made.verify()
    chain = collect_chain(context.workspace, made)
    assert completed.name in [link.name for link in chain.links.values()]
    assert chain.main["student"].name == made.name


@pytest.mark.parametrize("after", [2, 13])
def test_it_goes_on_after_a_kill_itself(context: StageContext, completed: Artifact, after: int):
    whole = train_on(context, completed, 40)
    with pytest.raises(Killed):
        train_on(context, completed, 40, kill_at=completed.manifest.results["updates"] + after)
    begun = context.workspace.artifacts("student")[0]
    assert begun.manifest.status == "failed" and CONTINUED in begun.manifest.parents
    found = distill.find_resumable(context.workspace, None)[1]
    assert found.name == begun.name
    again = train_on(context, begun, 40)
    networks = [load_tensors(each.file("network.safetensors"))[0] for each in (again, whole)]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())
    assert again.manifest.hash == whole.manifest.hash


def test_it_asks_for_more_and_needs_its_checkpoint(context: StageContext, completed: Artifact):
    with pytest.raises(SettingsError, match=r"is completed after \d+ updates.* --set updates=MORE"):
        train_on(context, completed, 20)
    copy = context.workspace.adopt(completed, {}, {})
    assert not copy.file("checkpoint").exists()
    with pytest.raises(SettingsError, match="has no checkpoint left to continue from"):
        distill.find_resumable(context.workspace, copy.name)
    shutil.rmtree(copy.path)


def test_one_that_was_trained_on_can_be_again(context: StageContext, completed: Artifact):
    last = train_on(context, train_on(context, completed, 30), 40)
    assert last.manifest.results["updates"] == completed.manifest.results["updates"] + 20
    assert last.manifest.results["rounds"] == completed.manifest.results["rounds"]
