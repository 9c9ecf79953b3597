"""What a process and a call of it take of the memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


def resident_bytes() -> int | None:
    """Return the memory that this process occupies now; None where the system does not say: Linux does."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _mallinfo2() -> Callable[[], _Mallinfo2] | None:
    """Return glibc's function; None without glibc 2.33 or newer."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _Mallinfo2
    return function


def heap_growth(call: Callable[[], object], count: int) -> int | None:
    """Return what the C library has given out over so many calls and not got back; None without glibc.

    Python's own objects are in it only as far as they need more memory than Python has put aside.
    """
    if (mallinfo2 := _mallinfo2()) is None:
        return None
    marks = []
    for _ in range(3):  # what reading it takes is not there before the second time
        for _ in range(count):
            call()
        found = mallinfo2()
        marks.append(found.uordblks + found.hblkhd)
    return marks[2] - marks[1]


def python_bytes(call: Callable[[], object], count: int = 1000) -> dict[str, int]:
    """Return what Python allocates in a call: NumPy's arrays are counted, the runtime's own memory is not.

    Args:
        call: what is called.
        count: how often.

    Returns:
        ``kept``: what so many calls leave behind. ``within_a_call``: the most that was there at once above
        what is there between calls.
    """
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        _traced(call, count)  # the first calls make what libraries keep for later
        few, _ = _traced(call, count)
        many, peak = _traced(call, 2 * count)
    finally:
        if not tracing:
            tracemalloc.stop()
    # What reading takes is in both.
    return {"kept": many - few, "within_a_call": peak}


def _traced(call: Callable[[], object], count: int) -> tuple[int, int]:
    """Return the bytes that are more after so many calls than before, and the most meanwhile."""
    call()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(count):
        call()
    after, peak = tracemalloc.get_traced_memory()
    return after - before, peak - before
