"""Success against depth on a maze: equal environment steps, equal wall-clock, several seeds.

    python -m benchmarks.depth_study --arms depth --jobs 1       run what is missing
    python -m benchmarks.depth_study --dry-run                   say what is done, running and missing
    python -m benchmarks.depth_study --table                     aggregate what is recorded; --figure draws it
    python -m benchmarks.depth_study --pace --arms depth long    measure the clock of the comparisons
    python -m benchmarks.depth_study --sampled --arms long       evaluate teachers with sampled actions

A cell is one configuration of an arm with one seed: a `pipeline train-teacher` in a workspace of its own. A
cell that was cut off goes on from its checkpoint; with other settings in `ARMS` than before it is missing.
Cells run arm by arm and in an arm seed by seed, so that a study that was cut off is balanced. Several copies
may run at once: a cell is locked while it runs. Records of a --scale other than 1 stay below the workspace
root.

Two intervals, because they answer two questions. Over episodes (Wilson, all episodes of all seeds pooled):
how well these very policies do. Over seeds (Student's t on the seeds' means): how well the next seed will do;
with three seeds it is wide, and it is the one to compare configurations by.

Cells run beside one another and beside other programs, on whatever machine there is, so that their own
wall-clock says little. With --pace every configuration trains alone for a few evaluations, one after the
other, round after round; its pace is the median of the seconds that an environment step takes, with its share
of updates and evaluations. The study's time is environment steps times pace: one machine's, undisturbed.

Evaluations take tanh(mean), as published. Where that pushes against a wall, nothing in the next observation
differs and it pushes on until the episode ends; an action drawn from the same policy slides along. With
--sampled both are compared on the same episodes, to tell a policy that does not know its way from one that is
stuck on it. Cells whose teacher is no longer in its workspace are left out.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from benchmarks.harness import (
    PICTURES,
    RESULTS,
    ROOT,
    CellBook,
    StudyParser,
    completed,
    markdown_line,
    read_history,
    resumable_teacher,
)
from thousandfold.envs.registry import task_names
from thousandfold.ground.files import json_sha256
from thousandfold.models.goal_actor import GoalActor, sample_action
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.pictures import INK, SOFT, house_figure, short_count
from thousandfold.pipeline.runtime import describe_host, seed_sequence, set_up_torch
from thousandfold.stages.episodes import Policy, run_episodes, wilson_interval
from thousandfold.stages.networks import load_actor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Axis = Literal["depth", "network", "batch_size"]
Record = Mapping[str, Any]
Interval = tuple[float, float]
LAST = 5
# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the last one: a little too wide.
_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_STEP_SHARES = (0.25, 0.5, 1.0)
_LINE_STYLES = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))
_PACE_EVALUATIONS = 3  # the first ends what starts slowly; the intervals up to the others are timed


# -- cells -----------------------------------------------------------------------------------------


class Configuration(NamedTuple):
    """The sizes that a study compares."""

    depth: int
    width: int
    batch_size: int

    @property
    def label(self) -> str:
        """Short and unique, such as D64 W128 B256."""
        return f"D{self.depth} W{self.width} B{self.batch_size}"


@dataclass(frozen=True)
class Cell:
    """One configuration of an arm with one seed, and everything that the trainer is told."""

    arm: str
    axis: Axis
    configuration: Configuration
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.settings['task']} {self.arm} {self.configuration.label} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder below the workspace root: another one for other settings."""
        return f"{self.key.replace(' ', '-')}-{json_sha256(dict(self.settings))[:8]}"

    @property
    def pace_key(self) -> str:
        """The name under which the pace of its configuration is kept; seeds share it."""
        return f"{self.settings['task']} {self.arm} {self.configuration.label}"

    def record(self, cells: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is recorded of it; None where nothing is, or with other settings."""
        record = cells.get(self.key)
        if record is None or any(record["settings"].get(k) != v for k, v in self.settings.items()):
            return None
        return record


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


def read_progress(teacher: Artifact) -> dict[str, Any]:
    """Return the counters and the history in a teacher's checkpoint."""
    return json.loads(teacher.file("checkpoint/manifest.json").read_text(encoding="utf-8"))["progress"]


def make_record(cell: Cell, teacher: Artifact, cells_at_once: int) -> dict[str, Any]:
    """Return what is kept of a completed teacher."""
    results = teacher.manifest.results
    # A teacher of before has its history in its checkpoint.
    of = read_history if "history.json" in teacher.manifest.files else read_progress
    history = of(teacher)["history"]
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


# -- running ---------------------------------------------------------------------------------------


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


class Runner:
    """Runs cells as processes, some at once, and records each as it ends.

    Args:
        root: folder of the cells' workspaces.
        output: file of the results.
        jobs: cells at once.
    """

    def __init__(self, root: Path, output: Path, jobs: int) -> None:
        self._root, self._book, self._jobs = root.absolute(), CellBook(output), jobs
        self._running: set[subprocess.Popen[bytes]] = set()
        self.failed: list[Cell] = []
        self.stopped = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run the cells that are missing, in order, until none is left or the trainers were told to stop."""
        waiting = list(cells)
        while waiting and not self.stopped:
            with ThreadPoolExecutor(self._jobs) as pool:
                left = [c for c, ours in zip(waiting, pool.map(self._run, waiting), strict=True) if not ours]
            if left == waiting:
                print(f"running elsewhere: {', '.join(cell.key for cell in waiting)}", flush=True)
                return
            waiting = left

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Pass Ctrl-C or SIGTERM on to the trainers: the first lets them save, a second one ends them."""
        self.stopped = True
        for process in list(self._running):
            process.send_signal(number)

    def _run(self, cell: Cell) -> bool:
        """Run a cell that is missing; return whether nothing is left to do, False where it runs elsewhere."""
        if self.stopped or cell.record(self._book.cells):
            return True
        workspace = self._root / cell.folder
        if (lock := try_lock(workspace)) is None:
            return False
        with lock:
            if cell.record(self._book.cells):  # a copy of this script finished it before the lock
                return True
            code = None
            if (teacher := completed(workspace, "teacher")) is None:
                code = self._train(cell, workspace, lock)
                teacher = completed(workspace, "teacher")
            if teacher is not None:
                record = make_record(cell, teacher, self._jobs)
                self._book.record(cell.key, record)
                print(f"{cell.key}: {describe_record(record)}", flush=True)
            else:
                said = (workspace / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
                print(f"{cell.key}: ended with {code}: {said.rpartition(chr(10))[2]}", flush=True)
                self.failed += [] if self.stopped else [cell]
        return True

    def _train(self, cell: Cell, workspace: Path, lock: IO[str]) -> int:
        """Train a cell, or go on with its teacher; return the trainer's exit code."""
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
        self._running.add(process)
        if self.stopped:  # a signal came while the process was being made
            process.terminate()
        code = process.wait()
        self._running.discard(process)
        return code


def describe_state(cell: Cell, root: Path, recorded: Mapping[str, Any]) -> str:
    """Return whether a cell is done, running or missing, and how far it is."""
    if record := cell.record(recorded):
        return f"done: {describe_record(record)}"
    workspace = root / cell.folder
    if completed(workspace, "teacher"):
        return "trained, recorded when the study goes on"
    teacher = resumable_teacher(workspace)
    steps = f", checkpoint at step {read_progress(teacher)['env_steps']:,}" if teacher else ""
    if workspace.exists():
        if not (lock := try_lock(workspace)):
            return f"running{steps}"
        lock.close()
    error = teacher.manifest.results.get("error") if teacher else None
    return f"missing{steps}{f', failed: {error}' if error else ''}"


# -- results ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigurationResults:
    """The records of one configuration, one a seed, and the seeds that have none yet."""

    configuration: Configuration
    records: Sequence[Record]
    missing: list[int]


@dataclass(frozen=True)
class ArmResults:
    """The configurations that are compared with one another, all with one budget of environment steps.

    With `paced`, their time is that of each alone on one machine, not that which their cells took.
    """

    name: str
    axis: Axis
    task: str
    env_steps: int
    rows: list[ConfigurationResults]
    paced: bool = False

    @property
    def started(self) -> list[ConfigurationResults]:
        """The configurations that have a record."""
        return [row for row in self.rows if row.records]


class Estimate(NamedTuple):
    """Mean success over the seeds, each seed's own, and both 95 % intervals; one seed has none over seeds."""

    mean: float
    seeds: list[float]
    over_episodes: Interval
    over_seeds: Interval | None


def _at_pace(record: Record, pace: Mapping[str, Any]) -> Record:
    """Return a record whose times are its environment steps times a pace."""
    times = [steps * pace["seconds_per_step"] for steps in record["curve"]["env_steps"]]
    return {**record, "curve": record["curve"] | {"elapsed_s": times}, "wall_clock_s": times[-1]}


def gather(
    cells: Sequence[Cell], recorded: Mapping[str, Record], paces: Mapping[str, Any] | None = None
) -> list[ArmResults]:
    """Sort what is recorded of the cells by arm and configuration, on one clock where all paces are known."""
    arms = []
    for name in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == name]
        keys = {cell.configuration: cell.pace_key for cell in own}
        paced, rows = all(key in (paces or {}) for key in keys.values()), []
        for configuration in dict.fromkeys(cell.configuration for cell in own):
            found = {c.seed: c.record(recorded) for c in own if c.configuration == configuration}
            records = [record for record in found.values() if record]
            if paces and paced:
                records = [_at_pace(record, paces[keys[configuration]]) for record in records]
            missing = [seed for seed, record in found.items() if not record]
            rows.append(ConfigurationResults(configuration, records, missing))
        arms.append(
            ArmResults(name, own[0].axis, own[0].settings["task"], own[0].settings["env_steps"], rows, paced)
        )
    return arms


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % t interval of a mean success, within [0, 1]; None for a single seed."""
    if len(values) < 2:
        return None
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    mean, half = statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def estimate(seeds: Sequence[tuple[float, int]]) -> Estimate:
    """Return the estimate from each seed's success rate and the number of its episodes."""
    rates = [rate for rate, _ in seeds]
    successes, trials = sum(round(rate * count) for rate, count in seeds), sum(count for _, count in seeds)
    return Estimate(statistics.mean(rates), rates, wilson_interval(successes, trials), seed_interval(rates))


def last_evaluations(records: Sequence[Record]) -> Estimate:
    """Return success over the last five evaluations of each seed."""
    curves = [(r["curve"]["success"][-LAST:], r["settings"]["evaluation_episodes"]) for r in records]
    return estimate([(statistics.mean(rates), len(rates) * episodes) for rates, episodes in curves])


def final_evaluation(records: Sequence[Record]) -> Estimate:
    """Return success over the fresh episodes after the training."""
    return estimate([(r["final"]["success"], r["final"]["episodes"]) for r in records])


def success_at(record: Record, axis: str, value: float) -> float | None:
    """Return success where `axis` of the learning curve has a value, between two evaluations on their line.

    None before the first evaluation and after the last: nothing is known of a run that had ended.
    """
    places, success = record["curve"][axis], record["curve"]["success"]
    if not places or not places[0] <= value <= places[-1]:
        return None
    return float(np.interp(value, places, success))


def mean_success_at(records: Sequence[Record], axis: str, value: float) -> Estimate | None:
    """Return success at a value of `axis` over the seeds; None where a seed has none there."""
    found = [success_at(record, axis, value) for record in records]
    rates = [rate for rate in found if rate is not None]
    if not rates or len(rates) < len(found):
        return None
    return estimate(
        [(rate, r["settings"]["evaluation_episodes"]) for rate, r in zip(rates, records, strict=True)]
    )


def equal_times_s(arm: ArmResults) -> list[float]:
    """Return the times at which an arm is compared: the end of the cell that ended first, ½, 2, 4 … of it.

    That cell belongs to the fastest configuration, so that at its end every seed of every configuration
    that has been evaluated by then has a success.
    """
    ends = [record["curve"]["elapsed_s"][-1] for row in arm.rows for record in row.records]
    times = [min(ends) / 2, min(ends)]
    while times[-1] * 2 <= max(ends):
        times.append(times[-1] * 2)
    return times


# -- tables and picture ----------------------------------------------------------------------------


def describe_record(record: Record) -> str:
    """Return one line for a finished cell."""
    final = record["final"]
    return (
        f"success {final['success']:.3f} {_interval(final['success_interval'])} over {final['episodes']} "
        f"episodes, {record['updates']:,} updates in {record['wall_clock_s'] / 60:.1f} min"
    )


def markdown_tables(arms: Iterable[ArmResults]) -> str:
    """Return two tables an arm, success at the end and on the way, and the cells that are missing."""
    parts = []
    for arm in arms:
        parts += [f"### {arm.name}: {arm.task}, {arm.env_steps:,} environment steps"]
        if arm.started:
            parts += [_end_table(arm), _way_table(arm), _conditions(arm)]
        missing = [row for row in arm.rows if row.missing]
        listed = [f"{row.configuration.label} ({', '.join(map(str, row.missing))})" for row in missing]
        parts += [f"Missing, with their seeds: {', '.join(listed)}."] if listed else []
    return "\n\n".join(parts)


def _end_table(arm: ArmResults) -> str:
    """Return success at the end of the budget, which is at equal environment steps."""
    header = ["configuration", "parameters", "updates", "seeds", f"success, last {LAST} evaluations"]
    header += ["over episodes", "over seeds", "success, final evaluation", "over episodes", "over seeds"]
    lines = []
    for row in arm.started:
        first, line = row.records[0], [row.configuration.label]
        line += [f"{first['parameters']:,}", f"{first['updates']:,}", str(len(row.records))]
        for result in (last_evaluations(row.records), final_evaluation(row.records)):
            line += [f"{result.mean:.3f}", _interval(result.over_episodes), _interval(result.over_seeds)]
        info_nce = [statistics.mean(record["curve"]["info_nce"][-LAST:]) for record in row.records]
        minutes = statistics.mean(record["wall_clock_s"] for record in row.records) / 60
        lines.append([*line, f"{statistics.mean(info_nce):.2f}", f"{minutes:.1f}"])
    return _table([*header, f"InfoNCE, last {LAST}", "minutes"], lines)


def _way_table(arm: ArmResults) -> str:
    """Return success at equal environment steps and at equal wall-clock, mean and interval over seeds."""
    end = min(record["curve"]["env_steps"][-1] for row in arm.started for record in row.records)
    times = equal_times_s(arm)
    places = [("env_steps", share * end) for share in _STEP_SHARES] + [("elapsed_s", time) for time in times]
    header = ["configuration", *(f"{short_count(round(share * end))} steps" for share in _STEP_SHARES)]
    header += [f"{time / 60:.1f} min" for time in times]
    header[2 + len(_STEP_SHARES)] = f"**{header[2 + len(_STEP_SHARES)]}**"
    lines = []
    for row in arm.started:
        results = [mean_success_at(row.records, *place) for place in places]
        cells = [_mean_and_interval(result) if result else "–" for result in results]
        lines.append([row.configuration.label, *cells])
    return _table(header, lines)


def _conditions(arm: ArmResults) -> str:
    """Return what the second table shows and what the wall-clock was measured on."""
    records = [record for row in arm.rows for record in row.records]
    machines = sorted({record["host"]["cpu"] for record in records})
    jobs = sorted({record["cells_at_once"] for record in records})
    clock = (
        f"Wall-clock on {', '.join(machines)}, {' and '.join(map(str, jobs))} at once, one torch thread each."
    )
    if arm.paced:
        clock = "Time is environment steps times the pace of each configuration alone on one CPU thread."
    return (
        "Intervals of 95 %. Second table: mean over seeds with the interval over seeds; in bold the time at "
        f"which the first cell ended; – where a seed had not been evaluated yet or had ended. {clock}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(map(markdown_line, [header, rule, *lines]))


def _mean_and_interval(result: Estimate) -> str:
    return f"{result.mean:.2f}" + (f" {_interval(result.over_seeds, 2)}" if result.over_seeds else "")


def _interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "–"


def draw_figure(path: Path, arms: Sequence[ArmResults]) -> None:
    """Draw a row an arm: success by configuration, by steps and by time, and the critic's InfoNCE by steps.

    Raises SystemExit where nothing is recorded yet.
    """
    arms = [arm for arm in arms if arm.started]
    if not arms:
        raise SystemExit("nothing is recorded yet: there is nothing to draw")
    depths = sorted({row.configuration.depth for arm in arms for row in arm.started})
    with house_figure(path, width=20.0, height=0.8 + 4.4 * len(arms)) as figure:
        rows = figure.subfigures(len(arms), 1, squeeze=False)[:, 0]
        for subfigure, arm in zip(rows, arms, strict=True):
            _draw_arm(subfigure, arm, _colours(depths))
        _explain(rows[-1])


def _colours(depths: Sequence[int]) -> dict[int, Any]:
    """Return a colour for each depth, the deeper the darker; viridis is told apart with any colour vision."""
    from matplotlib import colormaps

    shades = np.linspace(0.74, 0.08, len(depths)) if len(depths) > 1 else [0.4]
    return {depth: colormaps["viridis"](shade) for depth, shade in zip(depths, shades, strict=True)}


def _draw_arm(subfigure: SubFigure, arm: ArmResults, colours: Mapping[int, Any]) -> None:
    batches = sorted({row.configuration.batch_size for row in arm.started})
    panels = subfigure.subplots(1, 5, width_ratios=(1.0, 1.25, 1.25, 1.25, 0.95))
    left, middle, right, critic, beside = panels
    seeds = sorted({len(row.records) for row in arm.started})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    subfigure.suptitle(
        f"{arm.name}: {arm.task}, {short_count(arm.env_steps)} environment steps, "
        f"{count} {'seed' if count == '1' else 'seeds'} a configuration",
        fontweight="bold", fontsize=13, x=0.01, ha="left",
    )  # fmt: skip
    _draw_success(left, arm, colours)
    for row in arm.started:
        sizes = row.configuration
        style = _LINE_STYLES[batches[::-1].index(sizes.batch_size) % len(_LINE_STYLES)]
        label = f"{_name(arm, sizes)} ({len(row.records)} seed{'s' * (len(row.records) != 1)})"
        look = {"color": colours[sizes.depth], "ls": style, "label": label}
        _draw_mean_curve(middle, row.records, "env_steps", "success", **look)
        _draw_mean_curve(right, row.records, "elapsed_s", "success", unit=60.0, **look)
        _draw_mean_curve(critic, row.records, "env_steps", "info_nce", **look)
    for axes in (middle, critic):
        axes.set(xlabel="environment steps", xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    _finish_wall_clock(right, arm)
    clock = "time alone on a thread" if arm.paced else "wall-clock"
    titles = ("success by environment steps", f"success by {clock}", "InfoNCE (nats) by environment steps")
    for axes, title in zip(panels, (f"success, last {LAST} evaluations", *titles), strict=False):
        axes.set_title(title, fontsize=11, fontweight="normal", pad=6)
    for axes in (left, middle, right):
        axes.set_ylim(-0.03, 1.03)
    beside.axis("off")
    legend = beside.legend(*middle.get_legend_handles_labels(), loc="center left", borderaxespad=0)
    legend.set_in_layout(False)  # the panels of all rows stand below one another, however long the names


def _name(arm: ArmResults, sizes: Configuration) -> str:
    """Return what tells a configuration from the others of its arm."""
    names = {"depth": f"depth {sizes.depth}", "network": f"depth {sizes.depth}, width {sizes.width}"}
    return names.get(arm.axis, f"depth {sizes.depth}, batch {sizes.batch_size}")


def _draw_success(axes: Axes, arm: ArmResults, colours: Mapping[int, Any]) -> None:
    """Draw success at the end with both intervals, and one dot a seed."""
    ticks = list(dict.fromkeys(_tick(arm, row) for row in arm.rows))
    depths = list(dict.fromkeys(row.configuration.depth for row in arm.started))
    lines: dict[int, list[tuple[float, float]]] = {}
    for row in arm.started:
        depth, result = row.configuration.depth, last_evaluations(row.records)
        x = float(ticks.index(_tick(arm, row)))
        if arm.axis == "batch_size":  # several depths share a place
            x += 0.4 * (depths.index(depth) - (len(depths) - 1) / 2)
            lines.setdefault(depth, []).append((x, result.mean))
        elif arm.axis == "depth":
            lines.setdefault(0, []).append((x, result.mean))
        colour = colours[depth]
        if result.over_seeds:
            axes.plot([x, x], result.over_seeds, color=colour, lw=1.4, zorder=3)
        axes.plot(
            [x, x], result.over_episodes, color=colour, lw=11, alpha=0.35, solid_capstyle="butt", zorder=3
        )
        axes.plot(x, result.mean, "D", color=colour, ms=6, mec="white", mew=1.2, zorder=5)
        places = x + 0.13 + 0.04 * np.arange(len(result.seeds))
        axes.plot(places, result.seeds, "o", color=colour, ms=4.5, mec="white", mew=0.6, zorder=4)
    for depth, points in lines.items():
        axes.plot(*zip(*points, strict=True), color=colours.get(depth, SOFT), lw=1.2, alpha=0.6, zorder=2)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel({"depth": "depth", "batch_size": "batch size"}.get(arm.axis, ""))


def _tick(arm: ArmResults, row: ConfigurationResults) -> str:
    sizes = row.configuration
    if arm.axis != "network":
        return str(getattr(sizes, arm.axis))
    parameters = float(f"{row.records[0]['parameters']:.3g}") if row.records else 0.0
    size = f"\n{short_count(parameters)} parameters" if row.records else ""
    return f"depth {sizes.depth}\nwidth {sizes.width}{size}"


def _draw_mean_curve(
    axes: Axes, records: Sequence[Record], axis: str, name: str, *, unit: float = 1.0, **style: Any
) -> None:
    """Draw the mean over the seeds and the band from the lowest to the highest, where every seed has one."""
    curves = []
    for record in records:
        pairs = zip(record["curve"][axis], record["curve"][name], strict=True)
        # An evaluation before the first update has no InfoNCE.
        curves.append(np.array([pair for pair in pairs if pair[1] is not None]).T)
    first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    places = np.unique([place for curve in curves for place in curve[0] if first <= place <= last])
    values = np.stack([np.interp(places, *curve) for curve in curves])
    axes.plot(places / unit, values.mean(0), lw=2, **style)
    if len(records) > 1:
        band = values.min(0), values.max(0)
        axes.fill_between(places / unit, *band, color=style["color"], alpha=0.15, lw=0)


def _finish_wall_clock(axes: Axes, arm: ArmResults) -> None:
    """Label the axis of time, logarithmic because depths differ in speed by an order of magnitude."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.axvline(equal_times_s(arm)[1] / 60, color=INK, lw=1.2, ls=":", zorder=1)
    axes.set(xscale="log", xlabel="minutes")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _explain(subfigure: SubFigure) -> None:
    """Say below the last row what the marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=SOFT, marker="D", ls="", label="mean over seeds"),
        Line2D([], [], color=SOFT, marker="o", ms=4.5, ls="", label="a seed"),
        Line2D([], [], color=SOFT, lw=11, alpha=0.35, label="95 % over episodes"),
        Line2D([], [], color=SOFT, lw=1.4, label="95 % over seeds"),
        Patch(color=SOFT, alpha=0.2, lw=0, label="lowest to highest seed"),
        Line2D([], [], color=INK, lw=1.2, ls=":", label="the first cell to end"),
    ]
    subfigure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10)


