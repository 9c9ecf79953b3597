"""How long until 0.8 success, beside Stable-Baselines3's SAC with hindsight replay on the same environment.

    python -m benchmarks.sb3_wall_clock --tasks point_u_maze arm_reach --seeds 0 1

Both sides learn in one process on the CPU, with as many threads, and are evaluated as they go on episodes of
the distribution ``evaluation``, as many for both. The clock runs from the first step of the training to the
end of the first evaluation that meets the target, evaluations included; imports are left out. Success then
on as many fresh episodes is beside it, as are the curves. The product's side is `pipeline train-teacher`,
which evaluates every few unrolls; `sb3_learner.py` says how the other is set. Both were set by trying on
these tasks.

Each task, seed and side is a cell. A side that did not get there in time counts with the limit, and the ratio
is then at most what is printed.
"""

from __future__ import annotations

import json
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
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder

OWN, SB3 = "thousandfold", "SB3 SAC+HER"
SIDES = (OWN, SB3)
# What `pipeline train-teacher` is told: the quickstart with networks of 4 layers, which pay on short clocks,
# and the learning rate of the other side. The arm is at its goal some ten steps after the right command:
# goals from the near future and a smaller network are enough.
_SHALLOW = [
    "--preset=quickstart",
    "--depth=4",
    "--set=num_worlds=64",
    "--set=updates_per_unroll=64",
    "--set=actor_learning_rate=1e-3",
    "--set=critic_learning_rate=1e-3",
    "--set=checkpoint_every=24",
]
OWN_ARGUMENTS: dict[str, list[str]] = {
    "point_u_maze": [*_SHALLOW, "--set=evaluate_every=5"],
    "arm_reach": [
        *_SHALLOW,
        "--task=arm_reach",
        "--width=64",
        "--set=unroll_steps=50",
        "--set=discount=0.9",
        "--set=average_decay=0",
        "--set=evaluate_every=6",
    ],
}
# What differs from `sb3_learner.Settings`, chosen by trying on seed 0.
SB3_SETTINGS: dict[str, dict[str, Any]] = {
    "point_u_maze": {"updates_per_step": 0.25},
    "arm_reach": {"discount": 0.9, "evaluate_every_s": 5.0},
}
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
        threads: CPU threads of each.
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
    command += [*OWN_ARGUMENTS[task], "--seed", str(seed), "--device", "cpu"]
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


def run_sb3(task: str, seed: int, limits: Limits) -> dict[str, Any]:
    """Train Stable-Baselines3's learner in a process of its own and return when it met the target."""
    settings = json.dumps({**SB3_SETTINGS[task], **asdict(limits), "task": task, "seed": seed})
    command = [sys.executable, "-m", "benchmarks.sb3_learner", settings]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            entry = json.loads(line)
            if "success" in entry:
                print(f"{SB3}: {entry['env_steps']:,} steps, success {entry['success']:.2f}", flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return json.loads(line)


def cell_key(task: str, seed: int, side: str) -> str:
    """Return the name of a cell in the output."""
    return f"{task}, {side}, seed {seed}"


def clock(cell: dict[str, Any]) -> float:
    """Return the seconds to the target, the limit where it was not met."""
    return cell["limit_s"] if cell["reached_s"] is None else cell["reached_s"]


def table(cells: Mapping[str, Cell]) -> str:
    """Return a table a task: the clocks of seeds that both sides have run, and the median of the ratios."""
    tables = []
    for task in dict.fromkeys(name.split(", ")[0] for name in cells):
        rows, found = [], []
        for seed in sorted({int(name.split("seed ")[1]) for name in cells if name.startswith(f"{task}, ")}):
            pair = [cells.get(cell_key(task, seed, side)) for side in SIDES]
            if all(pair):
                found.append(clock(pair[0] or {}) / clock(pair[1] or {}))
                rows.append([seed, *(_clock_text(cell or {}) for cell in pair), f"{found[-1]:.3f}"])
        if rows:
            rows.append(["median", "", "", f"{statistics.median(found):.3f}"])
            title = f"{task}: seconds to the target (success on fresh episodes then)"
            tables.append(markdown_table(["seed", *SIDES, f"{OWN} / {SB3}"], rows, title))
    return "\n\n".join(tables)


def _clock_text(cell: Cell) -> str:
    if cell["reached_s"] is None:
        return f"not in {cell['limit_s']:.0f}"
    return f"{cell['reached_s']:.0f} ({cell['final_success']:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, and print what is complete."""
    parser = StudyParser(__doc__, "sb3_wall_clock")
    parser.several("--tasks", list(OWN_ARGUMENTS), choices=OWN_ARGUMENTS, help="default: all")
    parser.seeds()
    parser.several("--sides", list(SIDES), choices=SIDES)
    parser.number("--limit-s", 1800.0, least=1)
    parser.number("--target-success", 0.8)
    parser.number("--episodes", 128, least=1)
    parser.number("--threads", 1, "of each side", least=1)
    parser.add_argument(
        "--workspace", type=Path, default=ROOT / "runs/sb3_wall_clock", help="of our teachers"
    )
    options = parser.parse(arguments)
    limits = Limits(options.limit_s, options.target_success, options.episodes, options.threads)

    def run(task: str, seed: int, side: str) -> Cell:
        print(f"-- {cell_key(task, seed, side)}", flush=True)
        started = time.perf_counter()
        if side == OWN:
            found = run_own(task, seed, limits, (options.workspace / f"{task}-seed-{seed}").absolute())
        else:
            found = run_sb3(task, seed, limits)
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
