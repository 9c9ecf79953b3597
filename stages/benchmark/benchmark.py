"""Time a policy as a robot runs it: on one thread, back to back and in control loops, beside other runtimes.

Runs without torch, mlflow and matplotlib; what needs them is left out, and the report says so.
docs/real_time.md says what is measured and how to read it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic

from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext, StageWork, describe_host, seed_sequence
from thousandfold.pipeline.settings import StageSettings
from thousandfold.stages.benchmark.fresh_process import start_afresh
from thousandfold.stages.benchmark.host import HostRequest, busy_processes, granted_by_host, refusals
from thousandfold.stages.benchmark.loops import (
    PacedPair,
    TimedCall,
    back_to_back,
    collector_at_rest,
    run_beside_empty,
    run_paced,
)
from thousandfold.stages.benchmark.results import Measured, build_report, flat_metrics, headline
from thousandfold.stages.benchmark.runtimes import C, OtherRuntimes, other_runtimes
from thousandfold.stages.benchmark.tables import HISTOGRAM_FILE, TIMELINE_FILE, draw_pictures, show_report
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE, OnnxPolicy
from thousandfold.stages.policy_file.source import PolicyPlace
from thousandfold.stages.random_baseline import no_better_than_random, warn_of_chance

BENCHMARK_FILE = "benchmark.json"

_INPUT_STREAM = 31
_INPUT_ROWS = 1024


class BenchmarkSettings(StageSettings):
    """Settings of `pipeline benchmark`. Durations are for each loop and each network."""

    rate_hz: float | None = pydantic.Field(
        default=None, gt=0, le=100_000, description="the robot's control rate; null: the task's"
    )
    rates_hz: tuple[float, ...] = pydantic.Field(
        default=(50.0, 200.0, 1000.0),
        max_length=32,
        description="further rates, for control loops of the policy alone",
    )
    warmup_s: float = pydantic.Field(
        default=0.3, ge=0, le=60, description="seconds of untimed calls before the first timed one"
    )
    back_to_back_s: float = pydantic.Field(
        default=1.5, gt=0, le=3600, description="seconds of calls one after the other"
    )
    paced_s: float = pydantic.Field(
        default=2.0,
        gt=0,
        le=3600,
        description="seconds of a control loop; the empty loop beside it takes as long",
    )
    spin_us: float = pydantic.Field(
        default=50.0, ge=0, le=10_000, description="how long before a tick a loop stops sleeping"
    )
    busy_processes: int = pydantic.Field(
        default=1, ge=0, le=1024, description="background processes for loops under load; 0: no such loops"
    )
    cold_starts: int = pydantic.Field(
        default=3, ge=0, le=100, description="fresh processes that start the policy; 0: none"
    )
    compare: bool = pydantic.Field(
        default=True, description="also time the network in C, torch and NumPy, if they are installed"
    )
    aot_inductor: bool = pydantic.Field(
        default=False,
        description="also time it compiled by AOTInductor: takes half a minute and a C++ compiler",
    )
    fifo_priority: int | None = pydantic.Field(
        default=None, ge=1, le=99, description="priority under SCHED_FIFO; null: the normal scheduler"
    )
    lock_memory: bool = pydantic.Field(default=False, description="keep every page in memory (mlockall)")
    core: int | None = pydantic.Field(
        default=None, ge=0, le=4095, description="the only core for the loops; null: any"
    )

    @pydantic.field_validator("rates_hz")
    @classmethod
    def _check_rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate <= 100_000 for rate in rates):
            raise ValueError("must lie above 0 and not above 100,000")
        return rates

    @property
    def host_request(self) -> HostRequest:
        """What a loop asks of the system."""
        return HostRequest(self.fifo_priority, self.lock_memory, self.core)


@dataclass
class _Networks:
    """The files of a policy, opened.

    Attributes:
        policies: by role, the policy itself first.
        steps: their timed steps, by role.
        bound: the runtime's part of a step alone, by role.
        states: that the policy is called with.
    """

    policies: dict[str, OnnxPolicy] = field(default_factory=dict)
    steps: dict[str, TimedCall] = field(default_factory=dict)
    bound: dict[str, TimedCall] = field(default_factory=dict)
    states: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def role(self) -> str:
        """The role of the policy itself."""
        return next(iter(self.policies))

    @property
    def policy(self) -> OnnxPolicy:
        """The policy itself."""
        return self.policies[self.role]


def run(settings: BenchmarkSettings, context: StageContext, policy: Artifact | PolicyPlace) -> Artifact:
    """Time a policy, and its teacher where it was exported beside it; return the benchmark's artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        policy: the policy's artifact, or a file anywhere; of another file than an artifact's own
            `policy.onnx` the benchmark has no parent.

    Raises:
        DamagedFileError: a file of the policy is damaged or belongs to another task.
    """
    if isinstance(policy, Artifact):
        policy = PolicyPlace(policy.file(POLICY_FILE), policy.name, policy)
    if policy.artifact is not None:
        policy.artifact.verify()
    networks = _open_networks(policy, settings.seed)
    task = networks.policy.metadata.task
    # A variant's figures are not the policy's.
    parents = {"policy": policy.artifact} if policy.artifact and policy.path.name == POLICY_FILE else {}
    with context.stage("benchmark", "benchmark", task=task, settings=settings, parents=parents) as work:
        if settings.device == "cuda":
            context.console.say("A benchmark times one CPU thread, whatever trained the policy.")
        host = _describe_host(context)
        rate_hz = settings.rate_hz or 1.0 / networks.policy.metadata.control_dt_s
        rates = sorted({rate_hz, *settings.rates_hz})
        _announce(policy, networks, rates, settings, context)
        if policy.artifact is not None:
            warn_of_chance(context.console, policy.artifact)
        elif (recorded := networks.policy.metadata.evaluation) and (
            found := no_better_than_random(recorded.model_dump())
        ):
            context.console.warn(f"policy {policy.name} {found}.")
        measured = _measure(policy, networks, rate_hz, rates, settings, context)
        report = build_report(networks.policies, measured, rate_hz) | {
            "task": task,
            "policy": policy.name,
            "graph_sha256": networks.policy.metadata.graph_sha256,
            "host": host,
        }
        return _finish(report, measured, work, context)


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


def _open_networks(policy: PolicyPlace, seed: int) -> _Networks:
    """Open the policy and the teacher beside it."""
    networks, artifact = _Networks(), policy.artifact
    task = artifact.manifest.task if artifact else None
    paths = [policy.path]
    if artifact and TEACHER_FILE in artifact.manifest.files:
        paths.append(artifact.file(TEACHER_FILE))
    for path in paths:
        network = OnnxPolicy(path, task=task)
        role = network.metadata.role
        if role in networks.policies:  # the teacher's file itself
            continue
        states = draw_states(network, np.random.default_rng(seed_sequence(seed, _INPUT_STREAM)))
        network.step(*states[0])  # what `run_bound` goes on with
        networks.policies[role] = network
        networks.steps[role] = TimedCall(network.step, states)
        networks.bound[role] = TimedCall(network.run_bound)
        networks.states = networks.states or states
    return networks


def draw_states(policy: OnnxPolicy, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return observations and goals that lie in the ranges that the policy was checked on, float32."""
    inputs = policy.metadata.inputs
    columns = [
        np.array([(element.low, element.high) for element in elements]).T
        for elements in (inputs.observation, inputs.goal)
    ]
    drawn = [rng.uniform(low, high, (_INPUT_ROWS, len(low))).astype(np.float32) for low, high in columns]
    return list(zip(*drawn, strict=True))


