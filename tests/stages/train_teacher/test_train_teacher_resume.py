"""What a teacher's training refuses to go on from, each in one line that names it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from tests.stages.train_teacher.teacher_runs import checkpoint_of, interrupt_after, invoke
from thousandfold.ground.errors import (
    DamagedFileError,
    MissingArtifactError,
    SettingsError,
    StoppedByUser,
    UserError,
)
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.training import TeacherTraining


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a teacher that was stopped after three unrolls."""
    context = make_context(tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(monkeypatch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(TINY_TEACHER, context)
    return context.workspace.root


@pytest.fixture
def broken(stopped: Path, tmp_path: Path) -> Iterator[Artifact]:
    """Return a copy of the stopped teacher, to be damaged."""
    shutil.copytree(stopped, tmp_path / "copy")
    yield Workspace(tmp_path / "copy").artifacts("teacher")[0]


def refused(artifact: Artifact, *arguments: str) -> str:
    """Resume on the command line; return the one line that refuses it."""
    result = invoke(artifact.path.parents[1], "train-teacher", *(arguments or ("--resume",)))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and "(unexpected;" not in line
    return line


def edit_manifest(artifact: Artifact, **settings: Any) -> None:
    artifact.update(settings=artifact.manifest.settings | settings)


@pytest.mark.parametrize("name", ["state-00000003", "replay-00000002", "replay-00000003"])
def test_a_truncated_checkpoint_is_refused_by_name(broken: Artifact, name: str):
    path = broken.file(f"checkpoint/{name}.safetensors")
    os.truncate(path, path.stat().st_size - 10)
    assert path.name in refused(broken)


def test_a_truncated_checkpoint_manifest_is_refused_by_name(broken: Artifact):
    path = broken.file("checkpoint/manifest.json")
    os.truncate(path, 100)
    assert str(path) in refused(broken)


def test_a_checkpoint_of_another_kind_of_device_is_refused_though_both_were_chosen_alike(
    broken: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TeacherTraining, "_settings_to_compare", lambda _: {"device": "cuda"})
    line = refused(broken)
    assert "other settings" in line and "device cpu" in line


@pytest.mark.parametrize(
    "values", [{"task": "point_big_maze"}, {"seed": 9}, {"width": 16}, {"num_worlds": 5}]
)
def test_a_checkpoint_of_another_task_or_other_settings_is_refused(broken: Artifact, values: dict[str, Any]):
    edit_manifest(broken, **values)
    line = refused(broken)
    (name,) = values
    assert "other settings" in line and f"{name} {getattr(TINY_TEACHER, name)}" in line
    assert str(broken.file("checkpoint")) in line


@pytest.mark.parametrize(
    "values", [{"depth": 7}, {"no_such_setting": 1}, {"width": "wide"}, {"task": "chess"}]
)
def test_settings_that_cannot_be_read_are_refused(broken: Artifact, values: dict[str, Any]):
    edit_manifest(broken, **values)
    (name,) = values
    assert f"{name} '{values[name]}'" in (line := refused(broken)) or f"setting {name}" in line


def test_a_checkpoint_whose_content_does_not_fit_is_refused(broken: Artifact):
    """As one of an earlier version may be, though all its hashes are right."""
    folder = checkpoint_of(broken)
    checkpoint = folder.load()
    empty = {"first": torch.zeros(4, dtype=torch.int64), "rows": torch.zeros(4, dtype=torch.int64)}
    for tensors, progress in (
        ({}, checkpoint.progress),
        ({**checkpoint.tensors, "generator": torch.zeros(3, dtype=torch.uint8)}, checkpoint.progress),
        (checkpoint.tensors, {"unrolls": 3}),
        (checkpoint.tensors, checkpoint.progress | {"history": [], "unknown": 1}),
    ):
        shutil.rmtree(folder.path)
        folder.save(3, tensors, progress, segment=empty, oldest_row=0)
        assert "does not fit" in refused(broken)


def test_refusing_to_resume_loses_nothing(broken: Artifact):
    path = broken.file("checkpoint/state-00000003.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    refused(broken)
    path.write_bytes(data)
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    finished = train_teacher.run(settings, make_context(broken.path.parents[1]), artifact)
    assert finished.manifest.status == "completed"


def test_a_teacher_that_another_process_has_finished_is_not_trained_on(broken: Artifact):
    context = make_context(broken.path.parents[1])
    Artifact.load(broken.path).complete({"success": 1.0}, exclude=("checkpoint",))
    finished = broken.file("manifest.json").read_bytes()
    with pytest.raises(SettingsError, match="is completed: there is nothing to resume"):
        train_teacher.run(TINY_TEACHER, context, broken)
    assert broken.file("manifest.json").read_bytes() == finished


def test_there_must_be_something_to_resume(broken: Artifact, tmp_path: Path):
    workspace = Workspace(broken.path.parents[1])
    assert train_teacher.find_resumable(workspace, broken.name)[0] == TINY_TEACHER
    with pytest.raises(MissingArtifactError, match="did you mean"):
        train_teacher.find_resumable(workspace, broken.name + "x")
    broken.complete({})
    with pytest.raises(SettingsError, match="No unfinished teacher"):
        train_teacher.find_resumable(workspace, None)
    with pytest.raises(SettingsError, match="No unfinished teacher"):
        train_teacher.find_resumable(Workspace(tmp_path / "empty"), None)


def test_an_unfinished_teacher_without_a_checkpoint_is_no_candidate(broken: Artifact):
    shutil.rmtree(broken.file("checkpoint"))
    with pytest.raises(SettingsError, match=r"The newest unfinished teacher, .* has saved nothing"):
        train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)


def test_a_teacher_that_is_being_trained_is_not_resumed_by_another(broken: Artifact, context: StageContext):
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    status = artifact.manifest.status
    with (
        CheckpointFolder(artifact.file("checkpoint")).lock(),
        pytest.raises(UserError, match="in use by another process"),
    ):
        train_teacher.run(settings, context, artifact)
    assert Artifact.load(artifact.path).manifest.status == status


def test_a_damaged_checkpoint_marks_no_teacher_as_completed(broken: Artifact):
    broken.file("checkpoint/manifest.json").write_text("{}")
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    with pytest.raises(DamagedFileError):
        train_teacher.run(settings, make_context(broken.path.parents[1]), artifact)
    assert Artifact.load(broken.path).manifest.status == "failed"


@pytest.mark.parametrize("value", [float("inf"), "many", None])
def test_a_checkpoint_whose_numbers_are_none_is_refused(
    broken: Artifact, value: Any, monkeypatch: pytest.MonkeyPatch
):
    """As another program may have written it: its hashes are right."""
    load = CheckpointFolder.load

    def edited(folder: CheckpointFolder, *arguments: Any) -> Any:
        checkpoint = load(folder, *arguments)
        checkpoint.progress["metric_count"] = value
        return checkpoint

    monkeypatch.setattr(CheckpointFolder, "load", edited)
    assert "does not fit this run's settings" in refused(broken)
