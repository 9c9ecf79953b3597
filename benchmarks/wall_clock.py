"""How long until 0.8 success, beside the learners of Stable-Baselines3 and SBX with hindsight replay.

    python -m benchmarks.wall_clock --tasks reacher arm_reach --seeds 20 21 --sides thousandfold "SBX CrossQ"

All sides learn on the same environments, each in a process of its own on the CPU, with as many threads. They
are evaluated as they go on episodes of the distribution ``evaluation``, as many for each. The clock runs from
the first step of the training to the end of the first evaluation that meets the target, evaluations and what
is compiled on the way included; imports are left out. Success then on as many fresh episodes is beside it, as
are the curves. The product's side is `pipeline train-teacher --task TASK` and no setting of the learner;
`stable_baselines_learner.py` says how the others are set, alike for every task.

Each task, seed and side is a cell. A side that did not get there in time counts with the limit.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Cell, CellBook, StudyParser, markdown_table, read_history, run_study
from thousandfold.envs.registry import get_task
from thousandfold.envs.task import TaskError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder

OWN = "thousandfold"
LEARNERS = {
    "SB3 SAC": ("stable_baselines3", "SAC"),
    "SBX SAC": ("sbx", "SAC"),
    "SBX TQC": ("sbx", "TQC"),
    "SBX CrossQ": ("sbx", "CrossQ"),
}
"""module and class of the others' learners"""
SIDES = (OWN, *LEARNERS)
TASKS = (
    "arm_reach",
    "point_u_maze",
    "examples/cable_arm/cable_arm.yaml",
    "examples/submarine/submarine.yaml",
    "point_big_maze",
    "arm_push_easy",
)
"""not the reacher: random actions pass 0.97 of its goals"""
OWN_ARGUMENTS: list[str] = []
"""what our side is told beside task and seed: nothing of the learner"""
_NO_END = 10**9
_SAVING_S = 120.0  # what a side may take to end once it was told to
_HISTORY = ("elapsed_s", "env_steps", "updates", "success")


@dataclass(frozen=True)
class Limits:
    """What holds for both sides.

    Attributes:
        limit_s: seconds after which a side is stopped.
        target_success: what it has to reach.
        episodes: of each evaluation.
        threads: CPU threads of each, and its CPUs: XLA sizes its pool by them.
    """

    limit_s: float
    target_success: float
    episodes: int
    threads: int


