"""The report: every figure from what was measured, ratios the right way round, numbers for the tracker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import metadata, write_policy
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.pictures import draw_latency_histogram
from thousandfold.stages.benchmark import results, tables
from thousandfold.stages.benchmark.loops import PacedPair, PacedTiming
from thousandfold.stages.benchmark.results import Measured, build_report, flat_metrics
from thousandfold.stages.benchmark.tables import draw_pictures, show_report
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy


def loop(ticks: int, missed: int, late_us: float) -> PacedTiming:
    due, call = np.arange(ticks) / ticks, np.full(ticks, 20.0)
    late = np.full(ticks, late_us)
    return PacedTiming(due, late, call, late + call, ticks, missed, 0, 1.0, 0.05)


def measured() -> Measured:
    """Return a policy of 10 µs beside a teacher of 40 µs, torch of 100 µs and NumPy of 30 µs."""
    found = Measured(busy_processes=1, spin_us=50.0, granted={"sched_fifo": "off"})
    found.samples = {"student": np.full(100, 10.0), "teacher": np.full(100, 40.0)}
    found.inside = {"student": np.full(100, 8.0), "teacher": np.full(100, 38.0)}
    found.others = {"torch eager": np.full(100, 100.0), "numpy": np.full(100, 30.0), "C": np.full(9, 5.0)}
    found.action_difference = {"torch eager": 1e-7, "numpy": 2e-7, "C": 3e-7}
    found.other_loops = {"C": loop(10, 3, 6.0)}
    found.left_out = {"AOTInductor": "not asked for"}
    found.pairs = [
        PacedPair(10.0, [loop(10, 1, 5.0)], [loop(10, 0, 1.0)]),
        PacedPair(1000.0, [loop(1000, 6, 2.0)], [loop(1000, 5, 1.0)]),
    ]
    found.teachers_loop = {"teacher": loop(10, 2, 7.0)}
    found.busy_samples = np.full(50, 15.0)
    found.busy_pair = PacedPair(1000.0, [loop(1000, 60, 2000.0)], [loop(1000, 50, 1000.0)])
    steps = {"interpreter_s": 0.02, "import_s": 0.2, "session_s": 0.01, "first_call_s": 0.001}
    memory = {
        "resident_after_load": 64 << 20, "resident_growth": 0, "heap_growth": 0, "calls": 10_000,
        "python_kept": 0, "python_within_a_call": 700,
    }  # fmt: skip
    found.fresh = {"cold_start": steps | {"total_s": 0.231, "starts": 3}, "memory": memory}
    return found


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr(
        results,
        "roofline",
        lambda parameters, precision, p50_us: {
            "weight_bytes": 4 * parameters, "read_bytes_per_s": 1e10, "bound_us": 2.0, "ratio": p50_us / 2.0
        },
    )  # fmt: skip
    policies = {
        role: OnnxPolicy(write_policy(tmp_path / f"{role}.onnx", json.dumps(metadata(role=role))))
        for role in ("student", "teacher")
    }
    built = build_report(policies, measured(), rate_hz=10.0)
    return built | {"policy": "policy-1", "task": "point_u_maze", "host": {}}


def test_ratios_are_times_over_the_policys_own(report: dict):
    assert report["speedup"] == 4.0
    assert {name: side["ratio"] for name, side in report["comparison"].items()} == {
        "torch eager": 10.0,
        "numpy": 3.0,
        "C": 0.5,
    }
    assert report["comparison"]["numpy"]["max_action_difference"] == 2e-7
    assert report["networks"]["student"]["roofline"]["ratio"] == 4.0  # of the 8 µs inside the runtime
    assert report["networks"]["teacher"]["roofline"]["ratio"] == 19.0


def test_control_loops_are_those_of_their_network_and_rate(report: dict):
    assert [row["rate_hz"] for row in report["paced_loops"]] == [10.0, 1000.0]
    assert report["paced_loops"][1]["excess_missed_share"] == pytest.approx(1 / 1000)
    assert report["networks"]["student"]["paced"]["missed"] == 1
    assert report["networks"]["teacher"]["paced"]["missed"] == 2
    assert report["comparison"]["C"]["paced"]["missed"] == 3 and "paced" not in report["comparison"]["numpy"]
    assert report["busy"]["processes"] == 1 and report["busy"]["back_to_back"]["p50_us"] == 15.0
    assert report["busy"]["paced"]["excess_missed_share"] == pytest.approx(0.01)
    assert report["realtime"]["spin_us"] == 50.0 and report["realtime"]["sched_fifo"] == "off"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_tracker_gets_numbers_under_readable_names(report: dict):
    metrics = flat_metrics(report)
    assert (
        metrics["latency/student.back_to_back/p50_us"] == 10.0
        and metrics["latency/teacher.paced/missed"] == 2.0
    )
    assert (
        metrics["latency/student.inside_runtime/p99_us"] == 8.0
        and metrics["latency/student.roofline/ratio"] == 4.0
    )
    assert metrics["latency/paced_1000hz/excess_missed_share"] == pytest.approx(0.001)
    assert (
        metrics["latency/comparison.C/ratio"] == 0.5 and metrics["latency/comparison.C.paced/missed"] == 3.0
    )
    assert (
        metrics["latency/busy.paced/missed_share"] == 0.06
        and metrics["latency/comparison.torch_eager/ratio"] == 10.0
    )
    assert (
        metrics["latency/cold_start/total_s"] == 0.231 and metrics["memory/resident_after_load"] == 64 << 20
    )
    assert all(isinstance(value, float) for value in metrics.values())


def test_the_tables_fit_into_a_terminal(report: dict, capsys: pytest.CaptureFixture[str]):
    show_report(report, "benchmark-1", Console())
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if not line.startswith(("Roof", "Cold", "Mem", "Bench"))]
    assert max(map(len, tables)) <= 110
    rows = {line[:28].strip(): line.split() for line in tables}
    assert rows["student, 1 x 2"][-1] == "1" and rows["student in torch eager"][-1] == "10"
    in_c = next(line for line in tables if line.strip().startswith("10 Hz, student in C"))
    assert in_c.split()[-3:] == ["3", "-", "-"]
    busy = next(line for line in tables if line.strip().startswith("1000 Hz, 1 busy"))
    assert busy.split()[-3:] == ["60", "50", "1"]
    for text in ("Not timed: AOTInductor: not asked for.", "4.00 times as long", "0.23 s from", "64 MiB"):
        assert text in printed
    assert (
        "Benchmark benchmark-1: student p50 10 µs" in printed and "1 of 10 ticks missed at 10 Hz" in printed
    )


@pytest.mark.pictures
def test_pictures_are_drawn(report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    histograms = []

    def recording(*arguments: Any, **options: Any) -> None:
        histograms.append((arguments, options))
        draw_latency_histogram(*arguments, **options)

    monkeypatch.setattr(tables, "draw_latency_histogram", recording)
    draw_pictures(tmp_path, report, measured(), 3)
    (((_, _, _, facts), options),) = histograms
    task, policy, size, seed = facts
    assert (task, policy, seed) == ("point_u_maze", "policy-1", "seed 3") and size.startswith("depth ")
    assert options == {"deadline_us": 100_000.0}, "however far the deadline is from every call"
    for name in ("latency.png", "timeline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (
            tmp_path / name
        ).stat().st_size > 20_000


def test_what_was_not_measured_is_not_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = measured()
    found.busy_samples = found.busy_pair = found.fresh = None
    found.others, found.teachers_loop, found.other_loops = {}, {}, {}
    policy = OnnxPolicy(write_policy(tmp_path / "policy.onnx"))
    report = build_report({"student": policy}, found, 10.0)
    assert report["busy"] is None and report["cold_start"] is None and report["speedup"] is None
    assert not any(name.startswith(("busy", "cold_start", "speedup")) for name in flat_metrics(report))
    draw_pictures(tmp_path, report | {"task": "reacher", "policy": "policy-1"}, found, 0)
    assert (tmp_path / "timeline.png").exists()
