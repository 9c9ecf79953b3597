"""Tiny trainings of teachers, whole or interrupted, and how two of them are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from tests.stages.tiny_runs import TINY_TEACHER
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline import cli, session
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import CheckpointFolder, load_tensors
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.networks import NETWORK_FILE
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

Tensors = dict[str, torch.Tensor]


def change(settings: TrainTeacherSettings = TINY_TEACHER, **values: Any) -> TrainTeacherSettings:
    return TrainTeacherSettings(**(settings.model_dump() | values))


class Killed(BaseException):
    """Stands for SIGKILL: the process ends without saving."""


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, context: StageContext, how: str, unrolls: int, begun: list[int]
) -> None:
    collect, done = TeacherTraining.collect, [0]

    def collect_and_interrupt(training: TeacherTraining) -> Any:
        if not done[0]:
            begun.append(training.progress.unrolls)
        if done[0] == unrolls and how == "kill":
            raise Killed
        done[0] += 1
        context.stop.requested = done[0] == unrolls and how == "stop"
        return collect(training)

    monkeypatch.setattr(TeacherTraining, "collect", collect_and_interrupt)


def as_options(settings: TrainTeacherSettings, **values: Any) -> list[str]:
    """Return the settings as options of the command line."""
    merged = settings.model_dump(exclude_none=True) | values
    given = (f"--set={name}={value}" for name, value in merged.items() if value != ())
    return ["--preset", "smoke", *given]


def invoke(workspace: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(session, "open_tracker", lambda *_: NullTracker())
        return CliRunner().invoke(cli.cli, ["--workspace", str(workspace), *arguments])


def checkpoint_of(artifact: Artifact) -> CheckpointFolder:
    return CheckpointFolder(artifact.file("checkpoint"))


def without_time(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "elapsed_s"}


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def memory(artifact: Artifact) -> list[Tensors]:
    """Return batches that the replay memory of an artifact's checkpoint gives."""
    settings = TrainTeacherSettings(**artifact.manifest.settings)
    training = TeacherTraining(settings, compile_task(settings.task), "cpu")
    training.load(checkpoint_of(artifact))
    batches = [training.buffer.sample(200, 0.9, torch.Generator().manual_seed(seed)) for seed in range(3)]
    return [{name: value for name, value in vars(batch).items() if value is not None} for batch in batches]


def assert_same_run(one: Artifact, other: Artifact) -> None:
    """Check that two teachers and everything that the next step would depend on are equal bit for bit."""
    networks = [load_tensors(artifact.file(NETWORK_FILE)) for artifact in (one, other)]
    assert_same_tensors(networks[0][0], networks[1][0])
    assert networks[0][1] == networks[1][1]
    ends = [checkpoint_of(artifact).load() for artifact in (one, other)]
    assert_same_tensors(ends[0].tensors, ends[1].tensors)
    assert list(ends[0].fixed) == ends[0].progress["finalists"] == list(ends[1].fixed)
    for name, finalist in ends[0].fixed.items():
        assert_same_tensors(finalist, ends[1].fixed[name])
    histories = [[without_time(entry) for entry in end.progress["history"]] for end in ends]
    assert histories[0] == histories[1] and len(histories[0]) > 1
    counters = [without_time(end.progress | {"history": []}) for end in ends]
    assert counters[0] == counters[1]
    for batch, same in zip(memory(one), memory(other), strict=True):
        assert_same_tensors(batch, same)
    results = [without_time(artifact.manifest.results) for artifact in (one, other)]
    assert results[0] == results[1]