def run_own(task: str, seed: int, limits: Limits, workspace: Path) -> dict[str, Any]:
    """Train the product's teacher, stop it when time is up, and return when it met the target."""
    settings = {
        "env_steps": _NO_END,
        "target_success": limits.target_success,
        "target_evaluations": 1,
        "evaluation_episodes": limits.episodes,
        "final_episodes": limits.episodes,
        "threads": limits.threads,
    }
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace), "train-teacher"]
    command += ["--task", task, *OWN_ARGUMENTS, "--seed", str(seed), "--device", "cpu"]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        process.wait(limits.limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(_SAVING_S)
    finally:
        process.kill()
    if process.returncode not in (0, 130):
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return own_outcome(Workspace(workspace).artifacts("teacher")[0], limits.target_success)


def own_outcome(teacher: Artifact, target_success: float) -> dict[str, Any]:
    """Return the outcome of a teacher that is finished, or of one that was stopped, from its checkpoint."""
    finished = teacher.manifest.status == "completed"
    if finished:
        history = read_history(teacher)["history"]
    else:
        history = CheckpointFolder(teacher.file("checkpoint")).progress["history"]
    met = [entry["elapsed_s"] for entry in history if entry["success"] >= target_success]
    results = teacher.manifest.results if finished else {}
    return {
        "reached_s": met[0] if met else None,
        "final_success": results.get("success"),
        "final_success_interval": results.get("success_interval"),
        "history": [{name: entry[name] for name in _HISTORY} for entry in history],
        "settings": teacher.manifest.settings,
    }


def run_other(learner: str, task: str, seed: int, limits: Limits, **settings: Any) -> dict[str, Any]:
    """Train another library's learner in a process of its own and return when it met the target."""
    told = json.dumps(asdict(limits) | {"learner": learner, "task": task, "seed": seed} | settings)
    command = [sys.executable, "-m", "benchmarks.stable_baselines_learner", told]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            entry = json.loads(line)
            if "success" in entry:
                print(f"{learner}: {entry['env_steps']:,} steps, success {entry['success']:.2f}", flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return json.loads(line)


def cell_key(task: str, seed: int, side: str) -> str:
    """Return the name of a cell in the output."""
    return f"{Path(task).stem}, {side}, seed {seed}"


def clock(cell: dict[str, Any]) -> float:
    """Return the seconds to the target, the limit where it was not met."""
    return cell["limit_s"] if cell["reached_s"] is None else cell["reached_s"]


def table(cells: Mapping[str, Cell]) -> str:
    """Return the medians of the clocks of each task and side, and our ratio to the fastest other side.

    The ratio's median is over the seeds that both have run.
    """
    clocks: dict[str, dict[str, dict[str, float]]] = {}
    for name, cell in cells.items():
        task, side, seed = name.split(", ")
        clocks.setdefault(task, {}).setdefault(side, {})[seed] = clock(cell)
    sides = [side for side in SIDES if any(side in found for found in clocks.values())]
    rows = []
    for task, found in clocks.items():
        others = {side: statistics.median(found[side].values()) for side in found if side != OWN}
        best = min(others, key=others.__getitem__) if others and OWN in found else None
        shared = sorted(found[OWN].keys() & found[best].keys()) if best else []
        ratio = (
            statistics.median(found[OWN][seed] / found[best][seed] for seed in shared)
            if best and shared
            else None
        )
        rows.append(
            [
                task,
                *(_clocks_text(task, side, cells) for side in sides),
                f"{ratio:.2f} of {best}'s" if ratio is not None else "-",
            ]
        )
    title = "Seconds to the target: median (each seed's)"
    return markdown_table(["task", *sides, "ours over the fastest other's, median"], rows, title)


def _clocks_text(task: str, side: str, cells: Mapping[str, Cell]) -> str:
    found = [cell for name, cell in cells.items() if name.startswith(f"{task}, {side}, ")]
    if not found:
        return "-"
    each = ", ".join(
        f"{clock(cell):.0f}" if cell["reached_s"] is not None else _clock_text(cell) for cell in found
    )
    return f"{statistics.median(map(clock, found)):.0f} ({each})"


def _clock_text(cell: Cell) -> str:
    if cell["reached_s"] is None:
        return f"not in {cell['limit_s']:.0f}"
    return f"{cell['reached_s']:.0f} ({cell['final_success']:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, and print what is complete."""
    parser = StudyParser(__doc__, "wall_clock")
    parser.several("--tasks", TASKS, help=f"names or pages; default: {' '.join(TASKS)}", metavar="TASK")
    parser.seeds(range(20, 25))
    parser.several("--sides", SIDES, choices=SIDES)
    parser.number("--limit-s", 1800.0, least=1)
    parser.number("--target-success", 0.8)
    parser.number("--episodes", 128, least=1)
    parser.number("--threads", 1, "of each side", least=1)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs/wall_clock", help="of our teachers")
    options = parser.parse(arguments)
    for task in options.tasks:
        try:
            get_task(task)
        except TaskError as error:
            parser.error(str(error))
    if len({Path(task).stem for task in options.tasks}) < len(options.tasks):
        parser.error("two of the tasks have one name: name each once")
    if not options.table and hasattr(os, "sched_setaffinity"):  # what is started here has the same CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    limits = Limits(options.limit_s, options.target_success, options.episodes, options.threads)

    def run(task: str, seed: int, side: str) -> Cell:
        print(f"-- {cell_key(task, seed, side)}", flush=True)
        started = time.perf_counter()
        if side == OWN:
            found = run_own(
                task, seed, limits, (options.workspace / f"{Path(task).stem}-seed-{seed}").absolute()
            )
        else:
            found = run_other(side, task, seed, limits)
        return asdict(limits) | found | {"process_s": time.perf_counter() - started}

    cells = (
        (cell_key(task, seed, side), partial(run, task, seed, side))
        for task in options.tasks
        for seed in options.seeds
        for side in options.sides
    )
    run_study(
        options,
        cells,
        table,
        book=CellBook(options.output, within=None),
        line=lambda name, cell: f"{name}: {_clock_text(cell)}",
    )


if __name__ == "__main__":
    main()
