"""A fresh process: times of a start that add up, memory, and a policy that cannot be opened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stages.policy_file.handmade_policy import write_policy
from thousandfold.stages.benchmark.fresh_process import STEPS, start_afresh
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE


def test_a_start_is_timed_step_by_step(tmp_path: Path):
    found = start_afresh(write_policy(tmp_path / POLICY_FILE), times=2)
    start, memory = found["cold_start"], found["memory"]
    assert start["starts"] == 2
    assert all(0 < start[step] < 30 for step in STEPS)
    assert start["import_s"] > 0.02 > start["first_call_s"]  # NumPy and the runtime are among the imports
    assert min(start["total_s"], start["first_total_s"]) > start["import_s"] / 2
    # A step gives new arrays, and leaves nothing; the call inside the runtime needs less.
    assert abs(memory["python_kept"]) < 1000 and abs(memory["bound_kept"]) < 1000
    assert 0 < memory["bound_within_a_call"] < memory["python_within_a_call"] < 4096
    if sys.platform.startswith("linux"):
        assert memory["resident_after_load"] > 10 << 20
        assert abs(memory["resident_growth"]) < 1 << 20
        # Ten thousand calls; the C library may move a block of its own meanwhile.
        assert all(abs(memory[name] or 0) < 1000 for name in ("heap_growth", "bound_heap_growth"))


def test_a_folder_of_the_users_named_like_ours_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert start_afresh(write_policy(tmp_path / POLICY_FILE), times=1)["cold_start"]["total_s"] > 0


def test_a_policy_that_does_not_open_says_why(tmp_path: Path):
    (tmp_path / POLICY_FILE).write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"policy\.onnx.*DamagedFileError"):
        start_afresh(tmp_path / POLICY_FILE, times=1)
