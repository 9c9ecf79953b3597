"""What `pipeline benchmark` found, as `benchmark.json` and the tracking store have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

from thousandfold.stages.benchmark.host import describe_realtime
from thousandfold.stages.benchmark.loops import (
    PacedPair,
    PacedTiming,
    TimedCall,
    collector_at_rest,
    joined,
    summarize,
    summarize_paced,
)
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

DEFINITIONS = {
    "latency": "from observation and goal as NumPy rows to action and control as NumPy rows",
    "inside_runtime": "the same without what Python does around it: one call of the session on bound buffers",
    "percentiles": "nearest rank: the smallest latency that this share of the calls does not exceed; "
    "with few calls the upper ones are the maximum",
    "start_late": "from the tick to the beginning of its call",
    "response": "from the tick to the output, so that a late beginning counts",
    "jitter": "standard deviation (jitter_us) and 99th percentile (jitter_p99_us) of start_late",
    "missed": "ticks whose output was not ready at the next tick, and ticks that passed while it was late; "
    "missed_before_call: those of them that had passed before the call began",
    "excess_missed": "share of missed ticks less that of the empty loop, which ran in turns with this one; "
    "its error is the standard error over the turns",
    "cpu_share": "processor time of the process over the time of the loop",
    "roofline": "bound_us is the size of the weights over the rate at which one core reads a buffer of that "
    "size; ratio is the median inside the runtime over it",
    "cold_start": "from the start of a Python interpreter to the first action, median over fresh processes",
    "memory": "bytes, of a process that runs the policy alone; growth over so many calls, kept over 1000",
}


@dataclass
class Measured:
    """What the loops gave.

    Attributes:
        busy_processes: in the background of the loops under load.
        spin_us: how long before a tick the loops stopped sleeping.
        granted: what the system said to what was asked of it.
        samples, inside, others: latencies in µs, one call right after the other: of a step by role, of its
            part inside the runtime by role, of other runtimes by name.
        left_out: why an other runtime was not timed, by name.
        action_difference: how far its actions are from the file's.
        pairs: the policy's control loops, each beside an empty one, by rising rate.
        teachers_loop: the teacher's at the control rate, by role; empty without one.
        other_loops: control loops at the control rate in other runtimes, by name.
        busy_samples, busy_pair: under load; None without.
        fresh: of a fresh process; None where none was started.
    """

    busy_processes: int
    spin_us: float
    granted: dict[str, str] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    inside: dict[str, np.ndarray] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    action_difference: dict[str, float] = field(default_factory=dict)
    pairs: list[PacedPair] = field(default_factory=list)
    teachers_loop: dict[str, PacedTiming] = field(default_factory=dict)
    other_loops: dict[str, PacedTiming] = field(default_factory=dict)
    busy_samples: np.ndarray | None = None
    busy_pair: PacedPair | None = None
    fresh: dict[str, Any] | None = None


def build_report(policies: Mapping[str, OnnxPolicy], measured: Measured, rate_hz: float) -> dict[str, Any]:
    """Return everything that was measured, and what it was measured on.

    `policies` are the opened files by role, the policy itself first; `rate_hz` is the control rate.
    """
    networks = {role: _network(role, policy, measured, rate_hz) for role, policy in policies.items()}
    p50 = {role: figures["back_to_back"]["p50_us"] for role, figures in networks.items()}
    own_p50 = p50[next(iter(p50))]
    comparison = {}
    for name, samples in measured.others.items():
        figures = summarize(samples)
        comparison[name] = figures | {
            "ratio": figures["p50_us"] / own_p50,
            "max_action_difference": measured.action_difference[name],
        }
        if name in measured.other_loops:
            comparison[name]["paced"] = summarize_paced(measured.other_loops[name])
    busy = None
    if measured.busy_samples is not None and measured.busy_pair is not None:
        busy = {
            "processes": measured.busy_processes,
            "back_to_back": summarize(measured.busy_samples),
            "paced": measured.busy_pair.summary(),
        }
    fresh = measured.fresh or {"cold_start": None, "memory": None}
    return {
        "rate_hz": rate_hz,
        "period_us": 1e6 / rate_hz,
        "networks": networks,
        "speedup": p50["teacher"] / p50["student"] if {"student", "teacher"} <= set(p50) else None,
        "paced_loops": [pair.summary() for pair in measured.pairs],
        "busy": busy,
        "comparison": comparison,
        "left_out": measured.left_out,
        **fresh,
        "runtime": {"name": "onnxruntime", "version": onnxruntime.__version__, "threads": 1},
        "realtime": {"spin_us": measured.spin_us, **measured.granted, **describe_realtime()},
        "definitions": DEFINITIONS,
    }


def _network(role: str, policy: OnnxPolicy, measured: Measured, rate_hz: float) -> dict[str, Any]:
    if role in measured.teachers_loop:
        loop = measured.teachers_loop[role]
    else:
        loop = joined(next(pair.ours for pair in measured.pairs if pair.rate_hz == rate_hz))
    inside = summarize(measured.inside[role])
    return {
        "file": policy.path.name,
        "network": policy.metadata.network.model_dump(),
        "precision": policy.metadata.precision,
        "back_to_back": summarize(measured.samples[role]),
        "inside_runtime": inside,
        "roofline": roofline(policy.metadata.network.parameters, policy.metadata.precision, inside["p50_us"]),
        "paced": summarize_paced(loop),
    }


def flat_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures under names such as ``latency/student.paced/p99_us`` and ``memory/kept``."""
    parts: dict[str, Any] = {
        f"{role}.{part}": figures[part]
        for role, figures in report["networks"].items()
        for part in ("back_to_back", "inside_runtime", "roofline", "paced")
    }
    parts |= {f"paced_{loop['rate_hz']:g}hz": loop for loop in report["paced_loops"]}
    for name, side in report["comparison"].items():
        part = f"comparison.{name.replace(' ', '_')}"
        parts |= {part: side, f"{part}.paced": side.get("paced", {})}
    for part in ("cold_start", "memory"):
        parts |= {part: report[part]} if report[part] else {}
    if (busy := report["busy"]) is not None:
        parts |= {"busy.back_to_back": busy["back_to_back"], "busy.paced": busy["paced"]}
    metrics = {
        f"{part}/{name}" if part == "memory" else f"latency/{part}/{name}": float(value)
        for part, figures in parts.items()
        for name, value in figures.items()
        if isinstance(value, int | float)
    }
    return metrics


