"""Latency as reports read it, from files of a benchmark with few and with many measurements."""

from __future__ import annotations

from typing import Any

from tests.stages.made_up_chain import TIMED
from thousandfold.stages.report.latency import _tables, policy_timing, timings
from thousandfold.stages.report.page import Table


def calls(p50: float, **others: Any) -> dict[str, Any]:
    return {"samples": 100, "p50_us": p50, "p99_us": p50 + 5} | others


RICH: dict[str, Any] = {
    "rate_hz": 20.0,
    "networks": {
        "student": {
            "back_to_back": calls(11.0),
            "inside_runtime": calls(10.0),
            "roofline": {"bound_us": 2.0, "ratio": 5.0},
            "paced": calls(200.0, ticks=20, missed=0, response=calls(300.0), start_late=calls(1.0)),
        },
        "teacher": {"back_to_back": calls(33.0), "paced": calls(210.0, ticks=20, missed=0)},
    },
    "paced_loops": [
        calls(200.0, ticks=20, missed=0, rate_hz=20.0, empty=calls(1.0, ticks=20, missed=0)),
        calls(30.0, ticks=1000, missed=22, rate_hz=1000.0, excess_missed_share=0.01),
    ],
    "busy": {
        "processes": 1,
        "back_to_back": calls(12.0),
        "paced": calls(23.0, ticks=9, missed=4, rate_hz=1000.0),
    },
    "comparison": {"torch eager": calls(155.0, ratio=13.0)},
    "definitions": {"p50_us": 1.0, "p99_us": 2.0},
}


def test_every_series_of_calls_has_a_name() -> None:
    assert [
        (each.label, each.figures["p50_us"], each.is_paced, each.is_policy) for each in timings(RICH)
    ] == [
        ("student", 11.0, False, True),
        ("student, inside runtime", 10.0, False, True),
        ("teacher", 33.0, False, False),
        ("teacher at 20 Hz", 210.0, True, False),
        ("student at 20 Hz", 200.0, True, True),
        ("student at 1000 Hz", 30.0, True, True),
        ("student beside 1 busy process", 12.0, False, True),
        ("student beside 1 busy process at 1000 Hz", 23.0, True, True),
        ("student in torch eager", 155.0, False, False),
    ]


def test_loops_of_a_network_stand_for_themselves_where_there_are_no_others() -> None:
    labels = [each.label for each in timings(TIMED)]
    assert labels == ["student", "student at 10 Hz", "teacher", "teacher at 10 Hz"]


def test_a_loops_latest_output_counts_its_late_beginning() -> None:
    late = calls(30.0, ticks=9, missed=3, rate_hz=1000.0, max_us=50.0)
    late |= {"jitter_p99_us": 700.0, "response": calls(60.0, max_us=4200.0)}
    (table,) = _tables(timings({"paced_loops": [late]}))
    assert isinstance(table, Table)
    found = dict(zip(table.columns, table.rows[0], strict=True))
    assert found["late p99"] == "700" and found["latest output"] == "4,200" and found["missed"] == "3"
    assert "missed empty" not in found


def test_the_headline_is_of_the_policys_own_calls() -> None:
    assert policy_timing(RICH) == RICH["networks"]["student"]["back_to_back"]
    assert policy_timing({"networks": {}}) is None
    assert policy_timing({"networks": {"student": {"back_to_back": {"p50_us": None, "p99_us": 1.0}}}}) is None
