"""Ticks of a control loop: sleep until each, and count those whose output came too late."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Calls a loop to its ticks. A schedule that was missed slips: the loop does not rush to catch up.

    A tick is missed when its output is not ready one period after it was due; so is a tick that passed
    wholly while the loop was late.

    Args:
        rate_hz: ticks a second; None for as many as there is time for, none of which can be missed.
        clock_ns, sleep: the clock, and what waits.

    Attributes:
        rate_hz: as given.
        ticks: how many were due.
        missed: how many of these were missed.
    """

    def __init__(
        self,
        rate_hz: float | None,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rate_hz = rate_hz
        self._period_ns = None if rate_hz is None else max(1, round(1e9 / rate_hz))
        self._clock_ns, self._sleep = clock_ns, sleep
        self.ticks = self.missed = 0
        self._due_ns: int | None = None
        self._began_ns: int | None = None
        self._intervals = self._span_ns = 0

    @property
    def achieved_rate_hz(self) -> float | None:
        """Calls a second, pauses left out; None before the second call."""
        return 1e9 * self._intervals / self._span_ns if self._span_ns else None

    def pause(self) -> None:
        """Let the next tick be now: what happens in between, such as a reset, is no part of the loop."""
        self._due_ns = self._began_ns = None

    def wait(self) -> None:
        """Return at the next tick, at once where it has passed."""
        now = self._clock_ns()
        if self._due_ns is None:
            self._due_ns = now
        elif self._period_ns is not None:
            self._due_ns += self._period_ns
            lost = max(0, (now - self._due_ns) // self._period_ns)
            self._due_ns += lost * self._period_ns
            self.ticks += lost
            self.missed += lost
            if now < self._due_ns:
                self._sleep((self._due_ns - now) / 1e9)
                now = self._clock_ns()
        self.ticks += 1
        if self._began_ns is not None:
            self._intervals += 1
            self._span_ns += now - self._began_ns
        self._began_ns = now

    def ready(self) -> None:
        """Say that the output of the tick is ready."""
        if self._period_ns is not None and self._due_ns is not None:
            self.missed += self._clock_ns() - self._due_ns >= self._period_ns
