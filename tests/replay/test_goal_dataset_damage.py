"""Datasets whose writing was cut off, and datasets that are damaged: what is not whole is refused by name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest

import thousandfold
from tests.replay.made_up_episodes import (
    ID,
    LENGTHS,
    SHARDS,
    TASK,
    make_episode,
    make_episodes,
    record_hash,
    rows_file,
)
from thousandfold.replay import dataset_writer
from thousandfold.replay.goal_dataset import DatasetError, GoalEpisode, load_goal_dataset, write_goal_dataset

REPOSITORY = Path(thousandfold.__file__).parents[1]


# -- interrupted ------------------------------------------------------------------------------------


DIES_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from thousandfold.replay.goal_dataset import write_goal_dataset
from tests.replay.made_up_episodes import TASK, make_episode

def episodes():
    for seed in range(300):
        yield make_episode(100, seed)
    os.kill(os.getpid(), signal.SIGKILL)

write_goal_dataset(Path(sys.argv[1]), TASK, episodes(), {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_write_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-c", DIES_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / ID).exists()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert list(minari.list_local_datasets()) == SHARDS[:1]  # 256 episodes; the next shard had not begun
    assert len(load_goal_dataset(tmp_path / SHARDS[0]).action) == 256 * 100


DIES_IN_A_SHARD = """
import os, signal, sys
from pathlib import Path
from thousandfold.replay import dataset_writer
from tests.replay.made_up_episodes import TASK, make_episode

