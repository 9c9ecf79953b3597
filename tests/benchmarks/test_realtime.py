"""Small students on the clock: what a cell records, and which figures of the table reach their targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import realtime
from thousandfold.models.residual_mlp import NetworkShape


def cell(p50_us: float = 8.0, p99_us: float = 12.0, roofline: float = 2.0, excess: float = 0.0) -> dict:
    return {
        "student": {
            "inside_runtime": {"p50_us": p50_us, "p99_us": p99_us},
            "roofline": {"ratio": roofline},
        },
        "comparison": {"torch eager": {"ratio": 8.0}, "numpy": {"ratio": 0.9}},
        "paced_loops": [
            {
                "ticks": 10_000,
                "missed": 5,
                "missed_before_call": 2,
                "excess_missed_share": excess,
                "excess_missed_error": 0.0001,
            }
        ],
        "busy": {"paced": {"excess_missed_share": 0.02}},
    }


def test_the_table_marks_what_misses_its_target():
    rows = realtime.table(
        {
            "4 x 64": cell(p50_us=11.0, roofline=9.0, excess=0.00005),
            "4 x 256": cell(p50_us=11.0, p99_us=40.0, roofline=2.6, excess=0.0002),
        }
    ).splitlines()
    assert rows[2] == "| 4 x 64 | **11.0** | 1.09 | 9.00 | 8.0 | **0.9** | 0.005 | 0.010 | 0.030 | 2.000 |"
    assert (
        rows[3]
        == "| 4 x 256 | 11.0 | **3.64** | **2.60** | 8.0 | **0.9** | **0.020** | 0.010 | 0.030 | 2.000 |"
    )
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|")


def test_a_cell_without_a_loop_under_load_has_no_figure_of_it():
    (row,) = realtime.table({"4 x 64": cell() | {"busy": None}}).splitlines()[2:]
    assert row.endswith("| 0.000 | 0.010 | 0.030 | - |")


def test_both_students_are_timed_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def run(shape: NetworkShape, settings: realtime.benchmark.BenchmarkSettings) -> dict:
        timed = (settings.rate_hz, settings.paced_s, settings.busy_processes, settings.core)
        asked.append((shape.width, *timed))
        return cell()

    monkeypatch.setattr(realtime, "run_cell", run)
    output = f"--output={tmp_path / 'realtime.json'}"
    realtime.main([output, "--paced-s=3", "--busy-processes=2", "--core=1"])
    assert asked == [(width, 1000.0, 3.0, 2, 1) for width in (64, 256)]


@pytest.mark.slow
def test_a_student_is_exported_and_timed():
    settings = realtime.benchmark.BenchmarkSettings(
        **{**realtime.TIMING, "warmup_s": 0.01}, paced_s=0.2, back_to_back_s=0.1, cold_starts=1
    )
    found = realtime.run_cell(NetworkShape(4, 16), settings)
    assert found["student"]["network"]["width"] == 16 and set(found["comparison"]) == {"torch eager", "numpy"}
    assert [loop["rate_hz"] for loop in found["paced_loops"]] == [1000.0]
    assert found["busy"]["paced"]["ticks"] == 200
    assert "| 4 x 256 |" in realtime.table({"4 x 256": found})
