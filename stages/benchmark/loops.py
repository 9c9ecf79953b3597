"""Single calls, timed one by one and one right after the other: percentiles, and no collector in between."""

from __future__ import annotations

import array
import contextlib
import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

PERCENTILES = {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p99_9_us": 99.9}

_TURNS = 10

Name = TypeVar("Name", bound=Hashable)

Step = Callable[..., object]
"""What is timed: called with the arguments of one state."""


class Clock(Protocol):
    """What the loops ask of the module `time`; tests give one that they move by hand."""

    def perf_counter_ns(self) -> int:
        """Return nanoseconds since some moment."""
        ...

    def process_time_ns(self) -> int:
        """Return nanoseconds of processor time that this process has taken."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Let the time pass."""
        ...


class TimedCall:
    """A call, and the states that it is called with, over and over.

    Args:
        step: what is timed.
        states: the arguments of one call after another; at least one.
        clock: reads the time.
    """

    def __init__(self, step: Step, states: Sequence[tuple[Any, ...]] = ((),), clock: Clock = time) -> None:
        self.clock = clock
        self._step, self._states, self._next = step, states, 0

    def call(self) -> tuple[int, int]:
        """Call on the next state; return when the call began and ended, in nanoseconds."""
        arguments, step, now = self._states[self._next], self._step, self.clock.perf_counter_ns
        self._next = (self._next + 1) % len(self._states)
        began = now()
        step(*arguments)
        return began, now()

    def run_for(self, seconds: float) -> array.array[int]:
        """Call again and again for a while, at least once; return the durations in nanoseconds."""
        until = self.clock.perf_counter_ns() + int(seconds * 1e9)
        durations = array.array("q")
        while True:
            began, ended = self.call()
            durations.append(ended - began)
            if ended >= until:
                return durations


def back_to_back(calls: Mapping[Name, TimedCall], warmup_s: float, seconds: float) -> dict[Name, np.ndarray]:
    """Return the latencies of every call in µs, by name.

    The calls take turns, so that a busy machine slows all of them.

    Args:
        calls: what to time, by name.
        warmup_s, seconds: how long each is called, untimed and timed.
    """
    durations = {name: array.array("q") for name in calls}
    for _ in range(_TURNS):
        for name, timed in calls.items():
            timed.run_for(warmup_s / _TURNS)
            durations[name] += timed.run_for(seconds / _TURNS)
    return {name: np.array(found) / 1e3 for name, found in durations.items()}


def summarize(samples_us: np.ndarray) -> dict[str, float | int]:
    """Return sample count, mean, p50, p90, p99, p99.9 and maximum of latencies in microseconds."""
    ranked, count = np.sort(samples_us), len(samples_us)
    # Rounded, because 99.9 % of 1000 calls is 999.0000000000001 calls in floating point.
    ranks = {name: math.ceil(round(count * share / 100, 6)) for name, share in PERCENTILES.items()}
    return {
        "samples": count,
        "mean_us": float(ranked.mean()),
        **{name: float(ranked[rank - 1]) for name, rank in ranks.items()},
        "max_us": float(ranked[-1]),
    }


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector from running, as a control loop does; set it going again afterwards.

    What is alive now is put aside, so that a collection that somebody asks for stays short.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
