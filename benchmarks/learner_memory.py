"""Peak memory of one learner update against depth, with and without activation checkpointing.

    python -m benchmarks.learner_memory --depths 4 16 64 256 1024 --width 256

Every cell is a process of its own that takes three updates; the peak is what the kernel counted (VmHWM).
Activations are that peak less what stood before the learner was made, its parameters (in bfloat16 their
rounded copies too), their gradients and moments. All depths have the published form. The estimate that
refuses a training which would not fit stands beside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.harness import PICTURES, Cell, CellBook, StudyParser, Worker, run_study
from benchmarks.learner_speed import PUBLISHED, AntDimensions
from thousandfold.ground.picture_style import PALETTE, house_figure
from thousandfold.pipeline.runtime import set_up_torch

PICTURE = PICTURES / "memory_by_depth.png"
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float32, checkpointed": {"checkpoint_activations": True},
    "bfloat16, checkpointed": {"precision": "bfloat16", "checkpoint_activations": True},
}
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
    from thousandfold.models.compiled_kernels import LANES
    from thousandfold.models.residual_mlp import parameter_count
    from thousandfold.replay.trajectory_buffer import TransitionBatch
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner
    from thousandfold.stages.train_teacher.memory_estimate import activation_estimate
    from thousandfold.stages.train_teacher.settings import LearnerSettings

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


def run_cell(depth: int, mode: str, width: int, batch: int) -> Cell:
    """Measure in a process of its own."""
    sizes = {"depth": depth, "width": width, "batch_size": batch, "threads": 1}
    settings = json.dumps({**sizes, **PUBLISHED, **MODES[mode]})
    with closing(Worker("learner_memory", "--cell", settings)) as worker:
        return {"depth": depth, "mode": mode} | worker.answer()


def describe(name: str, cell: Cell) -> str:
    """Return a line that says what a cell took."""
    return (
        f"{name}: activations {cell['activation_bytes'] / 2**20:,.0f} MiB "
        f"(estimated {cell['estimated_activation_bytes'] / 2**20:,.0f}), "
        f"peak {cell['peak_bytes'] / 2**20:,.0f} MiB, {cell['parameters']:,} parameters"
    )


def draw(cells: Mapping[str, Cell], title: str) -> None:
    """Draw activation memory against depth, one line a mode."""
    heading = "Memory of an update by depth: measured (dots), estimated (bars)"
    with house_figure(PICTURE, 8.0, 4.2, heading, (title,)) as figure:
        axes = figure.subplots()
        for mode, colour in zip(MODES, (PALETTE[0], PALETTE[1], PALETTE[4], PALETTE[5]), strict=True):
            own = sorted((cell for cell in cells.values() if cell["mode"] == mode), key=lambda c: c["depth"])
            depths = [cell["depth"] for cell in own]
            found, estimated = (
                [cell[name] / 2**20 for cell in own]
                for name in ("activation_bytes", "estimated_activation_bytes")
            )
            style = "--" if "checkpointed" in mode else "-"
            axes.plot(depths, found, color=colour, marker="o", linestyle=style, label=mode)
            axes.plot(depths, estimated, color=colour, marker="_", markersize=14, linestyle="none")
        axes.set(xscale="log", yscale="log", xlabel="depth (layers)", ylabel="activations of an update (MiB)")
        depths = sorted({cell["depth"] for cell in cells.values()})
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        figure.legend(loc="outside lower center", ncols=4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every depth and mode, print a line for each and draw them."""
    parser = StudyParser(__doc__, "learner_memory")
    parser.set_defaults(again=True)
    parser.several("--depths", [4, 16, 64, 256, 1024], type=int)
    parser.number("--width", 256)
    parser.number("--batch", 256)
    parser.figure(PICTURE)
    parser.add_argument("--cell", type=json.loads)
    options = parser.parse(arguments)
    if options.cell is not None:
        print(json.dumps(measure(options.cell)))
        return
    book = CellBook(options.output, {"width": options.width, "batch_size": options.batch})
    cells = (
        (f"D{depth} {mode}", partial(run_cell, depth, mode, options.width, options.batch))
        for depth in options.depths
        for mode in MODES
    )
    run_study(options, cells, book=book, line=describe)
    if options.figure:
        draw(book.cells, f"Width {options.width}, batch {options.batch}; bars are the estimate")


if __name__ == "__main__":
    main()
