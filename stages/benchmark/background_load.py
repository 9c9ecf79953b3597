"""Processes that keep the machine busy while a control loop runs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

# Copies more than the caches next to a core hold: it is after the shared cache too. Ends with its parent.
_BUSY = """
import os, sys, threading
def leave():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
source, target = bytes(4 << 20), bytearray(4 << 20)
sys.stdout.write("busy")
sys.stdout.flush()
while True:
    target[:] = source
"""
_SETTLE_S = 0.1


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes at work, each as much as a core gives it; end them when the block ends."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-I", "-S", "-c", _BUSY]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            process.stdout.read(len("busy"))
        if started:
            time.sleep(_SETTLE_S)  # the scheduler needs some milliseconds to spread them
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()
