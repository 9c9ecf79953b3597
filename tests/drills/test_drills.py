"""Each drill with a few trials; by hand they take more, see its `--help`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_NO_COMPILER = 77
_DRILLS = (
    "damage --trials 2",
    "first_store --trials 2",
    "full_disk --trials 1",
    "io_errors --trials 3",
    "io_errors --trials 3 --place store",
    "kill --trials 1",
    "kill --trials 2 --points",
    "newest_damaged --trials 1",
    "operators",
    "signals --trials 1 --stages train-teacher,distill",
    "tracking",
    "two_processes --trials 1",
)


@pytest.mark.slow
@pytest.mark.parametrize("drill", _DRILLS)
def test_nothing_is_lost(drill: str, tmp_path: Path) -> None:
    name, *options = drill.split()
    if name == "full_disk" and os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    command = [sys.executable, "-m", f"tests.drills.{name}", *options, "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=3000)
    if done.returncode == _NO_COMPILER:
        pytest.skip(done.stdout.strip())
    lost = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("ok "))
    assert done.returncode == 0, f"{lost}\n{done.stderr[-2000:]}"
