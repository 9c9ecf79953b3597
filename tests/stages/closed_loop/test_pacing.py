"""Ticks: when the loop is called, what counts as missed, and the rate that was achieved."""

from __future__ import annotations

import time

import pytest

from thousandfold.stages.closed_loop.paced_world import Pacer


class Clock:
    """A clock that only work and sleep move, in milliseconds."""

    def __init__(self) -> None:
        self.now_ns = 7_000_000

    def pass_ms(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * 1e6)

    def pacer(self, rate_hz: float | None) -> Pacer:
        return Pacer(rate_hz, clock_ns=lambda: self.now_ns, sleep=lambda s: self.pass_ms(1e3 * s))


def run(clock: Clock, pacer: Pacer, calls: list[tuple[float, float]]) -> list[float]:
    """Make calls of (milliseconds to the output, milliseconds after it); return when each began."""
    began = []
    start = clock.now_ns
    for before, after in calls:
        pacer.wait()
        began.append((clock.now_ns - start) / 1e6)
        clock.pass_ms(before)
        pacer.ready()
        clock.pass_ms(after)
    return began


@pytest.mark.parametrize(
    ("calls", "began", "ticks", "missed"),
    [
        ([(1, 1)] * 4, [0, 10, 20, 30], 4, 0),
        ([(9.9, 0)] * 3, [0, 10, 20], 3, 0),
        ([(10, 0)] * 3, [0, 10, 20], 3, 3),  # the output is there with the next tick, and so too late
        ([(12, 0), (1, 0), (1, 0)], [0, 12, 20], 3, 1),  # late once; the next still comes in its own period
        ([(35, 0), (1, 0), (1, 0)], [0, 35, 40], 5, 3),  # ticks 0, 1 and 2; tick 3 is answered in its period
        ([(1, 24), (1, 0), (1, 0)], [0, 25, 30], 4, 1),  # physics too slow: tick 1 passed without an output
    ],
)
def test_a_tick_without_an_output_one_period_later_is_missed(
    calls: list[tuple[float, float]], began: list[float], ticks: int, missed: int
) -> None:
    clock = Clock()
    pacer = clock.pacer(100.0)
    assert run(clock, pacer, calls) == pytest.approx(began)
    assert (pacer.ticks, pacer.missed) == (ticks, missed)


def test_pauses_count_neither_as_missed_nor_in_the_rate() -> None:
    clock = Clock()
    pacer = clock.pacer(100.0)
    assert pacer.achieved_rate_hz is None
    run(clock, pacer, [(1, 0)] * 3)
    clock.pass_ms(500)
    pacer.pause()
    assert run(clock, pacer, [(1, 0)] * 3) == pytest.approx([0, 10, 20])
    assert (pacer.ticks, pacer.missed) == (6, 0)
    assert pacer.achieved_rate_hz == pytest.approx(100.0)


def test_without_a_pace_nothing_waits_and_nothing_is_missed() -> None:
    clock = Clock()
    pacer = clock.pacer(None)
    assert run(clock, pacer, [(3, 1)] * 5) == pytest.approx([0, 4, 8, 12, 16])
    assert (pacer.ticks, pacer.missed) == (5, 0)
    assert pacer.achieved_rate_hz == pytest.approx(250.0)


def test_the_real_clock_is_kept() -> None:
    pacer = Pacer(50.0)
    start = time.perf_counter()
    for _ in range(6):
        pacer.wait()
        pacer.ready()
    assert time.perf_counter() - start >= 0.1 - 1e-3  # five periods; a busy machine may take longer
