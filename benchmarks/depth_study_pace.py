"""How fast each configuration of the depth study trains when nothing else runs: the clock of its comparisons.

    python -m benchmarks.depth_study_pace --arms depth long width batch

Cells of the study run beside one another and beside other programs, on whatever machine there is, so that
their own wall-clock says little. Here every configuration trains alone for a few evaluations, one after the
other, round after round; its pace is the median of the seconds that an environment step takes, with its share
of updates and evaluations. The study's time is environment steps times pace: one machine's, undisturbed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import depth_study
from benchmarks.depth_study import ARMS, ROOT
from benchmarks.depth_study_results import PACES, Cell, pace_key, read_paces
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.runtime import describe_host

# The first evaluation ends what starts slowly; the intervals up to the others are timed.
_EVALUATIONS = 3


def shortened(cell: Cell) -> Cell:
    """Return a cell that ends after a few evaluations, with hardly any after its training."""
    settings = dict(cell.settings)
    unroll = settings["num_worlds"] * settings["unroll_steps"]
    steps = _EVALUATIONS * settings["evaluate_every"] * unroll
    settings |= {"env_steps": steps, "final_episodes": 1}
    return Cell(cell.arm, cell.axis, cell.configuration, cell.seed, settings)


def seconds_a_step(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the seconds of an environment step between each evaluation and the next."""
    return [
        (later["elapsed_s"] - earlier["elapsed_s"]) / (later["env_steps"] - earlier["env_steps"])
        for earlier, later in itertools.pairwise(history)
    ]


def train_alone(cell: Cell) -> list[float]:
    """Train a shortened cell in a workspace that is thrown away; return its seconds an environment step.

    Raises SystemExit with the trainer's last words where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        command = depth_study.train_command(shortened(cell), workspace, None)
        trained = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        teacher = depth_study.completed_teacher(workspace)
        if trained.returncode or teacher is None:
            raise SystemExit(f"{pace_key(cell)}: {trained.stderr.strip().rpartition(chr(10))[2]}")
        return seconds_a_step(depth_study.read_history(teacher))


def measure(cells: Sequence[Cell], rounds: int) -> dict[str, dict[str, Any]]:
    """Train every cell alone, in turn; return the pace of each and the intervals it is the median of."""
    found: dict[str, list[float]] = {pace_key(cell): [] for cell in cells}
    for number, cell in itertools.product(range(rounds), cells):
        seconds = train_alone(cell)
        found[pace_key(cell)] += seconds
        pace = f"{1e6 * statistics.median(seconds):.1f} µs a step"
        print(f"round {number + 1}, {pace_key(cell)}: {pace}", flush=True)
    return {
        key: {"seconds_per_step": statistics.median(each), "intervals": [float(f"{s:.5g}") for s in each]}
        for key, each in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the paces of some arms and put them into the results."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.depth_study_pace", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--task", default="point_big_maze")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=PACES)
    options = parser.parse_args(arguments)
    cells = depth_study.plan(options.arms, options.task, [0], 1.0)
    facts = {"host": describe_host(), "date": date.today().isoformat()}
    paces = {key: pace | facts for key, pace in measure(cells, options.rounds).items()}
    write_json_atomic(options.output, {"paces": read_paces(options.output) | paces})


if __name__ == "__main__":
    sys.exit(main())
