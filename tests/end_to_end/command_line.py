"""The command line as a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without the user's own workspace and tracking store."""
    names = ("THOUSANDFOLD_WORKSPACE", "THOUSANDFOLD_TRACEBACK", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "thousandfold.pipeline", *arguments]


def pipeline(
    workspace: Path, *arguments: str, code: int = 0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the workspace as the current folder and check its exit code."""
    workspace.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command(*arguments),
        cwd=workspace,
        env=clean_environment(**(environment or {})),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object that stands alone on stdout."""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def error_of(stderr: str) -> str:
    """Return the one line that tells a user what is wrong."""
    lines = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]
