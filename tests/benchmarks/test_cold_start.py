"""The start of `run-policy`: phases of a real process that make up its total, and the result's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start
from tests.stages.policy_file.handmade_policy import write_policy


def test_phases_of_a_process_add_up_to_its_first_action(tmp_path: Path) -> None:
    found = cold_start.first_action(write_policy(tmp_path / "policy.onnx"))
    assert set(found) == {*cold_start.PHASES, "total"}
    assert all(seconds > 0 for seconds in found.values())
    assert sum(found[phase] for phase in cold_start.PHASES) == pytest.approx(found["total"])
    assert found["stage"] > found["act"]  # libraries are loaded in the one, a small network runs in the other


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"no policy")
    with pytest.raises(RuntimeError, match=r"no action came: .*policy\.onnx is truncated"):
        cold_start.first_action(path)


def test_the_result_says_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = iter([3.0, 0.5, 1.5, 0.7])

    def first_action(policy: Path) -> dict[str, float]:
        total = next(totals)
        return {**dict.fromkeys(cold_start.PHASES, total / 5), "total": total}

    monkeypatch.setattr(cold_start, "first_action", first_action)
    policy, output = write_policy(tmp_path / "policy.onnx"), tmp_path / "result.json"
    cold_start.main(["--policy", str(policy), "--rounds", "3", "--output", str(output)])
    result = json.loads(output.read_text())
    (row,) = result["policies"]
    assert row["first_round_s"] == 3.0 and row["rounds_above_limit"] == 1
    assert row["seconds"]["total"] == {"median": 0.7, "min": 0.5, "max": 1.5}
    assert (row["task"], row["network"]) == ("point_u_maze", "1 x 2") and result["host"]["cpu"]
    assert "first action after 0.70 s (0.50 to 1.50); first round 3.00 s" in capsys.readouterr().out
