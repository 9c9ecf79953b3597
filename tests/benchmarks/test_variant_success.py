"""Variants of trained students: what a cell records, and how the table shows what is not offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import variant_success
from benchmarks.realtime import make_student
from benchmarks.variant_success import table
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact


def variant(success: float | None, offered: bool, latency_us: float = 13.5) -> dict:
    return {"success": success, "offered": offered, "latency_us": latency_us, "float32_latency_us": 20.0}


def cell(float16: dict, int8: dict) -> dict:
    return {
        "task": "reacher",
        "network": {"kind": "residual", "depth": 4, "width": 256},
        "float32": {"success": 0.984},
        "float16": float16,
        "int8": int8,
    }


def test_what_is_not_offered_is_struck_through():
    rows = table({"a": cell(variant(0.981, False, 20.4), variant(0.977, True))}).splitlines()
    assert rows[2] == (
        "| reacher, 4 × 256 | 0.984 | ~~0.981~~ | ~~20.4 µs, 20.0 µs~~ | 0.977 | 13.5 µs, 20.0 µs |"
    )
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|")


def test_a_variant_whose_actions_are_not_finite_has_no_success():
    assert "~~not finite~~" in table({"a": cell(variant(None, False), variant(0.9, True))})


def test_a_student_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported = []

    def run(student: Artifact, episodes: int) -> dict:
        exported.append((student.name, episodes))
        return cell(variant(0.98, False), variant(0.98, True))

    monkeypatch.setattr(variant_success, "run_cell", run)
    student = make_student(tmp_path, NetworkShape(4, 16))
    arguments = [f"--student={student.path}", "--episodes=8", f"--output={tmp_path / 'found.json'}"]
    variant_success.main(arguments)
    assert exported == [(student.name, 8)]


@pytest.mark.slow
def test_a_student_is_exported_with_its_variants(tmp_path: Path):
    found = variant_success.run_cell(make_student(tmp_path, NetworkShape(4, 16)), 4)
    assert found["network"] == {"kind": "residual", "depth": 4, "width": 16} and found["episodes"] == 4
    assert all(found[name]["latency_us"] > 0 for name in ("float16", "int8"))
    assert table({"a": found}).count("µs") == 4
