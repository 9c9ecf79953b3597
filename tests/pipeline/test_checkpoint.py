"""A checkpoint is whole at any moment, and what is not whole is refused by name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.pipeline.checkpoint_saves import Killed, Killer, names, save
from thousandfold.ground.errors import DamagedFileError
from thousandfold.ground.files import json_sha256, write_json_atomic
from thousandfold.pipeline import checkpoint as checkpoint_module
from thousandfold.pipeline.checkpoint import (
    BackgroundSaves,
    Checkpoint,
    CheckpointFolder,
    load_tensors,
    save_tensors,
)


def assert_one_line_naming(error: BaseException, name: str) -> None:
    assert name in str(error) and "\n" not in str(error)


def test_tensors_come_back_bit_for_bit_with_their_metadata(tmp_path: Path):
    tensors = {
        "float": torch.tensor([0.1, -0.0, torch.inf, torch.finfo(torch.float32).tiny]),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "view": torch.arange(12).reshape(3, 4).T,
        "bool": torch.tensor([True, False]),
    }
    save_tensors(tmp_path / "t.safetensors", tensors, {"step": 3, "path": tmp_path, "list": [1.5, None]})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": 3, "path": str(tmp_path), "list": [1.5, None]}
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_a_file_that_the_system_does_not_take_is_an_error_of_the_system(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as raised:
            save_tensors(path, {"a": torch.ones(500)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 1, 7, 8, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(50)}, {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedFileError) as raised:
        load_tensors(path)
    assert_one_line_naming(raised.value, str(path))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("not a tensor in sight " * 10),
        lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path),
        lambda path: safetensors.torch.save_file({"a": torch.ones(2)}, path, metadata={"thousandfold": "{"}),
        lambda path: None,
        lambda path: path.mkdir(),
    ],
    ids=["text", "foreign", "no JSON", "missing", "folder"],
)
def test_a_foreign_or_missing_file_is_named(tmp_path: Path, write: Callable[[Path], Any]):
    path = tmp_path / "t.safetensors"
    write(path)
    with pytest.raises(DamagedFileError) as raised:
        load_tensors(path)
    assert_one_line_naming(raised.value, str(path))


def test_a_checkpoint_comes_back(tmp_path: Path):
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert not folder.exists
    save(folder, 4, [0, 0], [3, 2])
    save(folder, 8, [3, 2], [1, 2])
    assert folder.exists
    checkpoint = CheckpointFolder(folder.path).load()
    assert checkpoint.progress == {"unrolls": 8, "history": [{"loss": 0.8}]}
    assert torch.equal(checkpoint.tensors["weight"], torch.full((3, 2), 8.0))
    assert [segment["first"].tolist() for segment in checkpoint.segments] == [[0, 0], [3, 2]]
    assert checkpoint.segments[1]["observation"].flatten().tolist() == [0.003, 1.002, 1.003]
    assert names(folder) == {
        "manifest.json",
        "state-00000008.safetensors",
        "replay-00000004.safetensors",
        "replay-00000008.safetensors",
    }


def test_a_segment_without_rows_makes_no_file(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, [0, 0], [0, 0])
    assert folder.load().segments == []
    assert names(folder) == {"manifest.json", "state-00000001.safetensors"}


def test_a_segment_stays_as_long_as_one_world_holds_one_of_its_rows(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, [0, 0], [4, 2])  # last row 3, of the first world
    save(folder, 2, [4, 2], [4, 4], oldest_row=3)
    assert [segment["first"].tolist() for segment in folder.load().segments] == [[0, 0], [4, 2]]
    save(folder, 3, [8, 6], [1, 1], oldest_row=4)
    assert [segment["first"].tolist() for segment in folder.load().segments] == [[4, 2], [8, 6]]
    assert "replay-00000001.safetensors" not in names(folder)


def written_at(checkpoint: Checkpoint) -> dict[str, float]:
    return {name: float(tensors["weight"]) for name, tensors in checkpoint.fixed.items()}


def test_what_stays_as_it_is_is_written_once_and_dropped_when_no_checkpoint_names_it(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, [0], [1], fixed=("a", "b"))
    save(folder, 2, [1], [1], fixed=("c", "a"))
    assert written_at(folder.load()) == {"c": 2.0, "a": 1.0}
    assert float(folder.fixed("a")["weight"]) == 1.0
    assert "b.safetensors" not in names(folder)
    folder.save(3, {}, {}, fixed={"a": None})
    assert written_at(folder.load()) == {"a": 1.0}
    assert names(folder) & {"a.safetensors", "b.safetensors", "c.safetensors"} == {"a.safetensors"}


def test_a_step_that_does_not_grow_leaves_the_checkpoint_alone(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5, [0], [1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for step in (5, 4):
        with pytest.raises(ValueError, match="step"):
            save(folder, step, [1], [1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def is_whole(checkpoint: Checkpoint, step: int, firsts: list[list[int]]) -> bool:
    return (
        checkpoint.progress["unrolls"] == step
        and torch.equal(checkpoint.tensors["weight"], torch.full((3, 2), float(step)))
        and [segment["first"].tolist() for segment in checkpoint.segments] == firsts
    )


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path: Path):
    template = CheckpointFolder(tmp_path / "template")
    save(template, 1, [0], [4])
    save(template, 2, [4], [4], fixed=("a", "b"))
    old, new = (2, [[0], [4]]), (3, [[4], [8]])  # the save at step 3 drops the first segment
    outcomes = []
    for at in range(1, 100):
        folder = CheckpointFolder(tmp_path / f"killed-{at}")
        shutil.copytree(template.path, folder.path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            killer = Killer(monkeypatch, at)
            with contextlib.suppress(Killed):
                save(folder, 3, [8], [4], oldest_row=5, fixed=("a", "c"))
        checkpoint = folder.load()
        whole = {2: {"a": 2.0, "b": 2.0}, 3: {"a": 2.0, "c": 3.0}}
        assert written_at(checkpoint) == whole[checkpoint.progress["unrolls"]]
        assert is_whole(checkpoint, *old) or is_whole(checkpoint, *new), f"killed at touch {at}"
        outcomes.append(checkpoint.progress["unrolls"])
        # Whatever the kill left behind, the next save works and clears it away.
        segment = ([8], [5]) if outcomes[-1] == 2 else ([12], [1])
        save(folder, 4, *segment, oldest_row=5)
        kept = {"replay-00000002.safetensors", "replay-00000004.safetensors"}
        kept |= {"replay-00000003.safetensors"} if outcomes[-1] == 3 else set()
        assert names(folder) == {"manifest.json", "state-00000004.safetensors"} | kept
        if not killer.dead:
            break
    assert outcomes == sorted(outcomes) and outcomes[0] == 2 and outcomes[-1] == 3
    assert 10 < len(outcomes) < 99 and outcomes.count(3) > 2  # kills before and after the swap


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, [0], [4])

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, 2, [4], [4])
    assert is_whole(folder.load(), 1, [[0]])
    assert names(folder) == {"manifest.json", "state-00000001.safetensors", "replay-00000001.safetensors"}


def test_a_save_in_the_background_leaves_the_training_free_and_is_whole_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    go_on, sha256 = threading.Event(), checkpoint_module.file_sha256

    def wait_and_hash(path: Path) -> str:
        assert go_on.wait(60)
        return sha256(path)

    monkeypatch.setattr(checkpoint_module, "file_sha256", wait_and_hash)
    folder = CheckpointFolder(tmp_path)
    with BackgroundSaves(folder) as saves:
        assert saves.path is None
        save(saves, 1, [0], [4])
        saves.check()
        assert not folder.exists and saves.path == tmp_path  # it is under way
        go_on.set()
        save(saves, 2, [4], [4])  # waits for the one before
        assert folder.progress["unrolls"] >= 1
        saves.wait()
        assert is_whole(folder.load(), 2, [[0], [4]])
        save(saves, 3, [8], [4])
    assert is_whole(folder.load(), 3, [[0], [4], [8]])


@pytest.mark.parametrize("when", ["check", "wait", "save", "leave"])
def test_what_stops_a_save_in_the_background_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    folder = CheckpointFolder(tmp_path)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), BackgroundSaves(folder) as saves:
        save(saves, 1, [0], [4])
        saves.wait()
        monkeypatch.setattr(os, "fsync", full)
        save(saves, 2, [4], [4])
        with contextlib.suppress(OSError):
            saves.wait()
        monkeypatch.undo()
        if when == "save":
            save(saves, 3, [8], [4])
        elif when != "leave":
            getattr(saves, when)()
        assert when == "leave"
    assert is_whole(folder.load(), 1, [[0]])


def test_an_error_of_the_training_waits_for_the_save_and_is_the_one_that_is_raised(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(KeyError, match="training"), BackgroundSaves(folder) as saves:
        save(saves, 1, [0], [4])
        raise KeyError("training")
    assert is_whole(folder.load(), 1, [[0]])


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state-00000002", "replay-00000001", "replay-00000002", "kept"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text("something else"),
        lambda path: save_tensors(path, {"weight": torch.zeros(1)}, {}),
        lambda path: path.unlink(),
    ],
    ids=["edited", "truncated", "empty", "text", "other tensors", "missing"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], Any]):
    folder = CheckpointFolder(tmp_path)
    save(folder, 1, [0], [4], fixed=("kept",))
    save(folder, 2, [4], [4], fixed=("kept",))
    damage(tmp_path / f"{name}.safetensors")
    with pytest.raises(DamagedFileError) as raised:
        folder.load()
    assert_one_line_naming(raised.value, f"{name}.safetensors")


def edit_progress(text: str) -> str:
    return text.replace('"unrolls": 2', '"unrolls": 3')


def without_entry(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key})


@pytest.mark.parametrize(
    "change",
    [
        edit_progress,
        without_entry("state"),
        without_entry("sha256"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "\x00\xff",
        lambda text: text.replace('"format_version": 3', '"format_version": 99'),
    ],
)
def test_a_damaged_manifest_is_named_by_load_and_save(tmp_path: Path, change: Callable[[str], str]):
    folder = CheckpointFolder(tmp_path)
    save(folder, 2, [0], [4])
    path = tmp_path / "manifest.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed, encoding="latin-1")
    with pytest.raises(DamagedFileError) as raised:
        folder.load()
    assert_one_line_naming(raised.value, str(path))
    with pytest.raises(DamagedFileError):
        save(folder, 3, [4], [4])


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path):
    with pytest.raises(DamagedFileError, match="holds no checkpoint"):
        CheckpointFolder(tmp_path).load()


@pytest.mark.parametrize(
    "change",
    [
        {"state": {"file": "../elsewhere.safetensors", "sha256": "0"}},
        {"state": {"file": "state-00000001.safetensors", "sha256": None}},
        {"replay": [{"file": "replay.safetensors", "sha256": "0", "last_row": "9"}]},
        {"progress": {"settings": "none"}},
        {"progress": []},
        {"step": "1"},
        {"fixed": [{"file": "/kept.safetensors", "sha256": "0"}]},
        {"fixed": {"kept": "kept.safetensors"}},
    ],
    ids=str,
)
def test_a_sealed_manifest_with_other_entries_is_refused_by_name(tmp_path: Path, change: dict[str, Any]):
    folder = CheckpointFolder(tmp_path / "checkpoint")
    folder.save(1, {"weight": torch.zeros(2)}, {"settings": {}})
    path = folder.path / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | change
    del manifest["sha256"]
    write_json_atomic(path, manifest | {"sha256": json_sha256(manifest)})
    with pytest.raises(DamagedFileError, match="is truncated or no checkpoint manifest"):
        folder.load()
