"""What depth costs in time: one learner update of a shallow and of a deep network, in turn.

    python -m benchmarks.depth_cost --depths 64 1024 --width 64

The product's learner in float32, for the ant's spaces on the CPU. Both depths live in processes of their own
and compute while the other waits, round after round; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
from pathlib import Path
from typing import Any

from benchmarks.learner_speed import ROOT, Worker, spread, versions
from thousandfold.ground.files import write_json_atomic
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.runtime import describe_host


def measure(cells: list[dict[str, int]], rounds: int, round_s: float) -> list[list[float]]:
    """Return each cell's seconds an update, round by round; all are measured in turn."""
    found: list[list[float]] = [[] for _ in cells]
    with contextlib.ExitStack() as stack:
        workers = [Worker("thousandfold", cell, give_up_s=600.0) for cell in cells]
        for worker in workers:
            stack.callback(worker.close)
            worker.wait_until_ready()
        for _ in range(rounds):
            for worker, seconds in zip(workers, found, strict=True):
                seconds.append(worker.round(round_s)["update"]["median_s"])
    return found


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked options; leave with a message where one makes no sense."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.depth_cost", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--depths", type=int, nargs=2, default=[64, 1024], metavar=("SHALLOW", "DEEP"))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="default: every CPU, %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="at least 5")
    parser.add_argument(
        "--round-s", type=float, default=2.0, help="about how long a side computes in a round"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/depth_cost.json")
    options = parser.parse_args(arguments)
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    if any(depth < 4 or depth % 4 for depth in options.depths):
        parser.error("--depths must be multiples of 4")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print one line and write the figures."""
    options = parse_options(arguments)
    sizes = {name: getattr(options, name) for name in ("width", "batch", "threads")}
    cells = [sizes | {"depth": depth, "matmul_size": 1} for depth in options.depths]
    host = describe_host() | {"load_before": round(os.getloadavg()[0], 2)}
    shallow, deep = measure(cells, options.rounds, options.round_s)
    ratio = spread([slow / fast for fast, slow in zip(shallow, deep, strict=True)])
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": host,
        "versions": versions(),
        **sizes,
        "seconds_per_update": {
            f"D{depth}": spread(seconds) | {"rounds": seconds}
            for depth, seconds in zip(options.depths, (shallow, deep), strict=True)
        },
        "ratio": ratio,
    }
    write_json_atomic(options.output, result)
    print(
        f"D{options.depths[1]} takes {ratio['median']:.1f} times as long as D{options.depths[0]} "
        f"({ratio['min']:.1f} to {ratio['max']:.1f} over {options.rounds} rounds), width {options.width}"
    )
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
