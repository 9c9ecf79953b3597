"""What a policy's C code takes beside ONNX Runtime, and what it takes of a microcontroller's memory.

    python -m benchmarks.c_code                       every student, half a minute each
    python -m benchmarks.c_code --table               print what is recorded; run nothing
    python -m benchmarks.c_code --back-to-back-s 60   p99.9 with more calls beyond it

A cell is a student for the point U-maze, as it is before training (which costs the same), exported by
`pipeline export-onnx`, written as C and compiled by this machine's compiler: for any processor of its kind,
for this one, and for this one with int8 weights. All are timed in turns on one thread, each a call on bound
buffers from Python (an empty call of ctypes stands beside them). Flash and RAM are those of a Cortex-M4F,
where `arm-none-eabi-gcc` is installed. Timings count when nothing else runs.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation import make_context
from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from benchmarks.realtime import make_student
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.benchmark.benchmark import draw_states
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back, collector_at_rest, summarize
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.c_policy import THIS_PROCESSOR, CPolicy
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

STUDENTS = {
    "1 x 32": NetworkShape(1, 32, kind="plain"),
    "4 x 64": NetworkShape(4, 64),
    "4 x 128": NetworkShape(4, 128),
    "4 x 256": NetworkShape(4, 256),
}
ONNX_RUNTIME, ANY, THIS, EMPTY = "ONNX Runtime", "C, any processor", "C, this processor", "an empty call"
INT8 = "C, this processor, int8 weights"
_CORTEX = (
    "-std=c99", "-Os", "-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard", "-mthumb",
    "-ffunction-sections", "-fdata-sections",
)  # fmt: skip
_STATE = '#include "policy.h"\npolicy_state state;\n'


def run_cell(shape: NetworkShape, warmup_s: float, back_to_back_s: float) -> Cell:
    """Export a student, time its file and its C code in turns, and return what both take."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        exporting = export_onnx.ExportOnnxSettings(closed_loop_episodes=16, include_teacher=False)
        artifact = export_onnx.run(exporting, make_context(root), make_student(root, shape))
        path = artifact.file(POLICY_FILE)
        policy, files = OnnxPolicy(path), c_files(read_model(path), path)
        sides: dict[str, OnnxPolicy | CPolicy] = {ONNX_RUNTIME: policy}
        for name, flags in ((ANY, ()), (THIS, THIS_PROCESSOR)):
            (root / name).mkdir()
            sides[name] = CPolicy(files, root / name, policy.metadata, flags)
        memory = {"float32": memory_taken(files, root)}
        if policy.metadata.network.depth > 1:  # between the first layer and the last
            (root / INT8).mkdir()
            whole = c_files(read_model(path), path, "int8")
            sides[INT8] = CPolicy(whole, root / INT8, policy.metadata, THIS_PROCESSOR)
            memory["int8"] = memory_taken(whole, root)
        state = draw_states(policy, np.random.default_rng(0))[0]
        for side in sides.values():
            side.step(*state)
        calls = {name: TimedCall(side.run_bound) for name, side in sides.items()}
        calls[EMPTY] = TimedCall(ctypes.CDLL(None).abs, [(0,)])
        with collector_at_rest():
            samples = back_to_back(calls, warmup_s, back_to_back_s)
        return {
            "network": policy.metadata.network.model_dump(),
            "latency": {name: summarize(found) for name, found in samples.items()},
            "cortex_m4f": memory,
        }


def memory_taken(files: Mapping[str, str], folder: Path) -> dict[str, int] | None:
    """Return bytes of flash, state and stack on a Cortex-M4F; None without its compiler.

    Flash is all of `policy.c`, golden rows and texts included; stack is that of `policy_step`, with
    `policy_run` and the largest function below.
    """
    if shutil.which("arm-none-eabi-gcc") is None:
        return None
    for name, text in {**files, "state.c": _STATE}.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("policy", "state"):
        command = ["arm-none-eabi-gcc", *_CORTEX, "-fstack-usage", "-c", f"{name}.c", "-o", f"{name}.o"]
        subprocess.run(command, cwd=folder, check=True)
    sizes = {name: _sections(folder / f"{name}.o") for name in ("policy", "state")}
    chain, below = 0, 0
    for line in (folder / "policy.su").read_text().splitlines():
        place, size, _ = line.split("\t")
        function = place.rpartition(":")[2].partition(".")[0]  # gcc makes policy_run.part.0 of a part
        if function in ("policy_step", "policy_run"):
            chain += int(size)
        elif function != "policy_self_test":
            below = max(below, int(size))
    return {
        "flash": sizes["policy"]["text"] + sizes["policy"]["data"],
        "state": sizes["state"]["bss"],
        "stack": chain + below,
    }


def _sections(path: Path) -> dict[str, int]:
    command = ["arm-none-eabi-size", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names, numbers = (line.split() for line in done.stdout.splitlines())
    return {name: int(number) for name, number in zip(names[:3], numbers[:3], strict=True)}


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a student."""

    def row(name: str, cell: Cell) -> list[str]:
        latency: Mapping[str, Any] = cell["latency"]
        base = latency[ONNX_RUNTIME]["p50_us"]
        figures = [f"{base:.1f}", f"{latency[ONNX_RUNTIME]['p99_9_us']:.1f}"]
        for side in (ANY, THIS):
            p50, tail = latency[side]["p50_us"], latency[side]["p99_9_us"]
            figures += [f"{p50:.2f}", f"{tail:.1f}", f"{p50 / base:.2f}"]
        figures.append(f"{latency[INT8]['p50_us']:.2f}" if INT8 in latency else "-")
        memory, whole = (cell["cortex_m4f"].get(weights) or {} for weights in ("float32", "int8"))
        kept = [memory.get("flash"), whole.get("flash"), memory.get("state"), memory.get("stack")]
        return [name, *figures, *("-" if size is None else f"{size / 1000:.1f}" for size in kept)]

    heads = ["student", "ONNX Runtime p50, µs", "p99.9"]
    for side in (ANY, THIS):
        heads += [f"{side} p50", "p99.9", "of ONNX Runtime's"]
    heads += ["int8 weights p50", "flash, kB", "with int8 weights", "state, kB", "stack, kB"]
    return markdown_table(heads, [row(name, cell) for name, cell in cells.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "c_code")
    parser.number("--warmup-s", 1.0, "of each side")
    parser.number("--back-to-back-s", 5.0, "of each side")
    options = parser.parse(arguments)
    cells = {
        name: functools.partial(run_cell, shape, options.warmup_s, options.back_to_back_s)
        for name, shape in STUDENTS.items()
    }
    run_study(options, cells.items(), table)


if __name__ == "__main__":
    main()
