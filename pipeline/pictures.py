"""Pictures of results as PNG files: learning curves, gradients and latency histograms.

Matplotlib is imported when a picture is drawn, and used through its objects: no display, no global figures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.ground.picture_style import (
    DENSITY_MAP,
    INK,
    PALETTE,
    SOFT,
    count_axis,
    house_figure,
    signed,
)
from thousandfold.pipeline.artifacts import Artifact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRACTIONS = ("success", "goals_held", "accuracy", "retention")
CURVE_LABELS = {
    "success": "success",
    "goals_held": "share of the goals that were held",
    "time_at_goal": "steps at the goal per 1000",
    "final_distance": "final distance to the goal",
    "info_nce": "InfoNCE loss (nats)",
    "value": "value of the actions taken, as the critic has it",
    "value_error": "temporal-difference error",
    "categorical_accuracy": "accuracy of the critic’s choice",
    "entropy": "entropy of the policy (nats)",
    "validation_loss": "loss on held-out episodes",
    "kl": "divergence from the teacher (nats)",
    "action_mse": "squared error of the action",
}
"""What an axis calls a measure of a history; others go by their name."""
_LABEL_CHARACTERS = 21  # of a line beside a panel


def network_size(artifact: Artifact) -> tuple[int, int] | None:
    """Return depth and width of a teacher's, a student's or a policy's actor; None where it does not say."""
    if artifact.kind == "policy":
        depth, width = artifact.manifest.results.get("depth"), artifact.manifest.results.get("width")
        return (int(depth), int(width)) if depth and width else None
    prefix, settings = ("student_" if artifact.kind == "student" else ""), artifact.manifest.settings
    depth = settings.get("actor_depth") or settings.get(f"{prefix}depth")
    width = settings.get(f"{prefix}width")
    return (int(depth), int(width)) if depth and width else None


def artifact_facts(artifact: Artifact, *, of: Artifact | None = None) -> tuple[str, ...]:
    """Return what a picture's heading says of an artifact: task, name, depth and width, seed.

    `of` is another that the network and its training are taken from, such as a policy's student.
    """
    source, manifest = of or artifact, artifact.manifest
    size, seed = network_size(source), source.manifest.settings.get("seed")
    return (
        manifest.task,
        artifact.name,
        f"depth {size[0]}, width {size[1]}" if size else "",
        "" if seed is None else f"seed {seed}",
    )


def draw_learning_curve(
    path: Path,
    history: Sequence[Mapping[str, Any]],
    title: str,
    facts: Sequence[str] = (),
    *,
    x: str = "step",
    x_label: str = "environment steps",
    metrics: Sequence[str] | None = None,
    changes: Mapping[float, str] | None = None,
) -> None:
    """Draw what a learner reported over its training, one panel a metric.

    A metric's panel also shows its interval where reports hold `<metric>_low` and `<metric>_high`.

    Args:
        path: The PNG file; it is replaced atomically.
        history: One mapping a report, with `x` and any metrics; a metric may be missing in some reports.
        title, facts: Of the heading, as `house_figure` takes them.
        x: The key of the horizontal axis.
        x_label: What that axis counts, with its unit.
        metrics: The metrics to draw, in this order; None draws every number in the history.
        changes: What is measured from a place of the horizontal axis on, by that place, marked by a dashed
            line.

    Raises:
        ValueError: The history holds no finite value of these metrics.
    """
    curves = {
        name: curve for name in metrics or _metric_names(history, x) if (curve := _curve(history, x, name))
    }
    if not curves:
        raise ValueError(f"no finite value of {', '.join(metrics or ['any metric'])} to draw")
    with house_figure(path, 8.0, 0.6 + 2.0 * len(curves), title, facts) as figure:
        panels: list[Axes] = list(figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0])
        for axes, colour, (name, (xs, values)) in zip(panels, cycle(PALETTE), curves.items(), strict=False):
            is_fraction = any(word in name for word in _FRACTIONS) and min(values) >= 0 and max(values) <= 1
            draw_curve(axes, xs, values, colour, f"{values[-1]:.3f}" if is_fraction else f"{values[-1]:.3g}")
            axes.set_ylabel(curve_label(name))
            axes.margins(x=0.02)
            if is_fraction or max(values) == min(values) == 0:
                axes.set_ylim(-0.04, 1.04)
            low, high = _curve(history, x, f"{name}_low"), _curve(history, x, f"{name}_high")
            if low and high and low[0] == high[0]:
                band = axes.fill_between(low[0], low[1], high[1], color=colour, alpha=0.18, linewidth=0)
                axes.legend([band], ["95 % interval over episodes"], loc="best", fontsize=9)
        for row, (place, label) in enumerate((changes or {}).items()):
            for axes in panels:
                axes.axvline(place, color=SOFT, linewidth=1, linestyle="--")
            panels[0].annotate(
                label,
                (place, 1),
                (3, 3 + 11 * row),
                ("data", "axes fraction"),
                "offset points",
                color=SOFT,
                fontsize=9,
            )
        panels[-1].set_xlabel(x_label)
        count_axis(panels[-1])
        figure.align_ylabels()


