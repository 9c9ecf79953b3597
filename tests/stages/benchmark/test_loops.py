"""Single calls: honest percentiles, turns, a collector that rests and works again."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.stages.handmade_clock import HandmadeClock
from thousandfold.stages.benchmark.loops import TimedCall, back_to_back, collector_at_rest, summarize


def test_percentiles_are_latencies_that_were_measured():
    summary = summarize(np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)))
    assert summary == {
        "samples": 1000,
        "mean_us": 500.5,
        "p50_us": 500.0,
        "p90_us": 900.0,
        "p99_us": 990.0,
        "p99_9_us": 999.0,
        "max_us": 1000.0,
    }
    few = summarize(np.array([3.0, 1.0, 2.0]))
    assert few["p50_us"] == 2.0 and few["p99_us"] == few["p99_9_us"] == few["max_us"] == 3.0


def test_calls_fill_the_time_and_are_at_least_one():
    clock = HandmadeClock()
    timed = TimedCall(clock.steps([2.0]), clock=clock)
    assert timed.run_for(0.1).tolist() == [2_000_000] * 50
    assert len(timed.run_for(0.0)) == 1


def test_states_come_round():
    seen = []
    timed = TimedCall(lambda *state: seen.append(state), [(1, "a"), (2, "b"), (3, "c")])
    for _ in range(4):
        timed.call()
    assert seen == [(1, "a"), (2, "b"), (3, "c"), (1, "a")]


def test_calls_take_turns_and_warming_up_does_not_count():
    clock, order = HandmadeClock(), []

    def named(name: str, milliseconds: float) -> TimedCall:
        step = clock.steps([milliseconds])
        return TimedCall(lambda: (order.append(name), step()), clock=clock)

    found = back_to_back({"quick": named("quick", 1.0), "slow": named("slow", 4.0)}, 0.1, 0.2)
    assert {name: (len(times), set(times)) for name, times in found.items()} == {
        "quick": (200, {1000.0}),
        "slow": (50, {4000.0}),
    }
    changes = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert changes == ["quick", "slow"] * 10
    assert order.count("quick") == 300


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_and_is_put_back(enabled: bool):
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), collector_at_rest():
            assert not gc.isenabled() and gc.get_freeze_count() > 0
            raise KeyError
        assert gc.isenabled() is enabled and gc.get_freeze_count() == 0
    finally:
        (gc.enable if was else gc.disable)()
