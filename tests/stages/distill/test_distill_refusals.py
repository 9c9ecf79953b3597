"""What cannot be distilled is refused in one line, and no student comes of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from tests.stages.distill.distill_runs import (
    SETTINGS,
    TASK_NAME,
    change,
    linear_actor,
    make_dataset,
    make_teacher,
    refusal,
)
from thousandfold.ground.errors import DamagedFileError, NonFiniteError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill import distill


def test_a_dataset_of_another_teacher_is_refused(context: StageContext, dataset: Artifact):
    other = make_teacher(context, linear_actor(1.0))
    line = refusal(context, other, dataset)
    assert f"not by {other.name}" in line and f"generate-dataset --teacher {other.name}" in line


def test_a_dataset_without_a_teacher_is_refused(context: StageContext, teacher: Artifact):
    orphan = context.workspace.create("dataset", task=TASK_NAME, settings={})
    orphan.complete({})
    assert "was made by no teacher" in refusal(context, teacher, orphan)


def test_a_dataset_of_another_task_is_refused(context: StageContext, teacher: Artifact):
    other = context.workspace.create("dataset", task="point_big_maze", settings={})
    other.complete({})
    line = refusal(context, teacher, other)
    assert "is of task 'point_big_maze'" in line and teacher.name in line


def test_too_few_labels_are_refused(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = change(max_labels=3000, dagger_rounds=1, dagger_episodes=10)
    assert "max_labels leaves 0 rows beside DAgger's rounds: too few" in refusal(
        context, teacher, dataset, settings
    )


def test_damaged_shards_are_left_out_when_told_so(
    context: StageContext, teacher: Artifact, capsys: pytest.CaptureFixture[str]
):
    damaged = make_dataset(context, teacher, seed=2)
    path = sorted(damaged.path.rglob("*shard_00000*/data/*.hdf5"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "shard_00000" in refusal(context, teacher, damaged, change(updates=1))
    artifact = distill.run(change(updates=1, skip_damaged_shards=True), context, teacher, damaged)
    assert "shard_00000" in capsys.readouterr().err
    results = artifact.manifest.results
    assert results["skipped_shards"] == ["shard_00000-v0"]
    # A state has a label under each of three goals.
    assert 0 < 3 * results["dataset_rows"] == results["labels"] < 3 * 30 * 100
    assert 0 < results["held_out_rows"] < results["dataset_rows"]


@pytest.mark.parametrize("off", [-0.5, -0.03, math.nan])
def test_a_teacher_that_does_not_reproduce_its_success_is_refused(
    context: StageContext, teacher: Artifact, dataset: Artifact, off: float
):
    results = teacher.manifest.results
    changed = Artifact.load(teacher.path)
    # Results are not part of the hash: the artifact stays consistent, only its claim is false.
    changed.manifest = dataclasses.replace(
        changed.manifest, results=results | {"success": results["success"] + off}
    )
    changed.verify()
    line = refusal(context, changed, dataset)
    assert teacher.name in line and "it is not the network that was evaluated" in line


def test_other_weights_under_an_honest_record_are_refused(
    context: StageContext, teacher: Artifact, tmp_path: Path
):
    """Say a file that was written from the wrong variables: all hashes are right, the success is not."""
    swapped = make_teacher(context, linear_actor(-2.0), success=teacher.manifest.results["success"])
    line = refusal(context, swapped, make_dataset(context, swapped))
    assert "reaches 0.000" in line


@pytest.mark.parametrize(
    "lost",
    [{"evaluation_seed": None}, {"episodes": 0}, {"success": None}, {"evaluation_seed": ["x"]}],
)
def test_a_teacher_without_a_recorded_evaluation_is_refused(
    context: StageContext, teacher: Artifact, dataset: Artifact, lost: dict[str, Any]
):
    changed = Artifact.load(teacher.path)
    results = {key: value for key, value in (teacher.manifest.results | lost).items() if value is not None}
    changed.manifest = dataclasses.replace(changed.manifest, results=results)
    line = refusal(context, changed, dataset)
    assert "records no evaluation" in line and str(teacher.path) in line


def test_a_damaged_dataset_is_named(context: StageContext, teacher: Artifact):
    damaged = make_dataset(context, teacher, seed=1)  # no packed copy of it yet
    path = next(damaged.path.rglob("*shard_00001*/data/*.hdf5"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.name in refusal(context, teacher, damaged)
    path.write_bytes(data[: len(data) // 3])
    damaged.complete({})  # truncated before its hash was taken
    assert path.name in refusal(context, teacher, damaged)
    path.unlink()
    with pytest.raises(DamagedFileError, match=path.name):
        distill.run(SETTINGS, context, teacher, damaged)


def test_one_episode_cannot_be_split(context: StageContext, teacher: Artifact):
    settings = GenerateDatasetSettings(episodes=1, device="cpu", threads=1)
    assert "too few" in refusal(context, teacher, generate_dataset.run(settings, context, teacher))


def test_a_loss_that_is_not_finite_ends_the_stage(
    context: StageContext, teacher: Artifact, dataset: Artifact
):
    with pytest.raises(NonFiniteError, match=r"became (nan|inf) at update 40\."):
        distill.run(change(learning_rate=1e30), context, teacher, dataset)
    assert context.workspace.artifacts("student")[0].manifest.status == "failed"


def test_beside_a_teacher_that_never_succeeds_retention_is_undefined(
    context: StageContext, capsys: pytest.CaptureFixture[str]
):
    lost = make_teacher(context, linear_actor(-2.0))
    assert lost.manifest.results["success"] == 0.0
    artifact = distill.run(change(updates=1), context, lost, make_dataset(context, lost))
    assert artifact.manifest.status == "completed"
    assert artifact.manifest.results["retention"] is None
    assert "retention undefined" in capsys.readouterr().out
