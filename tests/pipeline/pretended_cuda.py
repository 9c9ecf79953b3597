"""A machine with a GPU, or with half of what one needs, for tests that run on neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thousandfold.pipeline import cuda
from thousandfold.pipeline.cuda import Driver

GOOD_DRIVER = Driver("580.65.06", (13, 0))
OLD_DRIVER = Driver("570.86.15", (12, 8))
Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Pretend]:
    """Return what gives the machine a driver, a torch and a Warp; all are good by default."""

    def make(
        *,
        driver: Driver | None = GOOD_DRIVER,
        torch_version: str = "2.13.0",
        torch_cuda: str | None = "13.0",
        torch_sees: bool = True,
        warp_cuda: tuple[int, int] | None = (13, 4),
        warp_sees: bool = True,
        architecture: int = 90,
    ) -> None:
        files = tmp_path / "nvidiactl"
        files.touch() if driver else files.unlink(missing_ok=True)
        monkeypatch.setattr(cuda, "_DEVICE_FILES", (files,))
        monkeypatch.setattr(cuda, "installed_driver", lambda: driver)
        monkeypatch.setattr(torch, "__version__", torch_version)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees)
        monkeypatch.setattr(torch.cuda, "init", _find_none)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_120"])
        warp = SimpleNamespace(
            __version__="1.19.0",
            get_cuda_toolkit_version=lambda: warp_cuda,
            is_cuda_available=lambda: warp_sees,
            init=lambda: None,
            config=SimpleNamespace(kernel_cache_dir="/cache/warp/1.19.0"),
            get_cuda_devices=lambda: [SimpleNamespace(arch=architecture, name="Tesla V100")],
        )
        monkeypatch.setattr(cuda, "_load_warp", lambda: warp)
        cuda.cuda_problem.cache_clear()

    yield make
    cuda.cuda_problem.cache_clear()


def _find_none() -> None:
    raise RuntimeError("No CUDA GPUs are available. And more.")
