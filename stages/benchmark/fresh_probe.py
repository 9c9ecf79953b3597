"""What `stages.benchmark.fresh_process` starts: opens a policy, calls it, prints as JSON what that took.

    python -m thousandfold.stages.benchmark.fresh_probe POLICY_FILE SPAWNED_NS

SPAWNED_NS is the parent's `time.monotonic_ns()` at the start; the clock is the machine's, not the process's.
Everything that a robot need not import is imported late, so that it does not count.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = 10_000


def probe(path: Path, spawned_ns: int, started_ns: int) -> dict[str, Any]:
    """Return times of the start, in seconds by step, and memory in bytes.

    Memory: ``resident_after_load`` with the session open; of 10,000 steps afterwards ``resident_growth`` and
    ``heap_growth``; of a step's Python ``python_kept`` after 1000 and ``python_within_a_call``; of the call
    inside the runtime alone ``bound_heap_growth``, ``bound_kept`` and ``bound_within_a_call``. None where the
    system does not say.
    """
    import numpy as np

    from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

    imported_ns = time.monotonic_ns()
    policy = OnnxPolicy(path)
    opened_ns = time.monotonic_ns()
    inputs = policy.metadata.inputs
    rows = [
        np.array([0.5 * (element.low + element.high) for element in elements], np.float32)
        for elements in (inputs.observation, inputs.goal)
    ]
    policy.step(*rows)
    acted_ns = time.monotonic_ns()
    return {
        "cold_start": {
            "interpreter_s": (started_ns - spawned_ns) / 1e9,
            "import_s": (imported_ns - started_ns) / 1e9,
            "session_s": (opened_ns - imported_ns) / 1e9,
            "first_call_s": (acted_ns - opened_ns) / 1e9,
        },
        "memory": _memory(policy, rows),
    }


def _memory(policy: Any, rows: list[Any]) -> dict[str, int | None]:
    def step() -> None:
        policy.step(*rows)

    after_load = resident_bytes()
    for _ in range(_CALLS):  # what the allocators settle at is not growth
        step()
    resident = resident_bytes()
    for _ in range(_CALLS):
        step()
    after = resident_bytes()
    found = {
        "resident_after_load": after_load,
        "resident_growth": None if after is None or resident is None else after - resident,
        "heap_growth": heap_growth(step, _CALLS),
        "bound_heap_growth": heap_growth(policy.run_bound, _CALLS),
        "calls": _CALLS,
    }
    for name, call in (("python", step), ("bound", policy.run_bound)):
        found |= {f"{name}_{key}": value for key, value in python_bytes(call).items()}
    return found


# -- What a process and a call of it take of the memory --------------------------------------------


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


if __name__ == "__main__":
    _STARTED_NS = time.monotonic_ns()
    import json

    print(json.dumps(probe(Path(sys.argv[1]), int(sys.argv[2]), _STARTED_NS)))
