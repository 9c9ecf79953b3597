"""Success against depth on a maze: equal environment steps, equal wall-clock, several seeds.

    python -m benchmarks.depth_study --arms depth --jobs 1       run what is missing
    python -m benchmarks.depth_study --dry-run                   say what is done, running and missing
    python -m benchmarks.depth_study --table --figure            aggregate what is recorded

A cell is one configuration of an arm with one seed: a `pipeline train-teacher` in a workspace of its own. A
cell that was cut off goes on from its checkpoint; with other settings in `ARMS` than before it is missing.
Cells run arm by arm and in an arm seed by seed, so that a study that was cut off is balanced. Several copies
may run at once: a cell is locked while it runs, records are merged one at a time. Records of a --scale other
than 1 stay below the workspace root. `benchmarks.depth_study_pace` measures the clock of the comparisons.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from benchmarks import depth_study_figures as figures
from benchmarks.depth_study_figures import describe_record
from benchmarks.depth_study_results import Axis, Cell, Configuration, gather, read_paces
from thousandfold.envs.registry import task_names
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import describe_host

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 1.0


@dataclass(frozen=True)
class Arm:
    """A set of configurations that are compared with one another.

    Attributes:
        axis: what they are laid out along in the figure.
        configurations: depth, width and batch size of each.
        settings: what the trainer is told in all of its cells, beside `SHARED_SETTINGS`.
    """

    axis: Axis
    configurations: tuple[Configuration, ...]
    settings: dict[str, Any]


_DEPTHS = tuple(Configuration(depth, width=128, batch_size=256) for depth in (4, 16, 64))
_SHAPES = (Configuration(8, width=128, batch_size=256), Configuration(4, width=1024, batch_size=256))
_BATCHES = tuple(
    Configuration(depth, width=64, batch_size=batch) for depth in (4, 32) for batch in (64, 256, 1024)
)
# An unroll is 12,800 environment steps. Checkpoints are written as often as there are evaluations.
ARMS = {
    "depth": Arm("depth", _DEPTHS, dict(env_steps=3_000_000, updates_per_unroll=48, evaluate_every=6)),
    "long": Arm("depth", _DEPTHS, dict(env_steps=15_000_000, updates_per_unroll=12, evaluate_every=30)),
    "width": Arm("network", _SHAPES, dict(env_steps=1_500_000, updates_per_unroll=48, evaluate_every=3)),
    "batch": Arm("batch_size", _BATCHES, dict(env_steps=1_500_000, updates_per_unroll=48, evaluate_every=3)),
}
# Whatever the default preset sets is set here too, so that the study does not change with the preset.
SHARED_SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "num_worlds": 128,
    "unroll_steps": 100,
    "actor_goals": "random",
    "initial_alpha": 0.37,
    "residual_scale": "learned_from_zero",
    "final_norm": True,
    "max_gradient_norm": 10.0,
    # No average beside the current weights: an evaluation that takes the better of two is biased upwards.
    "average_decay": 0.0,
    "keep": "last",
    "target_success": None,
    "target_evaluations": 1,
    "evaluation_episodes": 128,
    "final_episodes": 512,
}


def plan(arms: Sequence[str], task: str, seeds: Sequence[int], scale: float) -> list[Cell]:
    """Return the cells in the order in which they run: arm by arm, within an arm seed by seed."""
    cells = []
    for name, seed in itertools.product(arms, seeds):
        arm = ARMS[name]
        for configuration in arm.configurations:
            settings = cell_settings(arm, configuration, task, seed, scale)
            cells.append(Cell(name, arm.axis, configuration, seed, settings))
    return cells


def cell_settings(
    arm: Arm, configuration: Configuration, task: str, seed: int, scale: float
) -> dict[str, Any]:
    """Return the settings of `pipeline train-teacher` that make up a cell."""
    settings = SHARED_SETTINGS | arm.settings | configuration._asdict() | {"task": task, "seed": seed}
    settings["env_steps"] = max(1, round(arm.settings["env_steps"] * scale))
    return settings | {"checkpoint_every": settings["evaluate_every"]}


def train_command(cell: Cell, workspace: Path, resumed: Artifact | None) -> list[str]:
    """Return the command that trains a cell, or goes on with its unfinished teacher."""
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace), "train-teacher"]
    if resumed is not None:
        return [*command, "--resume", resumed.name]
    for name, value in cell.settings.items():
        command += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return command


def completed_teacher(workspace: Path) -> Artifact | None:
    """Return the teacher of a cell that came to its end, or None."""
    teachers = Workspace(workspace).artifacts("teacher")
    return next((t for t in teachers if t.manifest.status == "completed"), None)


def resumable_teacher(workspace: Path) -> Artifact | None:
    """Return the newest unfinished teacher with a checkpoint, or None."""
    teachers = Workspace(workspace).artifacts("teacher")
    unfinished = (t for t in teachers if t.manifest.status != "completed")
    return next((t for t in unfinished if CheckpointFolder(t.file("checkpoint")).exists), None)


def read_progress(teacher: Artifact) -> dict[str, Any]:
    """Return the counters and the history in a teacher's checkpoint."""
    return json.loads(teacher.file("checkpoint/manifest.json").read_text(encoding="utf-8"))["progress"]