dataset_writer._write_metadata = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
dataset_writer.write_shard(Path(sys.argv[1]), TASK, 0, [make_episode(5)], {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_shard_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-c", DIES_IN_A_SHARD, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(tmp_path.rglob("main_data.hdf5"))  # it had begun
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert minari.list_local_datasets() == {}
    with pytest.raises(DatasetError, match="holds no Minari dataset"):
        load_goal_dataset(tmp_path)
    write_goal_dataset(tmp_path, TASK, make_episodes(), {})  # what is left is not in the way
    assert len(load_goal_dataset(tmp_path).action) == sum(LENGTHS)
    dataset_writer.remove_leftovers(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


def test_a_failed_write_leaves_nothing_at_all(tmp_path: Path):
    def episodes() -> Iterator[GoalEpisode]:
        yield make_episode(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_goal_dataset(tmp_path, TASK, episodes(), {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from thousandfold.replay.dataset_writer import write_shard
from tests.replay.made_up_episodes import TASK, make_episode

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a write beyond it fails as on a full disk
try:
    write_shard(Path(sys.argv[1]), TASK, 0, [make_episode(100, seed) for seed in range(20)], {})
except OSError as error:
    print(error.filename)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_full_disk_is_an_error_that_names_the_shard(tmp_path: Path):
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr  # HDF5 ends in a segmentation fault where it writes by itself
    assert done.stdout.strip() == str(tmp_path / SHARDS[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_dataset_is_never_written_over(copied: Path):
    before = rows_file(copied).read_bytes()
    with pytest.raises(DatasetError, match="already there"):
        write_goal_dataset(copied, TASK, make_episodes(), {})
    assert rows_file(copied).read_bytes() == before


def test_a_dataset_has_an_episode(tmp_path: Path):
    with pytest.raises(DatasetError, match="no episode"):
        write_goal_dataset(tmp_path, TASK, [], {})
    assert not (tmp_path / ID).exists()


# -- damaged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 100, 4000])
def test_a_truncated_file_is_named(copied: Path, kept: int):
    path = rows_file(copied)
    path.write_bytes(path.read_bytes()[:kept])
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"main_data\.hdf5 is damaged"):
            load_goal_dataset(copied)
        record_hash(path)


def test_a_missing_file_is_named(copied: Path):
    rows_file(copied).unlink()
    with pytest.raises(DatasetError, match=r"main_data\.hdf5"):
        load_goal_dataset(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"total_episodes": "many", "total_steps": 3}'])
def test_damaged_metadata_is_named(copied: Path, text: str):
    (copied / ID / "data" / "metadata.json").write_text(text)
    with pytest.raises(DatasetError, match=r"metadata\.json"):
        load_goal_dataset(copied)


def test_a_damaged_shard_is_named(copied: Path):
    rows_file(copied, 0).write_bytes(rows_file(copied, 1).read_bytes())  # readable, and another's
    with pytest.raises(DatasetError, match=r"shard_00000-v0.*differs from its recorded hash") as caught:
        load_goal_dataset(copied)
    assert "\n" not in str(caught.value)


def damage_rows(file: h5py.File) -> None:
    del file["episode_1"]


def damage_labels(file: h5py.File) -> None:
    for episode in file.values():
        del episode["infos/teacher_mean"]


def damage_length(file: h5py.File) -> None:
    del file["episode_1/observations/observation"]
    file["episode_1/observations/observation"] = np.zeros((100, 4), np.float32)


def damage_width(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = np.zeros((1, 3), np.float32)


def damage_value(file: h5py.File) -> None:
    labels = file["episode_0/infos/teacher_mean"]
    assert isinstance(labels, h5py.Dataset)
    labels[2, 1] = np.nan


def raw_file(rows: h5py.File) -> str:
    """Return a file outside the dataset with as many bytes as the actions of episode_1."""
    path = Path(rows.filename).parents[4] / "secret"
    path.write_bytes(b"12345678")
    return str(path)


def damage_storage(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file.create_dataset("episode_1/actions", (1, 2), "f4", external=[(raw_file(file), 0, 8)])


def other_file(rows: h5py.File) -> str:
    """Return a file of HDF5 outside the dataset with actions for episode_1."""
    path = Path(rows.filename).parents[4] / "other.hdf5"
    with h5py.File(path, "w") as file:
        file["actions"] = np.zeros((1, 2), np.float32)
    return str(path)


def damage_link(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_1/actions"] = h5py.ExternalLink(other_file(file), "actions")


def damage_soft_link(file: h5py.File) -> None:
    del file["episode_1/actions"]
    file["episode_0/infos/elsewhere"] = h5py.ExternalLink(other_file(file), "actions")
    file["episode_1/actions"] = h5py.SoftLink("/episode_0/infos/elsewhere")


def damage_layout(file: h5py.File) -> None:
    del file["episode_1/actions"]
    layout = h5py.VirtualLayout((1, 2), "f4")
    layout[:] = h5py.VirtualSource(other_file(file), "actions", (1, 2))
    file.create_virtual_dataset("episode_1/actions", layout)


def damage_claim(file: h5py.File) -> None:
    for episode in file.values():
        rows = episode["infos/teacher_mean"].shape[0]
        del episode["infos/teacher_mean"]
        episode.create_dataset("infos/teacher_mean", (rows, 2**40), "f4", chunks=(1, 8))


@pytest.mark.parametrize(
    "damage",
    [
        damage_rows, damage_labels, damage_length, damage_width, damage_value, damage_storage, damage_link,
        damage_soft_link, damage_layout, damage_claim,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_a_foreign_or_inconsistent_file_is_named(copied: Path, damage):
    with h5py.File(rows_file(copied), "a") as file:
        damage(file)
    record_hash(rows_file(copied))
    with pytest.raises(DatasetError, match=r"main_data\.hdf5 is damaged or no dataset") as caught:
        load_goal_dataset(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("elsewhere", ["../../outside", "/outside", "thousandfold/../../outside"])
def test_a_shard_outside_the_dataset_is_not_read(copied: Path, elsewhere: str):
    path = copied / ID / "data/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["thousandfold"]["shards"][1]["id"] = elsewhere
    path.write_text(json.dumps(metadata))
    with pytest.raises(DatasetError, match="outside', which is no shard of it"):
        load_goal_dataset(copied)


def test_two_datasets_in_one_folder_are_ambiguous(copied: Path):
    shutil.copytree(copied / ID, copied / "thousandfold" / "other-v0")
    with pytest.raises(DatasetError, match="2 Minari datasets"):
        load_goal_dataset(copied)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere holds no Minari dataset"):
        load_goal_dataset(tmp_path / "nowhere")
