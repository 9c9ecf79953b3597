"""Peak memory of one learner update against depth, with and without activation checkpointing.

    python -m benchmarks.learner_memory --depths 4 16 64 256 1024 --width 256

Every cell is a process of its own that takes three updates; the peak is what the kernel counted (VmHWM).
Activations are that peak less what stood before the learner was made, its parameters (in bfloat16 their
rounded copies too), their gradients and moments. All depths have the published form. The estimate that
refuses a training which would not fit stands beside.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from benchmarks.learner_speed_worker import AntDimensions
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.runtime import describe_host, set_up_torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/learner_memory.json"
PICTURE = ROOT / "docs/pictures/memory_by_depth.png"
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float32, checkpointed": {"checkpoint_activations": True},
    "bfloat16, checkpointed": {"precision": "bfloat16", "checkpoint_activations": True},
}
PUBLISHED = {"residual_scale": "none", "final_norm": False, "max_gradient_norm": None}
_UPDATES = 3


def peak_bytes(name: str) -> int:
    """Return a memory figure of this process from the kernel: ``VmHWM``, its peak, or ``VmRSS``, now."""
    found = re.search(
        rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * 1024


def measure(settings: dict[str, Any]) -> dict[str, int]:
    """Take a few updates in this process and return what they needed, in bytes."""
    import torch

    from thousandfold.envs.compiled_task import CompiledTask
    from thousandfold.models.norm_swish import LANES
    from thousandfold.models.residual_mlp import parameter_count
    from thousandfold.replay.trajectory_buffer import TransitionBatch
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner, LearnerSettings
    from thousandfold.stages.train_teacher.memory_estimate import activation_estimate

    set_up_torch(1)
    dims, size = AntDimensions(), settings["batch_size"]
    task = cast("CompiledTask", dims)
    generator = torch.Generator().manual_seed(0)

    def take_updates(options: dict[str, Any]) -> ContrastiveLearner:
        learner = ContrastiveLearner(task, LearnerSettings(**options), "cpu")
        shapes = (dims.observation_dim, dims.action_dim, dims.goal_dim)
        batch = TransitionBatch(*(torch.randn(size, width, generator=generator) for width in shapes))
        for _ in range(_UPDATES):
            learner.update(batch, generator)
        return learner

    # Libraries load what they need at their first use; a small network draws that out, the compiler included.
    take_updates(settings | {"depth": 4, "width": LANES})
    before = peak_bytes("VmRSS")
    learner = take_updates(settings)
    peak = peak_bytes("VmHWM")
    actor, critic = parameter_count(learner.actor), parameter_count(learner.critic)
    # Weights, gradient and two moments, float32; rounded kernels beside them.
    owned = 4 * 4 * (actor + critic)
    owned += 2 * (actor + critic) if learner.settings.precision == "bfloat16" else 0
    return {
        "peak_bytes": peak,
        "parameters": actor + critic,
        "activation_bytes": peak - before - owned,
        "estimated_activation_bytes": activation_estimate(learner.settings, "cpu"),
    }


def run_cell(settings: dict[str, Any]) -> dict[str, int]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.learner_memory", "--cell", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(result: dict[str, Any]) -> None:
    """Draw activation memory against depth, one line a mode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for mode, colour in zip(MODES, ("#0b5d91", "#d1495b", "#3a9ad9", "#ee8f9b"), strict=True):
        cells = sorted((c for c in result["cells"].values() if c["mode"] == mode), key=lambda c: c["depth"])
        if cells:
            depths = [cell["depth"] for cell in cells]
            axes.plot(
                depths,
                [cell["activation_bytes"] / 2**20 for cell in cells],
                color=colour,
                marker="o",
                linestyle="--" if "checkpointed" in mode else "-",
                label=mode,
            )
            axes.plot(
                depths,
                [cell["estimated_activation_bytes"] / 2**20 for cell in cells],
                color=colour,
                marker="_",
                markersize=14,
                linestyle="none",
            )
    axes.set(xscale="log", yscale="log", xlabel="depth (layers)", ylabel="activations of an update (MiB)")
    depths = sorted({cell["depth"] for cell in result["cells"].values()})
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(
        f"Width {result['width']}, batch {result['batch_size']}; bars are the estimate", loc="left"
    )
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(PICTURE))


def main() -> None:
    """Measure every depth and mode, print a line for each, write figures and picture."""
    parser = argparse.ArgumentParser(description="Peak memory of one learner update against depth.")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16, 64, 256, 1024])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(measure(options.cell)))
        return
    result: dict[str, Any] = {"width": options.width, "batch_size": options.batch, "cells": {}}
    for depth in options.depths:
        for mode, changes in MODES.items():
            sizes = {"depth": depth, "width": options.width, "batch_size": options.batch} | PUBLISHED
            cell = {"depth": depth, "mode": mode} | run_cell(sizes | {"threads": 1} | changes)
            result["cells"][f"D{depth} {mode}"] = cell
            print(
                f"D{depth} {mode}: activations {cell['activation_bytes'] / 2**20:,.0f} MiB "
                f"(estimated {cell['estimated_activation_bytes'] / 2**20:,.0f}), "
                f"peak {cell['peak_bytes'] / 2**20:,.0f} MiB, {cell['parameters']:,} parameters",
                flush=True,
            )
    result |= {"host": describe_host(), "versions": installed_versions()}
    write_json_atomic(options.output, result)
    if options.output == RESULT:
        draw(result)


if __name__ == "__main__":
    main()
