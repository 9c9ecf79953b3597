"""Every Warp kernel that a task's worlds launch compiles for a GPU: the compiler comes with Warp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch comes with the extra `train`")
wp = pytest.importorskip("warp", reason="Warp comes with the extra `train`")
pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")

from thousandfold.envs.registry import compile_task  # noqa: E402
from thousandfold.envs.simulators.warp_simulator import WarpSimulator  # noqa: E402

EXAMPLES = Path(__file__).parents[3] / "examples"
TASKS = ["ant", "humanoid", "arm_push_easy", str(EXAMPLES / "quadruped" / "quadruped_velocity.yaml")]
ARCHITECTURE = 90  # of an H100
_THREADS = 256  # of a block where a launch names no other number


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled: tasks share most of their kernels."""
    return tmp_path_factory.mktemp("built")


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Any, int], None]:
    """Return the modules of the kernels that worlds launch, each with the threads of a block on CUDA."""
    found: dict[tuple[Any, int], None] = {}

    def note(launch: Any) -> Any:
        def noted(kernel: Any, *arguments: Any, **options: Any) -> Any:
            found[kernel.module, options.get("block_dim") or _THREADS] = None
            return launch(kernel, *arguments, **options)

        return noted

    for launch in ("launch", "launch_tiled"):
        monkeypatch.setattr(wp, launch, note(getattr(wp, launch)))
    task = compile_task(name)
    simulator = WarpSimulator(task, 4, record=False)
    simulator.step(torch.zeros(4, task.action_dim))
    simulator.reset()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS, ids=[Path(name).stem for name in TASKS])
def test_every_kernel_compiles_for_a_gpu(name: str, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if wp.get_cuda_toolkit_version() is None:
        pytest.skip("this Warp is built without CUDA")
    modules = launched(name, monkeypatch)
    failed: dict[str, str] = {}
    for module, threads in modules:
        monkeypatch.setitem(module.options, "block_dim", threads)
        try:
            (path,) = wp.compile_aot_module(module, arch=ARCHITECTURE, use_ptx=False, module_dir=built)
        except Exception as error:
            failed[f"{module.name}, {threads} threads"] = str(error)[:500]
        else:
            assert path.stat().st_size > 0
    print(f"{name}: {len(modules)} modules, {len(failed)} failed")
    assert not failed and len(modules) > 20
