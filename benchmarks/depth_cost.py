"""What depth costs in time: one learner update of a shallow and of a deep network, in turn.

    python -m benchmarks.depth_cost --depths 64 1024 --width 64

The product's learner in float32, for the ant's spaces on the CPU. Both depths live in processes of their own
and compute while the other waits, round after round; the ratio is taken round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.harness import Cell, StudyParser, in_turn, ratios, run_once, spread
from benchmarks.learner_speed import Sizes, depth_option, start_worker
from thousandfold.ground.machine import usable_cpus


def measure(cells: Sequence[Sizes], rounds: int, round_s: float) -> list[list[float]]:
    """Return each cell's seconds an update, round by round; all are measured in turn."""
    with ExitStack() as stack:
        asks = {}
        for index, cell in enumerate(cells):
            worker = start_worker("thousandfold", cell)
            stack.callback(worker.close)
            worker.answer()
            asks[str(index)] = partial(worker.ask, round_s)
        found = in_turn(asks, rounds)
    return [[answer["update"]["median_s"] for answer in answers] for answers in found.values()]


def show(result: Cell) -> str:
    """Return one line."""
    (shallow, _), (deep, seconds) = result["seconds_per_update"].items()
    return (
        "{deep} takes {median:.1f} times as long as {shallow} ({min:.1f} to {max:.1f} over {rounds} rounds), "
        "width {width}"
    ).format(
        deep=deep, shallow=shallow, rounds=len(seconds["rounds"]), width=result["width"], **result["ratio"]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both depths and print one line."""
    parser = StudyParser(__doc__, "depth_cost")
    depths = {"type": depth_option, "nargs": 2, "metavar": ("SHALLOW", "DEEP")}
    parser.add_argument("--depths", default=[64, 1024], **depths)
    parser.number("--width", 64)
    parser.number("--batch", 256)
    parser.number("--threads", usable_cpus())
    parser.rounds(7, 2.0)
    options = parser.parse(arguments)
    sizes = {name: getattr(options, name) for name in ("width", "batch", "threads")}

    def measured() -> Cell:
        cells = [Sizes(depth, **sizes) for depth in options.depths]
        found = measure(cells, options.rounds, options.round_s)
        seconds = {
            f"D{depth}": spread(each) | {"rounds": each}
            for depth, each in zip(options.depths, found, strict=True)
        }
        return sizes | {"seconds_per_update": seconds, "ratio": ratios(found[1], found[0])}

    run_once(options, measured, show)


if __name__ == "__main__":
    main()
