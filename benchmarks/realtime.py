"""What a control loop gets of small students: latency, the bound, other runtimes, deadlines at 1000 Hz.

    python -m benchmarks.realtime                       both students, five minutes each
    python -m benchmarks.realtime --table               print what is recorded; run nothing
    python -m benchmarks.realtime --core 1 --fifo-priority 80
    python -m benchmarks.realtime --paced-s 300 --busy-processes 0     misses, five times as surely

A cell is a student of four layers for the point U-maze, as it is before training (which costs the same),
exported by `pipeline export-onnx` and timed by `pipeline benchmark`, on one thread: back to back in turns
with torch and NumPy, then in a control loop in turns with an empty one, alone and beside a busy process.
Timings count when nothing else runs.
"""

from __future__ import annotations

import functools
import math
import operator
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from benchmarks.distillation import make_context
from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from thousandfold.envs.registry import compile_task
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.benchmark import benchmark
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.networks import NETWORK_FILE, save_network

TASK, RATE_HZ = "point_u_maze", 1000.0
STUDENTS = {"4 x 64": NetworkShape(4, 64), "4 x 256": NetworkShape(4, 256)}
TIMING: Mapping[str, Any] = {"rate_hz": RATE_HZ, "rates_hz": (), "warmup_s": 1.0}
_KEPT = ("comparison", "left_out", "paced_loops", "busy", "cold_start", "memory", "realtime", "host")


class Target(NamedTuple):
    """A figure that a student is to reach.

    Attributes:
        name: heads its column.
        figure: takes it from a cell.
        holds: whether it is reached, of the student's name and the figure.
        form: writes it.
    """

    name: str
    figure: Callable[[Cell], float]
    holds: Callable[[str, float], bool] = lambda *_: True
    form: str = ".3f"


P50_AT_MOST_US = {"4 x 64": 10.0, "4 x 256": 25.0}
ROOFLINE_AT_MOST = {"4 x 256": 2.5}


def _excess_error(cell: Cell) -> float:
    error = cell["paced_loops"][-1]["excess_missed_error"]
    return math.nan if error is None else 100 * error


def _missed_in_the_call(cell: Cell) -> float:
    loop = cell["paced_loops"][-1]
    return 100 * (loop["missed"] - loop["missed_before_call"]) / loop["ticks"]


def _excess_when_busy(cell: Cell) -> float:
    return 100 * cell["busy"]["paced"]["excess_missed_share"] if cell["busy"] else math.nan


def _tail(cell: Cell) -> float:
    inside = cell["student"]["inside_runtime"]
    return inside["p99_us"] / inside["p50_us"]


def _figure(*path: Any, times: float = 1.0) -> Callable[[Cell], float]:
    """Return what takes the figure at a path of keys from a cell."""
    return lambda cell: times * functools.reduce(operator.getitem, path, cast(Any, cell))


TARGETS = (
    Target(
        "p50 inside, µs",
        _figure("student", "inside_runtime", "p50_us"),
        lambda name, x: x <= P50_AT_MOST_US[name],
        ".1f",
    ),
    Target("p99 / p50", _tail, lambda _, x: x <= 3, ".2f"),
    Target(
        "of the roofline",
        _figure("student", "roofline", "ratio"),
        lambda name, x: x <= ROOFLINE_AT_MOST.get(name, math.inf),
        ".2f",
    ),
    Target("torch eager", _figure("comparison", "torch eager", "ratio"), lambda _, x: x >= 5, ".1f"),
    Target("numpy", _figure("comparison", "numpy", "ratio"), lambda _, x: x >= 1, ".1f"),
    Target(
        "excess misses, %",
        _figure("paced_loops", -1, "excess_missed_share", times=100),
        lambda _, x: x <= 0.01,
    ),
    Target("± standard error", _excess_error),
    Target("missed within the call, %", _missed_in_the_call),
    Target("beside a busy process, %", _excess_when_busy),
)


def make_student(workspace: Path, shape: NetworkShape) -> Artifact:
    """Return a student as it is before training."""
    task = compile_task(TASK)
    torch.manual_seed(0)
    actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, shape)
    network = NormalizedActor.around(actor, task.observation_dim, task.goal_dim)
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
    """Return a row a student; what is missed of a target is in bold."""

    def figure(target: Target, name: str, cell: Cell) -> str:
        value = target.figure(cell)
        text = "-" if math.isnan(value) else format(value, target.form)
        return text if target.holds(name, value) else f"**{text}**"

    rows = [[name, *(figure(target, name, cell) for target in TARGETS)] for name, cell in cells.items()]
    return markdown_table(["student", *(target.name for target in TARGETS)], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "realtime")
    parser.number("--paced-s", 60.0, "of each control loop")
    parser.number("--back-to-back-s", 10.0, "of each runtime")
    parser.number("--busy-processes", 1, "beside one more loop; 0: without it")
    parser.add_argument("--core", type=int, help="the only core for the loops")
    parser.add_argument("--fifo-priority", type=int, help="under SCHED_FIFO")
    parser.add_argument("--lock-memory", action="store_true", help="mlockall")
    parser.add_argument("--aot-inductor", action="store_true", help="compiled by torch beside")
    options = parser.parse(arguments)
    names = (
        "paced_s", "back_to_back_s", "busy_processes", "core", "fifo_priority", "lock_memory", "aot_inductor"
    )  # fmt: skip
    settings = benchmark.BenchmarkSettings(**TIMING, **{name: getattr(options, name) for name in names})
    run_study(
        options,
        ((name, functools.partial(run_cell, shape, settings)) for name, shape in STUDENTS.items()),
        table,
    )


if __name__ == "__main__":
    main()
