"""Runs a frontier's jobs in processes, each on CPUs of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.runtime import cpu_share
from thousandfold.stages.frontier.cells import LOG_FILE

_POLL_S = 0.05
_ERROR = "Error: "


@dataclass(frozen=True)
class Job:
    """What a process is to do: `work` is what it reads on its standard input."""

    name: str
    folder: Path
    """Where its log goes."""
    work: Mapping[str, Any]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[str]
    log: IO[bytes]
    cpus: list[int]


def cpu_sets(jobs: int) -> list[list[int]]:
    """Return the CPUs of each of so many processes (0: one a CPU): shares of their own while they suffice."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cpus()))
    jobs = jobs or len(cpus)
    share = cpu_share(jobs)
    return [[cpus[(index * share + i) % len(cpus)] for i in range(share)] for index in range(jobs)]


def run_jobs(jobs: Iterable[Job], sets: list[list[int]], on_end: Callable[[Job, str | None], None]) -> None:
    """Run jobs, as many at a time as there are sets of CPUs, in the order in which they are given.

    Args:
        jobs: what to run.
        sets: of CPUs, as `cpu_sets` returns them.
        on_end: is given each job that ended, and one line about what went wrong, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; every process has been ended.
    """
    waiting, free, running = deque(jobs), list(sets), list[_Running]()
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.popleft(), free.pop(0)))
            for ended in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(ended)
                free.append(ended.cpus)
                _close(ended)
                on_end(ended.job, _reason(ended))
            time.sleep(_POLL_S)
    finally:
        for entry in running:
            entry.process.kill()
        for entry in running:
            entry.process.wait()
            _close(entry)


def _start(job: Job, cpus: list[int]) -> _Running:
    """Start the process of a job; its standard input stays open as long as it is to live."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = (job.folder / LOG_FILE).open("wb")
    process = subprocess.Popen(
        # -P: whatever lies in the current folder is not imported.
        [sys.executable, "-P", "-m", "thousandfold.stages.frontier.worker"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(len(cpus))},
        encoding="utf-8",
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({**job.work, "cpus": cpus}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it died at once: its log says why
        process.wait()
    return _Running(job, process, log, cpus)


def _close(entry: _Running) -> None:
    entry.log.close()
    if entry.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            entry.process.stdin.close()


def _reason(entry: _Running) -> str | None:
    """Return why a process failed, in one line; None where it did not."""
    code = entry.process.returncode
    if code == 0:
        return None
    log = entry.job.folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    if said:
        return said[-1]
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{ended}; see {log}"
