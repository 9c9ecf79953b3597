"""Every simulator, for tests that all of them must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator

WORLDS = 4
MakeSimulator = Callable[..., Simulator]


def make_cpu(task: CompiledTask, num_worlds: int = WORLDS, **settings: Any) -> Simulator:
    return CpuSimulator(task, num_worlds, num_threads=2, **settings)


def make_warp(task: CompiledTask, num_worlds: int = WORLDS, **settings: Any) -> Simulator:
    pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")
    from thousandfold.envs.simulators.warp_simulator import WarpSimulator

    return WarpSimulator(task, num_worlds, device="cpu", **settings)


def make_warp_on_cuda(task: CompiledTask, num_worlds: int = WORLDS, **settings: Any) -> Simulator:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from thousandfold.envs.simulators.warp_simulator import WarpSimulator

    return WarpSimulator(task, num_worlds, device="cuda:0", **settings)


EVERY_SIMULATOR = [
    pytest.param(make_cpu, id="cpu"),
    pytest.param(make_warp, id="warp"),
    pytest.param(make_warp_on_cuda, id="warp-cuda", marks=pytest.mark.cuda),
]


def numpy(array: Any) -> np.ndarray:
    return array.cpu().numpy().copy() if hasattr(array, "cpu") else np.array(array)


def assert_same(simulator: Simulator, one: np.ndarray, other: np.ndarray) -> None:
    """Check that what two runs of simulators lead to is the same: bit for bit; on CUDA to 1e-2 (1 + |x|).

    There MuJoCo Warp finds contacts and constraints in another order each time, and adds them up so.
    """
    if str(getattr(simulator, "device", "cpu")) == "cpu" or not np.issubdtype(one.dtype, np.floating):
        assert np.array_equal(one, other)
    else:
        assert (np.abs(one - other) <= 1e-2 * (1 + np.abs(other))).all()


def still(simulator: Simulator) -> np.ndarray:
    return np.zeros((simulator.num_worlds, simulator.task.action_dim), np.float32)


def mask(simulator: Simulator, *worlds: int) -> Any:
    chosen = np.zeros(simulator.num_worlds, bool)
    chosen[list(worlds)] = True
    return chosen
