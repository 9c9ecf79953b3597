"""Students beside their teachers at a tiny size: what a cell records, and its line of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import deep_students
from benchmarks.short_trainings import train
from tests.benchmarks.test_distillation import DATASET, STUDENT
from tests.benchmarks.test_short_trainings import TINY
from thousandfold.stages.benchmark.benchmark import BenchmarkSettings


@pytest.mark.slow
def test_a_cell_has_retention_and_both_latencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = BenchmarkSettings(warmup_s=0, back_to_back_s=0.2, paced_s=0.2)
    monkeypatch.setattr(deep_students.benchmark, "BenchmarkSettings", lambda: quick)
    teacher = train(TINY, 0, tmp_path)
    shape = {"student_depth": 2, "student_width": 4}
    cell = deep_students.run_cell(teacher, shape, tmp_path, {**STUDENT, **shape}, DATASET)
    times = cell["times"]
    assert cell["speed_up_p50"] == pytest.approx(times["teacher"]["p50_us"] / times["student"]["p50_us"])
    assert cell["episodes"] == 8 and cell["student_parameters"] < cell["teacher_parameters"]
    line = deep_students.table({"teacher-1: plain 2 x 4": cell}).splitlines()[-1]
    assert "| plain 2 x 4 |" in line and f"{times['student']['p50_us']:.1f} /" in line
