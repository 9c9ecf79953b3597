"""What all studies share: options, cells that are recorded one by one, tables, sides that are timed in turn.

A study is a table of cells, each made by one call. A cell that its JSON file holds is not made again, so that
a study that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from thousandfold.ground.files import plain_json, write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace, installed_versions
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import describe_host

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PICTURES = ROOT / "docs/pictures"
# Pools of threads spin for some milliseconds after their work, and a side that works ahead has environments
# under way; the next side waits for both to end.
_PAUSE_S = 0.05
_WARM_UP_STEPS = 4
_CALIBRATION_S = 0.2
_BESIDE = ("envpool", "stable-baselines3", "sbx-rl", "jax", "jaxlib", "flax", "optax")

Cell = dict[str, Any]
Result = TypeVar("Result")


# -- options ---------------------------------------------------------------------------------------


class _Several(argparse.Action):
    """Takes values together or one option each; the first replaces the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is self.default else [*before, *values])


class StudyParser(argparse.ArgumentParser):
    """The options of all studies, to which one adds its own.

    Args:
        description: docstring of the script.
        name: of the script, and of its file below benchmarks/results.
    """

    def __init__(self, description: str | None, name: str, output: Path | None = None) -> None:
        super().__init__(
            f"python -m benchmarks.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--output", type=Path, default=output or RESULTS / f"{name}.json", metavar="FILE")
        self.add_argument("--table", action="store_true", help="print what is recorded; run nothing")
        self.add_argument("--again", action="store_true", help="make recorded cells again")

    def number(self, name: str, default: Any, text: str | None = None, *, least: float | None = None) -> None:
        """Add an option that takes a number of the default's type, of a least size."""

        def convert(said: str) -> Any:
            value = type(default)(said)
            if least is not None and value < least:
                raise argparse.ArgumentTypeError(f"must be at least {least}")
            return value

        convert.__name__ = type(default).__name__  # argparse says that "x" is an invalid int value
        self.add_argument(name, type=convert, default=default, help=f"{text or ''} [{default}]".strip())

    def several(self, name: str, default: Sequence[Any] = (), **options: Any) -> None:
        """Add an option that takes one value or more, together or one option each."""
        self.add_argument(name, nargs="+", action=_Several, default=list(default), **options)

    def seeds(self, default: Iterable[int] = (0, 1, 2)) -> None:
        """Add the seeds of a study."""
        self.several("--seeds", list(default), type=int)

    def rounds(self, rounds: int, round_s: float | None = None, *, least: int = 5) -> None:
        """Add how many rounds sides are timed in, and how long each takes in one."""
        self.number("--rounds", rounds, f"at least {least}", least=least)
        if round_s is not None:
            self.number("--round-s", round_s, "about how long a side is timed in a round", least=0.0)

    def figure(self, picture: Path) -> None:
        """Add the option that draws what is recorded."""
        self.add_argument("--figure", action="store_true", help=f"as --table, and draw {picture.name}")

    def parse(self, arguments: Sequence[str] | None, needs: str | None = None) -> argparse.Namespace:
        """Return the options; leave with one line where `needs` is missing and something is to run."""
        options = self.parse_args(arguments)
        options.table |= getattr(options, "figure", False)
        if needs is not None and not options.table and not getattr(options, needs):
            self.error(f"give --{needs}, or --table")
        return options


# -- cells -----------------------------------------------------------------------------------------


