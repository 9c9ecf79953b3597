"""The choice of a simulator: MuJoCo Warp on CUDA, CPU threads elsewhere."""

from __future__ import annotations

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.simulator import Simulator


def make_simulator(
    task: CompiledTask,
    num_worlds: int,
    *,
    device: str,
    seed: int | np.random.SeedSequence,
    distribution: str,
    num_threads: int = 0,
    deterministic: bool = False,
) -> Simulator:
    """Return the simulator of a device: MuJoCo Warp on ``cuda``, CPU threads on ``cpu``.

    Args:
        task, num_worlds, device, seed, distribution: as the simulators take them.
        num_threads: CPU threads to step on, where it does; 0 takes as many as this process may use.
        deterministic: on CUDA, as `WarpSimulator` takes it; the CPU's simulator always is.
    """
    if device == "cpu":
        from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

        return CpuSimulator(task, num_worlds, seed=seed, distribution=distribution, num_threads=num_threads)
    from thousandfold.envs.simulators.warp_simulator import WarpSimulator

    return WarpSimulator(
        task, num_worlds, seed=seed, distribution=distribution, device=device, deterministic=deterministic
    )
