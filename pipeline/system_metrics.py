"""What the machine does while a stage runs: processors, memory, disk, network and GPUs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque

SAMPLE_EVERY_S = 10.0
_SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"  # MLflow's own
_PATIENCE_S = 2.0

Point = tuple[str, float, int, int]
"""Key, value, time in ms since 1970, step."""


class SystemMetrics:
    """Samples MLflow's monitors in a thread of its own, from when it is made until `stop`.

    A step is a second since the run began, so that a resumed run goes on where it was.

    Args:
        begun_ms: when the run began, in ms since 1970.
    """

    def __init__(self, begun_ms: int) -> None:
        self._begun_ms = begun_ms
        self._points: deque[Point] = deque()  # which two threads may use
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="system metrics")
        self._thread.start()

    def take(self) -> list[Point]:
        """Return what was sampled since this was last called."""
        return [self._points.popleft() for _ in range(len(self._points))]

    def stop(self) -> None:
        """End the sampling, with one last sample."""
        self._stopped.set()
        self._thread.join(_PATIENCE_S)

    def _sample(self) -> None:
        with contextlib.suppress(Exception):  # psutil's, NVML's: a machine that does not tell
            monitors = _monitors()
            while not self._stopped.wait(SAMPLE_EVERY_S):
                self._note(monitors)
            self._note(monitors)

    def _note(self, monitors: list) -> None:
        now_ms = time.time_ns() // 1_000_000
        step = max(0, now_ms - self._begun_ms) // 1000
        for monitor in monitors:
            monitor.collect_metrics()
            sampled = monitor.aggregate_metrics()
            points = [(f"system/{key}", float(value), now_ms, step) for key, value in sampled.items()]
            self._points.extend(points)
            monitor.clear_metrics()


def watch_system(begun_ms: int) -> SystemMetrics | None:
    """Return what samples the machine; None if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false.

    None, too, if no thread can be started for it.

    Args:
        begun_ms: when the run began, in ms since 1970.
    """
    if os.environ.get(_SWITCH, "true").strip().lower() in ("false", "0"):
        return None
    with contextlib.suppress(RuntimeError):
        return SystemMetrics(begun_ms)
    return None


def _monitors() -> list:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # without a GPU, its driver or its library
        monitors.append(GPUMonitor())
    return monitors
