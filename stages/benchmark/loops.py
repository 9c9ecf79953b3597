"""Single calls, timed one by one and one right after the other: percentiles, and no collector in between."""

from __future__ import annotations

import array
import contextlib
import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from thousandfold.pipeline.ticks import Clock, Ticks

PERCENTILES = {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p99_9_us": 99.9}

_TURNS = 10

Name = TypeVar("Name", bound=Hashable)

Step = Callable[..., object]
"""What is timed: called with the arguments of one state."""


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


# -- A control loop: one call at every tick of a fixed rate, and which outputs came too late -------

_MAX_SLICES = 60
_SLICES_PER_SECOND = 4
_TICKS_OF_A_SLICE = 10
_SLICES_FOR_AN_ERROR = 5


@dataclass(frozen=True)
class PacedTiming:
    """What a paced loop gave: one row a call, and sums.

    Attributes:
        due_s: (calls,) when its tick was, in seconds of loop time since the first.
        late_us: (calls,) from the tick to the call's beginning.
        latency_us: (calls,) duration of each call.
        response_us: (calls,) from the tick to the output.
        ticks: how many ticks passed.
        missed: how many of them had no output when the next tick came.
        missed_before_call: how many of those were lost before the call began: the loop was kept waiting.
        wall_s: duration of the loop.
        cpu_s: processor time that the process took meanwhile.
    """

    due_s: np.ndarray
    late_us: np.ndarray
    latency_us: np.ndarray
    response_us: np.ndarray
    ticks: int
    missed: int
    missed_before_call: int
    wall_s: float
    cpu_s: float


def run_paced(timed: TimedCall, rate_hz: float, seconds: float, spin_us: float = 0.0) -> PacedTiming:
    """Call once a tick; a tick that has passed while a call was late gets none.

    Args:
        timed: what to call; its clock is the loop's.
        rate_hz: ticks a second.
        seconds: how long; at least one tick.
        spin_us: how long before a tick the loop stops sleeping and watches the clock.
    """
    clock, ticks = timed.clock, Ticks(rate_hz, spin_us, timed.clock)
    period, count = ticks.period_ns, max(1, round(seconds * rate_hz))
    # Written once, so that no page of them is new to the loop.
    due_rows, began_rows, ended_rows = (array.array("q", [-1]) * count for _ in range(3))
    calls = 0
    cpu_before = clock.process_time_ns()
    loop_began = clock.perf_counter_ns()
    start = ticks.due_ns = loop_began + period
    while ticks.count < count:
        ticks.wait()
        began, ended = timed.call()
        due_rows[calls], began_rows[calls], ended_rows[calls] = ticks.due_ns, began, ended
        calls += 1
        ticks.ready(ended)
        ticks.advance(ended)
    wall = clock.perf_counter_ns() - loop_began
    cpu = clock.process_time_ns() - cpu_before
    due_ns, began_ns, ended_ns = (np.array(row[:calls]) for row in (due_rows, began_rows, ended_rows))
    before_call = np.minimum((began_ns - due_ns) // period, count - (due_ns - start) // period)
    return PacedTiming(
        due_s=(due_ns - start) / 1e9,
        late_us=(began_ns - due_ns) / 1e3,
        latency_us=(ended_ns - began_ns) / 1e3,
        response_us=(ended_ns - due_ns) / 1e3,
        ticks=count,
        missed=ticks.missed - (ticks.count - count),  # those lost after the loop's last tick are not its own
        missed_before_call=int(before_call.sum()),
        wall_s=wall / 1e9,
        cpu_s=cpu / 1e9,
    )


@dataclass(frozen=True)
class PacedPair:
    """A paced loop, and beside it the same loop with nothing to call, slice by slice in turns.

    Attributes:
        rate_hz: ticks a second.
        ours, empty: the slices of each, in the order in which they ran.
    """

    rate_hz: float
    ours: Sequence[PacedTiming]
    empty: Sequence[PacedTiming]

    @property
    def excess_missed(self) -> float:
        """The share of ticks that the policy missed, less the share that the empty loop missed."""
        ours, empty = joined(self.ours), joined(self.empty)
        return ours.missed / ours.ticks - empty.missed / empty.ticks

    @property
    def excess_missed_error(self) -> float | None:
        """Standard error of that share, from how it differs between slices; None where there are few."""
        if len(self.ours) < _SLICES_FOR_AN_ERROR:
            return None
        pairs = zip(self.ours, self.empty, strict=True)
        excess = np.array([a.missed / a.ticks - b.missed / b.ticks for a, b in pairs])
        return float(excess.std(ddof=1) / np.sqrt(len(excess)))

    def summary(self) -> dict[str, Any]:
        """Return every figure of the pair, as `benchmark.json` has them."""
        return {
            "rate_hz": self.rate_hz,
            **summarize_paced(joined(self.ours)),
            "empty": summarize_paced(joined(self.empty)),
            "slices": len(self.ours),
            "excess_missed_share": self.excess_missed,
            "excess_missed_error": self.excess_missed_error,
        }


def run_beside_empty(timed: TimedCall, rate_hz: float, seconds: float, spin_us: float) -> PacedPair:
    """Run a paced loop and an empty one in turns, each for `seconds` in all.

    What the machine does to any loop shows in both; what the policy adds shows in the difference.
    """
    slices = max(
        1, min(_MAX_SLICES, int(seconds * rate_hz) // _TICKS_OF_A_SLICE, round(_SLICES_PER_SECOND * seconds))
    )
    empty = TimedCall(_nothing, clock=timed.clock)
    found: tuple[list[PacedTiming], list[PacedTiming]] = ([], [])
    for number in range(slices):
        # Who goes first changes, so that nothing that comes back with the turns favours one of them.
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            call = (timed, empty)[side]
            found[side].append(run_paced(call, rate_hz, seconds / slices, spin_us))
    return PacedPair(rate_hz, *found)


def joined(timings: Sequence[PacedTiming]) -> PacedTiming:
    """Return slices as one loop, one after another without the gaps between them."""
    columns: Mapping[str, list[Any]] = {
        each.name: [getattr(timing, each.name) for timing in timings] for each in fields(PacedTiming)
    }
    starts = np.cumsum([0.0, *columns["wall_s"][:-1]])
    due_s = [due + start for due, start in zip(columns["due_s"], starts, strict=True)]
    parts: dict[str, Any] = {
        name: np.concatenate(values) if isinstance(values[0], np.ndarray) else sum(values)
        for name, values in columns.items()
    }
    parts["due_s"] = np.concatenate(due_s)
    return PacedTiming(**parts)


def summarize_paced(timing: PacedTiming) -> dict[str, Any]:
    """Return percentiles of the calls, of their lateness and of the response, jitter, misses, CPU share."""
    late = summarize(timing.late_us)
    return {
        **summarize(timing.latency_us),
        "ticks": timing.ticks,
        "missed": timing.missed,
        "missed_before_call": timing.missed_before_call,
        "missed_share": timing.missed / timing.ticks,
        "response": summarize(timing.response_us),
        "start_late": late,
        "jitter_us": float(timing.late_us.std()),
        "jitter_p99_us": late["p99_us"],
        "cpu_share": timing.cpu_s / timing.wall_s,
    }


def _nothing() -> None:
    """Take the place of the policy in the empty loop."""
