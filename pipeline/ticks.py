"""Ticks of a control loop: sleep until shortly before each, then watch the clock, and count late outputs."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What loops ask of the module `time`; tests give one that they move by hand."""

    def perf_counter_ns(self) -> int:
        """Return nanoseconds since some moment."""
        ...

    def process_time_ns(self) -> int:
        """Return nanoseconds of processor time that this process has taken."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Let the time pass."""
        ...


class Ticks:
    """Absolute ticks of a fixed rate: a late call does not move the ones after it.

    A tick is missed when its output is not ready one period after it was due. So is a tick that passes while
    the loop is late: it gets no call, for the loop does not rush to catch up.

    Args:
        spin_us: how long before a tick the loop stops sleeping and watches the clock, so that a call begins
            on its tick and not when the system's timer wakes it.

    Attributes:
        period_ns: from one tick to the next.
        due_ns: when the tick is, or was, that the loop waits for or answers; set it to begin.
        count: how many ticks there were so far.
        missed: how many of them were missed.
    """

    def __init__(self, rate_hz: float, spin_us: float = 0.0, clock: Clock = time) -> None:
        self.period_ns = max(1, round(1e9 / rate_hz))
        self.due_ns = self.count = self.missed = 0
        self._spin_ns, self._clock = round(spin_us * 1e3), clock

    def wait(self) -> None:
        """Return once the tick is due, at once where it has passed."""
        due, now = self.due_ns, self._clock.perf_counter_ns
        asleep = due - self._spin_ns - now()
        if asleep > 0:
            self._clock.sleep(asleep / 1e9)
        while now() < due:
            pass
        self.count += 1

    def ready(self, now_ns: int) -> None:
        """Take the time at which the tick's output was ready."""
        self.missed += now_ns - self.due_ns >= self.period_ns

    def advance(self, now_ns: int) -> None:
        """Go on to the next tick; one that is over by now, a whole period ago, is missed."""
        lost = max(0, (now_ns - self.due_ns) // self.period_ns - 1)
        self.count += lost
        self.missed += lost
        self.due_ns += (1 + lost) * self.period_ns
