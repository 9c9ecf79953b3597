"""How long one learner update takes, beside the published formulation in JAX/XLA and a plain one in torch.

    python -m benchmarks.learner_speed --depth 64 --width 256 --batch 256

Sides: ``jax-unrolled`` (as published) and ``jax-scan`` (`jax_learner.py`; they need `make benchmark-setup`),
``torch-plain`` (`plain_learner.py`), ``thousandfold`` and ``thousandfold-bf16`` (the product's learner), and
where asked for ``thousandfold-checkpoint`` (the same with activation checkpointing). All compute one update
of actor, α and critic for the ant's spaces on the CPU. Each side lives in a process of its own and computes
while the others wait, round after round, so that a machine that slows down slows all; ratios are taken round
by round. A product of two square matrices in each round tells what `torch.mm` reaches, and oneDNN in float32.

GFLOP/s count the products of a plain update, 12 passes × 2 · batch · width² · depth, whatever a side saves.
Cells of other sizes or of another processor are kept in the output; the cell that was measured is replaced
as a whole. Without instructions for bfloat16, what needs it is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.learner_speed_worker import bfloat16_refusal
from thousandfold.ground.files import write_json_atomic
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.runtime import describe_host

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("jax-unrolled", "jax-scan", "torch-plain", "thousandfold", "thousandfold-bf16")
OPTIONAL_SIDES = ("thousandfold-checkpoint",)
BASELINES = ("jax-unrolled", "jax-scan")
MATMUL = "matmul"
PRODUCTS = ("float32", "bfloat16", "float32 oneDNN")
# Actor: 3 of its own, 2 through φ, 1 of ψ. Critic: 3 of φ, 3 of ψ.
PASSES = 12
# Pools of threads spin for some milliseconds after their work; the next side waits for that to end.
_PAUSE_S = 0.05


class SideFailed(Exception):
    """A side's process ended or was given up; says which."""


