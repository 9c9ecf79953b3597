"""Busy processes keep busy while the block runs, and are gone after it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from thousandfold.stages.benchmark import host
from thousandfold.stages.benchmark.host import busy_processes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Return the processes that the block starts."""
    found: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments, **names):
        found.append(popen(*arguments, **names))
        return found[-1]

    monkeypatch.setattr(host.subprocess, "Popen", start)
    return found


def test_processes_work_until_the_block_ends(started: list[subprocess.Popen[bytes]]):
    with pytest.raises(KeyError), busy_processes(2):
        assert len(started) == 2 and all(process.poll() is None for process in started)
        stat = Path(f"/proc/{started[0].pid}/stat")
        if stat.exists():
            time.sleep(0.2)
            ticks = sum(
                int(number) for number in stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
            )
            assert ticks > 2  # hundredths of a second of processor time
        raise KeyError
    assert all(process.poll() is not None for process in started)


def test_a_process_ends_with_its_parent(started: list[subprocess.Popen[bytes]]):
    with busy_processes(1):
        assert started[0].stdin is not None
        started[0].stdin.close()  # what a parent that is killed leaves behind
        assert started[0].wait(timeout=10) == 0
        started[0].stdin = None


def test_none_are_started_where_none_are_asked_for(started: list[subprocess.Popen[bytes]]):
    with busy_processes(0):
        assert started == []