def draw_compared_curves(
    path: Path,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str,
    x_label: str,
    metrics: Sequence[str],
    facts: Sequence[str] = (),
) -> None:
    """Draw the curves of several trainings over one another, one panel a metric.

    Args:
        path: The PNG file; it is replaced atomically.
        histories: By name, as `draw_learning_curve` takes one.
        x, x_label: As of `draw_learning_curve`.
        metrics: The metrics to draw, in this order. Intervals are bands, as of `draw_learning_curve`.
        facts: Of the heading.
    """
    title = "Learning curves compared"
    with house_figure(path, 8.0, 0.8 + 2.2 * len(metrics), title, facts) as figure:
        panels: list[Axes] = list(figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0])
        for axes, metric in zip(panels, metrics, strict=True):
            for colour, (name, history) in zip(cycle(PALETTE), histories.items(), strict=False):
                if curve := _curve(history, x, metric):
                    marker = "o" if len(curve[0]) < 40 else None
                    axes.plot(*curve, color=colour, linewidth=2, marker=marker, markersize=4, label=name)
                low, high = _curve(history, x, f"{metric}_low"), _curve(history, x, f"{metric}_high")
                if low and high and low[0] == high[0]:
                    axes.fill_between(low[0], low[1], high[1], color=colour, alpha=0.18, linewidth=0)
            axes.set_ylabel(curve_label(metric))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        panels[-1].set_xlabel(x_label)
        count_axis(panels[-1])
        figure.align_ylabels()


def draw_latency_histogram(
    path: Path,
    samples_us: Mapping[str, Sequence[float] | np.ndarray],
    title: str,
    facts: Sequence[str] = (),
    *,
    deadline_us: float | None = None,
) -> None:
    """Draw how long single inferences took, with the median and the 99th percentile of each series.

    Both axes are logarithmic, so that one slow call is seen beside many fast ones.

    Args:
        path: The PNG file; it is replaced atomically.
        samples_us: Label to the latencies of its calls, in microseconds.
        title, facts: Of the heading, as `house_figure` takes them.
        deadline_us: The control period in microseconds, drawn as a line where given.

    Raises:
        ValueError: There is no series, or one has no positive finite sample.
    """
    series = {label: _positive_samples(label, samples) for label, samples in samples_us.items()}
    if not series:
        raise ValueError("a latency histogram needs at least one series")
    with house_figure(path, 8.0, 4.4, title, facts) as figure:
        axes: Axes = figure.subplots()
        edges = _log_edges(np.concatenate(list(series.values())))
        for (label, samples), colour in zip(series.items(), cycle(PALETTE), strict=False):
            p50, p99 = np.percentile(samples, [50, 99], method="inverted_cdf")
            label = f"{label}: p50 {_microseconds(p50)} (line), p99 {_microseconds(p99)} (dotted)"
            axes.hist(
                samples, edges, histtype="stepfilled", fc=(colour, 0.25), ec=colour, lw=1.5, label=label
            )
            axes.axvline(p50, color=colour, linewidth=1.5)
            axes.axvline(p99, color=colour, linewidth=1.5, linestyle=":")
        if deadline_us is not None:
            label = f"deadline: one control period, {_microseconds(deadline_us)}"
            axes.axvline(deadline_us, color=INK, linewidth=1.8, linestyle="--", label=label)
        axes.set(xscale="log", yscale="log", xlabel="latency of one call (µs)", ylabel="calls")
        label_log_axis(axes)
        axes.set_ylim(bottom=0.8)
        figure.legend(loc="outside lower left")


