"""The script for the first minutes on a GPU refuses to run without one; its parts measure on the CPU too."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import first_gpu_run
from thousandfold.pipeline import cuda


def test_without_a_device_it_says_what_is_missing_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cuda, "cuda_problem", lambda: "no NVIDIA driver can be loaded")
    with pytest.raises(SystemExit) as ended:
        first_gpu_run.main(["--output", str(tmp_path / "run.json")])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "Error: CUDA cannot be used: no NVIDIA driver can be loaded.\n"


def test_a_part_that_fails_is_told_in_its_cell():
    cell = first_gpu_run.run_part("steps", 60.0, {"device": "cpu", "worlds": 0, "seconds": 0.1})
    assert cell["not_measured"] == "ended with exit code 1"


def test_updates_and_steps_are_counted():
    updates = first_gpu_run.updates("cpu", depth=4, seconds=0.1)
    steps = first_gpu_run.steps("cpu", worlds=2, seconds=0.1)
    assert updates["updates_per_second"]["median"] > 0 and steps["steps_per_second"]["median"] > 0
    assert (steps["unstable"], steps["overflowed"]) == (0, 0)
