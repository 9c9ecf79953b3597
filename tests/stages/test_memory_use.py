"""Memory: what a call leaves behind is told from what it needs meanwhile."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

from stages.memory_use import heap_growth, python_bytes, resident_bytes


def test_a_call_that_leaves_nothing_is_told_from_one_that_does():
    kept: list[np.ndarray] = []
    leaking = python_bytes(lambda: kept.append(np.zeros(256)), 100)
    assert leaking["kept"] >= 100 * 2048
    clean = python_bytes(lambda: np.zeros(256), 100)
    assert abs(clean["kept"]) < 200 and 2048 <= clean["within_a_call"] < 4 * 2048
    assert not tracemalloc.is_tracing()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_resident_size_grows_with_what_is_written():
    before = resident_bytes()
    block = np.ones(4 << 20)
    after = resident_bytes()
    assert before is not None and after is not None and after - before > 0.9 * block.nbytes


def test_the_heap_grows_with_what_is_kept():
    kept: list[bytearray] = []
    growth = heap_growth(lambda: kept.append(bytearray(100_000)), 10)
    if growth is not None:  # where the C library is glibc
        assert growth >= 1_000_000
        assert heap_growth(lambda: bytearray(100_000), 10) == 0
