"""The report of `pipeline benchmark` as tables and lines that fit into a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.ground.picture_style import INK, PALETTE, SOFT, house_figure
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.pictures import draw_latency_histogram
from thousandfold.stages.benchmark.loops import PERCENTILES, PacedPair, joined
from thousandfold.stages.benchmark.results import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_report(report: Mapping[str, Any], name: str, console: Console) -> None:
    """Print the tables of what `results.build_report` gives, what else was found, and a closing line."""
    _show_calls(report, console)
    _show_loops(report, console)
    for role, figures in report["networks"].items():
        found = figures["roofline"]
        console.say(
            f"Roofline of the {role}: {found['weight_bytes'] / 1e3:,.0f} kB of weights at "
            f"{found['read_bytes_per_s'] / 1e9:.0f} GB/s take {found['bound_us']:.3g} µs; inside the runtime "
            f"it takes {figures['inside_runtime']['p50_us']:.3g} µs, {found['ratio']:.2f} times as long."
        )
    for line in _fresh_process(report):
        console.say(line)
    for runtime, reason in report["left_out"].items():
        console.say(f"Not timed: {runtime}: {reason}.")
    role, figures = next(iter(report["networks"].items()))
    timing, paced = figures["back_to_back"], figures["paced"]
    speedup = "" if report["speedup"] is None else f", {report['speedup']:.3g} times as fast as its teacher"
    console.say(
        f"Benchmark {name}: {role} p50 {timing['p50_us']:.3g} µs, p99 {timing['p99_us']:.3g} µs "
        f"over {timing['samples']:,} calls{speedup}; "
        f"{paced['missed']} of {paced['ticks']:,} ticks missed at {report['rate_hz']:g} Hz."
    )


def _show_calls(report: Mapping[str, Any], console: Console) -> None:
    networks = report["networks"]
    role, first = next(iter(networks.items()))
    base = first["back_to_back"]["p50_us"]
    rows = []
    for each, figures in networks.items():
        network = figures["network"]
        rows.append(_call(f"{each}, {network['depth']} x {network['width']}", figures["back_to_back"], base))
        rows.append(_call("  inside the runtime", figures["inside_runtime"], base))
    rows += [_call(f"{role} in {other}", side, base) for other, side in report["comparison"].items()]
    if (busy := report["busy"]) is not None:
        load = "1 busy process" if busy["processes"] == 1 else f"{busy['processes']} busy processes"
        rows.append(_call(f"{role}, {load}", busy["back_to_back"], base))
    columns = ["one call after the other", "calls", "p50", "p90", "p99", "p99.9", "max", "times p50"]
    console.table("Latency of one call on one CPU thread, microseconds", columns, rows)


def _call(name: str, timing: Mapping[str, Any], base_us: float) -> list[Any]:
    numbers = [timing[key] for key in ("samples", *PERCENTILES, "max_us")]
    return [name, *numbers, timing["p50_us"] / base_us]


def _show_loops(report: Mapping[str, Any], console: Console) -> None:
    role = next(iter(report["networks"]))
    rows = [_loop(loop, role) for loop in report["paced_loops"]]
    rows += [
        [f"{report['rate_hz']:g} Hz, {other}", *_loop_numbers(figures["paced"]), None, None]
        for other, figures in report["networks"].items()
        if other != role
    ]
    rows += [
        [f"{report['rate_hz']:g} Hz, {role} in {other}", *_loop_numbers(side["paced"]), None, None]
        for other, side in report["comparison"].items()
        if "paced" in side
    ]
    if (busy := report["busy"]) is not None:
        rows.append(_loop(busy["paced"], f"{busy['processes']} busy"))
    columns = [
        "control loop", "ticks", "p50", "p99", "late p99", "jitter", "max", "CPU %", "missed", "empty",
        "excess %",
    ]  # fmt: skip
    title = "One call a tick, microseconds: its latency, how late it began, its latest output; ticks missed"
    console.table(title, columns, rows)


def _loop(loop: Mapping[str, Any], what: str) -> list[Any]:
    numbers = _loop_numbers(loop)
    name = f"{loop['rate_hz']:g} Hz, {what}"
    return [name, *numbers, loop["empty"]["missed"], 100 * loop["excess_missed_share"]]


def _loop_numbers(loop: Mapping[str, Any]) -> list[Any]:
    return [
        loop["ticks"],
        loop["p50_us"],
        loop["p99_us"],
        loop["jitter_p99_us"],
        loop["jitter_us"],
        loop["response"]["max_us"],
        100 * loop["cpu_share"],
        loop["missed"],
    ]


def _fresh_process(report: Mapping[str, Any]) -> list[str]:
    if report["cold_start"] is None:
        return []
    start, memory = report["cold_start"], report["memory"]
    lines = [
        f"Cold start: {start['total_s']:.2f} s from the interpreter's start to the first action: interpreter "
        f"{start['interpreter_s']:.3f}, imports {start['import_s']:.2f}, session {start['session_s']:.3f}, "
        f"first call {start['first_call_s']:.4f}."
    ]
    kept = f"a step leaves {memory['python_kept'] / 1000:.0f} bytes of Python behind"
    if memory["resident_after_load"] is None:
        return [*lines, f"Memory: this system does not tell a process's size; {kept}."]
    heap = "" if memory["heap_growth"] is None else f", {memory['heap_growth']:+,} bytes on the heap"
    lines.append(
        f"Memory: {memory['resident_after_load'] / 2**20:.0f} MiB with the policy loaded, "
        f"{memory['resident_growth'] / 1024:+,.0f} KiB after {memory['calls']:,} calls{heap}; {kept}."
    )
    return lines


# -- Pictures of a benchmark: how long calls took, and when outputs came in a control loop ---------

HISTOGRAM_FILE = "latency.png"
TIMELINE_FILE = "timeline.png"
_OURS, _EMPTY, _MISSED = PALETTE[0], SOFT, PALETTE[1]


def draw_pictures(folder: Path, report: Mapping[str, Any], measured: Measured, seed: int) -> None:
    """Draw the histogram of latencies and the timeline of the fastest control loop into a folder."""
    network = next(iter(report["networks"].values()))["network"]
    size = f"depth {network['depth']}, width {network['width']}"
    facts = (report["task"], report["policy"], size, f"seed {seed}")
    samples = measured.samples | measured.others
    title = "Latency on one CPU thread, one call after the other"
    draw_latency_histogram(folder / HISTOGRAM_FILE, samples, title, facts, deadline_us=report["period_us"])
    loops = {"as the machine was": measured.pairs[-1]}
    if measured.busy_pair is not None:
        processes = (
            "a busy process" if measured.busy_processes == 1 else f"{measured.busy_processes} busy ones"
        )
        loops[f"beside {processes}"] = measured.busy_pair
    title = f"When the output was ready, in a loop at {measured.pairs[-1].rate_hz:g} Hz"
    draw_timeline(folder / TIMELINE_FILE, loops, title, facts)


def draw_timeline(path: Path, loops: Mapping[str, PacedPair], title: str, facts: Sequence[str] = ()) -> None:
    """Draw when the output of every tick was ready, one panel a loop, the empty loop in grey behind it.

    `loops` has what each panel is headed, and its loop.
    """
    with house_figure(path, 8.6, 0.8 + 2.7 * len(loops), title, facts) as figure:
        panels: list[Axes] = list(
            figure.subplots(len(loops), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        )
        for axes, (heading, pair) in zip(panels, loops.items(), strict=True):
            _draw_loop(axes, heading, pair)
        panels[-1].set_xlabel("time in the loop (s)")
        handles, labels = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower left", ncols=4)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_markersize"):
                handle.set_markersize(6)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def _draw_loop(axes: Axes, heading: str, pair: PacedPair) -> None:
    ours, empty = joined(pair.ours), joined(pair.empty)
    period_us = 1e6 / pair.rate_hz
    for timing, colour, label in ((empty, _EMPTY, "empty loop"), (ours, _OURS, "with the policy")):
        shown_us = np.maximum(timing.response_us, 0.1)  # a logarithmic axis would stretch for smaller ones
        size = 6.0 if len(shown_us) < 1000 else 3.2
        axes.plot(timing.due_s, shown_us, ".", color=colour, ms=size, alpha=0.5, mew=0, label=label)
    late = ours.response_us >= period_us
    axes.plot(
        ours.due_s[late], ours.response_us[late], "x", color=_MISSED, ms=5, mew=1.3, alpha=0.8, label="missed"
    )
    axes.axhline(period_us, color=INK, linewidth=1.3, linestyle="--", label=f"next tick, {period_us:,.0f} µs")
    missed = f"missed {ours.missed:,} of {ours.ticks:,} ticks, the empty loop {empty.missed:,}"
    axes.set_title(f"{heading}: {missed}")
    axes.set(yscale="log", ylabel="output after its tick (µs)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.margins(x=0.01)
    axes.set_ylim(
        top=max(3 * period_us, 1.5 * float(ours.response_us.max()), 1.5 * float(empty.response_us.max()))
    )