# -- the clock, and sampled actions ----------------------------------------------------------------


def shortened(cell: Cell) -> Cell:
    """Return a cell that ends after a few evaluations, with hardly any after its training."""
    unroll = cell.settings["num_worlds"] * cell.settings["unroll_steps"]
    steps = _PACE_EVALUATIONS * cell.settings["evaluate_every"] * unroll
    return replace(cell, settings={**cell.settings, "env_steps": steps, "final_episodes": 1})


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
        command = train_command(shortened(cell), workspace, None)
        trained = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        teacher = completed(workspace, "teacher")
        if trained.returncode or teacher is None:
            raise SystemExit(f"{cell.pace_key}: {trained.stderr.strip().rpartition(chr(10))[2]}")
        return seconds_a_step(read_history(teacher)["history"])


def measure_paces(cells: Sequence[Cell], rounds: int) -> dict[str, dict[str, Any]]:
    """Train every cell alone, in turn; return the pace of each and the intervals it is the median of."""
    found: dict[str, list[float]] = {cell.pace_key: [] for cell in cells}
    for number, cell in itertools.product(range(rounds), cells):
        seconds = train_alone(cell)
        found[cell.pace_key] += seconds
        pace = f"{1e6 * statistics.median(seconds):.1f} µs a step"
        print(f"round {number + 1}, {cell.pace_key}: {pace}", flush=True)
    return {
        key: {"seconds_per_step": statistics.median(each), "intervals": [float(f"{s:.5g}") for s in each]}
        for key, each in found.items()
    }