class CellBook:
    """The recorded cells of a study. Several processes may record at once.

    Args:
        path: JSON file of the cells.
        heads: written beside the cells, and what they have in common.
        within: the cells' key in the file, beside `facts`; None: cells stand at the top, each with its facts.

    Raises SystemExit where the file says otherwise of `heads`: its cells are those of another study.
    """

    def __init__(
        self, path: Path, heads: Mapping[str, Any] | None = None, within: str | None = "cells"
    ) -> None:
        self.path, self.heads, self.within = path, plain_json(dict(heads or {})), within
        recorded = self._read()
        for name, value in self.heads.items():
            if recorded.get(name, value) != value:
                raise SystemExit(f"{path} is of another {name} ({recorded[name]}): give another --output")

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    @property
    def cells(self) -> dict[str, Cell]:
        """What is recorded by now."""
        recorded = self._read()
        cells = recorded if self.within is None else recorded.get(self.within, {})
        return cells if isinstance(cells, dict) else {f"seed {cell['seed']}": cell for cell in cells}

    def record(self, name: str, cell: Cell) -> None:
        """Add a cell, or put it in the place of an older one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The folder is locked and not the file, which the atomic write replaces.
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            cells = self.cells | {name: cell}
            content = cells if self.within is None else {**facts(), **self.heads, self.within: cells}
            write_json_atomic(self.path, content)
        finally:
            os.close(descriptor)

    def cell(self, name: str, make: Callable[[], Cell], *, again: bool = False) -> Cell:
        """Return a cell, making and recording it where it is missing, or is to be made again."""
        if again or (cell := self.cells.get(name)) is None:
            before = facts() if self.within is None else {}
            cell = before | make()
            self.record(name, cell)
        return cell


def run_study(
    options: argparse.Namespace,
    cells: Iterable[tuple[str, Callable[[], Cell]]],
    table: Callable[[Mapping[str, Cell]], str] | None = None,
    *,
    book: CellBook | None = None,
    line: Callable[[str, Cell], str] | None = None,
    again: Callable[[str], bool] = lambda name: False,
) -> None:
    """Make the cells that are missing, print each and then the table; with --table print what is recorded.

    Args:
        options: of a `StudyParser`.
        cells: name and maker of each, in the order in which they run; with --table not asked for.
        table: of the cells; None: their lines are all there is.
        line: what is printed of a cell; by default its line of the table.
        again: whether a cell is made again, by its name, though --again was not given.
    """
    book = book or CellBook(options.output)

    def say(name: str, cell: Cell) -> None:
        print(line(name, cell) if line else table({name: cell}).splitlines()[-1] if table else "", flush=True)

    for name, make in () if options.table else cells:
        say(name, book.cell(name, make, again=options.again or again(name)))
    if table:
        print(table(book.cells))
    elif options.table:
        for name, cell in book.cells.items():
            say(name, cell)


def run_once(options: argparse.Namespace, measure: Callable[[], Cell], show: Callable[[Cell], str]) -> Cell:
    """Measure what has no cells, write it with its facts, print it and return it; --table prints it alone."""
    if not options.table:
        before = facts()
        write_json_atomic(options.output, before | measure())
    result = json.loads(options.output.read_text(encoding="utf-8"))
    print(show(result), flush=True)
    return result


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge figures: date, machine, its load before, and versions."""
    versions = installed_versions()
    for package in _BESIDE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": describe_host() | {"load_before": round(os.getloadavg()[0], 2)},
        "versions": versions,
    }


# -- tables ----------------------------------------------------------------------------------------


