"""A checkpoint of some ranks for another number of ranks: worlds are joined in order and split again.

    saved by 2 ranks   [ 0 1 2 3 | 4 5 6 7 ]
    read by 4          [ 0 1 | 2 3 | 4 5 | 6 7 ]

State and memory of every world go on as they were. Random generators belong to ranks, so that those of other
ranks cannot go on: whoever reads derives them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thousandfold.pipeline.checkpoint import RankPart
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer

# Of a rank and not of its worlds.
_GENERATORS = ("generator", "simulator.generator")
_DRAWS = "simulator.draws_"  # the random streams of what varies and of what is sensed
_COUNTS = ("simulator.unstable_count", "simulator.overflow_count")


def parts_with_worlds(num_worlds: int, saved: int, ranks: Ranks) -> range:
    """Return which parts this rank needs of a checkpoint that `saved` ranks have made."""
    if saved == ranks.size:
        return range(ranks.rank, ranks.rank + 1)
    own, each = num_worlds // ranks.size, num_worlds // saved
    return range(ranks.rank * own // each, ((ranks.rank + 1) * own - 1) // each + 1)


def resplit(
    parts: Sequence[RankPart],
    num_worlds: int,
    saved: int,
    ranks: Ranks,
    make_buffer: Callable[[int], TrajectoryBuffer],
) -> RankPart:
    """Return what this rank would have saved for its worlds.

    Args:
        parts: those of `parts_with_worlds`.
        num_worlds: over all ranks.
        saved: how many ranks made the checkpoint.
        ranks: the processes that read it.
        make_buffer: makes a replay memory on the CPU for a number of worlds.
    """
    own, each = num_worlds // ranks.size, num_worlds // saved
    first = ranks.rank * own
    slices = []
    for index in parts_with_worlds(num_worlds, saved, ranks):
        start, stop = max(first, index * each), min(first + own, (index + 1) * each)
        slices.append(slice(start - index * each, stop - index * each))
    tensors = {name: _join(name, parts, slices) for name in parts[0].tensors if _is_of_worlds(name)}
    segments = [
        _held_rows(part, make_buffer(each), chosen) for part, chosen in zip(parts, slices, strict=True)
    ]
    segment = {name: torch.cat([held[name] for held in segments]) for name in segments[0]}
    return RankPart(tensors, [segment])


def _is_of_worlds(name: str) -> bool:
    return name.startswith(("simulator.", "buffer.", "metric.")) or name in _GENERATORS


def _join(name: str, parts: Sequence[RankPart], slices: Sequence[slice]) -> Tensor:
    """Return one entry of the state for the chosen worlds of every part."""
    values = [part.tensors[name] for part in parts]
    if name in _GENERATORS or name.startswith(_DRAWS):
        return values[0]
    if name in _COUNTS:  # goes with the first world of its part
        return torch.stack([v * (chosen.start == 0) for v, chosen in zip(values, slices, strict=True)]).sum(0)
    if name.startswith("metric."):  # the ranks' mean stays what it was
        counts = [chosen.stop - chosen.start for chosen in slices]
        return sum(v * (n / sum(counts)) for v, n in zip(values, counts, strict=True))  # pyright: ignore[reportReturnType]
    return torch.cat([value[chosen] for value, chosen in zip(values, slices, strict=True)])


def _held_rows(part: RankPart, buffer: TrajectoryBuffer, worlds: slice) -> dict[str, Tensor]:
    """Return the rows that a part's memory holds of the chosen worlds, as one segment."""
    for segment in part.segments:
        buffer.load_segment(segment)
    names = ("count", "oldest", "episode", "episode_first")
    buffer.load_counters({name: part.tensors[f"buffer.{name}"] for name in names})
    buffer.mark_unsaved()
    segment = buffer.unsaved_segment()
    per_world = {name: segment.pop(name) for name in ("first", "rows")}
    stops = per_world["rows"].cumsum(0)
    begin = int(stops[worlds.start - 1]) if worlds.start else 0
    chosen = slice(begin, int(stops[worlds.stop - 1]))
    return {name: column[chosen] for name, column in segment.items()} | {
        name: value[worlds] for name, value in per_world.items()
    }
