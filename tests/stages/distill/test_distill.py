"""A student imitates its own teacher, keeps what acted best, and says honestly how much it retains."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.stages.distill.distill_runs import SETTINGS, TASK_NAME, action_error, change
from thousandfold.envs.registry import compile_task
from thousandfold.models.residual_mlp import NetworkShape, parameter_count
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.episodes import HISTORY_FILE, run_episodes
from thousandfold.stages.networks import NETWORK_FILE, load_actor, torch_policy

# -- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "width", "updates", "error_left"), [("kl", 32, 400, 0.5), ("mse", 12, 160, 0.1)]
)
def test_the_student_comes_to_act_like_its_teacher(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    objective: str,
    width: int,
    updates: int,
    error_left: float,
):
    data = load_goal_dataset(dataset.path)
    barely, trained = (
        distill.run(
            change(objective=objective, student_width=width, evaluate_every=100, updates=count),
            context,
            teacher,
            dataset,
        )
        for count in (1, updates)
    )
    assert action_error(trained, data) < error_left * action_error(barely, data)
    losses = [each.manifest.results["validation_loss"] for each in (barely, trained)]
    assert losses[1] < 0.2 * losses[0]
    if objective == "mse":
        assert trained.manifest.results["success"] > 0.9


def test_the_results_say_what_was_retained(context: StageContext, student: Artifact, teacher: Artifact):
    results = student.manifest.results
    count, seed = SETTINGS.final_episodes, seed_sequence(*results["evaluation_seed"])
    found = {
        kind: run_episodes(
            compile_task(TASK_NAME), torch_policy(load_actor(artifact).actor), episodes=count, seed=seed
        )
        for kind, artifact in (("student", student), ("teacher", teacher))
    }
    ours, theirs = found["student"], found["teacher"]
    assert results["episodes"] == 64 and results["success"] == pytest.approx(ours.success.mean())
    assert results["teacher_success"] == pytest.approx(theirs.success.mean())
    assert results["teacher_time_at_goal"] == pytest.approx(theirs.time_at_goal.mean())
    assert results["retention"] == pytest.approx(ours.success.mean() / theirs.success.mean())
    share = ours.time_at_goal.mean() / theirs.time_at_goal.mean()
    assert results["time_at_goal_retention"] == pytest.approx(share)
    for name in ("retention", "time_at_goal_retention"):
        low, high = results[f"{name}_interval"]
        assert low <= results[name] <= high
    low, high = results["time_at_goal_retention_interval"]
    assert high - low > 0
    assert results["student_parameters"] == parameter_count(load_actor(student).actor)
    assert results["teacher_parameters"] == parameter_count(load_actor(teacher).actor)


def test_the_student_is_an_artifact_of_its_parents(student: Artifact, teacher: Artifact, dataset: Artifact):
    student.verify()
    parents = {role: parent.hash for role, parent in student.manifest.parents.items()}
    assert parents == {"teacher": teacher.manifest.hash, "dataset": dataset.manifest.hash}
    assert student.kind == "student" and student.manifest.task == TASK_NAME
    assert student.manifest.device == {"device": "cpu"}


def test_the_normalisers_are_those_of_the_dataset(student: Artifact, dataset: Artifact):
    data, actor = load_goal_dataset(dataset.path), load_actor(student).actor
    all_goals = np.concatenate([data.desired_goal, data.alternative_goal.reshape(-1, 2)])
    for values, normalizer in (
        (data.observation, actor.observation_normalizer),
        (all_goals, actor.goal_normalizer),
    ):
        np.testing.assert_allclose(normalizer.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(normalizer.std, values.std(0), rtol=1e-4)


def test_every_evaluation_is_kept(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = change(updates=30, evaluate_every=10, evaluation_episodes=8, final_episodes=4)
    student = distill.run(settings, context, teacher, dataset)
    assert HISTORY_FILE in student.manifest.files
    history = json.loads(student.file(HISTORY_FILE).read_text())["history"]
    assert [entry["updates"] for entry in history] == [10, 20, 30]
    kept = next(e for e in history if e["updates"] == student.manifest.results["kept_update"])
    assert kept["validation_loss"] == student.manifest.results["validation_loss"]


def test_the_seed_decides(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = [change(updates=30, final_episodes=4, seed=seed) for seed in (0, 0, 1)]
    networks = [
        load_tensors(distill.run(each, context, teacher, dataset).file(NETWORK_FILE))[0] for each in settings
    ]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["actor.mean_head.weight"], networks[2]["actor.mean_head.weight"])


@pytest.mark.parametrize(
    ("kind", "depth", "made"),
    [
        ("auto", 4, "residual"),
        ("auto", 8, "residual"),
        ("auto", 3, "plain"),
        ("auto", 1, "plain"),
        ("plain", 4, "plain"),
    ],
)
def test_the_students_form(kind: Any, depth: int, made: str):
    shape = DistillSettings(student_depth=depth, student_width=8, student_kind=kind).shape
    assert shape == NetworkShape(depth, 8, kind=made)  # type: ignore[arg-type]


def test_a_residual_student_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="not a multiple of 4"):
        DistillSettings(student_depth=6, student_kind="residual")


def test_a_plain_student_can_be_read_back(context: StageContext, teacher: Artifact, dataset: Artifact):
    artifact = distill.run(change(student_depth=2, updates=1), context, teacher, dataset)
    assert load_actor(artifact).shape == NetworkShape(2, 12, kind="plain")


@pytest.mark.parametrize(("width", "warned"), [(12, False), (64, True)])
def test_a_student_larger_than_its_teacher_warns(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    capsys: pytest.CaptureFixture[str],
    width: int,
    warned: bool,
):
    distill.run(change(student_width=width, updates=1), context, teacher, dataset)
    assert ("more than its teacher's" in capsys.readouterr().err) == warned


# -- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "kept"),
    [
        ([(0.2, 9.0), (0.9, 5.0), (0.5, 1.0), (0.1, 0.5)], 1),  # success comes before the loss
        ([(0.5, 3.0), (0.5, 1.0), (0.5, 2.0), (0.5, 1.0)], 1),  # then the loss, then the first
        ([(0.0, 3.0), (0.0, 3.0), (0.0, 3.0), (0.0, 4.0)], 0),
        ([(0.0, 3.0), (0.0, 3.0), (0.0, 3.0), (0.1, 4.0)], 3),
    ],
)
def test_the_student_is_left_with_the_weights_that_acted_best(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[tuple[float, float]],
    kept: int,
):
    weights: list[dict[str, torch.Tensor]] = []

    def validate(_: Any, student: torch.nn.Module) -> dict[str, float]:
        success, loss = outcomes[len(weights)]
        weights.append({name: value.clone() for name, value in student.state_dict().items()})
        return {"success": success, "validation_loss": loss, "time_at_goal": 0.0}

    monkeypatch.setattr(StudentTraining, "validate", validate)
    artifact = distill.run(change(updates=20, evaluate_every=6), context, teacher, dataset)
    saved = load_tensors(artifact.file(NETWORK_FILE))[0]
    assert len(weights) == 4  # at 6, 12, 18 and the end
    assert all(torch.equal(saved[name], value) for name, value in weights[kept].items())
    name = "actor.mean_head.weight"
    assert not any(torch.equal(saved[name], weights[i][name]) for i in range(4) if i != kept)
    results = artifact.manifest.results
    assert results["validation_loss"] == outcomes[kept][1]
    assert results["kept_update"] == (6, 12, 18, 20)[kept]