class Worker:
    """One side in a process of its own.

    Args:
        side: its name.
        cell: sizes, as `benchmarks.learner_speed_worker.Cell` takes them.
        give_up_s: how long to wait for an answer before the process is killed.
    """

    def __init__(self, side: str, cell: dict[str, int], give_up_s: float) -> None:
        self._give_up_s = give_up_s
        command = [sys.executable, "-m", "benchmarks.learner_speed_worker", side, json.dumps(cell)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> dict[str, float]:
        """Return how long the side took to build and to make its first call. Raises SideFailed."""
        return self._reply()

    def round(self, round_s: float) -> dict[str, dict[str, float]]:
        """Have the side compute for about `round_s`; return its median seconds a call. Raises SideFailed."""
        assert self._process.stdin is not None
        try:
            print(round_s, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SideFailed(f"ended with exit code {self._process.wait()}") from None
        return self._reply()

    def _reply(self) -> dict[str, Any]:
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


@dataclasses.dataclass
class Measurement:
    """What was measured of one side.

    Attributes:
        ready: ``build_s``, imports included, and ``first_call_s``, compilation included.
        rounds: each round's median seconds a call, by what was called.
        failure: why the side has no figures, or None.
    """

    ready: dict[str, float] = dataclasses.field(default_factory=dict)
    rounds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    failure: str | None = None


def measure(
    cell: dict[str, int], sides: list[str], *, rounds: int, round_s: float, give_up_s: float
) -> dict[str, Measurement]:
    """Build every side and the matrix product one after the other, then measure them in turn."""
    measured = {side: Measurement() for side in [*sides, MATMUL]}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side, measurement in measured.items():
            if side.endswith("bf16") and (refusal := bfloat16_refusal()):
                measurement.failure = refusal
                continue
            workers[side] = worker = Worker(side, cell, give_up_s)
            stack.callback(worker.close)
            try:
                measurement.ready = worker.wait_until_ready()
            except SideFailed as failure:
                measurement.failure = str(failure)
        for _ in range(rounds):
            for side, measurement in measured.items():
                if measurement.failure is None:
                    time.sleep(_PAUSE_S)
                    _add_round(measurement, workers[side], round_s)
    return measured


def _add_round(measurement: Measurement, worker: Worker, round_s: float) -> None:
    try:
        result = worker.round(round_s)
    except SideFailed as failure:
        measurement.failure, measurement.rounds = str(failure), {}
        return
    for name, seconds in result.items():
        measurement.rounds.setdefault(name, []).append(seconds["median_s"])


# -- figures --------------------------------------------------------------------------------------


def plain_update_gflop(depth: int, width: int, batch: int) -> float:
    """Return 10⁹ floating-point operations of the products in the blocks, nothing shared."""
    return PASSES * 2.0 * batch * width**2 * depth / 1e9


def spread(values: list[float]) -> dict[str, float]:
    """Return median, min and max, to five digits."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def side_figures(
    side: str, measured: dict[str, Measurement], *, gflop: float, product_gflop: float
) -> dict[str, Any]:
    """Return the figures of one side: seconds, rates, share of the product's rate, speed-up over JAX.

    Args:
        side: which of those measured.
        measured: every side and the matrix product.
        gflop, product_gflop: operations of a plain update and of a product.
    """
    own = measured[side]
    if own.failure is not None:
        return own.ready | {"not_measured": own.failure}
    seconds = own.rounds["update"]
    figures: dict[str, Any] = {
        **own.ready,
        "seconds_per_update": spread(seconds),
        "rounds": seconds,
        "gflops": spread([gflop / each for each in seconds]),
    }
    matmul = measured[MATMUL]
    if matmul.failure is None:
        update_per_product = gflop / product_gflop
        figures["share_of_matmul"] = {
            precision: _ratios([update_per_product * s for s in products], seconds)
            for precision, products in matmul.rounds.items()
        }
    others = [name for name in BASELINES if name != side and name in measured]
    figures["speedup_over"] = {
        name: _ratios(measured[name].rounds["update"], seconds)
        for name in others
        if measured[name].failure is None
    }
    return figures


def _ratios(reference: list[float], seconds: list[float]) -> dict[str, float]:
    """Return how many times faster `seconds` are than those of `reference`, round by round."""
    return spread([theirs / ours for theirs, ours in zip(reference, seconds, strict=True)])


def matmul_figures(measurement: Measurement, product_gflop: float) -> dict[str, Any]:
    """Return the rate of the matrix product in each precision, by each library."""
    if measurement.failure is not None:
        return {"not_measured": measurement.failure}
    return {
        name: {"gflops": spread([product_gflop / each for each in seconds]), "rounds": seconds}
        for name, seconds in measurement.rounds.items()
    }


def versions() -> dict[str, str]:
    """Return the versions of the product, of what it stands on and of the JAX packages."""
    found = installed_versions()
    for package in ("jax", "jaxlib", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def merge_cell(path: Path, key: str, result: dict[str, Any]) -> None:
    """Put one cell's result into the file of all cells, in place of an older one of the same sizes."""
    cells = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json_atomic(path, cells | {key: result})


# -- what the user sees ---------------------------------------------------------------------------


def result_table(key: str, result: dict[str, Any]) -> Table:
    """Return the figures of one cell, a row a side."""
    table = Table(title=f"{key}, {result['rounds']} rounds in turn, {result['threads']} threads")
    table.add_column("side", no_wrap=True)
    columns = ("build s", "first s", "ms/update", "min – max", "GFLOP/s", "of matmul")
    for column in (*columns, *(f"× {name}" for name in BASELINES)):
        table.add_column(column, justify="right")
    for side, figures in result["sides"].items():
        table.add_row(side, *_side_cells(side, figures))
    for product in PRODUCTS:
        if rate := result["matmul"].get(product):
            table.add_row(f"matmul {product}", "", "", "", "", f"{rate['gflops']['median']:.1f}")
    return table


def _side_cells(side: str, figures: dict[str, Any]) -> list[str]:
    ready = [f"{figures[name]:.1f}" if name in figures else "" for name in ("build_s", "first_call_s")]
    if "not_measured" in figures:
        return [*ready, figures["not_measured"]]
    seconds, share = figures["seconds_per_update"], figures.get("share_of_matmul")
    precision = "bfloat16" if side.endswith("bf16") else "float32"
    cells = [
        f"{seconds['median'] * 1e3:.2f}",
        f"{seconds['min'] * 1e3:.2f} – {seconds['max'] * 1e3:.2f}",
        f"{figures['gflops']['median']:.1f}",
        f"{share[precision]['median']:.1%}" if share and precision in share else "",
    ]
    speedup = figures["speedup_over"]
    return ready + cells + [f"{speedup[name]['median']:.2f}" if name in speedup else "" for name in BASELINES]


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options; leave with a message where one makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    parser.add_argument(
        "--round-s", type=float, default=1.5, help="about how long a side computes in a round"
    )
    parser.add_argument("--sides", default=",".join(SIDES), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="default: every CPU, %(default)s")
    parser.add_argument("--matmul-size", type=int, default=2048, help="rows of the square matrices")
    parser.add_argument("--give-up-s", type=float, default=1800.0, help="wait no longer for one answer")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/learner_speed.json")
    options = parser.parse_args(arguments)
    options.sides = options.sides.split(",")
    known = SIDES + OPTIONAL_SIDES
    if unknown := [side for side in options.sides if side not in known]:
        parser.error(f"no such side: {', '.join(unknown)}; there are {', '.join(known)}")
    if any(side in BASELINES for side in options.sides) and not importlib.util.find_spec("flax"):
        parser.error("the JAX sides need what `make benchmark-setup` installs; or choose other --sides")
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    if options.depth < 4 or options.depth % 4:
        parser.error("--depth must be a multiple of 4")
    if not 1 <= options.threads <= usable_cpus():
        parser.error(f"--threads must lie in 1–{usable_cpus()}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure one cell, print its table and write its figures into the results."""
    options = parse_options(arguments)
    sizes = {name: getattr(options, name) for name in ("depth", "width", "batch", "threads", "matmul_size")}
    # Processors are not compared with one another: each kind keeps its own cells.
    key = f"D{options.depth} W{options.width} B{options.batch}, {describe_host()['cpu']}"
    flops = {
        "gflop": plain_update_gflop(options.depth, options.width, options.batch),
        "product_gflop": 2.0 * options.matmul_size**3 / 1e9,
    }
    facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": describe_host() | {"load_before": round(os.getloadavg()[0], 2)},
        "versions": versions(),
    }
    limits = {"rounds": options.rounds, "round_s": options.round_s, "give_up_s": options.give_up_s}
    measured = measure(sizes, options.sides, **limits)
    result = facts | sizes | limits | {"actor_goals": "random", "plain_update_gflop": flops["gflop"]}
    result["sides"] = {side: side_figures(side, measured, **flops) for side in options.sides}
    result["matmul"] = matmul_figures(measured[MATMUL], flops["product_gflop"])
    merge_cell(options.output, key, result)
    # Where the output is no terminal it would be cut to 80 columns.
    Console(width=max(Console().width, 120)).print(result_table(key, result))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
