"""Memory: what a call leaves behind is told from what it needs meanwhile."""

from __future__ import annotations

import mmap
import sys
import tracemalloc

import numpy as np
import pytest

from thousandfold.stages.benchmark.fresh_probe import heap_growth, python_bytes, resident_bytes


def test_a_call_that_leaves_nothing_is_told_from_one_that_does():
    kept: list[np.ndarray] = []
    leaking = python_bytes(lambda: kept.append(np.zeros(256)), 100)
    assert leaking["kept"] >= 100 * 2048
    clean = python_bytes(lambda: np.zeros(256), 100)
    assert abs(clean["kept"]) < 200 and 2048 <= clean["within_a_call"] < 4 * 2048
    assert not tracemalloc.is_tracing()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_resident_size_grows_with_what_is_written():
    size = 32 << 20
    with mmap.mmap(-1, size) as pages:  # from the system: the C library may have put freed memory aside
        before = resident_bytes()
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1
        after = resident_bytes()
    assert before is not None and after is not None and after - before > 0.9 * size


def test_the_heap_grows_with_what_is_kept():
    kept: list[bytearray] = []
    growth = heap_growth(lambda: kept.append(bytearray(100_000)), 10)
    if growth is None:
        pytest.skip("the C library has no mallinfo2")
    assert growth >= 1_000_000
    assert heap_growth(lambda: bytearray(100_000), 10) == 0
