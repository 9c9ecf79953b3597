"""What a control loop gets of small students: latency, the bound, other runtimes, deadlines at 1000 Hz.

    python -m benchmarks.realtime                       both students, five minutes each
    python -m benchmarks.realtime --table               print what is recorded; run nothing
    python -m benchmarks.realtime --core 1 --fifo-priority 80
    python -m benchmarks.realtime --paced-s 300 --busy-processes 0     misses, five times as surely

A cell is a student of four layers for the point U-maze, as it is before training (which costs the same),
exported by `pipeline export-onnx` and timed by `pipeline benchmark`, on one thread: back to back in turns
with torch and NumPy, then in a control loop in turns with an empty one, alone and beside a busy process.
Timings count when nothing else runs. A recorded cell is not run again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.distillation import RESULTS, Cell, CellBook, make_context
from thousandfold.envs.registry import compile_task
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.benchmark import benchmark
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.networks import NETWORK_FILE, save_network

OUTPUT = RESULTS / "realtime.json"
TASK, RATE_HZ = "point_u_maze", 1000.0
STUDENTS = {"4 x 64": NetworkShape(4, 64), "4 x 256": NetworkShape(4, 256)}
TIMING: Mapping[str, Any] = {"rate_hz": RATE_HZ, "rates_hz": (), "warmup_s": 1.0}
_KEPT = ("comparison", "left_out", "paced_loops", "busy", "cold_start", "memory", "realtime", "host")


@dataclass(frozen=True)
class Target:
    """A figure that a student is to reach.

    Attributes:
        name: heads its column.
        figure: takes it from a cell.
        holds: whether it is reached, of the student's name and the figure.
        form: writes it.
    """

    name: str
    figure: Callable[[Cell], float]
    holds: Callable[[str, float], bool]
    form: str


P50_AT_MOST_US = {"4 x 64": 10.0, "4 x 256": 25.0}
ROOFLINE_AT_MOST = {"4 x 256": 2.5}


def _inside(cell: Cell) -> dict[str, float]:
    return cell["student"]["inside_runtime"]


def _p50(cell: Cell) -> float:
    return _inside(cell)["p50_us"]


def _roofline(cell: Cell) -> float:
    return cell["student"]["roofline"]["ratio"]


def _ratio(runtime: str) -> Callable[[Cell], float]:
    return lambda cell: cell["comparison"][runtime]["ratio"]


def _excess(cell: Cell) -> float:
    return 100 * cell["paced_loops"][-1]["excess_missed_share"]


def _excess_error(cell: Cell) -> float:
    error = cell["paced_loops"][-1]["excess_missed_error"]
    return math.nan if error is None else 100 * error


def _missed_in_the_call(cell: Cell) -> float:
    loop = cell["paced_loops"][-1]
    return 100 * (loop["missed"] - loop["missed_before_call"]) / loop["ticks"]


def _excess_when_busy(cell: Cell) -> float:
    return 100 * cell["busy"]["paced"]["excess_missed_share"] if cell["busy"] else math.nan


TARGETS = (
    Target("p50 inside, µs", _p50, lambda name, x: x <= P50_AT_MOST_US[name], ".1f"),
    Target("p99 / p50", lambda cell: _inside(cell)["p99_us"] / _p50(cell), lambda _, x: x <= 3, ".2f"),
    Target("of the roofline", _roofline, lambda name, x: x <= ROOFLINE_AT_MOST.get(name, math.inf), ".2f"),
    Target("torch eager", _ratio("torch eager"), lambda _, x: x >= 5, ".1f"),
    Target("numpy", _ratio("numpy"), lambda _, x: x >= 1, ".1f"),
    Target("excess misses, %", _excess, lambda _, x: x <= 0.01, ".3f"),
    Target("± standard error", _excess_error, lambda *_: True, ".3f"),
    Target("missed within the call, %", _missed_in_the_call, lambda *_: True, ".3f"),
    Target("beside a busy process, %", _excess_when_busy, lambda *_: True, ".3f"),
)


def make_student(workspace: Path, shape: NetworkShape) -> Artifact:
    """Return a student as it is before training."""
    task = compile_task(TASK)
    torch.manual_seed(0)
    actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
    network = NormalizedActor(actor, task.observation_dim, task.goal_dim)
    artifact = Workspace(workspace).create("student", task=TASK, settings={})
    save_network(artifact.file(NETWORK_FILE), network.state_dict(), kind="student", task=task, shape=shape)
    artifact.complete({})
    return artifact


def run_cell(shape: NetworkShape, settings: benchmark.BenchmarkSettings) -> Cell:
    """Export a student, time it, and return its record."""
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder))
        exporting = export_onnx.ExportOnnxSettings(closed_loop_episodes=16, include_teacher=False)
        policy = export_onnx.run(exporting, context, make_student(Path(folder), shape))
        found = benchmark.run(settings, context, policy).manifest.results
    return {
        "student": found["networks"]["student"],
        **{name: found[name] for name in _KEPT},
        "settings": dump_settings(settings),
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return the cells as a Markdown table; what is missed of a target is in bold."""
    lines = [
        "| student | " + " | ".join(target.name for target in TARGETS) + " |",
        "|---" * (1 + len(TARGETS)) + "|",
    ]
    for name, cell in cells.items():
        figures = []
        for target in TARGETS:
            value = target.figure(cell)
            text = "-" if math.isnan(value) else format(value, target.form)
            figures.append(text if target.holds(name, value) else f"**{text}**")
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, or print what is there."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.realtime", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--paced-s", type=float, default=60.0, help="of each control loop")
    parser.add_argument("--back-to-back-s", type=float, default=10.0, help="of each runtime")
    parser.add_argument("--busy-processes", type=int, default=1, help="beside one more loop; 0: without it")
    parser.add_argument("--core", type=int, help="the only core for the loops")
    parser.add_argument("--fifo-priority", type=int, help="under SCHED_FIFO")
    parser.add_argument("--lock-memory", action="store_true", help="mlockall")
    parser.add_argument("--aot-inductor", action="store_true", help="compiled by torch beside")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="print what is recorded; run nothing")
    options = parser.parse_args(arguments)
    settings = benchmark.BenchmarkSettings(
        **TIMING,
        paced_s=options.paced_s,
        back_to_back_s=options.back_to_back_s,
        busy_processes=options.busy_processes,
        core=options.core,
        fifo_priority=options.fifo_priority,
        lock_memory=options.lock_memory,
        aot_inductor=options.aot_inductor,
    )
    book = CellBook(options.output)
    for name, shape in [] if options.table else STUDENTS.items():
        book.cell(name, lambda shape=shape: run_cell(shape, settings))
    print(table(book.cells))


if __name__ == "__main__":
    main()
