"""Pictures of a benchmark: how long calls took, and when outputs came in a control loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.pipeline.pictures import INK, PALETTE, SOFT, draw_latency_histogram, house_figure
from thousandfold.stages.benchmark.paced_loop import PacedPair, PacedTiming, joined
from thousandfold.stages.benchmark.results import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAM_FILE = "latency.png"
TIMELINE_FILE = "timeline.png"

# A deadline much further right than every call would squeeze the histogram into a corner.
_DEADLINE_IN_PICTURE = 5.0
_OURS, _EMPTY, _MISSED = PALETTE[0], SOFT, PALETTE[1]


def draw_pictures(folder: Path, report: Mapping[str, Any], measured: Measured) -> None:
    """Draw the histogram of latencies and the timeline of the fastest control loop into a folder."""
    samples = measured.samples | measured.others
    longest_us = max(found.max() for found in samples.values())
    in_reach = report["period_us"] <= _DEADLINE_IN_PICTURE * longest_us
    draw_latency_histogram(
        folder / HISTOGRAM_FILE,
        samples,
        f"{report['policy']} on one CPU thread, back to back",
        report["period_us"] if in_reach else None,
    )
    loops = {"as the machine was": measured.pairs[-1]}
    if measured.busy_pair is not None:
        processes = (
            "a busy process" if measured.busy_processes == 1 else f"{measured.busy_processes} busy ones"
        )
        loops[f"beside {processes}"] = measured.busy_pair
    title = f"{report['policy']} at {measured.pairs[-1].rate_hz:g} Hz: when its output was ready"
    draw_timeline(folder / TIMELINE_FILE, loops, title)


def draw_timeline(path: Path, loops: Mapping[str, PacedPair], title: str) -> None:
    """Draw when the output of every tick was ready, one panel a loop, the empty loop in grey behind it.

    Args:
        path: the PNG file; it is replaced atomically.
        loops: what each panel is headed, and its loop.
        title: stands above the picture.
    """
    with house_figure(path, width=8.6, height=1.2 + 2.7 * len(loops)) as figure:
        panels: list[Axes] = list(
            figure.subplots(len(loops), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        )
        for axes, (heading, pair) in zip(panels, loops.items(), strict=True):
            _draw_loop(axes, heading, pair)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        panels[-1].set_xlabel("time in the loop (s)")
        handles, labels = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower left", fontsize=10, ncols=4)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_markersize"):
                handle.set_markersize(6)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def _draw_loop(axes: Axes, heading: str, pair: PacedPair) -> None:
    ours, empty = joined(pair.ours), joined(pair.empty)
    period_us = 1e6 / pair.rate_hz
    for timing, colour, label in ((empty, _EMPTY, "empty loop"), (ours, _OURS, "with the policy")):
        axes.plot(timing.due_s, _shown(timing), ".", color=colour, ms=3.2, alpha=0.5, mew=0, label=label)
    late = ours.response_us >= period_us
    axes.plot(
        ours.due_s[late], ours.response_us[late], "x", color=_MISSED, ms=5, mew=1.3, alpha=0.8, label="missed"
    )
    axes.axhline(period_us, color=INK, linewidth=1.3, linestyle="--", label=f"next tick, {period_us:,.0f} µs")
    missed = f"missed {ours.missed:,} of {ours.ticks:,} ticks, the empty loop {empty.missed:,}"
    axes.set_title(f"{heading}: {missed}", fontsize=11, fontweight="normal", pad=6)
    axes.set(yscale="log", ylabel="output after its tick (µs)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.margins(x=0.01)
    axes.set_ylim(
        top=max(3 * period_us, 1.5 * float(ours.response_us.max()), 1.5 * float(empty.response_us.max()))
    )


def _shown(timing: PacedTiming) -> np.ndarray:
    """Return the responses, none so small that a logarithmic axis stretches for it."""
    return np.maximum(timing.response_us, 0.1)
