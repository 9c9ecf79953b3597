"""Time a policy as a robot runs it: ONNX Runtime on one thread, back to back and at the task's control rate.

Runs without torch, mlflow and matplotlib.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pydantic

from pipeline.core.artifacts import Artifact, write_json_atomic
from pipeline.core.pictures import draw_latency_histogram
from pipeline.core.runtime import StageContext, StageWork, describe_host, seed_sequence
from pipeline.core.settings import StageSettings
from stages.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy

BENCHMARK_FILE = "benchmark.json"
HISTOGRAM_FILE = "latency.png"

DEFINITIONS = {
    "latency": "from observation and goal as NumPy rows to action and control as NumPy rows",
    "percentiles": "nearest rank: the smallest latency that this share of the calls does not exceed; "
    "with few calls the upper ones are the maximum",
    "response": "from the scheduled tick to the output, so that a late wake-up counts",
    "missed": "ticks whose output was not ready at the next tick, and ticks that passed while it was late",
}

_INPUT_STREAM = 31
_INPUT_ROWS = 1024
_ROUNDS = 10
_PERCENTILES = {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p99_9_us": 99.9}
# A deadline much further right than every call would squeeze the histogram into a corner.
_DEADLINE_IN_PICTURE = 50.0


class BenchmarkSettings(StageSettings):
    """Settings of `pipeline benchmark`. Durations are for each network: the student and its teacher."""

    rate_hz: float | None = pydantic.Field(
        default=None, gt=0, le=100_000, description="control rate of the paced run; none: the task's"
    )
    warmup_s: float = pydantic.Field(
        default=0.5, ge=0, le=60, description="untimed calls before the first timed one"
    )
    back_to_back_s: float = pydantic.Field(
        default=3.0, gt=0, le=3600, description="one call right after the other"
    )
    paced_s: float = pydantic.Field(
        default=5.0, gt=0, le=3600, description="one call at each tick of the control rate"
    )


@dataclass(frozen=True)
class PacedTiming:
    """What a paced run gave.

    Attributes:
        latency_us: (calls,) duration of each call.
        response_us: (calls,) from the scheduled tick to the output.
        ticks: how many ticks passed.
        missed: how many of them had no output in time; see `DEFINITIONS`.
    """

    latency_us: np.ndarray
    response_us: np.ndarray
    ticks: int
    missed: int


class TimedPolicy:
    """A policy, and states to call it with that lie in the ranges it was checked on.

    Args:
        policy: the opened file.
        rng: draws the states.
    """

    def __init__(self, policy: OnnxPolicy, rng: np.random.Generator) -> None:
        self.policy = policy
        inputs = policy.metadata.inputs
        columns = [
            np.array([(element.low, element.high) for element in elements]).T
            for elements in (inputs.observation, inputs.goal)
        ]
        drawn = [rng.uniform(low, high, (_INPUT_ROWS, len(low))).astype(np.float32) for low, high in columns]
        self._states = list(zip(*drawn, strict=True))
        self._next = 0

    def call(self) -> tuple[int, int]:
        """Call the policy on the next state; return when the call began and ended, in nanoseconds."""
        observation, goal = self._states[self._next]
        self._next = (self._next + 1) % _INPUT_ROWS
        began = time.perf_counter_ns()
        self.policy.step(observation, goal)
        return began, time.perf_counter_ns()

    def run_for(self, seconds: float) -> list[int]:
        """Call again and again for a while, at least once; return the durations in nanoseconds."""
        until = time.perf_counter_ns() + int(seconds * 1e9)
        durations = []
        while True:
            began, ended = self.call()
            durations.append(ended - began)
            if ended >= until:
                return durations

    def run_paced(self, rate_hz: float, seconds: float) -> PacedTiming:
        """Call once a tick. Sleeps between ticks as a control loop does, so caches and the CPU cool down."""
        period = round(1e9 / rate_hz)
        ticks = max(1, round(seconds * rate_hz))
        durations, responses, missed, tick = [], [], 0, 0
        start = time.perf_counter_ns() + period
        while tick < ticks:
            due = start + tick * period
            time.sleep(max(0, due - time.perf_counter_ns()) / 1e9)
            began, ended = self.call()
            durations.append(ended - began)
            responses.append(ended - due)
            late_ticks = min((ended - due) // period, ticks - tick)
            missed += late_ticks
            tick += max(1, late_ticks)
        return PacedTiming(np.array(durations) / 1e3, np.array(responses) / 1e3, ticks, missed)


def run(settings: BenchmarkSettings, context: StageContext, policy: Artifact) -> Artifact:
    """Time a policy, and its teacher where it was exported beside it; return the benchmark's artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        policy: the policy's artifact.

    Raises:
        DamagedFileError: a file of the policy is damaged or belongs to another task.
    """
    policy.verify()
    task = policy.manifest.task
    with context.stage(
        "benchmark", "benchmark", task=task, settings=settings, parents={"policy": policy}
    ) as work:
        if settings.device == "cuda":
            context.console.say("A benchmark times one CPU thread, whatever trained the policy.")
        host = _describe_host(context)
        networks = _open_networks(policy, settings.seed)
        rate_hz = settings.rate_hz or 1.0 / next(iter(networks.values())).policy.metadata.control_dt_s
        span_s = len(networks) * (settings.warmup_s + settings.back_to_back_s + settings.paced_s)
        context.console.say(
            f"Timing {' and '.join(networks)} of {policy.name} on one thread, {span_s:.0f} s."
        )
        samples = _time_back_to_back(networks, settings)
        paced = {role: timed.run_paced(rate_hz, settings.paced_s) for role, timed in networks.items()}
        report = _report(networks, samples, paced, rate_hz) | {
            "task": task,
            "policy": policy.name,
            "host": host,
        }
        return _finish(report, samples, policy, work, context)


def _describe_host(context: StageContext) -> dict[str, Any]:
    """Return facts of the machine; warn when others keep it busy, for that shows in the upper ranks."""
    host = describe_host()
    if hasattr(os, "getloadavg"):
        host["load_average"] = os.getloadavg()[0]
        if host["load_average"] > host["usable_cpus"]:
            context.console.warn(
                f"the machine is busy (load {host['load_average']:.1f} on {host['usable_cpus']} CPUs): "
                "the slowest calls are those that other processes interrupt."
            )
    return host


def _open_networks(policy: Artifact, seed: int) -> dict[str, TimedPolicy]:
    """Open the policy and the teacher beside it, by role; the policy comes first."""
    opened: dict[str, TimedPolicy] = {}
    for name in (POLICY_FILE, TEACHER_FILE):
        if name == POLICY_FILE or name in policy.manifest.files:
            network = OnnxPolicy(policy.file(name), task=policy.manifest.task)
            rng = np.random.default_rng(seed_sequence(seed, _INPUT_STREAM))
            opened[network.metadata.role] = TimedPolicy(network, rng)
    return opened


def _time_back_to_back(
    networks: dict[str, TimedPolicy], settings: BenchmarkSettings
) -> dict[str, np.ndarray]:
    """Return latencies in µs by role. The networks take turns, so that a busy machine slows all of them."""
    durations: dict[str, list[int]] = {role: [] for role in networks}
    for _ in range(_ROUNDS):
        for role, timed in networks.items():
            timed.run_for(settings.warmup_s / _ROUNDS)
            durations[role] += timed.run_for(settings.back_to_back_s / _ROUNDS)
    return {role: np.array(found) / 1e3 for role, found in durations.items()}


def summarize(samples_us: np.ndarray) -> dict[str, float | int]:
    """Return sample count, mean, p50, p90, p99, p99.9 and maximum of latencies in microseconds."""
    ranked, count = np.sort(samples_us), len(samples_us)
    # Rounded, because 99.9 % of 1000 calls is 999.0000000000001 calls in floating point.
    ranks = {name: math.ceil(round(count * share / 100, 6)) for name, share in _PERCENTILES.items()}
    return {
        "samples": count,
        "mean_us": float(ranked.mean()),
        **{name: float(ranked[rank - 1]) for name, rank in ranks.items()},
        "max_us": float(ranked[-1]),
    }


def _report(
    networks: dict[str, TimedPolicy],
    samples: dict[str, np.ndarray],
    paced: dict[str, PacedTiming],
    rate_hz: float,
) -> dict[str, Any]:
    """Return everything that was measured, and what it was measured on."""
    figures = {}
    for role, timed in networks.items():
        timing = paced[role]
        figures[role] = {
            "file": timed.policy.path.name,
            "network": timed.policy.metadata.network.model_dump(),
            "back_to_back": summarize(samples[role]),
            "paced": summarize(timing.latency_us)
            | {"ticks": timing.ticks, "missed": timing.missed, "response": summarize(timing.response_us)},
        }
    speedup = None
    if {"student", "teacher"} <= set(figures):
        p50 = {role: figures[role]["back_to_back"]["p50_us"] for role in ("student", "teacher")}
        speedup = p50["teacher"] / p50["student"]
    return {
        "rate_hz": rate_hz,
        "period_us": 1e6 / rate_hz,
        "networks": figures,
        "speedup": speedup,
        "runtime": {"name": "onnxruntime", "version": onnxruntime.__version__, "threads": 1},
        "definitions": DEFINITIONS,
    }


def _finish(
    report: dict[str, Any],
    samples: dict[str, np.ndarray],
    policy: Artifact,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Write the report and its picture, complete the artifact and say what was found."""
    artifact = work.artifact
    write_json_atomic(artifact.file(BENCHMARK_FILE), report)
    longest_us = max(found.max() for found in samples.values())
    in_reach = report["period_us"] <= _DEADLINE_IN_PICTURE * longest_us
    try:
        draw_latency_histogram(
            artifact.file(HISTOGRAM_FILE),
            samples,
            f"{policy.name} on one CPU thread, back to back",
            report["period_us"] if in_reach else None,
        )
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        context.console.say(
            'No histogram: matplotlib is not installed (pip install "thousandfold[train]" brings it).'
        )
    artifact.complete({name: value for name, value in report.items() if name != "definitions"})
    work.run.log_metrics(_flat_metrics(report), step=0)
    work.log_files(BENCHMARK_FILE, HISTOGRAM_FILE, "manifest.json")
    _show(report, artifact, context)
    return artifact


