from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.stages.untrained_teacher import make_teacher
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, UserError
from thousandfold.pipeline import artifacts
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.replay import goal_dataset
from thousandfold.replay.goal_dataset import GoalDataset, load_goal_dataset
from thousandfold.stages.dataset import files, generate_dataset, results
from thousandfold.stages.dataset.files import PACK_FORMAT, load_dataset, verify_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings

SETTINGS = GenerateDatasetSettings(
    episodes=8, num_worlds=2, noise_levels=(0.0,), alternative_goals=1, device="cpu", threads=1
)


@pytest.fixture(scope="module")
def made(context: StageContext) -> Artifact:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(results, "draw_coverage", lambda *_, **__: None)
        return generate_dataset.run(SETTINGS, context, make_teacher(context))


@pytest.fixture
def dataset(made: Artifact, tmp_path: Path) -> Artifact:
    """Return a copy of a dataset of four shards."""
    shutil.copytree(made.path, tmp_path / made.name)
    return Artifact.load(tmp_path / made.name)


def shard_file(dataset: Artifact, number: int, name: str = "main_data.hdf5") -> Path:
    return dataset.file(f"minari/thousandfold/point_u_maze/shard_{number:05d}-v0/data/{name}")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def same(one: GoalDataset, other: GoalDataset) -> bool:
    columns = {name: value for name, value in vars(one).items() if isinstance(value, np.ndarray)}
    assert len(columns) == 11
    return one.metadata == other.metadata and all(
        np.array_equal(value, getattr(other, name)) and value.dtype == getattr(other, name).dtype
        for name, value in columns.items()
    )


# -- hashes ---------------------------------------------------------------------------------------


def test_whole_shards_are_returned_in_order(dataset: Artifact):
    assert verify_dataset(dataset) == [shard_file(dataset, number).parent for number in range(4)]


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_a_damaged_shard_is_named_and_left_out_only_when_told_to(dataset: Artifact, name: str):
    damage(shard_file(dataset, 2, name))
    with pytest.raises(DamagedFileError) as raised:
        verify_dataset(dataset)
    assert str(raised.value).startswith(f"{shard_file(dataset, 2, name)} differs from its recorded hash")
    assert "--skip-damaged-shards" in str(raised.value) and "\n" not in str(raised.value)
    told: list[str] = []
    whole = verify_dataset(dataset, skip_damaged=True, warn=told.append)
    assert whole == [shard_file(dataset, number).parent for number in (0, 1, 3)]
    assert len(told) == 1 and "shard_00002-v0" in told[0]


def test_a_missing_shard_is_named(dataset: Artifact):
    shutil.rmtree(shard_file(dataset, 1).parent)
    with pytest.raises(DamagedFileError, match=r"shard_00001-v0/data/main_data.hdf5 is missing"):
        verify_dataset(dataset)
    assert len(verify_dataset(dataset, skip_damaged=True)) == 3


def test_without_a_whole_shard_there_is_nothing_to_use(dataset: Artifact):
    for number in range(4):
        damage(shard_file(dataset, number))
    with pytest.raises(DamagedFileError, match="Every shard"):
        verify_dataset(dataset, skip_damaged=True)


def test_what_is_no_shard_is_never_left_out(dataset: Artifact):
    dataset.file("note.txt").write_text("one")
    dataset.complete({}, exclude=(".lock",))
    dataset.file("note.txt").write_text("two")
    with pytest.raises(DamagedFileError, match=r"note\.txt differs"):
        verify_dataset(dataset, skip_damaged=True)


def test_an_unfinished_dataset_is_refused(dataset: Artifact):
    dataset.update(status="running")
    with pytest.raises(MissingArtifactError, match="is not completed"):
        load_dataset(dataset)


def test_an_artifact_without_a_dataset_is_refused(context: StageContext):
    empty = context.workspace.create("dataset", task="point_u_maze", settings={})
    empty.complete({})
    with pytest.raises(DamagedFileError, match="holds no Minari dataset"):
        load_dataset(empty)


# -- the cache ------------------------------------------------------------------------------------


