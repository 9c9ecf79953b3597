"""A policy in a process of its own, as a robot starts it: time to the first action, memory, allocations."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_MODULE = "thousandfold.stages.benchmark.fresh_probe"
STEPS = ("interpreter_s", "import_s", "session_s", "first_call_s")


def start_afresh(policy: Path, times: int) -> dict[str, Any]:
    """Start a policy so many times in a new process, and return what that takes.

    Returns:
        ``cold_start``: seconds from the start of the interpreter to the first action, in all and by step,
        medians over the starts; the first start, whose files may have come from the disk, beside them.
        ``memory``: of the last process; see `stages.benchmark.fresh_probe`.

    Raises:
        RuntimeError: the process failed.
    """
    # -P: whatever lies in the current folder is not imported.
    command = [sys.executable, "-P", "-m", _MODULE, str(policy.absolute())]
    found: list[dict[str, Any]] = []
    for _ in range(times):
        done = subprocess.run([*command, str(time.monotonic_ns())], capture_output=True, encoding="utf-8")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"a fresh process could not start {policy}: {last}")
        found.append(json.loads(done.stdout))
    starts = [each["cold_start"] for each in found]
    for start in starts:
        start["total_s"] = sum(start[step] for step in STEPS)
    medians = {name: statistics.median(start[name] for start in starts) for name in (*STEPS, "total_s")}
    cold_start = medians | {"starts": times, "first_total_s": starts[0]["total_s"]}
    return {"cold_start": cold_start, "memory": found[-1]["memory"]}
