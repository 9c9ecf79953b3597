"""A stage that saves checkpoints, in a process of its own, to be killed."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.end_to_end.command_line import clean_environment, command


def start(workspace: Path, stage: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a stage; its tracking store lies beside the workspace."""
    environment = clean_environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.parent}/mlflow.db"}
    return subprocess.Popen(
        command("--workspace", str(workspace), stage, *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], workspace: Path, kind: str, after: int) -> int:
    """Wait until a running process has saved a checkpoint later than step `after`; return its step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in workspace.glob(f"runs/{kind}-*/checkpoint/manifest.json"):
            step = json.loads(path.read_text())["step"]
            if step > after:
                return step
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after step {after}: {process.communicate()}")
