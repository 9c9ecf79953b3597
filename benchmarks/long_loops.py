"""How many deadlines a control loop of an hour misses at 1000 Hz, in ONNX Runtime and as C.

    python -m benchmarks.long_loops                        three hours: one for each side
    python -m benchmarks.long_loops --table                print what is recorded; run nothing
    python -m benchmarks.long_loops --fifo-priority 80 --core 1 --output FILE

A student of four layers of 64 units for the point U-maze, as it is before training (which costs the same), is
called once a millisecond: by ONNX Runtime, as C code, and not at all. The three sides take turns of ten
seconds. What the machine does to every loop shows in the empty one too; what the policy adds is the excess.
A cell is five minutes of each side, so a run that is stopped goes on where it was. The load average of each
cell is recorded: run it on an idle machine, or beside the load that counts.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.c_code import ONNX_RUNTIME
from benchmarks.distillation import make_context
from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, run_study
from benchmarks.realtime import RATE_HZ, STUDENTS, make_student
from thousandfold.stages.benchmark.benchmark import draw_states
from thousandfold.stages.benchmark.host import HostRequest, granted_by_host
from thousandfold.stages.benchmark.loops import TimedCall, collector_at_rest, run_paced
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.c_policy import CPolicy
from thousandfold.stages.policy_file.onnx_bytes import read_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

STUDENT = "4 x 64"
C, EMPTY = "C", "an empty call"
SIDES = (ONNX_RUNTIME, C, EMPTY)
SLICE_S, SPIN_US = 10.0, 50.0
AT_MOST = 0.005
"""Per cent of ticks: what the upper end of the excess's 95 % interval is to stay below."""
_Z_95 = 1.959964


def run_cell(seconds: float, request: HostRequest) -> Cell:
    """Run every side for `seconds` in all, in turns; return each slice's ticks and misses."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        exporting = export_onnx.ExportOnnxSettings(closed_loop_episodes=16, include_teacher=False)
        artifact = export_onnx.run(exporting, make_context(root), make_student(root, STUDENTS[STUDENT]))
        path = artifact.file(POLICY_FILE)
        policy = OnnxPolicy(path)
        states = draw_states(policy, np.random.default_rng(0))
        in_c = CPolicy(c_files(read_model(path), path), root, policy.metadata)
        calls = {
            ONNX_RUNTIME: TimedCall(policy.step, states),
            C: TimedCall(in_c.step, states),
            EMPTY: TimedCall(lambda: None),
        }
        slices: dict[str, list[Mapping[str, Any]]] = {side: [] for side in SIDES}
        load = [os.getloadavg()[0]]
        with granted_by_host(request) as granted, collector_at_rest():
            for turn in range(max(1, round(seconds / SLICE_S))):
                for place in range(len(SIDES)):  # who goes first changes
                    side = SIDES[(turn + place) % len(SIDES)]
                    timing = run_paced(calls[side], RATE_HZ, min(seconds, SLICE_S), SPIN_US)
                    within = np.percentile(timing.latency_us, [50, 99.9])
                    slices[side].append(
                        {
                            "ticks": timing.ticks,
                            "missed": timing.missed,
                            "missed_before_call": timing.missed_before_call,
                            "p50_us": float(within[0]),
                            "p99_9_us": float(within[1]),
                            "max_us": float(timing.latency_us.max()),
                        }
                    )
        load.append(os.getloadavg()[0])
    return {"slices": slices, "granted": granted, "load_average": load}


def excess(cells: Mapping[str, Cell], side: str) -> tuple[float, float]:
    """Return by how many per cent of ticks a side missed more than the empty loop, and the standard error."""
    pairs = [
        100 * (ours["missed"] / ours["ticks"] - empty["missed"] / empty["ticks"])
        for cell in cells.values()
        for ours, empty in zip(cell["slices"][side], cell["slices"][EMPTY], strict=True)
    ]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return statistics.fmean(pairs), error


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a side, over all cells; an upper end that is above the target is in bold."""
    if not cells:
        return "no part is recorded yet"
    rows = []
    for side in SIDES:
        found = [part for cell in cells.values() for part in cell["slices"][side]]
        ticks, missed, before = (
            sum(part[name] for part in found) for name in ("ticks", "missed", "missed_before_call")
        )
        row = [
            side,
            f"{ticks / RATE_HZ / 60:.0f}",
            f"{statistics.median(part['p50_us'] for part in found):.1f}",
            f"{statistics.median(part['p99_9_us'] for part in found):.1f}",
            f"{100 * missed / ticks:.4f}",
            f"{100 * (missed - before) / ticks:.4f}",
        ]
        if side == EMPTY:
            rows.append([*row, "", ""])
            continue
        mean, error = excess(cells, side)
        upper = f"{mean + _Z_95 * error:.4f}"
        rows.append([*row, f"{mean:.4f}", upper if float(upper) <= AT_MOST else f"**{upper}**"])
    load = [figure for cell in cells.values() for figure in cell["load_average"]]
    return markdown_table(
        [
            "side", "minutes", "p50, µs", "p99.9, µs", "missed, %", "of it within the call, %", "excess, %",
            "its upper 95 % end",
        ],
        rows,
        f"Student {STUDENT}; load average {min(load):.1f} to {max(load):.1f}" if load else "",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "long_loops")
    parser.number("--minutes", 60, "of each side", least=1)
    parser.number("--cell-minutes", 5, "of each side in a cell", least=1)
    parser.add_argument("--core", type=int, help="the only core for the loops")
    parser.add_argument("--fifo-priority", type=int, help="under SCHED_FIFO")
    options = parser.parse(arguments)
    request = HostRequest(fifo_priority=options.fifo_priority, core=options.core)
    heads = {"student": STUDENT, "rate_hz": RATE_HZ, "cell_minutes": options.cell_minutes} | vars(request)
    cells = (
        (f"part {number}", functools.partial(run_cell, 60.0 * options.cell_minutes, request))
        for number in range(1, math.ceil(options.minutes / options.cell_minutes) + 1)
    )
    book = CellBook(options.output, heads)
    run_study(options, cells, table, book=book, line=lambda name, cell: f"{name}\n{table({name: cell})}")


if __name__ == "__main__":
    main()