def read_history(teacher: Artifact) -> list[dict[str, Any]]:
    """Return one entry an evaluation: from history.json, or from the checkpoint of an older teacher."""
    if "history.json" in teacher.manifest.files:
        return json.loads(teacher.file("history.json").read_text(encoding="utf-8"))["history"]
    return read_progress(teacher)["history"]


def make_record(cell: Cell, teacher: Artifact, cells_at_once: int) -> dict[str, Any]:
    """Return what is kept of a completed teacher."""
    results, history = teacher.manifest.results, read_history(teacher)
    final = ("success", "success_interval", "episodes", "time_at_goal", "final_distance")
    curve = ("env_steps", "updates", "elapsed_s", "success", "time_at_goal", "info_nce")
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "settings": teacher.manifest.settings,
        "final": {name: results[name] for name in final},
        "env_steps": results["env_steps"],
        "updates": results["updates"],
        "wall_clock_s": round(results["elapsed_s"], 2),
        "cells_at_once": cells_at_once,
        "parameters": results["actor_parameters"] + results["critic_parameters"],
        # An evaluation before the first update has no InfoNCE.
        "curve": {name: [entry.get(name) for entry in history] for name in curve},
        "host": describe_host(),
        "versions": teacher.manifest.versions,
        "git": teacher.manifest.git,
    }


def read_cells(output: Path) -> dict[str, Any]:
    """Return the recorded cells by key."""
    return json.loads(output.read_text(encoding="utf-8"))["cells"] if output.exists() else {}


def merge_record(output: Path, key: str, record: Mapping[str, Any]) -> None:
    """Add a record to the results; another process that does so at the same time waits."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # The folder is locked and not the file, which the atomic write replaces.
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        cells = read_cells(output) | {key: record}
        write_json_atomic(output, {"date": date.today().isoformat(), "cells": cells})
    finally:
        os.close(descriptor)


def try_lock(workspace: Path) -> IO[str] | None:
    """Lock a cell until the file is closed, here and in the trainer that inherits it; None if it is taken."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = (workspace / "cell.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


class RunningCell(NamedTuple):
    """A cell whose trainer runs."""

    cell: Cell
    process: subprocess.Popen[bytes]
    lock: IO[str]