def draw_gradient_map(
    path: Path, gradients: Sequence[Mapping[str, Any]], title: str, facts: Sequence[str] = ()
) -> None:
    """Draw the gradient norm of every block over a training, one map a network, on one logarithmic scale.

    Args:
        path: The PNG file; it is replaced atomically.
        gradients: One mapping a report: ``updates``, and for each network the norms of its blocks, first
            block first.
        title, facts: Of the heading, as `house_figure` takes them.

    Raises:
        ValueError: There is no report, or no norm above 0.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, MaxNLocator

    names = [name for name in gradients[0] if name != "updates"] if gradients else []
    maps = {name: np.array([report[name] for report in gradients], dtype=np.float64).T for name in names}
    positive = np.concatenate([norms[norms > 0] for norms in maps.values()] or [np.empty(0)])
    if not len(positive):
        raise ValueError("no gradient norm above 0 to draw")
    scale = LogNorm(float(np.percentile(positive, 1)), float(positive.max()), clip=True)
    updates = np.array([report["updates"] for report in gradients], dtype=np.float64)
    # Each report is a column up to its own update.
    edges = np.concatenate([[2 * updates[0] - updates[1] if len(updates) > 1 else 0.0], updates])
    with house_figure(path, 8.0, 0.8 + 2.0 * len(maps), title, facts) as figure:
        panels: list[Axes] = list(figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0])
        for axes, (name, norms) in zip(panels, maps.items(), strict=True):
            blocks = np.arange(len(norms) + 1) + 0.5
            mesh = axes.pcolormesh(
                edges, blocks, np.maximum(norms, scale.vmin or 0), norm=scale, cmap=DENSITY_MAP
            )
            axes.yaxis.set_major_locator(
                FixedLocator(range(1, len(norms) + 1)) if len(norms) < 6 else MaxNLocator(6, integer=True)
            )
            axes.set_ylabel(f"{name.replace('_', ' ')}\nblock")
            axes.grid(False)
        bar = figure.colorbar(mesh, ax=panels, label="gradient norm of a block", aspect=40)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        panels[-1].set_xlabel("updates")
        count_axis(panels[-1])
        figure.align_ylabels()


def curve_label(name: str) -> str:
    """Return what the axis of a measure says, in short lines."""
    label = CURVE_LABELS.get(name) or name.replace("_", " ").replace("/", "\n")
    return "\n".join(line for part in label.split("\n") for line in _balanced(part))


def _balanced(text: str) -> list[str]:
    """Return a text in as few lines as fit beside a panel, about equally long."""
    lines = math.ceil(len(text) / _LABEL_CHARACTERS)
    return textwrap.wrap(text, math.ceil(len(text) / max(lines, 1)) + 3)


def _metric_names(history: Sequence[Mapping[str, Any]], x: str) -> list[str]:
    """Return the keys that hold numbers, in order of appearance, without the axis and the intervals."""
    names = {
        key: None for report in history for key, value in report.items() if isinstance(value, int | float)
    }
    bounds = {f"{name}_{side}" for name in names for side in ("low", "high")}
    return [name for name in names if name != x and name not in bounds]


def _curve(history: Sequence[Mapping[str, Any]], x: str, name: str) -> tuple[list[float], list[float]] | None:
    """Return a metric's (xs, values) where both are there and finite; None where that is nowhere."""
    points = [(report.get(x), report.get(name)) for report in history]
    points = [(float(a), float(b)) for a, b in points if a is not None and b is not None]
    points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    return ([a for a, _ in points], [b for _, b in points]) if points else None


def draw_curve(axes: Axes, xs: Sequence[float], values: Sequence[float], colour: str, last: str) -> None:
    """Draw a curve, and beside its end what its last value is; a curve of few points has a dot for each."""
    axes.plot(xs, values, color=colour, linewidth=2, marker="o" if len(xs) < 40 else None, markersize=4)
    axes.annotate(
        signed(last),
        (xs[-1], values[-1]),
        xytext=(14, 0),
        textcoords="offset points",
        color=colour,
        fontweight="bold",
        va="center",
        annotation_clip=False,
    )


def _positive_samples(label: str, samples: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        raise ValueError(f"series {label!r} has no positive finite latency")
    return values


def _log_edges(samples: np.ndarray, bins: int = 90) -> list[float]:
    """Return bin edges that are evenly spaced on a logarithmic axis and hold every sample."""
    return np.geomspace(samples.min() / 1.02, samples.max() * 1.02, bins + 1).tolist()


def label_log_axis(axes: Axes) -> None:
    """Label 1, 2 and 5 of each decade in plain numbers: latencies rarely span many decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high / low < 1e3 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _microseconds(value: float) -> str:
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"