def test_a_second_load_comes_from_the_cache_and_is_the_same(
    dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = load_dataset(dataset, tmp_path / "cache")
    assert same(first, load_goal_dataset(dataset.path))
    (packed,) = (tmp_path / "cache/datasets").iterdir()
    assert packed.name == f"{dataset.manifest.hash}-{PACK_FORMAT}.safetensors"
    monkeypatch.setattr(files, "load_shards", lambda *_, **__: pytest.fail("read again"))
    assert same(load_dataset(dataset, tmp_path / "cache"), first)


@pytest.mark.parametrize("how", [damage, lambda path: path.write_bytes(path.read_bytes()[:100]), Path.unlink])
def test_a_cache_that_is_damaged_or_gone_is_made_again(dataset: Artifact, tmp_path: Path, how):
    first = load_dataset(dataset, tmp_path / "cache")
    (packed,) = (tmp_path / "cache/datasets").iterdir()
    whole = packed.read_bytes()
    how(packed)
    assert same(load_dataset(dataset, tmp_path / "cache"), first)
    assert packed.read_bytes() == whole


def test_a_file_that_changes_after_packing_is_noticed(dataset: Artifact, tmp_path: Path):
    first = load_dataset(dataset, tmp_path / "cache")
    whole = shard_file(dataset, 1).read_bytes()
    damage(shard_file(dataset, 1))
    with pytest.raises(DamagedFileError, match=r"shard_00001-v0.*differs"):
        load_dataset(dataset, tmp_path / "cache")
    assert len(load_dataset(dataset, tmp_path / "cache", skip_damaged=True).success) == 6
    shard_file(dataset, 1).write_bytes(whole)
    assert same(load_dataset(dataset, tmp_path / "cache"), first)
    shard_file(dataset, 1).unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        load_dataset(dataset, tmp_path / "cache")


def test_files_that_are_only_newer_are_packed_again(
    dataset: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = load_dataset(dataset, tmp_path / "cache")
    os.utime(shard_file(dataset, 0), (1, 1))
    assert same(load_dataset(dataset, tmp_path / "cache"), first)
    monkeypatch.setattr(files, "load_shards", lambda *_, **__: pytest.fail("read again"))
    load_dataset(dataset, tmp_path / "cache")
    monkeypatch.setattr(files, "PACK_FORMAT", PACK_FORMAT + 1)
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load_dataset(dataset, tmp_path / "cache")


def test_a_first_load_hashes_every_shard_once(dataset: Artifact, monkeypatch: pytest.MonkeyPatch):
    hashed: list[Path] = []
    for module in (artifacts, goal_dataset):
        original = module.file_sha256
        monkeypatch.setattr(
            module, "file_sha256", lambda path, original=original: hashed.append(path) or original(path)
        )
    load_dataset(dataset)
    rows = [path for path in hashed if path.name == "main_data.hdf5"]
    assert len(rows) == len(set(rows)) == 4 + 1  # the view is a file of rows as well


def test_another_dataset_is_not_taken_for_this_one(dataset: Artifact, tmp_path: Path):
    load_dataset(dataset, tmp_path / "cache")
    damage(shard_file(dataset, 0))
    dataset.complete({}, exclude=(".lock",))  # its hash is another now
    with pytest.raises(UserError, match=r"shard_00000-v0.*is damaged"):
        load_dataset(dataset, tmp_path / "cache")


def test_what_is_left_of_a_damaged_dataset_is_not_packed(dataset: Artifact, tmp_path: Path):
    damage(shard_file(dataset, 0))
    told: list[str] = []
    data = load_dataset(dataset, tmp_path / "cache", skip_damaged=True, warn=told.append)
    assert len(data.success) == 6 and len(told) == 1
    assert data.metadata["thousandfold"]["skipped_shards"] == ["shard_00000-v0"]
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(dataset: Artifact, tmp_path: Path):
    (tmp_path / "cache").write_text("a file in the way")
    told: list[str] = []
    assert len(load_dataset(dataset, tmp_path / "cache", warn=told.append).success) == 8
    assert len(told) == 1 and "cannot be written" in told[0]