def headline(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what chains are compared by: of the student beside the teacher, both back to back."""
    student = report["networks"].get("student", {"back_to_back": {}})["back_to_back"]
    return {
        "latency_p50_us": student.get("p50_us"),
        "latency_p99_us": student.get("p99_us"),
        "latency_speedup": report["speedup"],
    }


# -- How fast a call could be at best: each weight is read once, and caches give so many bytes a second
# At batch 1 each weight takes part in one multiplication, so reading the weights is the work. The bound is
# their size over the rate at which one core reads a buffer of that size again and again, as it does the
# weights: from whichever cache they fit into.

BYTES_OF_A_WEIGHT = {"float32": 4, "float16": 2, "int8": 1}
_WARMUP_S, _ROUTINE_S = 0.02, 0.1
_TURNS = 3


def roofline(parameters: int, precision: str, inside_runtime_p50_us: float) -> dict[str, Any]:
    """Return the bound of a network's latency, and how far above it the runtime is.

    Args:
        parameters: weights and biases.
        precision: a key of `BYTES_OF_A_WEIGHT`.
        inside_runtime_p50_us: median latency of the call inside the runtime.
    """
    weight_bytes = parameters * BYTES_OF_A_WEIGHT[precision]
    rates = read_rates(weight_bytes)
    routine = max(rates, key=rates.__getitem__)
    bound_us = weight_bytes / rates[routine] * 1e6
    return {
        "weight_bytes": weight_bytes,
        "read_bytes_per_s": rates[routine],
        "routine": routine,
        "routines_bytes_per_s": rates,
        "bound_us": bound_us,
        "ratio": inside_runtime_p50_us / bound_us,
    }


def read_rates(size: int) -> dict[str, float]:
    """Return the bytes a second at which one core reads a buffer of `size` bytes, by routine.

    Several are tried, since none is the fastest on every machine; all of them run on this thread alone. A
    rate is of the median over many reads, the best of three turns.
    """
    calls = {name: TimedCall(read) for name, read in _routines(size).items()}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    with collector_at_rest():
        for _ in range(_TURNS):
            for name, timed in calls.items():
                timed.run_for(_WARMUP_S / _TURNS)
                samples = np.array(timed.run_for(_ROUTINE_S / _TURNS)) / 1e3
                medians[name].append(float(summarize(samples)["p50_us"]))
    return {name: size / min(found) * 1e6 for name, found in medians.items()}


def _routines(size: int) -> dict[str, Callable[[], object]]:
    """Return calls that read `size` bytes and write none: vectorised loops of NumPy and the C library.

    None is of NumPy's BLAS, which would take more threads.
    """
    text = bytearray(max(size, 4))
    words = np.frombuffer(text, np.int32, count=len(text) // 4)
    # Written once: memory that never was is one page of zeros over and over, and always in the first cache.
    numbers = np.ones(len(words), np.float32)
    return {
        "largest int32 (NumPy)": lambda: np.maximum.reduce(words),
        "largest float32 (NumPy)": lambda: np.maximum.reduce(numbers),
        "byte search (memchr)": lambda: text.find(b"\x01"),
    }
