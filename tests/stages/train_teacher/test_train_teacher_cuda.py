"""What comes before a training on CUDA: each rank keeps to its own device, and the wait for Warp is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.pretended_cuda import Pretend, pretend
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.distributed import Ranks
from thousandfold.stages.train_teacher import train_teacher

__all__ = ["pretend"]
ON_CUDA = TINY_TEACHER.model_copy(update={"device": "cuda", "precision": "bfloat16"})
GIB = 2**30


class Begun(Exception):
    """A training was about to be made."""


@pytest.fixture
def asked(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What CUDA is asked and told, in order, on a machine with two devices of which the first is full."""
    pretend()
    calls: list[Any] = []
    current = [0]

    def set_device(device: int) -> None:
        calls.append(("set_device", device))
        current[0] = device

    def has_bfloat16(including_emulation: bool) -> bool:
        calls.append(("bfloat16", current[0]))
        return True

    def memory(device: str) -> tuple[int, int]:
        index = int(device.partition(":")[2] or current[0])
        calls.append(("memory", index))
        return (0 if index == 0 else GIB * 16), GIB * 16

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has_bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    return calls


def test_a_rank_asks_no_other_device_than_its_own(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def make_training(settings: Any, task: Any, device: str, ranks: Ranks) -> None:
        raise Begun(device)

    monkeypatch.setattr(train_teacher, "TeacherTraining", make_training)
    context = make_context(tmp_path)
    context.ranks = Ranks(1, 2, 1, 2)
    with pytest.raises(Begun, match="cuda:1"):
        train_teacher.run(ON_CUDA, context)
    assert asked[0] == ("set_device", 1) and {device for _, device in asked} == {1}
    assert {name for name, _ in asked} == {"set_device", "bfloat16", "memory"}


def test_a_rank_whose_device_is_full_is_refused(asked: list[Any], tmp_path: Path):
    context = make_context(tmp_path)
    context.ranks = Ranks(0, 2, 0, 2)
    with pytest.raises(SettingsError, match=r"0\.0 GiB are free"):
        train_teacher.run(ON_CUDA, context)


def test_the_wait_for_warps_kernels_is_told_with_the_place_of_their_cache(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def make_training(*_: Any) -> None:
        raise Begun(capsys.readouterr().out)

    monkeypatch.setattr(train_teacher, "TeacherTraining", make_training)
    context = make_context(tmp_path)
    context.ranks = Ranks(1, 2, 1, 2)
    with pytest.raises(Begun) as begun:
        train_teacher.run(ON_CUDA, context)
    (line,) = str(begun.value).splitlines()
    assert "Warp compiles the kernels of point_u_maze" in line and "/cache/warp/1.19.0" in line
