"""Pictures of results as PNG files: learning curves and latency histograms.

Matplotlib is imported when a picture is drawn, and used through its objects: no display, no global figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.ground.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision; yellow is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, SOFT, FAINT = "#222222", "#777777", "#DDDDDD"
DPI = 150

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_FRACTIONS = ("success", "time_at_goal", "accuracy", "retention")


def draw_learning_curve(
    path: Path,
    history: Sequence[Mapping[str, Any]],
    title: str,
    *,
    x: str = "step",
    x_label: str = "environment steps",
    metrics: Sequence[str] | None = None,
) -> None:
    """Draw what a learner reported over its training, one panel a metric.

    A metric's panel also shows its interval where reports hold `<metric>_low` and `<metric>_high`.

    Args:
        path: The PNG file; it is replaced atomically.
        history: One mapping a report, with `x` and any metrics; a metric may be missing in some reports.
        title: Stands above the first panel.
        x: The key of the horizontal axis.
        x_label: What that axis counts, with its unit.
        metrics: The metrics to draw, in this order; None draws every number in the history.

    Raises:
        ValueError: The history holds no finite value of these metrics.
    """
    curves = {
        name: curve for name in metrics or _metric_names(history, x) if (curve := _curve(history, x, name))
    }
    if not curves:
        raise ValueError(f"no finite value of {', '.join(metrics or ['any metric'])} to draw")
    with house_figure(path, width=8.0, height=1.0 + 2.0 * len(curves)) as figure:
        panels: list[Axes] = list(figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0])
        for axes, colour, (name, (xs, values)) in zip(panels, cycle(PALETTE), curves.items(), strict=False):
            is_fraction = any(word in name for word in _FRACTIONS) and min(values) >= 0 and max(values) <= 1
            draw_curve(axes, xs, values, colour, f"{values[-1]:.3f}" if is_fraction else f"{values[-1]:.3g}")
            axes.set_ylabel(name.replace("_", " ").replace("/", "\n"))
            axes.margins(x=0.02)
            if is_fraction:
                axes.set_ylim(-0.04, 1.04)
            low, high = _curve(history, x, f"{name}_low"), _curve(history, x, f"{name}_high")
            if low and high and low[0] == high[0]:
                axes.fill_between(low[0], low[1], high[1], color=colour, alpha=0.18, linewidth=0)
        panels[0].set_title(title)
        panels[-1].set_xlabel(x_label)
        panels[-1].xaxis.set_major_formatter(lambda value, _: short_count(value))
        figure.align_ylabels()


def draw_compared_curves(
    path: Path,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str,
    x_label: str,
    metrics: Sequence[str],
) -> None:
    """Draw the curves of several trainings over one another, one panel a metric.

    Args:
        path: The PNG file; it is replaced atomically.
        histories: By name, as `draw_learning_curve` takes one.
        x, x_label: As of `draw_learning_curve`.
        metrics: The metrics to draw, in this order.
    """
    with house_figure(path, width=8.0, height=1.2 + 2.2 * len(metrics)) as figure:
        panels: list[Axes] = list(figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0])
        for axes, metric in zip(panels, metrics, strict=True):
            for colour, (name, history) in zip(cycle(PALETTE), histories.items(), strict=False):
                if curve := _curve(history, x, metric):
                    marker = "o" if len(curve[0]) < 40 else None
                    axes.plot(*curve, color=colour, linewidth=2, marker=marker, markersize=4, label=name)
            axes.set_ylabel(metric.replace("_", " "))
        panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1))
        panels[-1].set_xlabel(x_label)
        panels[-1].xaxis.set_major_formatter(lambda value, _: short_count(value))
        figure.align_ylabels()


def draw_latency_histogram(
    path: Path,
    samples_us: Mapping[str, Sequence[float] | np.ndarray],
    title: str,
    deadline_us: float | None = None,
) -> None:
    """Draw how long single inferences took, with the median and the 99th percentile of each series.

    Both axes are logarithmic, so that one slow call is seen beside many fast ones.

    Args:
        path: The PNG file; it is replaced atomically.
        samples_us: Label to the latencies of its calls, in microseconds.
        title: Stands above the picture.
        deadline_us: The control period in microseconds, drawn as a line where given.

    Raises:
        ValueError: There is no series, or one has no positive finite sample.
    """
    series = {label: _positive_samples(label, samples) for label, samples in samples_us.items()}
    if not series:
        raise ValueError("a latency histogram needs at least one series")
    with house_figure(path, width=8.0, height=4.6) as figure:
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
            label = f"control period {_microseconds(deadline_us)}"
            axes.axvline(deadline_us, color=INK, linewidth=1.5, linestyle="--", label=label)
        axes.set(xscale="log", yscale="log", title=title, xlabel="latency of one call (µs)", ylabel="calls")
        label_log_axis(axes)
        axes.set_ylim(bottom=0.8)
        figure.legend(loc="outside lower left", fontsize=10)


def draw_gradient_map(path: Path, gradients: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the gradient norm of every block over a training, one map a network, on one logarithmic scale.

    Args:
        path: The PNG file; it is replaced atomically.
        gradients: One mapping a report: ``updates``, and for each network the norms of its blocks, first
            block first.
        title: Stands above the maps.

    Raises:
        ValueError: There is no report, or no norm above 0.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    names = [name for name in gradients[0] if name != "updates"] if gradients else []
    maps = {name: np.array([report[name] for report in gradients], dtype=np.float64).T for name in names}
    positive = np.concatenate([norms[norms > 0] for norms in maps.values()] or [np.empty(0)])
    if not len(positive):
        raise ValueError("no gradient norm above 0 to draw")
    scale = LogNorm(float(np.percentile(positive, 1)), float(positive.max()), clip=True)
    updates = np.array([report["updates"] for report in gradients], dtype=np.float64)
    # Each report is a column up to its own update.
    edges = np.concatenate([[2 * updates[0] - updates[1] if len(updates) > 1 else 0.0], updates])
    with house_figure(path, width=8.0, height=1.2 + 2.0 * len(maps)) as figure:
        panels: list[Axes] = list(figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0])
        for axes, (name, norms) in zip(panels, maps.items(), strict=True):
            blocks = np.arange(len(norms) + 1) + 0.5
            mesh = axes.pcolormesh(
                edges, blocks, np.maximum(norms, scale.vmin or 0), norm=scale, cmap="viridis"
            )
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(f"{name.replace('_', ' ')}\nblock")
            axes.grid(False)
            figure.colorbar(mesh, ax=axes, label="gradient norm")
        panels[0].set_title(title)
        panels[-1].set_xlabel("updates")
        panels[-1].xaxis.set_major_formatter(lambda value, _: short_count(value))
        figure.align_ylabels()


@contextmanager
def house_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in the house style, sizes in inches; it is written when the block ends well."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        yield figure
        with atomic_file(path) as temporary:
            canvas.print_png(str(temporary))


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
        last,
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


def short_count(value: float) -> str:
    """Return 250000 as `250k` and 1500000 as `1.5M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _microseconds(value: float) -> str:
    return f"{value:,.0f} µs" if value >= 100 else f"{value:.3g} µs"
