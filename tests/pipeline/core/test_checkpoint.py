"""A checkpoint is whole at any moment, and what is not whole is refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.core.checkpoint import Checkpoint, CheckpointFolder, load_tensors, save_tensors
from pipeline.core.distributed import Ranks
from pipeline.core.errors import DamagedFileError, UserError


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs afterwards reaches the disk."""


def make_segment(first: list[int], rows: list[int]) -> dict[str, torch.Tensor]:
    """Return a segment whose rows carry world + row / 1000."""
    numbers = [
        world + (start + i) / 1000
        for world, (start, n) in enumerate(zip(first, rows, strict=True))
        for i in range(n)
    ]
    return {
        "first": torch.tensor(first),
        "rows": torch.tensor(rows),
        "observation": torch.tensor(numbers, dtype=torch.float64)[:, None],
    }


def save(folder: CheckpointFolder, step: int, first: list[int], rows: list[int], oldest_row: int = 0) -> None:
    folder.save(
        step,
        {"weight": torch.full((3, 2), float(step)), "counter": torch.tensor(step), "empty": torch.zeros(0)},
        {"unrolls": step, "history": [{"loss": 0.1 * step}]},
        segment=make_segment(first, rows),
        oldest_row=oldest_row,
    )


def names(folder: CheckpointFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def assert_one_line_naming(error: BaseException, name: str) -> None:
    assert name in str(error) and "\n" not in str(error)


# -- tensors ----------------------------------------------------------------------------------------


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


# -- folders ----------------------------------------------------------------------------------------


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


def test_a_step_that_does_not_grow_leaves_the_checkpoint_alone(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    save(folder, 5, [0], [1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for step in (5, 4):
        with pytest.raises(ValueError, match="step"):
            save(folder, step, [1], [1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- killed -----------------------------------------------------------------------------------------


class Killer:
    """Kills at the n-th touch of the disk: a write leaves half of the file, the rest does not happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.count, self.dead = at, 0, False
        self._patch(monkeypatch, os, "fsync")
        self._patch(monkeypatch, Path, "replace")
        self._patch(monkeypatch, Path, "unlink")
        self._patch(monkeypatch, Path, "write_bytes", lambda path, data: path.open("wb").write(data[:20]))
        save_file = safetensors.torch.save_file

        def save_half(tensors: dict, path: Path, metadata: dict) -> None:
            save_file(tensors, path, metadata=metadata)
            os.truncate(path, path.stat().st_size // 2)

        self._patch(monkeypatch, safetensors.torch, "save_file", save_half)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, partly: Any = None) -> None:
        whole = getattr(owner, name)

        def touch(*arguments: Any, **options: Any) -> Any:
            if not self.dead:
                self.count += 1
                self.dead = self.count == self.at
                if self.dead and partly is not None:
                    partly(*arguments, **options)
            if self.dead:
                raise Killed
            return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, touch)


def is_whole(checkpoint: Checkpoint, step: int, firsts: list[list[int]]) -> bool:
    return (
        checkpoint.progress["unrolls"] == step
        and torch.equal(checkpoint.tensors["weight"], torch.full((3, 2), float(step)))
        and [segment["first"].tolist() for segment in checkpoint.segments] == firsts
    )


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path: Path):
    template = CheckpointFolder(tmp_path / "template")
    save(template, 1, [0], [4])
    save(template, 2, [4], [4])
    old, new = (2, [[0], [4]]), (3, [[4], [8]])  # the save at step 3 drops the first segment
    outcomes = []
    for at in range(1, 100):
        folder = CheckpointFolder(tmp_path / f"killed-{at}")
        shutil.copytree(template.path, folder.path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            killer = Killer(monkeypatch, at)
            with contextlib.suppress(Killed):
                save(folder, 3, [8], [4], oldest_row=5)
        checkpoint = folder.load()
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


# -- several ranks ----------------------------------------------------------------------------------


class Waiting(Exception):
    """A rank has told what it wrote and waits for the others."""


class RankInTurn(Ranks):
    """One of two ranks that save one after the other: rank 1 up to where it would wait, then rank 0."""

    def __init__(self, rank: int, folder: Path, told: list[str]) -> None:
        super().__init__(rank, 2)
        self.folder, self.told = folder, told

    def from_leader(self, make: Callable[[], Any]) -> Any:
        return json.loads(json.dumps(CheckpointFolder(self.folder, Ranks())._saved_segments()))

    def texts(self, text: str) -> list[str]:
        if not self.leads:
            self.told.append(text)
            raise Waiting
        return [text, self.told[-1]]


def save_of_two(folder: Path, step: int, first: int, rows: int, oldest_row: int = 0) -> None:
    """Save a checkpoint of two ranks with a world each; the one of rank 1 is ten rows ahead."""
    told: list[str] = []
    for rank in (1, 0):
        own = CheckpointFolder(folder, RankInTurn(rank, folder, told))
        with contextlib.suppress(Waiting):
            own.save(
                step,
                {"weight": torch.full((3, 2), float(step))},
                {"unrolls": step, "rank": rank},
                segment=make_segment([first + 10 * rank], [rows]),
                oldest_row=oldest_row + 10 * rank,
                own={"state": torch.tensor([step, rank])},
            )


def is_whole_of_two(checkpoint: Checkpoint, step: int, firsts: list[list[int]]) -> bool:
    return (
        checkpoint.progress == {"unrolls": step, "rank": 0}
        and torch.equal(checkpoint.tensors["weight"], torch.full((3, 2), float(step)))
        and [part.tensors["state"].tolist() for part in checkpoint.parts] == [[step, 0], [step, 1]]
        and [[int(segment["first"]) for segment in part.segments] for part in checkpoint.parts] == firsts
    )


def test_every_rank_keeps_its_own_files_in_one_checkpoint(tmp_path: Path):
    save_of_two(tmp_path, 1, 0, 4)
    save_of_two(tmp_path, 2, 4, 4)
    folder = CheckpointFolder(tmp_path)
    assert folder.num_parts == 2 and folder.progress == {"unrolls": 2, "rank": 0}
    assert is_whole_of_two(folder.load(), 2, [[0, 4], [10, 14]])
    (part,) = folder.load([1]).parts
    assert part.tensors["state"].tolist() == [2, 1] and len(part.segments) == 2
    assert names(folder) == {
        "manifest.json",
        "state-00000002.safetensors",
        *(f"worlds-00000002-rank-{rank}.safetensors" for rank in range(2)),
        *(f"replay-0000000{step}-rank-{rank}.safetensors" for rank in range(2) for step in (1, 2)),
    }


def test_a_kill_of_any_rank_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path: Path):
    template = tmp_path / "template"
    save_of_two(template, 1, 0, 4)
    save_of_two(template, 2, 4, 4)
    old, new = (2, [[0, 4], [10, 14]]), (3, [[4, 8], [14, 18]])
    outcomes = []
    for at in range(1, 200):
        path = tmp_path / f"killed-{at}"
        shutil.copytree(template, path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            killer = Killer(monkeypatch, at)
            with contextlib.suppress(Killed):
                save_of_two(path, 3, 8, 4, oldest_row=5)
        checkpoint = CheckpointFolder(path).load()
        assert is_whole_of_two(checkpoint, *old) or is_whole_of_two(checkpoint, *new), f"killed at touch {at}"
        outcomes.append(checkpoint.progress["unrolls"])
        save_of_two(path, 4, 8 if outcomes[-1] == 2 else 12, 5, oldest_row=5)
        assert CheckpointFolder(path).load().progress["unrolls"] == 4
        assert not [path for path in path.iterdir() if path.name.startswith(".tmp-")]
        if not killer.dead:
            break
    assert outcomes == sorted(outcomes) and outcomes[0] == 2 and outcomes[-1] == 3
    assert 20 < len(outcomes) < 199 and outcomes.count(3) > 3


@pytest.mark.parametrize("several_first", [True, False])
def test_another_number_of_ranks_begins_the_replay_anew(tmp_path: Path, several_first: bool):
    """Whoever saves then hands over all rows: the segments before belong to other worlds."""
    folder = CheckpointFolder(tmp_path)
    if several_first:
        save_of_two(tmp_path, 1, 0, 4)
        save(folder, 2, [0, 0], [8, 8])
        assert [segment["first"].tolist() for segment in folder.load().segments] == [[0, 0]]
        assert names(folder) == {
            "manifest.json", "state-00000002.safetensors", "replay-00000002.safetensors"
        }  # fmt: skip
    else:
        save(folder, 1, [0, 0], [4, 4])
        save_of_two(tmp_path, 2, 0, 8)
        assert is_whole_of_two(folder.load(), 2, [[0], [10]])
        assert not {"state-00000001.safetensors", "replay-00000001.safetensors"} & names(folder)


def test_only_rank_0_locks(tmp_path: Path):
    one, other = (CheckpointFolder(tmp_path, Ranks(rank, 2)) for rank in range(2))
    with (
        one.lock(),
        other.lock(),
        pytest.raises(UserError, match="in use"),
        CheckpointFolder(tmp_path).lock(),
    ):
        pass


# -- damage -----------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state-00000002", "replay-00000001", "replay-00000002"])
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
    save(folder, 1, [0], [4])
    save(folder, 2, [4], [4])
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
        lambda text: text.replace('"format_version": 1', '"format_version": 99'),
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
