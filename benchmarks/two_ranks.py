"""How many transitions a second the learner takes in with one rank and with two, one CPU thread each.

    python -m benchmarks.two_ranks --depth 64 --width 256 --batch 512

Sides: ``one-rank``, ``two-ranks`` (the same batch, half of it each) and ``two-ranks-weak`` (a batch of that
size each, twice as much in all). Every rank is a process with one torch thread that makes the product's
updates on fixed random batches for the ant's spaces; gradients go over gloo, as under torchrun. Each side
computes while the others wait, round after round, so that a machine that slows down slows all; ratios are
taken round by round. Beside it, what the exchange of the gradients takes by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from benchmarks.learner_speed_worker import AntDimensions, batch_arrays
from thousandfold.ground.files import write_json_atomic
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import describe_host, set_up_torch

if TYPE_CHECKING:
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"one-rank": (1, 1), "two-ranks": (2, 1), "two-ranks-weak": (2, 2)}
"""How many ranks, and how many times the batch they share."""

_EXCHANGES = 5
_PAUSE_S = 0.05
_END_S = 10.0


class Side:
    """The ranks of one side, each in a process of its own, and rank 0's replies.

    Args:
        name: one of `SIDES`.
        sizes: ``depth``, ``width`` and ``batch``.
        store_port: where the ranks meet.
    """

    def __init__(self, name: str, sizes: dict[str, Any], store_port: int) -> None:
        count, times = SIDES[name]
        cell = json.dumps(sizes | {"batch": sizes["batch"] * times})
        self._processes = [_start_rank(rank, count, cell, store_port) for rank in range(count)]
        self._reply()

    def round(self, round_s: float) -> dict[str, float]:
        """Have the ranks compute for about `round_s`; return transitions a second and the exchange's time."""
        assert self._processes[0].stdin is not None
        print(round_s, file=self._processes[0].stdin, flush=True)
        return self._reply()

    def _reply(self) -> Any:
        line = cast(IO[str], self._processes[0].stdout).readline()
        if not line:
            raise SystemExit(f"a rank ended with exit code {self._processes[0].wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Let the ranks end; kill those that are too busy."""
        cast(IO[str], self._processes[0].stdin).close()
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start_rank(rank: int, count: int, cell: str, store_port: int) -> subprocess.Popen[str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {name: str(value) for name, value in names.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.two_ranks", "--rank-of", cell],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        text=True,
    )


# -- one rank -------------------------------------------------------------------------------------


def serve(sizes: dict[str, int]) -> None:
    """Build the learner, then answer each line that rank 0 reads, the seconds of a round, with one line."""
    ranks = Ranks.from_environment()
    set_up_torch(1)
    with ranks.connect("cpu"):
        rate = _rate_of(ranks, sizes)
        rate(0.0)
        if ranks.leads:
            print(json.dumps({}), flush=True)
        while round_s := ranks.from_leader(lambda: float(sys.stdin.readline() or 0)):
            figures = rate(round_s)
            if ranks.leads:
                print(json.dumps(figures), flush=True)


def _learner(ranks: Ranks, sizes: dict[str, int]) -> ContrastiveLearner:
    """Return the learner of a rank."""
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner, LearnerSettings

    settings = LearnerSettings(
        depth=sizes["depth"], width=sizes["width"], batch_size=sizes["batch"], actor_goals="random"
    )
    # The learner reads nothing of a task but the three sizes.
    return ContrastiveLearner(cast(Any, AntDimensions()), settings, "cpu", ranks)


def _rate_of(ranks: Ranks, sizes: dict[str, int]) -> Any:
    """Return a function that computes for about so many seconds and returns the figures of that round."""
    import torch

    from thousandfold.replay.trajectory_buffer import TransitionBatch

    learner = _learner(ranks, sizes)
    own = ranks.share("batch", sizes["batch"])
    batches = [
        TransitionBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        for arrays in batch_arrays(own)
    ]
    generator = torch.Generator().manual_seed(ranks.rank)

    def updates(count: int) -> float:
        ranks.barrier()
        start = time.perf_counter()
        for index in range(count):
            learner.update(batches[index % len(batches)], generator)
        ranks.barrier()
        return time.perf_counter() - start

    def exchange() -> float:
        ranks.barrier()
        start = time.perf_counter()
        learner._average_gradients()
        return time.perf_counter() - start

    def rate(round_s: float) -> dict[str, float]:
        once = updates(1)
        count = ranks.from_leader(lambda: max(2, round(round_s / once)))
        seconds = updates(count)
        exchange_s = statistics.median(exchange() for _ in range(_EXCHANGES))
        return {"samples_per_second": count * sizes["batch"] / seconds, "exchange_s": exchange_s}

    return rate


# -- all of them ----------------------------------------------------------------------------------


def measure(sizes: dict[str, Any], rounds: int, round_s: float) -> dict[str, list[dict[str, float]]]:
    """Start every side, then measure them in turn; return each side's figures round by round."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    # A side's ranks meet in a store of its own, which torchrun's agent would keep.
    stores = {name: TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for name in SIDES}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, store in stores.items():
            sides[name] = Side(name, sizes, store.port)
            stack.callback(sides[name].close)
        for _ in range(rounds):
            for name, side in sides.items():
                time.sleep(_PAUSE_S)
                found[name].append(side.round(round_s))
    return found


def figures_of(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return rates, exchange times and ratios over one rank, each with its median, least and most."""
    alone = [figures["samples_per_second"] for figures in found["one-rank"]]
    result: dict[str, Any] = {}
    for name, rounds in found.items():
        rates = [figures["samples_per_second"] for figures in rounds]
        ratios = [rate / single for rate, single in zip(rates, alone, strict=True)]
        result[name] = {
            "ranks": SIDES[name][0],
            "samples_per_second": _spread(rates),
            "rounds": [float(f"{rate:.5g}") for rate in rates],
            "over_one_rank": _spread(ratios),
            "exchange_s": _spread([figures["exchange_s"] for figures in rounds]),
        }
    return result


def _spread(values: list[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def result_table(result: dict[str, Any]) -> Table:
    """Return the figures, a row a side."""
    title = "D{depth} W{width} batch {batch}, {rounds} rounds in turn, one thread a rank".format(**result)
    table = Table(title=title)
    table.add_column("side", no_wrap=True)
    for column in ("batch", "samples/s", "min – max", "× one rank", "exchange ms"):
        table.add_column(column, justify="right")
    for name, figures in result["sides"].items():
        rate = figures["samples_per_second"]
        table.add_row(
            name,
            str(result["batch"] * SIDES[name][1]),
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f} – {rate['max']:,.0f}",
            f"{figures['over_one_rank']['median']:.2f}",
            f"{figures['exchange_s']['median'] * 1e3:.1f}" if figures["ranks"] > 1 else "",
        )
    return table


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options; leave with a message where one makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512, help="over all ranks; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    parser.add_argument("--round-s", type=float, default=10.0, help="about how long a side computes in one")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/two_ranks.json")
    parser.add_argument("--rank-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    if options.batch < 4 or options.batch % 2:
        parser.error("--batch must be even and at least 4")
    if usable_cpus() < 2 and options.rank_of is None:
        parser.error("two ranks need two CPUs")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table and write the figures; or be one of the ranks."""
    options = parse_options(arguments)
    if options.rank_of is not None:
        serve(options.rank_of)
        return
    sizes = {name: getattr(options, name) for name in ("depth", "width", "batch")}
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": describe_host() | {"load_before": round(os.getloadavg()[0], 2)},
        "versions": installed_versions(),
        **sizes,
        "threads_per_rank": 1,
        "rounds": options.rounds,
        "round_s": options.round_s,
    }
    result["sides"] = figures_of(measure(sizes, options.rounds, options.round_s))
    write_json_atomic(options.output, result)
    # Where the output is no terminal it would be cut to 80 columns.
    Console(width=max(Console().width, 120)).print(result_table(result))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
