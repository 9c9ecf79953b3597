"""Small checkpoints, and a process that is killed while it saves one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from thousandfold.pipeline.checkpoint import BackgroundSaves, CheckpointFolder


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


def save(
    folder: CheckpointFolder | BackgroundSaves,
    step: int,
    first: list[int],
    rows: list[int],
    oldest_row: int = 0,
    fixed: tuple[str, ...] = (),
) -> None:
    """Save a checkpoint; the fixed tensors carry the step at which they were written."""
    folder.save(
        step,
        {"weight": torch.full((3, 2), float(step)), "counter": torch.tensor(step), "empty": torch.zeros(0)},
        {"unrolls": step, "history": [{"loss": 0.1 * step}]},
        segment=make_segment(first, rows),
        oldest_row=oldest_row,
        fixed={name: {"weight": torch.tensor([float(step)])} for name in fixed},
    )


def names(folder: CheckpointFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


class Killed(BaseException):
    """Stands for SIGKILL: nothing that runs afterwards reaches the disk."""


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