def sampled_policy(actor: GoalActor, generator: torch.Generator) -> Policy:
    """Return the policy that draws its action from the actor's squashed Gaussian."""

    @torch.no_grad()
    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        gaussian = actor(torch.as_tensor(observation), torch.as_tensor(goal))
        return sample_action(gaussian, torch.randn(gaussian.mean.shape, generator=generator))[0].numpy()

    return policy


def evaluate_sampled(teacher: Artifact) -> dict[str, Any]:
    """Return success with sampled actions and with the mean, both on the final evaluation's episodes."""
    results, trained = teacher.manifest.results, load_actor(teacher)
    outcome = run_episodes(
        trained.task,
        sampled_policy(trained.actor.actor, torch.Generator().manual_seed(0)),
        episodes=results["episodes"],
        seed=seed_sequence(*results["evaluation_seed"]),
    ).summary()
    names = ("success", "success_interval", "time_at_goal", "episodes")
    return {
        "teacher": teacher.name,
        "sampled": {name: outcome[name] for name in names},
        "mean": {name: results[name] for name in names},
    }


def pace_book(path: Path = RESULTS / "depth_study_pace.json") -> CellBook:
    """Return the recorded paces, by `Cell.pace_key`."""
    return CellBook(path, within="paces")


def record_paces(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """Measure the paces of some arms and put them into the results."""
    book, machine = pace_book(options.output), {"host": describe_host(), "date": date.today().isoformat()}
    for key, pace in measure_paces(cells, options.rounds).items():
        book.record(key, pace | machine)


def record_sampled(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """Evaluate the teachers that are there and put them into the results."""
    set_up_torch(1)
    book = CellBook(options.output)
    for cell in cells:
        workspace = options.workspace_root / cell.folder
        if not workspace.exists() or not (teacher := completed(workspace, "teacher")):
            continue
        other = book.cells.get(cell.key, {}).get("teacher") != teacher.name
        found = book.cell(cell.key, partial(evaluate_sampled, teacher), again=other)
        print(
            f"{cell.key}: success {found['sampled']['success']:.3f} with sampled actions, "
            f"{found['mean']['success']:.3f} with the mean, {found['mean']['episodes']} episodes each",
            flush=True,
        )


# -- command line ----------------------------------------------------------------------------------


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; a trial keeps its files below the workspace root."""
    parser = StudyParser(__doc__, "depth_study")
    parser.set_defaults(output=None)
    parser.several("--arms", list(ARMS), choices=ARMS, help="default: all")
    parser.add_argument("--task", choices=task_names(), default="point_big_maze")
    parser.seeds()
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies env_steps, for a trial")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="cells at once")
    parser.rounds(3, least=1)
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "depth_study")
    parser.add_argument("--dry-run", action="store_true", help="say what is done, running and missing")
    parser.figure(PICTURES / "depth_study.png")
    parser.add_argument(
        "--pace", action="store_true", help="measure --rounds times how fast each trains alone"
    )
    parser.add_argument("--sampled", action="store_true", help="evaluate the teachers with sampled actions")
    options = parser.parse(arguments)
    if options.scale <= 0:
        parser.error("--scale must be positive")
    results, pictures = RESULTS, PICTURES
    if options.scale != 1:
        results = pictures = options.workspace_root / f"scale-{options.scale:g}"
    suffix = "_pace" if options.pace else "_sampled" if options.sampled else ""
    options.output = options.output or results / f"depth_study{suffix}.json"
    options.picture = pictures / "depth_study.png"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, or show what there is; return the exit code."""
    options = parse_options(arguments)
    cells = plan(options.arms, options.task, options.seeds, options.scale)
    if options.pace:
        record_paces(plan(options.arms, options.task, [0], 1.0), options)
    if options.sampled:
        record_sampled(cells, options)
    if options.pace or options.sampled:
        return 0
    recorded = CellBook(options.output).cells
    if options.dry_run:
        for cell in cells:
            print(f"{cell.key}: {describe_state(cell, options.workspace_root, recorded)}")
    if options.table:
        arms = gather(cells, recorded, pace_book().cells)
        print(markdown_tables(arms))
        if options.figure:
            draw_figure(options.picture, arms)
    if options.dry_run or options.table:
        return 0
    runner = Runner(options.workspace_root, options.output, options.jobs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    runner.run(cells)
    return 130 if runner.stopped else 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
