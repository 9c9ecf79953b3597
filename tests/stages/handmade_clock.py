"""A clock that only calls and sleeps move."""

from __future__ import annotations

from collections.abc import Callable


class HandmadeClock:
    """Reads `now_ns`, which `sleep` moves exactly; each reading takes `reading_ns` itself."""

    def __init__(self, reading_ns: int = 0) -> None:
        self.now_ns = 0
        self.slept: list[float] = []
        self._reading_ns = reading_ns

    def perf_counter_ns(self) -> int:
        self.now_ns += self._reading_ns
        return self.now_ns

    def process_time_ns(self) -> int:
        """Half of the time is this process's."""
        return self.now_ns // 2

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)

    def steps(self, durations_ms: list[float]) -> Callable[..., None]:
        """Return a step that takes these times one after another, the last one again and again."""

        def step(*state: object) -> None:
            taken = durations_ms.pop(0) if durations_ms[1:] else durations_ms[0]
            self.now_ns += round(taken * 1e6)

        return step
