"""What is missing for CUDA is named, with what would do; `auto` falls back, and says so beside a driver."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.pipeline.pretended_cuda import GOOD_DRIVER, OLD_DRIVER, Pretend, pretend
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline import cuda
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.cuda import Driver, describe_device, installed_driver
from thousandfold.pipeline.runtime import resolve_device

__all__ = ["pretend"]
MACHINES = [
    pytest.param(
        {"driver": None},
        "no NVIDIA driver can be loaded (install driver 580 or newer; a container wants --gpus all)",
        id="no driver",
    ),
    pytest.param(
        {"driver": OLD_DRIVER},
        "NVIDIA driver 570.86.15 runs CUDA up to 12.8, but torch 2.13.0 is built for 13.0 and Warp 1.19.0 "
        "is built for 13.4 (install driver 580 or newer)",
        id="old driver",
    ),
    pytest.param(
        {"driver": Driver(None, (12, 6)), "torch_cuda": "12.6"},
        "the NVIDIA driver runs CUDA up to 12.6, but Warp 1.19.0 is built for 13.4 (install driver 580 or "
        "newer)",
        id="driver for torch alone",
    ),
    pytest.param(
        {"torch_version": "2.13.0+cpu", "torch_cuda": None},
        "torch 2.13.0+cpu is built without CUDA (install torch 2.13.0 as it is on PyPI)",
        id="torch without CUDA",
    ),
    pytest.param(
        {"driver": None, "torch_version": "2.13.0+cpu", "torch_cuda": None},
        "torch 2.13.0+cpu is built without CUDA (install torch 2.13.0 as it is on PyPI); no NVIDIA "
        "driver can be loaded (install driver 580 or newer; a container wants --gpus all)",
        id="neither",
    ),
    pytest.param(
        {"warp_cuda": None},
        "Warp 1.19.0 is built without CUDA (install Warp 1.19.0 as it is on PyPI)",
        id="Warp without CUDA",
    ),
    pytest.param(
        {"torch_sees": False},
        "torch 2.13.0 sees no device beside NVIDIA driver 580.65.06 (No CUDA GPUs are available; see what "
        "nvidia-smi lists)",
        id="torch without device",
    ),
    pytest.param(
        {"warp_sees": False},
        "Warp 1.19.0 sees no device, though torch sees one (it is built for CUDA 13.4: install driver 580 or "
        "newer, or warp-lang anew)",
        id="Warp without device",
    ),
    pytest.param(
        {"architecture": 70},
        "Tesla V100 has compute capability 7.0, and torch 2.13.0 with Warp 1.19.0 needs 7.5 or newer (take "
        "another GPU)",
        id="old GPU",
    ),
]


@pytest.fixture(autouse=True)
def every_device_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("machine", "said"), MACHINES)
def test_cuda_is_refused_with_what_is_missing_and_what_would_do(
    pretend: Pretend, machine: dict[str, Any], said: str
):
    pretend(**machine)
    with pytest.raises(SettingsError) as raised:
        resolve_device("cuda", Console())
    assert str(raised.value) == f"device cuda: {said}; or use --device cpu."


@pytest.mark.parametrize(("machine", "said"), MACHINES)
def test_auto_falls_to_the_cpu_and_warns_once_beside_a_driver(
    pretend: Pretend, machine: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
):
    pretend(**machine)
    console = Console()
    assert [resolve_device("auto", console) for _ in range(2)] == ["cpu", "cpu"]
    warned = f"Warning: The CPU computes, not the GPU: {said}. --device cpu silences this.\n"
    beside_a_driver = machine.get("driver", GOOD_DRIVER) is not None
    assert capsys.readouterr() == ("", warned if beside_a_driver else "")


def test_a_machine_with_everything_computes_on_cuda(pretend: Pretend, capsys: pytest.CaptureFixture[str]):
    pretend()
    assert [resolve_device(name, Console()) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert capsys.readouterr() == ("", "")


def test_hidden_devices_are_named(pretend: Pretend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    pretend(torch_sees=False)
    with pytest.raises(SettingsError, match="CUDA_VISIBLE_DEVICES is '-1': unset it"):
        resolve_device("cuda", Console())


def test_a_newer_cuda_than_any_known_here_is_named_itself(pretend: Pretend):
    pretend(torch_cuda="14.1", warp_cuda=(13, 4))
    with pytest.raises(
        SettingsError, match=r"torch 2\.13\.0 is built for 14\.1 \(install one that runs CUDA 14\)"
    ):
        resolve_device("cuda", Console())


@pytest.mark.parametrize(
    ("answer", "release", "found"),
    [
        (0, "570.86.15\n", Driver("570.86.15", (12, 8))),
        (0, None, Driver(None, (12, 8))),
        (34, "570.86.15\n", None),  # the stub that toolkits bring
    ],
)
def test_the_driver_tells_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: int, release: str | None, found: Driver | None
):
    def version_of(pointer: Any) -> int:
        pointer._obj.value = 12080
        return answer

    file = tmp_path / "version"
    if release is not None:
        file.write_text(release, encoding="utf-8")
    monkeypatch.setattr(cuda, "_RELEASE_FILE", file)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=version_of))
    assert installed_driver() == found


def test_without_the_drivers_library_there_is_no_driver(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert installed_driver() is None


def test_a_device_is_described_with_its_driver(pretend: Pretend, monkeypatch: pytest.MonkeyPatch):
    pretend()
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert describe_device("cuda:1") == {
        "device": "cuda:1",
        "gpu": "NVIDIA H200",
        "memory_bytes": 150 * 10**9,
        "compute_capability": "9.0",
        "driver": "580.65.06",
        "driver_cuda": "13.0",
        "torch_cuda": "13.0",
    }
    assert describe_device("cpu") == {"device": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_check_command_fails_where_there_is_no_cuda():
    command = [sys.executable, "-m", "thousandfold.pipeline.cuda"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("Error: CUDA cannot be used: ") and ended.stderr.count("\n") == 1
