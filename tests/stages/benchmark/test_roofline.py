"""The bound: bytes of the weights over a measured rate, and how far above it a latency is."""

from __future__ import annotations

import pytest

from thousandfold.stages.benchmark import results as module
from thousandfold.stages.benchmark.results import read_rates, roofline


@pytest.mark.parametrize(
    ("precision", "weight_bytes"), [("float32", 4000), ("float16", 2000), ("int8", 1000)]
)
def test_the_bound_is_of_the_fastest_routine(
    monkeypatch: pytest.MonkeyPatch, precision: str, weight_bytes: int
):
    asked = []

    def measured(size: int) -> dict[str, float]:
        asked.append(size)
        return {"slow": 1e9, "fast": 4e9}

    monkeypatch.setattr(module, "read_rates", measured)
    found = roofline(1000, precision, inside_runtime_p50_us=5.0)
    assert asked == [weight_bytes] == [found["weight_bytes"]]
    assert found["routine"] == "fast" and found["read_bytes_per_s"] == 4e9
    assert found["bound_us"] == pytest.approx(weight_bytes / 4e3)
    assert found["ratio"] == pytest.approx(5.0 / found["bound_us"])


def test_reading_takes_longer_the_more_there_is():
    small, large = read_rates(1 << 16), read_rates(1 << 22)
    assert set(small) == set(large) and len(small) > 1
    times = [size / max(rates.values()) for size, rates in ((1 << 16, small), (1 << 22, large))]
    assert 1e-8 < times[0] < times[1] / 8  # 64 times the bytes, and from a cache further away
