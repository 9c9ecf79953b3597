"""The same states and actions through both simulators: one physics step, and many control steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch comes with the extra `train`")
pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")
pytest.importorskip("scipy", reason="scipy comes with Minari and MLflow, of the extra `train`")

from benchmarks.parity import compare_rollouts, compare_steps, shortfalls  # noqa: E402
from thousandfold.envs.registry import compile_task, task_names  # noqa: E402
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator  # noqa: E402
from thousandfold.envs.simulators.warp_simulator import WarpSimulator  # noqa: E402

EXAMPLES = Path(__file__).parents[3] / "examples"
TASKS = [*task_names(), *map(str, sorted(EXAMPLES.glob("*/*.yaml")))]
NAMES = [Path(task).stem for task in TASKS]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    "name", ["point_u_maze", "ant_u_maze", pytest.param("arm_push_easy", marks=pytest.mark.slow)]
)
def test_simulators_agree(name: str, device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    figures: dict[str, Any] = {
        "step": compare_steps(compile_task(name), 512, device),
        "rollout": compare_rollouts(compile_task(name), 32, 20, device),
    }
    assert figures["step"]["free"]["states"] and figures["step"]["touching"]["states"] > 20
    assert shortfalls(figures) == []
    assert figures["step"]["touching"]["state"]["p99"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS, ids=NAMES)
def test_simulators_agree_on_every_task(name: str) -> None:
    """A free step of the humanoid may be beyond the bound: its mass matrix is ill-conditioned in float32."""
    task = compile_task(name)
    step = compare_steps(task, 1024, "cpu", seed=1)
    assert step["free"]["states"] + step["touching"]["states"] > 500
    if step["free"]["states"]:
        free = step["free"]["state"]
        assert free["beyond"] <= (0.005 * step["free"]["states"] if name.startswith("humanoid") else 0)
        assert free["max"] < 1e-3 and step["free"]["observation"]["p99"] <= 1e-4
    if step["touching"]["states"]:
        assert step["touching"]["state"]["median"] <= 1e-3
    rollout = compare_rollouts(task, 64, 50, "cpu", seed=1)
    assert min(rollout["p"].values()) > 0.01
    for side in ("cpu", "warp"):
        assert (rollout[side]["diverged"], rollout[side]["overflowed"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS, ids=NAMES)
def test_every_task_starts_alike(name: str) -> None:
    """Drawn from the same seed; what is read of the starts, and of fresh ones after a reset."""
    task = compile_task(name)
    cpu, warp = CpuSimulator(task, 8, seed=2), WarpSimulator(task, 8, seed=2)
    for _ in range(2):
        difference = np.abs(warp.observation.numpy() - cpu.observation)
        assert (difference <= 1e-4 * (1 + np.abs(cpu.observation))).all()
        assert np.array_equal(warp.desired_goal.numpy(), cpu.desired_goal)
        for simulator in (cpu, warp):
            simulator.step(np.ones((8, task.action_dim), np.float32))
            simulator.reset()