def _flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """Return the figures under names such as ``student.paced.p99_us``."""
    metrics = {
        f"{role}.{mode}.{name}": float(value)
        for role, figures in report["networks"].items()
        for mode in ("back_to_back", "paced")
        for name, value in figures[mode].items()
        if not isinstance(value, dict)
    }
    return metrics | ({} if report["speedup"] is None else {"speedup": report["speedup"]})


def _show(report: dict[str, Any], artifact: Artifact, context: StageContext) -> None:
    """Print the table, and a closing line."""
    rate_hz, networks = report["rate_hz"], report["networks"]
    rows = []
    for role, figures in networks.items():
        network = f"{role}, {figures['network']['depth']} x {figures['network']['width']}"
        for mode, label in (("back_to_back", "back to back"), ("paced", f"at {rate_hz:g} Hz")):
            timing = figures[mode]
            numbers = [timing[name] for name in ("samples", *_PERCENTILES, "max_us")]
            rows.append([network, label, *numbers, timing.get("missed")])
    columns = ["network", "calls made", "calls", "p50", "p90", "p99", "p99.9", "max", "missed"]
    context.console.table("Latency of one call on one CPU thread, microseconds", columns, rows)
    role, figures = next(iter(networks.items()))
    timing, paced = figures["back_to_back"], figures["paced"]
    speedup = "" if report["speedup"] is None else f", {report['speedup']:.3g} times as fast as its teacher"
    context.console.say(
        f"Benchmark {artifact.name}: {role} p50 {timing['p50_us']:.3g} µs, p99 {timing['p99_us']:.3g} µs "
        f"over {timing['samples']:,} calls{speedup}; "
        f"{paced['missed']} of {paced['ticks']:,} ticks missed at {rate_hz:g} Hz."
    )
