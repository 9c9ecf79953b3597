"""How fast a call could be at best: each weight is read once, and caches give so many bytes a second.

At batch 1 each weight takes part in one multiplication, so reading the weights is the work. The bound is
their size over the rate at which one core reads a buffer of that size again and again, as it does the
weights: from whichever cache they fit into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from thousandfold.stages.benchmark.loops import TimedCall, collector_at_rest, summarize

BYTES_OF_A_WEIGHT = {"float32": 4, "float16": 2, "int8": 1}

_WARMUP_S, _ROUTINE_S = 0.02, 0.1
_TURNS = 3


def roofline(parameters: int, precision: str, inside_runtime_p50_us: float) -> dict[str, Any]:
    """Return the bound of a network's latency, and how far above it the runtime is.

    Args:
        parameters: weights and biases.
        precision: a key of `BYTES_OF_A_WEIGHT`.
        inside_runtime_p50_us: median latency of the call inside the runtime.
    """
    weight_bytes = parameters * BYTES_OF_A_WEIGHT[precision]
    rates = read_rates(weight_bytes)
    routine = max(rates, key=rates.__getitem__)
    bound_us = weight_bytes / rates[routine] * 1e6
    return {
        "weight_bytes": weight_bytes,
        "read_bytes_per_s": rates[routine],
        "routine": routine,
        "routines_bytes_per_s": rates,
        "bound_us": bound_us,
        "ratio": inside_runtime_p50_us / bound_us,
    }


def read_rates(size: int) -> dict[str, float]:
    """Return the bytes a second at which one core reads a buffer of `size` bytes, by routine.

    Several are tried, since none is the fastest on every machine; all of them run on this thread alone. A
    rate is of the median over many reads, the best of three turns.
    """
    calls = {name: TimedCall(read) for name, read in _routines(size).items()}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    with collector_at_rest():
        for _ in range(_TURNS):
            for name, timed in calls.items():
                timed.run_for(_WARMUP_S / _TURNS)
                samples = np.array(timed.run_for(_ROUTINE_S / _TURNS)) / 1e3
                medians[name].append(float(summarize(samples)["p50_us"]))
    return {name: size / min(found) * 1e6 for name, found in medians.items()}


def _routines(size: int) -> dict[str, Callable[[], object]]:
    """Return calls that read `size` bytes and write none: vectorised loops of NumPy and the C library.

    None is of NumPy's BLAS, which would take more threads.
    """
    text = bytearray(max(size, 4))
    words = np.frombuffer(text, np.int32, count=len(text) // 4)
    # Written once: memory that never was is one page of zeros over and over, and always in the first cache.
    numbers = np.ones(len(words), np.float32)
    return {
        "largest int32 (NumPy)": lambda: np.maximum.reduce(words),
        "largest float32 (NumPy)": lambda: np.maximum.reduce(numbers),
        "byte search (memchr)": lambda: text.find(b"\x01"),
    }