def _announce(
    policy: PolicyPlace,
    networks: _Networks,
    rates: list[float],
    settings: BenchmarkSettings,
    context: StageContext,
) -> None:
    names = " and ".join(networks.policies)
    each = ", ".join(f"{rate:g}" for rate in rates)
    turns = 2 * len(networks.policies) + 3 * settings.compare + bool(settings.busy_processes)
    loops = 2 * len(rates) + 2 * bool(settings.busy_processes) + len(networks.policies)
    loops += settings.compare - 1
    span_s = turns * (settings.warmup_s + settings.back_to_back_s) + loops * settings.paced_s
    context.console.say(
        f"Timing {names} of {policy.name} on one thread: back to back, in control loops at {each} Hz; "
        f"{span_s:.0f} s and some for the start."
    )


def _measure(
    policy: PolicyPlace,
    networks: _Networks,
    rate_hz: float,
    rates: list[float],
    settings: BenchmarkSettings,
    context: StageContext,
) -> Measured:
    """Run every loop: those that are compared take turns."""
    measured = Measured(busy_processes=settings.busy_processes, spin_us=settings.spin_us)
    ours = networks.steps[networks.role]
    in_c = _time_in_turns(policy, networks, settings, context, measured)
    with granted_by_host(settings.host_request) as granted, collector_at_rest():
        measured.granted = granted
        measured.pairs = [_beside_empty(ours, rate, settings) for rate in rates]
        measured.teachers_loop = {
            role: run_paced(timed, rate_hz, settings.paced_s, settings.spin_us)
            for role, timed in networks.steps.items()
            if role != networks.role
        }
        if in_c is not None:
            measured.other_loops[C] = run_paced(in_c, rate_hz, settings.paced_s, settings.spin_us)
    if settings.busy_processes:
        with (
            busy_processes(settings.busy_processes),
            granted_by_host(settings.host_request),
            collector_at_rest(),
        ):
            timed = back_to_back({"busy": ours}, settings.warmup_s, settings.back_to_back_s)
            measured.busy_samples = timed["busy"]
            measured.busy_pair = _beside_empty(ours, rates[-1], settings)
    if settings.cold_starts:
        measured.fresh = start_afresh(policy.path, settings.cold_starts)
    return measured