class Runner:
    """Runs cells as processes, some at once, and merges the record of each as it ends.

    Args:
        root: folder of the cells' workspaces.
        output: file of the results.
        jobs: cells at once.
    """

    def __init__(self, root: Path, output: Path, jobs: int) -> None:
        self._root, self._output, self._jobs = root.absolute(), output, jobs
        self._running: list[RunningCell] = []
        self.failed: list[Cell] = []
        self.stopped = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run the cells that are missing, in order, until none is left or the trainers were told to stop."""
        waiting = list(cells)
        while True:
            while not self.stopped and len(self._running) < self._jobs and self._start_next(waiting):
                pass
            if not self._running:
                break
            time.sleep(POLL_S)
            self._take_finished()
        if waiting and not self.stopped:
            print(f"running elsewhere: {', '.join(cell.key for cell in waiting)}", flush=True)

    def forward_signal(self, number: int, frame: FrameType | None) -> None:
        """Pass Ctrl-C or SIGTERM on to the trainers: the first lets them save, a second one ends them."""
        self.stopped = True
        for running in self._running:
            running.process.send_signal(number)

    def _start_next(self, waiting: list[Cell]) -> bool:
        """Start the first cell that is neither recorded nor locked; return whether there was one."""
        recorded = read_cells(self._output)
        for cell in list(waiting):
            if cell.record(recorded):
                waiting.remove(cell)
            elif lock := try_lock(self._root / cell.folder):
                waiting.remove(cell)
                # Between the reading and the lock, a copy of this script may have finished it.
                if cell.record(read_cells(self._output)):
                    lock.close()
                    continue
                self._start(cell, lock)
                return True
        return False

    def _start(self, cell: Cell, lock: IO[str]) -> None:
        workspace = self._root / cell.folder
        if completed := completed_teacher(workspace):
            self._keep(cell, completed)
            lock.close()
            return
        teacher = resumable_teacher(workspace)
        from_step = f" from step {read_progress(teacher)['env_steps']:,}" if teacher else ""
        print(f"{cell.key}: training{from_step}, log in {workspace / 'log.txt'}", flush=True)
        with (workspace / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                train_command(cell, workspace, teacher),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A trainer that outlives this process keeps its cell locked.
                pass_fds=(lock.fileno(),),
                # Out of reach of the terminal's Ctrl-C: a second one would keep it from saving.
                start_new_session=True,
            )
        self._running.append(RunningCell(cell, process, lock))
        if self.stopped:  # a signal came while the process was being made
            process.terminate()

    def _take_finished(self) -> None:
        """Record the cells that ended well, report the others."""
        for running in list(self._running):
            if (code := running.process.poll()) is None:
                continue
            self._running.remove(running)
            workspace = self._root / running.cell.folder
            if teacher := completed_teacher(workspace):
                self._keep(running.cell, teacher)
            else:
                last = (
                    (workspace / "log.txt")
                    .read_text(encoding="utf-8", errors="replace")
                    .strip()
                    .rpartition("\n")[2]
                )
                print(f"{running.cell.key}: ended with {code}: {last}", flush=True)
                self.failed += [] if self.stopped else [running.cell]
            running.lock.close()

    def _keep(self, cell: Cell, teacher: Artifact) -> None:
        record = make_record(cell, teacher, self._jobs)
        merge_record(self._output, cell.key, record)
        print(f"{cell.key}: {describe_record(record)}", flush=True)


def describe_state(cell: Cell, root: Path, recorded: Mapping[str, Any]) -> str:
    """Return whether a cell is done, running or missing, and how far it is."""
    if record := cell.record(recorded):
        return f"done: {describe_record(record)}"
    workspace = root / cell.folder
    if completed_teacher(workspace):
        return "trained, recorded when the study goes on"
    teacher = resumable_teacher(workspace)
    steps = f", checkpoint at step {read_progress(teacher)['env_steps']:,}" if teacher else ""
    if workspace.exists():
        if not (lock := try_lock(workspace)):
            return f"running{steps}"
        lock.close()
    error = teacher.manifest.results.get("error") if teacher else None
    return f"missing{steps}{f', failed: {error}' if error else ''}"


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; a trial keeps its files below the workspace root."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.depth_study", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--task", choices=task_names(), default="point_big_maze")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies env_steps, for a trial")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="cells at once")
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "depth_study")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/depth_study.json")
    parser.add_argument("--dry-run", action="store_true", help="say what is done, running and missing")
    parser.add_argument("--table", action="store_true", help="print the aggregated results; run nothing")
    parser.add_argument("--figure", action="store_true", help="draw docs/pictures/depth_study.png, as above")
    options = parser.parse_args(arguments)
    if options.scale <= 0:
        parser.error("--scale must be positive")
    results, pictures = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"
    if options.scale != 1:
        results = pictures = options.workspace_root / f"scale-{options.scale:g}"
    options.output = options.output or results / "depth_study.json"
    options.picture = pictures / "depth_study.png"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, or show what there is; return the exit code."""
    options = parse_options(arguments)
    cells = plan(options.arms, options.task, options.seeds, options.scale)
    recorded = read_cells(options.output)
    if options.dry_run:
        for cell in cells:
            print(f"{cell.key}: {describe_state(cell, options.workspace_root, recorded)}")
    arms = gather(cells, recorded, read_paces())
    if options.table:
        print(figures.markdown_tables(arms))
    if options.figure:
        figures.draw_figure(options.picture, arms)
    if options.dry_run or options.table or options.figure:
        return 0
    runner = Runner(options.workspace_root, options.output, options.jobs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.forward_signal)
    runner.run(cells)
    return 130 if runner.stopped else 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
