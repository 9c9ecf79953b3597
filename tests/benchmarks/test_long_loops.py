"""Loops of an hour: what a cell records, and what the table makes of many."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.long_loops import EMPTY, SIDES, C, excess, run_cell, table
from tests.stages.policy_file.c_programs import require_compiler
from thousandfold.stages.benchmark.host import HostRequest


def slices(*missed: int, before: int = 0) -> list[dict[str, Any]]:
    figures = {"ticks": 10_000, "missed_before_call": before, "p50_us": 9.0, "p99_9_us": 20.0, "max_us": 90.0}
    return [figures | {"missed": each} for each in missed]


def cells() -> dict[str, Any]:
    found = {SIDES[0]: slices(4, 2, before=1), C: slices(2, 2), EMPTY: slices(2, 2)}
    part = {"slices": found, "load_average": [0.5, 2.5]}
    return {"part 1": part, "part 2": part}


def test_the_excess_is_what_the_empty_loop_does_not_miss() -> None:
    mean, error = excess(cells(), SIDES[0])
    # of four slices two missed 0.02 % more and two as much
    assert mean == pytest.approx(0.01) and error == pytest.approx(0.02 / 12**0.5)
    assert excess(cells(), C) == (0.0, 0.0)


def test_the_table_marks_an_upper_end_above_the_target() -> None:
    runtime, in_c, empty = table(cells()).splitlines()[-3:]
    assert "| 0.0300 | 0.0200 | 0.0100 | **0.0213** |" in runtime
    assert "| 0.0000 | 0.0000 |" in in_c and "**" not in in_c
    assert empty.split("|")[2].strip() == "1"  # 40,000 ticks
    assert "load average 0.5 to 2.5" in table(cells())


def test_a_cell_times_every_side_in_turns() -> None:
    require_compiler()
    found = run_cell(0.2, HostRequest())
    for side in SIDES:
        (part,) = found["slices"][side]
        assert part["ticks"] == 200 and 0 <= part["missed_before_call"] <= part["missed"] <= 200
        assert 0 < part["p50_us"] <= part["p99_9_us"] <= part["max_us"]
