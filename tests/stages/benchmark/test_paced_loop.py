"""Control loops on a hand-made clock: ticks, misses, lateness, what is left beside an empty loop."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stages.handmade_clock import HandmadeClock
from thousandfold.stages.benchmark.loops import (
    PacedPair,
    PacedTiming,
    TimedCall,
    joined,
    run_beside_empty,
    run_paced,
    summarize_paced,
)


def loop_of(durations_ms: list[float], spin_us: float = 0.0, reading_ns: int = 0) -> PacedTiming:
    clock = HandmadeClock(reading_ns)
    return run_paced(TimedCall(clock.steps(durations_ms), clock=clock), 100, 0.1, spin_us)


@pytest.mark.parametrize(
    ("durations_ms", "calls", "missed", "before_call"),
    [
        ([1.0], 10, 0, 0),
        ([9.9], 10, 0, 0),
        # Its own tick alone: the next call starts late and still ends in time.
        ([1.0, 1.0, 12.0, 1.0], 10, 1, 0),
        # Ticks 1, 2, 3; tick 4 is answered late, within its period.
        ([1.0, 35.0, 1.0], 8, 3, 0),
        ([10.5], 10, 10, 0),
        ([25.0], 4, 10, 0),
        ([1000.0], 1, 10, 0),
    ],
)
def test_a_tick_is_missed_when_its_output_is_not_ready_at_the_next(
    durations_ms: list[float], calls: int, missed: int, before_call: int
):
    longest = max(durations_ms)
    timing = loop_of(durations_ms)
    assert (timing.ticks, len(timing.latency_us), timing.missed) == (10, calls, missed)
    assert timing.missed_before_call == before_call
    assert timing.latency_us.max() == pytest.approx(1e3 * longest)
    assert np.allclose(timing.response_us, timing.late_us + timing.latency_us)


def test_a_loop_that_is_woken_late_misses_before_its_call():
    clock = HandmadeClock()
    sleep, naps = clock.sleep, iter([0.0, 0.0, 0.035, *[0.0] * 20])
    clock.sleep = lambda seconds, /: sleep(seconds + next(naps))
    timing = run_paced(TimedCall(clock.steps([1.0]), clock=clock), 100, 0.1)
    # Tick 2 is answered 36 ms late: ticks 2, 3 and 4 are over; tick 5 is answered within its period.
    assert (timing.missed, timing.missed_before_call, len(timing.late_us)) == (3, 3, 8)
    assert timing.late_us.max() == pytest.approx(35_000)
    summary = summarize_paced(timing)
    late = np.array([0, 0, 35_000, 6_000, 0, 0, 0, 0.0])
    assert summary["jitter_us"] == pytest.approx(late.std())
    assert summary["jitter_p99_us"] == summary["start_late"]["max_us"] == pytest.approx(35_000)
    assert summary["missed_share"] == pytest.approx(0.3) and summary["response"]["max_us"] > 35_999


def test_the_loop_sleeps_until_shortly_before_the_tick_and_then_watches_the_clock():
    clock = HandmadeClock(reading_ns=1000)
    timing = run_paced(TimedCall(clock.steps([1.0]), clock=clock), 100, 0.1, spin_us=200.0)
    # From the end of a call, 1 ms after its tick, until 0.2 ms before the next one.
    assert clock.slept[1:] == pytest.approx([8.8e-3] * 9, abs=1e-5)
    assert timing.late_us.min() >= 0 and timing.late_us.max() < 5.0 and timing.missed == 0


def test_ticks_do_not_move_after_a_late_call():
    timing = loop_of([1.0, 14.0, 1.0])
    assert np.allclose(timing.due_s, np.arange(10) * 0.01)
    assert timing.late_us[2] == pytest.approx(4_000) and np.allclose(timing.late_us[3:], 0)
    assert timing.cpu_s / timing.wall_s == pytest.approx(0.5, abs=1e-6)


def test_an_empty_loop_runs_in_turns_and_the_policy_alone_is_to_blame_for_the_excess():
    clock, order = HandmadeClock(), []
    step = clock.steps([1.0, 12.0, 1.0])
    timed = TimedCall(lambda: (order.append(clock.now_ns), step()), clock=clock)
    pair = run_beside_empty(timed, rate_hz=100, seconds=2.0, spin_us=0.0)
    assert len(pair.ours) == len(pair.empty) == 8
    assert joined(pair.ours).ticks == joined(pair.empty).ticks == 200
    assert (joined(pair.ours).missed, joined(pair.empty).missed) == (1, 0)
    assert pair.excess_missed == pytest.approx(1 / 200)
    # One slice of eight has an excess of 1/25.
    assert pair.excess_missed_error == pytest.approx(np.std([1 / 25, *[0] * 7], ddof=1) / np.sqrt(8))
    gaps = np.diff(order) / 1e9
    assert (gaps > 0.2).sum() == 4  # an empty slice between: ours, empty, empty, ours, ours, ...


def timing(ticks: int, missed: int, wall_s: float = 1.0) -> PacedTiming:
    rows = np.arange(float(ticks))
    return PacedTiming(rows / ticks, rows, rows, 2 * rows, ticks, missed, 0, wall_s, 0.25)


def test_slices_are_joined_one_after_another():
    whole = joined([timing(2, 1), timing(4, 0, wall_s=2.0), timing(2, 2)])
    assert (whole.ticks, whole.missed, whole.wall_s, whole.cpu_s) == (8, 3, 4.0, 0.75)
    assert whole.due_s.tolist() == [0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 3.0, 3.5]
    assert whole.response_us.tolist() == [0, 2, 0, 2, 4, 6, 0, 2]


def test_excess_is_a_difference_of_shares_and_may_be_negative():
    pair = PacedPair(100.0, [timing(100, 2)], [timing(100, 5)])
    assert pair.excess_missed == pytest.approx(-0.03) and pair.excess_missed_error is None
    summary = pair.summary()
    assert (summary["missed"], summary["empty"]["missed"], summary["slices"]) == (2, 5, 1)
    assert summary["rate_hz"] == 100.0 and summary["excess_missed_share"] == pytest.approx(-0.03)
