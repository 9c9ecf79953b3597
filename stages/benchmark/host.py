"""What a system grants a control loop: a real-time priority, memory that stays, a core of its own.

Each is asked for only where the settings say so. What is refused is said in words and does not stop the run;
what was granted is taken back when the loop is over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GRANTED = "on"
NOT_ASKED = "off"

_LINUX_ONLY = f"{sys.platform} has none: this needs Linux"
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30
_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class HostRequest:
    """What a control loop asks of the system.

    Attributes:
        fifo_priority: of SCHED_FIFO, 1 to 99; None leaves the normal scheduler.
        lock_memory: keep every page in memory (mlockall).
        core: the only core that the loop may run on; None leaves it free.
    """

    fifo_priority: int | None = None
    lock_memory: bool = False
    core: int | None = None


@contextlib.contextmanager
def granted_by_host(request: HostRequest) -> Iterator[dict[str, str]]:
    """Ask the system for what a loop wants, for this thread, and take it back at the end.

    Yields by name what became of each: ``on``, ``off`` where it was not asked for, or ``refused: ...``.
    """
    with contextlib.ExitStack() as stack:
        yield {
            "timer_slack": _take_timer_slack(stack),
            "core": _take_core(request.core, stack),
            "lock_memory": _lock_memory(stack) if request.lock_memory else NOT_ASKED,
            # Last: what comes before it need not be done in a hurry.
            "sched_fifo": _take_fifo(request.fifo_priority, stack),
        }


def _take_fifo(priority: int | None, stack: contextlib.ExitStack) -> str:
    if priority is None:
        return NOT_ASKED
    if not hasattr(os, "sched_setscheduler"):
        return _refused(_LINUX_ONLY)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        # Children are none of the loop: they start with the normal scheduler.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        return _refused("needs CAP_SYS_NICE or an rtprio limit (ulimit -r)")
    except OSError as error:
        return _refused(str(error.strerror))
    stack.callback(os.sched_setscheduler, 0, policy, parameters)
    return GRANTED


def _lock_memory(stack: contextlib.ExitStack) -> str:
    if not sys.platform.startswith("linux"):
        return _refused(_LINUX_ONLY)
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        reason = os.strerror(ctypes.get_errno())
        return _refused(f"{reason}; needs CAP_IPC_LOCK or a larger memlock limit (ulimit -l)")
    stack.callback(library.munlockall)
    return GRANTED


def _take_core(core: int | None, stack: contextlib.ExitStack) -> str:
    if core is None:
        return NOT_ASKED
    if not hasattr(os, "sched_setaffinity"):
        return _refused(_LINUX_ONLY)
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except (OSError, ValueError):
        return _refused(f"no core {core} for this process, which may use {_ranges(usable)}")
    stack.callback(os.sched_setaffinity, 0, usable)
    return GRANTED


def _take_timer_slack(stack: contextlib.ExitStack) -> str:
    """Have sleeps end on time: Linux may otherwise add 50 µs to each, to wake less often."""
    if not sys.platform.startswith("linux"):
        return _refused(_LINUX_ONLY)
    library = ctypes.CDLL(None)
    slack_ns = library.prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    if slack_ns < 0 or library.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0):
        return _refused("the kernel does not let it be set")
    stack.callback(library.prctl, _PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0)
    return GRANTED


def _refused(reason: str) -> str:
    return f"refused: {reason}"


def refusals(granted: dict[str, str]) -> list[str]:
    """Return one line for everything that was asked for and refused."""
    names = {
        "sched_fifo": "SCHED_FIFO",
        "lock_memory": "locked memory (mlockall)",
        "core": "a core of its own",
        "timer_slack": "exact timers",
    }
    return [f"{names[name]}: {said}" for name, said in granted.items() if said.startswith("refused")]


def _ranges(cores: set[int]) -> str:
    """Return core numbers in short, such as 0-3,6."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def describe_realtime() -> dict[str, str | bool | None]:
    """Return how the machine is set up for a control loop; None where the system does not say."""
    return {
        "governor": _read(_CPU / "cpu0" / "cpufreq" / "scaling_governor"),
        "isolated_cores": _read(_CPU / "isolated"),
        "preempt_rt": "PREEMPT_RT" in platform.version() or _read(Path("/sys/kernel/realtime")) == "1",
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


# -- Processes that keep the machine busy while a control loop runs --------------------------------

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
