"""What stands between CUDA graphs: launches that no graph of torch's may hold.

MuJoCo Warp replays graphs of its own, and NCCL watches its exchanges from a thread, which breaks a recording.
A recording ends its graph before such a launch, notes the launch, and goes on in another graph. Whoever
launches and whoever records meet here, so that neither has to import the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Launch = Callable[[], object]
_recordings: list[Callable[[Launch], None]] = []


def launch_between_graphs(launch: Launch) -> None:
    """Launch now; where a recording is under way, at this place in each of its replays instead.

    Args:
        launch: changes what it changes where it lies. What it returns is dropped.
    """
    if _recordings:
        _recordings[-1](launch)
    else:
        launch()


@contextmanager
def recording(interrupt: Callable[[Launch], None]) -> Iterator[None]:
    """Give the launches of the block to a recording, which calls `interrupt` with each of them."""
    _recordings.append(interrupt)
    try:
        yield
    finally:
        _recordings.pop()