def markdown_line(cells: Iterable[object]) -> str:
    """Return a line of a Markdown table."""
    return "".join(f"| {cell}".rstrip() + " " for cell in cells) + "|"


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[object]], title: str = "") -> str:
    """Return a Markdown table, below its title where it has one."""
    lines = [markdown_line(heads), "|---" * len(heads) + "|", *map(markdown_line, rows)]
    return "\n".join([title, "", *lines] if title else lines)


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a figure with its interval, for tables."""
    if value is None or interval is None:
        return "undefined"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


# -- timing ----------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, min and max, to five digits."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return median, min and max of ours / theirs, taken round by round."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def in_turn(measures: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Take every measure once a round, so that a machine that slows down slows all; return all rounds'."""
    found: dict[str, list[Result]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            time.sleep(_PAUSE_S)
            found[name].append(measure())
    return found


def _nothing() -> None:
    """Free nothing."""


@dataclass(frozen=True)
class Side:
    """One of the systems whose steps are counted.

    Attributes:
        advance: makes `count` calls, each a control step of `worlds` environments.
        worlds: environment steps a call.
        close: frees what the side holds.
    """

    advance: Callable[[int], None]
    worlds: int
    close: Callable[[], None] = _nothing

    def rate(self, count: int) -> float:
        """Return environment steps a second over `count` calls."""
        start = time.perf_counter()
        self.advance(count)
        return count * self.worlds / (time.perf_counter() - start)


def calls_for(side: Side, seconds: float) -> int:
    """Return how many calls take about `seconds`, after warming up."""
    side.advance(_WARM_UP_STEPS)
    calls, trial_s = 1, min(seconds, _CALIBRATION_S)
    while True:
        start = time.perf_counter()
        side.advance(calls)
        elapsed = time.perf_counter() - start
        if elapsed >= trial_s / 2:
            return max(1, round(calls * seconds / elapsed))
        calls *= 2


def take_turns(sides: Mapping[str, Side], rounds: int, round_s: float) -> dict[str, list[float]]:
    """Time every side once a round, about `round_s` each; return their steps a second, round by round."""
    counts = {name: calls_for(side, round_s) for name, side in sides.items()}
    rates = {name: lambda name=name, side=side: side.rate(counts[name]) for name, side in sides.items()}
    return {name: [round(rate, 1) for rate in found] for name, found in in_turn(rates, rounds).items()}


def fastest(
    candidates: Mapping[str, Callable[[], Side]], rounds: int, round_s: float
) -> tuple[str, dict[str, float]]:
    """Return the candidate with the highest median rate, and the medians of all; one lives at a time."""
    medians = {}
    for name, make in candidates.items():
        with contextlib.closing(make()) as side:
            medians[name] = statistics.median(take_turns({name: side}, rounds, round_s)[name])
    return max(medians, key=medians.__getitem__), medians


# -- processes -------------------------------------------------------------------------------------


class SideFailed(Exception):
    """A side's process ended or was given up; says which."""


class Worker:
    """A script of this folder in a process of its own, which answers in lines of JSON.

    Args:
        arguments: the script's name and what it is told.
        give_up_s: how long to wait for an answer before the process is killed.
        environment: variables beside this process's.
    """

    def __init__(
        self, *arguments: str, give_up_s: float = 600.0, environment: Mapping[str, str] | None = None
    ) -> None:
        self._give_up_s = give_up_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]],
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: object) -> Any:
        """Write a line and return the answer. Raises SideFailed."""
        assert self._process.stdin is not None
        try:
            print(request, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SideFailed(f"ended with exit code {self._process.wait()}") from None
        return self.answer()

    def answer(self) -> Any:
        """Wait for a line and return what it says. Raises SideFailed."""
        assert self._process.stdout is not None
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            self._process.kill()

        timer = threading.Timer(self._give_up_s, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if given_up.is_set():
            raise SideFailed(f"given up after {self._give_up_s:g} s")
        if line:
            return json.loads(line)
        raise SideFailed(f"ended with exit code {self._process.wait()}")

    def close(self) -> None:
        """Kill the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def run_pipeline(workspace: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of the pipeline in a process of its own; return its result."""
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace.absolute())]
    done = subprocess.run([*command, *arguments, "--json"], check=True, stdout=subprocess.PIPE, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def completed(workspace: Path, kind: str) -> Artifact | None:
    """Return the newest completed artifact of a kind, or None."""
    artifacts = Workspace(workspace).artifacts(kind)
    return next((found for found in artifacts if found.manifest.status == "completed"), None)


def resumable_teacher(workspace: Path) -> Artifact | None:
    """Return the newest unfinished teacher with a checkpoint, or None."""
    unfinished = (t for t in Workspace(workspace).artifacts("teacher") if t.manifest.status != "completed")
    return next((t for t in unfinished if CheckpointFolder(t.file("checkpoint")).exists), None)


def train_teacher(workspace: Path, *arguments: str) -> Artifact:
    """Return a workspace's teacher: the finished one, the unfinished one gone on with, or a new one."""
    if (teacher := completed(workspace, "teacher")) is None:
        resumed = ["--resume"] if resumable_teacher(workspace) else arguments
        run_pipeline(workspace, "train-teacher", *resumed)
        teacher = completed(workspace, "teacher")
        assert teacher is not None
    return teacher


def read_history(teacher: Artifact) -> dict[str, Any]:
    """Return what a completed teacher's history.json holds, such as its evaluations under ``history``."""
    return json.loads(teacher.file("history.json").read_text(encoding="utf-8"))
