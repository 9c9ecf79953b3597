"""A dataset that was cut off and resumed is the one that never was."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.tiny_runs import make_context
from tests.stages.untrained_teacher import SETTINGS
from thousandfold.ground.errors import DamagedFileError, SettingsError, StoppedByUser, UserError
from thousandfold.ground.files import folder_lock
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.session import CommonOptions
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings, find_resumable, run
from thousandfold.stages.dataset.rollout import LabelledRollout, Round


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets to clean up after it."""


@pytest.fixture
def unfinished(context: StageContext, teacher: Artifact, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Return a dataset that was cut off in its third shard of four."""
    rename, count = Path.rename, itertools.count()

    def dying(path: Path, target: Path) -> Path:
        if next(count) == 2:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(SETTINGS, context, teacher)
    artifact = context.workspace.artifacts("dataset")[0]
    artifact.update(status="running", finished_at=None, results={})
    assert len(shards_of(artifact)) == 2 and list(artifact.path.rglob(".tmp-*"))
    return artifact


def shards_of(artifact: Artifact) -> list[Path]:
    return sorted(artifact.path.rglob("shard_*-v0"))


def test_a_dataset_that_another_process_has_finished_is_not_begun_again(
    context: StageContext, teacher: Artifact, unfinished: Artifact
):
    finished = run(SETTINGS, context, teacher, Artifact.load(unfinished.path)).manifest
    with pytest.raises(SettingsError, match="is completed: there is nothing to resume"):
        run(SETTINGS, context, teacher, unfinished)
    assert Artifact.load(unfinished.path).manifest == finished


def test_a_resumed_dataset_is_the_one_that_was_never_cut_off(
    context: StageContext, dataset: Artifact, unfinished: Artifact
):
    settings, found, teacher = find_resumable(context.workspace, None)
    assert settings == SETTINGS and found.path == unfinished.path
    kept = [(shard / "data/main_data.hdf5").stat().st_mtime_ns for shard in shards_of(unfinished)]
    resumed = run(settings, context, teacher, found)
    assert resumed.manifest.files == dataset.manifest.files and not list(resumed.path.rglob(".tmp-*"))
    assert resumed.manifest.hash == dataset.manifest.hash
    assert kept == [(shard / "data/main_data.hdf5").stat().st_mtime_ns for shard in shards_of(resumed)[:2]]
    assert resumed.manifest.results["success"] == dataset.manifest.results["success"]
    with pytest.raises(SettingsError, match="is completed: there is nothing to resume"):
        find_resumable(context.workspace, resumed.name)


def test_a_damaged_shard_is_made_again_on_resume(
    context: StageContext, dataset: Artifact, unfinished: Artifact
):
    rows = shards_of(unfinished)[0] / "data/main_data.hdf5"
    rows.write_bytes(rows.read_bytes()[:-100])
    settings, found, teacher = find_resumable(context.workspace, unfinished.name)
    assert run(settings, context, teacher, found).manifest.hash == dataset.manifest.hash


def test_ctrl_c_keeps_the_shards_and_says_how_to_go_on(
    context: StageContext, dataset: Artifact, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    run_round = LabelledRollout.run_round

    def stopping(rollout: LabelledRollout, each: Round, *arguments: Callable[[], None]) -> list:
        if each.index == 1:
            context.stop.requested = True
        return run_round(rollout, each, *arguments)

    monkeypatch.setattr(LabelledRollout, "run_round", stopping)
    with pytest.raises(StoppedByUser, match=r"generate-dataset --resume dataset-[-0-9]+$"):
        run(SETTINGS, context, teacher)
    context.stop.requested = False
    monkeypatch.undo()
    settings, found, _ = find_resumable(context.workspace, None)
    assert found.manifest.status == "running" and len(shards_of(found)) == 2
    assert run(settings, context, teacher, found).manifest.hash == dataset.manifest.hash


def test_a_dataset_in_the_making_is_left_alone(
    context: StageContext, unfinished: Artifact, teacher: Artifact
):
    with folder_lock(unfinished.path), pytest.raises(UserError, match="in use by another process"):
        run(SETTINGS, context, teacher, unfinished)


def test_what_cannot_be_resumed_is_said_in_one_line(tmp_path: Path):
    context = make_context(tmp_path)
    with pytest.raises(SettingsError, match="No unfinished dataset in"):
        find_resumable(context.workspace, None)
    foreign = context.workspace.create("dataset", task="point_u_maze", settings={"nois": 1})
    with pytest.raises(DamagedFileError, match="cannot be resumed"):
        find_resumable(context.workspace, foreign.name)


def test_nothing_that_the_bytes_depend_on_changes_on_resume():
    assert GenerateDatasetSettings().threads == 1  # whatever the number of ranks
    with pytest.raises(SettingsError, match="threads 1, not 2"):
        CommonOptions(None, ("threads=2",), None, None, False).resolve_resumed(
            SETTINGS, "generate_dataset", {}, name="it", changeable=generate_dataset.CHANGEABLE_ON_RESUME
        )
