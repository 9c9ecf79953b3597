"""How many transitions a second the learner takes in with one rank and with two, one CPU thread each.

    python -m benchmarks.two_ranks --depth 64 --width 256 --batch 512

Sides: ``one-rank``, ``two-ranks`` (the same batch, half of it each) and ``two-ranks-weak`` (a batch of that
size each, twice as much in all). Every rank is a process with one torch thread that makes the product's
updates on fixed random batches for the ant's spaces; gradients go over gloo, as under torchrun. Each side
computes while the others wait, round after round, so that a machine that slows down slows all; ratios are
taken round by round. Beside it, what the exchange of the gradients takes by itself.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from benchmarks.harness import Cell, StudyParser, Worker, in_turn, markdown_table, ratios, run_once, spread
from benchmarks.learner_speed import AntDimensions, torch_batches
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import set_up_torch

if TYPE_CHECKING:
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner

SIDES = {"one-rank": (1, 1), "two-ranks": (2, 1), "two-ranks-weak": (2, 2)}
"""How many ranks, and how many times the batch they share."""

_EXCHANGES = 5


def start_ranks(name: str, sizes: Mapping[str, int], store_port: int) -> list[Worker]:
    """Start the ranks of a side, each in a process of its own; rank 0 answers.

    Args:
        name: one of `SIDES`.
        sizes: ``depth``, ``width`` and ``batch``.
        store_port: where the ranks meet.
    """
    count, times = SIDES[name]
    cell = json.dumps({**sizes, "batch": sizes["batch"] * times})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store_port), "OMP_NUM_THREADS": "1"}
    shared |= {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return [
        Worker("two_ranks", "--rank-of", cell, environment=shared | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(count)
    ]


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
    from thousandfold.stages.train_teacher.learner import ContrastiveLearner
    from thousandfold.stages.train_teacher.settings import LearnerSettings

    settings = LearnerSettings(
        depth=sizes["depth"], width=sizes["width"], batch_size=sizes["batch"], actor_goals="random"
    )
    # The learner reads nothing of a task but the three sizes.
    return ContrastiveLearner(cast(Any, AntDimensions()), settings, "cpu", ranks)


def _rate_of(ranks: Ranks, sizes: dict[str, int]) -> Any:
    """Return a function that computes for about so many seconds and returns the figures of that round."""
    import torch

    learner, batches = _learner(ranks, sizes), torch_batches(ranks.share("batch", sizes["batch"]))
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


def measure(sizes: Mapping[str, int], rounds: int, round_s: float) -> dict[str, list[dict[str, float]]]:
    """Start every side, then measure them in turn; return each side's figures round by round."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    # A side's ranks meet in a store of its own, which torchrun's agent would keep.
    stores = {name: TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for name in SIDES}
    asks = {}
    with contextlib.ExitStack() as stack:
        for name, store in stores.items():
            ranks = start_ranks(name, sizes, store.port)
            for rank in ranks:
                stack.callback(rank.close)
            ranks[0].answer()
            asks[name] = partial(ranks[0].ask, round_s)
        return in_turn(asks, rounds)


def figures_of(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return rates, exchange times and ratios over one rank, each with its median, least and most."""
    rates = {name: [each["samples_per_second"] for each in rounds] for name, rounds in found.items()}
    return {
        name: {
            "ranks": SIDES[name][0],
            "samples_per_second": spread(rates[name]),
            "rounds": [float(f"{rate:.5g}") for rate in rates[name]],
            "over_one_rank": ratios(rates[name], rates["one-rank"]),
            "exchange_s": spread([each["exchange_s"] for each in rounds]),
        }
        for name, rounds in found.items()
    }


def show(result: Cell) -> str:
    """Return the table of the figures, a row a side."""
    rows = []
    for name, figures in result["sides"].items():
        rate = figures["samples_per_second"]
        rows.append(
            [
                name,
                result["batch"] * SIDES[name][1],
                f"{rate['median']:,.0f}",
                f"{rate['min']:,.0f} – {rate['max']:,.0f}",
                f"{figures['over_one_rank']['median']:.2f}",
                f"{figures['exchange_s']['median'] * 1e3:.1f}" if figures["ranks"] > 1 else "",
            ]
        )
    title = "D{depth} W{width} batch {batch}, {rounds} rounds in turn, one thread a rank".format(**result)
    return markdown_table(
        ["side", "batch", "samples/s", "min – max", "× one rank", "exchange ms"], rows, title
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table; or be one of the ranks."""
    parser = StudyParser(__doc__, "two_ranks")
    parser.number("--depth", 64)
    parser.number("--width", 256)
    parser.number("--batch", 512, "over all ranks", least=4)
    parser.rounds(7, 10.0)
    parser.add_argument("--rank-of", type=json.loads, help="be a rank")
    options = parser.parse(arguments)
    if options.rank_of is not None:
        return serve(options.rank_of)
    if options.batch % 2:
        parser.error("--batch must be even")
    if usable_cpus() < 2 and not options.table:
        parser.error("two ranks need two CPUs")
    sizes = {name: getattr(options, name) for name in ("depth", "width", "batch")}

    def measured() -> Cell:
        timing = {"threads_per_rank": 1, "rounds": options.rounds, "round_s": options.round_s}
        return sizes | timing | {"sides": figures_of(measure(sizes, options.rounds, options.round_s))}

    run_once(options, measured, show)
    return None


if __name__ == "__main__":
    main()
