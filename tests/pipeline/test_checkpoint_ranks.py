"""One checkpoint of several ranks: whole at any moment, whichever of them is killed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.checkpoint_saves import Killed, Killer, make_segment, names, save
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.checkpoint import Checkpoint, CheckpointFolder
from thousandfold.pipeline.distributed import Ranks


class Waiting(Exception):
    """A rank has told what it wrote and waits for the others."""


class RankInTurn(Ranks):
    """One of two ranks that save one after the other: rank 1 up to where it would wait, then rank 0."""

    def __init__(self, rank: int, folder: Path, told: list[str]) -> None:
        super().__init__(rank, 2)
        self.folder, self.told = folder, told

    def from_leader(self, make: Callable[[], Any]) -> Any:
        return json.loads(json.dumps(CheckpointFolder(self.folder, Ranks())._in_place()))

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
