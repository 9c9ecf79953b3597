"""Rounds of a student, and what else it may be told: a critic, no LayerNorm, more episodes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.stages.distill.distill_runs import SHAPE, action_error, change, refusal
from thousandfold.models.contrastive_critic import ContrastiveCritic
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import StageRun
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.networks import TeacherCritic, load_actor


@pytest.fixture(scope="module")
def rounds_student(context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    settings = change(
        dagger_rounds=2, dagger_episodes=8, dagger_updates=40, updates=80, max_labels=6000, objective="mse"
    )
    return distill.run(settings, context, teacher, dataset)


def test_rounds_keep_to_the_labels_and_leave_their_episodes(rounds_student: Artifact):
    results = rounds_student.manifest.results
    # 6000 labels of three goals a state: 20 episodes of 100 steps, of which the rounds have 16.
    assert results["labels"] == 6000 and [entry["labels"] for entry in results["rounds"]] == [3600, 6000]
    assert results["updates"] == 160
    for number in (1, 2):
        data = load_goal_dataset(rounds_student.file("rounds") / f"round_{number:02d}")
        assert len(data.success) == 8
    rounds_student.verify()
    assert any(name.startswith("rounds/round_02/") for name in rounds_student.manifest.files)


@pytest.mark.parametrize(
    ("asked", "own_senses", "rounds"), [(None, False, 0), (None, True, 4), (0, True, 0), (2, False, 2)]
)
def test_a_student_with_senses_of_its_own_has_rounds_where_nobody_says_how_many(
    asked: int | None, own_senses: bool, rounds: int
):
    settings = DistillSettings(updates=10, dagger_rounds=asked, dagger_updates=5).with_rounds(own_senses)
    assert settings.dagger_rounds == rounds and settings.total_updates == 10 + 5 * rounds


def test_rounds_are_one_series_a_figure(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    logged: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(StageRun, "log_metrics", lambda _, entry, step: logged.append((step, dict(entry))))
    settings = change(updates=2, dagger_rounds=2, dagger_episodes=2, dagger_updates=1, final_episodes=4)
    rounds = distill.run(settings, context, teacher, dataset).manifest.results["rounds"]
    series = [(step, entry) for step, entry in logged if "round/success" in entry]
    assert [step for step, _ in series] == [1, 2]
    for (_, entry), recorded in zip(series, rounds, strict=True):
        assert {f"round/{name}": value for name, value in recorded.items() if name != "round"} == entry
    updates = [step for step, entry in logged if "train/validation_loss" in entry]
    assert updates == [2, 3, 4]


def test_what_a_checkpoint_knows_of_is_tracked(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    """Who goes on from it logs it no more."""
    calls, save = list[str](), CheckpointFolder.save

    def recorded_save(*arguments: Any) -> None:
        calls.append("save")
        save(*arguments)

    monkeypatch.setattr(StageRun, "flush", lambda *_, **__: calls.append("flush"))
    monkeypatch.setattr(CheckpointFolder, "save", recorded_save)
    distill.run(change(updates=4, checkpoint_every=2, final_episodes=4), context, teacher, dataset)
    assert calls[:4] == ["flush", "save"] * 2


def test_a_student_is_guided_by_its_teachers_critic(
    context: StageContext, dataset: Artifact, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    def load_critic(artifact: Artifact) -> TeacherCritic:
        assert artifact is teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            critic = ContrastiveCritic(4, 2, 2, SHAPE)
        return TeacherCritic(critic.eval().requires_grad_(False), "norm")

    monkeypatch.setattr(distill, "load_critic", load_critic)
    settings = [
        change(objective="critic", imitation_weight=weight, updates=80, final_episodes=4)
        for weight in (0.0, 100.0)
    ]
    free, bound = (distill.run(each, context, teacher, dataset) for each in settings)
    data = load_goal_dataset(dataset.path)
    assert action_error(free, data) > 3 * action_error(bound, data)


def test_a_teacher_without_a_critic_cannot_guide(context: StageContext, teacher: Artifact, dataset: Artifact):
    assert "holds no critic" in refusal(context, teacher, dataset, change(objective="critic"))


def test_a_student_without_layer_norm_can_be_read_back(
    context: StageContext, teacher: Artifact, dataset: Artifact
):
    artifact = distill.run(change(student_layer_norm=False, updates=1), context, teacher, dataset)
    shape = load_actor(artifact).shape
    assert shape == NetworkShape(4, 12, residual_scale="inverse_sqrt_blocks", layer_norm=False)


def test_failures_lie_beside_the_student(student: Artifact):
    failures = json.loads(student.file("failures.json").read_text())
    results = student.manifest.results
    failed = round((1 - results["success"]) * results["episodes"])
    assert len([entry for entry in failures if entry["failed"] != "teacher"]) == failed
    assert student.file("failures.png").stat().st_size > 0


def test_more_episodes_run_where_retention_is_uncertain(
    context: StageContext, teacher: Artifact, dataset: Artifact, capsys: pytest.CaptureFixture[str]
):
    settings = change(updates=1, final_episodes=16, max_final_episodes=300, interval_half_width=1e-4)
    artifact = distill.run(settings, context, teacher, dataset)
    assert artifact.manifest.results["episodes"] == 300
    assert "raise max_final_episodes" in capsys.readouterr().err