def _time_in_turns(
    policy: PolicyPlace,
    networks: _Networks,
    settings: BenchmarkSettings,
    context: StageContext,
    measured: Measured,
) -> TimedCall | None:
    """Time the files, their part inside the runtime and the other runtimes, back to back.

    Returns the policy in C, where it could be compiled.
    """
    with _others(policy, networks, settings, context) as others:
        calls = {("step", role): timed for role, timed in networks.steps.items()}
        calls |= {("bound", role): timed for role, timed in networks.bound.items()}
        calls |= {("other", name): TimedCall(step, networks.states) for name, step in others.steps.items()}
        with granted_by_host(settings.host_request), collector_at_rest():
            samples = back_to_back(calls, settings.warmup_s, settings.back_to_back_s)
    measured.left_out, measured.action_difference = others.left_out, others.action_difference
    for (part, name), found in samples.items():
        {"step": measured.samples, "bound": measured.inside, "other": measured.others}[part][name] = found
    return calls.get(("other", C))


def _others(
    policy: PolicyPlace, networks: _Networks, settings: BenchmarkSettings, context: StageContext
) -> contextlib.AbstractContextManager[OtherRuntimes]:
    if not settings.compare:
        return contextlib.nullcontext(OtherRuntimes())
    return other_runtimes(
        networks.policy, policy.artifact, context.workspace, networks.states, inductor=settings.aot_inductor
    )


def _beside_empty(ours: TimedCall, rate_hz: float, settings: BenchmarkSettings) -> PacedPair:
    return run_beside_empty(ours, rate_hz, settings.paced_s, settings.spin_us)


def _finish(
    report: dict[str, Any],
    measured: Measured,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Write the report and its pictures, complete the artifact and say what was found."""
    artifact = work.artifact
    write_json_atomic(artifact.file(BENCHMARK_FILE), report)
    try:
        draw_pictures(artifact.path, report, measured, int(artifact.manifest.settings["seed"]))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        context.console.say(
            'No pictures: matplotlib is not installed (pip install "thousandfold[train]" brings it).'
        )
    artifact.complete({name: value for name, value in report.items() if name != "definitions"})
    work.log_headline(headline(report))
    work.run.log_metrics(flat_metrics(report), step=0)
    work.log_files(BENCHMARK_FILE, HISTOGRAM_FILE, TIMELINE_FILE, "manifest.json")
    for line in refusals(measured.granted):
        context.console.warn(line)
    show_report(report, artifact.name, context.console)
    return artifact
