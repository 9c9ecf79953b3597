"""The depth study as tables and as a picture: success with intervals, at equal steps and at equal time."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.depth_study_results import (
    LAST,
    ArmResults,
    Configuration,
    ConfigurationResults,
    Estimate,
    Record,
    equal_times_s,
    final_evaluation,
    last_evaluations,
    mean_success_at,
)
from thousandfold.pipeline.pictures import INK, SOFT, house_figure, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_STEP_SHARES = (0.25, 0.5, 1.0)
_LINE_STYLES = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))


def describe_record(record: Record) -> str:
    """Return one line for a finished cell."""
    final = record["final"]
    return (
        f"success {final['success']:.3f} {_interval(final['success_interval'])} over {final['episodes']} "
        f"episodes, {record['updates']:,} updates in {record['wall_clock_s'] / 60:.1f} min"
    )


def markdown_tables(arms: Iterable[ArmResults]) -> str:
    """Return two tables an arm, success at the end and on the way, and the cells that are missing."""
    parts = []
    for arm in arms:
        parts += [f"### {arm.name}: {arm.task}, {arm.env_steps:,} environment steps"]
        if arm.started:
            parts += [_end_table(arm), _way_table(arm), _conditions(arm)]
        missing = [row for row in arm.rows if row.missing]
        listed = [f"{row.configuration.label} ({', '.join(map(str, row.missing))})" for row in missing]
        parts += [f"Missing, with their seeds: {', '.join(listed)}."] if listed else []
    return "\n\n".join(parts)


def _end_table(arm: ArmResults) -> str:
    """Return success at the end of the budget, which is at equal environment steps."""
    header = ["configuration", "parameters", "updates", "seeds", f"success, last {LAST} evaluations"]
    header += ["over episodes", "over seeds", "success, final evaluation", "over episodes", "over seeds"]
    lines = []
    for row in arm.started:
        first, line = row.records[0], [row.configuration.label]
        line += [f"{first['parameters']:,}", f"{first['updates']:,}", str(len(row.records))]
        for result in (last_evaluations(row.records), final_evaluation(row.records)):
            line += [f"{result.mean:.3f}", _interval(result.over_episodes), _interval(result.over_seeds)]
        info_nce = [statistics.mean(record["curve"]["info_nce"][-LAST:]) for record in row.records]
        minutes = statistics.mean(record["wall_clock_s"] for record in row.records) / 60
        lines.append([*line, f"{statistics.mean(info_nce):.2f}", f"{minutes:.1f}"])
    return _table([*header, f"InfoNCE, last {LAST}", "minutes"], lines)


def _way_table(arm: ArmResults) -> str:
    """Return success at equal environment steps and at equal wall-clock, mean and interval over seeds."""
    end = min(record["curve"]["env_steps"][-1] for row in arm.started for record in row.records)
    times = equal_times_s(arm)
    places = [("env_steps", share * end) for share in _STEP_SHARES] + [("elapsed_s", time) for time in times]
    header = ["configuration", *(f"{short_count(round(share * end))} steps" for share in _STEP_SHARES)]
    header += [f"{time / 60:.1f} min" for time in times]
    header[2 + len(_STEP_SHARES)] = f"**{header[2 + len(_STEP_SHARES)]}**"
    lines = []
    for row in arm.started:
        results = [mean_success_at(row.records, *place) for place in places]
        cells = [_mean_and_interval(result) if result else "–" for result in results]
        lines.append([row.configuration.label, *cells])
    return _table(header, lines)


def _conditions(arm: ArmResults) -> str:
    """Return what the second table shows and what the wall-clock was measured on."""
    records = [record for row in arm.rows for record in row.records]
    machines = sorted({record["host"]["cpu"] for record in records})
    jobs = sorted({record["cells_at_once"] for record in records})
    clock = (
        f"Wall-clock on {', '.join(machines)}, {' and '.join(map(str, jobs))} at once, one torch thread each."
    )
    if arm.paced:
        clock = "Time is environment steps times the pace of each configuration alone on one CPU thread."
    return (
        "Intervals of 95 %. Second table: mean over seeds with the interval over seeds; in bold the time at "
        f"which the first cell ended; – where a seed had not been evaluated yet or had ended. {clock}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def _mean_and_interval(result: Estimate) -> str:
    return f"{result.mean:.2f}" + (f" {_interval(result.over_seeds, 2)}" if result.over_seeds else "")


def _interval(interval: Sequence[float] | None, digits: int = 3) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "–"


def draw_figure(path: Path, arms: Sequence[ArmResults]) -> None:
    """Draw a row an arm: success by configuration, by steps and by time, and the critic's InfoNCE by steps.

    Raises SystemExit where nothing is recorded yet.
    """
    arms = [arm for arm in arms if arm.started]
    if not arms:
        raise SystemExit("nothing is recorded yet: there is nothing to draw")
    depths = sorted({row.configuration.depth for arm in arms for row in arm.started})
    with house_figure(path, width=20.0, height=0.8 + 4.4 * len(arms)) as figure:
        rows = figure.subfigures(len(arms), 1, squeeze=False)[:, 0]
        for subfigure, arm in zip(rows, arms, strict=True):
            _draw_arm(subfigure, arm, _colours(depths))
        _explain(rows[-1])


def _colours(depths: Sequence[int]) -> dict[int, Any]:
    """Return a colour for each depth, the deeper the darker; viridis is told apart with any colour vision."""
    from matplotlib import colormaps

    shades = np.linspace(0.74, 0.08, len(depths)) if len(depths) > 1 else [0.4]
    return {depth: colormaps["viridis"](shade) for depth, shade in zip(depths, shades, strict=True)}


def _draw_arm(subfigure: SubFigure, arm: ArmResults, colours: Mapping[int, Any]) -> None:
    batches = sorted({row.configuration.batch_size for row in arm.started})
    panels = subfigure.subplots(1, 5, width_ratios=(1.0, 1.25, 1.25, 1.25, 0.95))
    left, middle, right, critic, beside = panels
    seeds = sorted({len(row.records) for row in arm.started})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    subfigure.suptitle(
        f"{arm.name}: {arm.task}, {short_count(arm.env_steps)} environment steps, "
        f"{count} {'seed' if count == '1' else 'seeds'} a configuration",
        fontweight="bold", fontsize=13, x=0.01, ha="left",
    )  # fmt: skip
    _draw_success(left, arm, colours)
    for row in arm.started:
        sizes = row.configuration
        style = _LINE_STYLES[batches[::-1].index(sizes.batch_size) % len(_LINE_STYLES)]
        label = f"{_name(arm, sizes)} ({len(row.records)} seed{'s' * (len(row.records) != 1)})"
        look = {"color": colours[sizes.depth], "ls": style, "label": label}
        _draw_mean_curve(middle, row.records, "env_steps", "success", **look)
        _draw_mean_curve(right, row.records, "elapsed_s", "success", unit=60.0, **look)
        _draw_mean_curve(critic, row.records, "env_steps", "info_nce", **look)
    for axes in (middle, critic):
        axes.set(xlabel="environment steps", xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    _finish_wall_clock(right, arm)
    clock = "time alone on a thread" if arm.paced else "wall-clock"
    titles = ("success by environment steps", f"success by {clock}", "InfoNCE (nats) by environment steps")
    for axes, title in zip(panels, (f"success, last {LAST} evaluations", *titles), strict=False):
        axes.set_title(title, fontsize=11, fontweight="normal", pad=6)
    for axes in (left, middle, right):
        axes.set_ylim(-0.03, 1.03)
    beside.axis("off")
    legend = beside.legend(*middle.get_legend_handles_labels(), loc="center left", borderaxespad=0)
    legend.set_in_layout(False)  # the panels of all rows stand below one another, however long the names


def _name(arm: ArmResults, sizes: Configuration) -> str:
    """Return what tells a configuration from the others of its arm."""
    names = {"depth": f"depth {sizes.depth}", "network": f"depth {sizes.depth}, width {sizes.width}"}
    return names.get(arm.axis, f"depth {sizes.depth}, batch {sizes.batch_size}")


def _draw_success(axes: Axes, arm: ArmResults, colours: Mapping[int, Any]) -> None:
    """Draw success at the end with both intervals, and one dot a seed."""
    ticks = list(dict.fromkeys(_tick(arm, row) for row in arm.rows))
    depths = list(dict.fromkeys(row.configuration.depth for row in arm.started))
    lines: dict[int, list[tuple[float, float]]] = {}
    for row in arm.started:
        depth, result = row.configuration.depth, last_evaluations(row.records)
        x = float(ticks.index(_tick(arm, row)))
        if arm.axis == "batch_size":  # several depths share a place
            x += 0.4 * (depths.index(depth) - (len(depths) - 1) / 2)
            lines.setdefault(depth, []).append((x, result.mean))
        elif arm.axis == "depth":
            lines.setdefault(0, []).append((x, result.mean))
        colour = colours[depth]
        if result.over_seeds:
            axes.plot([x, x], result.over_seeds, color=colour, lw=1.4, zorder=3)
        axes.plot(
            [x, x], result.over_episodes, color=colour, lw=11, alpha=0.35, solid_capstyle="butt", zorder=3
        )
        axes.plot(x, result.mean, "D", color=colour, ms=6, mec="white", mew=1.2, zorder=5)
        places = x + 0.13 + 0.04 * np.arange(len(result.seeds))
        axes.plot(places, result.seeds, "o", color=colour, ms=4.5, mec="white", mew=0.6, zorder=4)
    for depth, points in lines.items():
        axes.plot(*zip(*points, strict=True), color=colours.get(depth, SOFT), lw=1.2, alpha=0.6, zorder=2)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel({"depth": "depth", "batch_size": "batch size"}.get(arm.axis, ""))


def _tick(arm: ArmResults, row: ConfigurationResults) -> str:
    sizes = row.configuration
    if arm.axis != "network":
        return str(getattr(sizes, arm.axis))
    parameters = float(f"{row.records[0]['parameters']:.3g}") if row.records else 0.0
    size = f"\n{short_count(parameters)} parameters" if row.records else ""
    return f"depth {sizes.depth}\nwidth {sizes.width}{size}"


def _draw_mean_curve(
    axes: Axes, records: Sequence[Record], axis: str, name: str, *, unit: float = 1.0, **style: Any
) -> None:
    """Draw the mean over the seeds and the band from the lowest to the highest, where every seed has one."""
    curves = []
    for record in records:
        pairs = zip(record["curve"][axis], record["curve"][name], strict=True)
        # An evaluation before the first update has no InfoNCE.
        curves.append(np.array([pair for pair in pairs if pair[1] is not None]).T)
    first, last = max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves)
    places = np.unique([place for curve in curves for place in curve[0] if first <= place <= last])
    values = np.stack([np.interp(places, *curve) for curve in curves])
    axes.plot(places / unit, values.mean(0), lw=2, **style)
    if len(records) > 1:
        band = values.min(0), values.max(0)
        axes.fill_between(places / unit, *band, color=style["color"], alpha=0.15, lw=0)


def _finish_wall_clock(axes: Axes, arm: ArmResults) -> None:
    """Label the axis of time, logarithmic because depths differ in speed by an order of magnitude."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.axvline(equal_times_s(arm)[1] / 60, color=INK, lw=1.2, ls=":", zorder=1)
    axes.set(xscale="log", xlabel="minutes")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _explain(subfigure: SubFigure) -> None:
    """Say below the last row what the marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=SOFT, marker="D", ls="", label="mean over seeds"),
        Line2D([], [], color=SOFT, marker="o", ms=4.5, ls="", label="a seed"),
        Line2D([], [], color=SOFT, lw=11, alpha=0.35, label="95 % over episodes"),
        Line2D([], [], color=SOFT, lw=1.4, label="95 % over seeds"),
        Patch(color=SOFT, alpha=0.2, lw=0, label="lowest to highest seed"),
        Line2D([], [], color=INK, lw=1.2, ls=":", label="the first cell to end"),
    ]
    subfigure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10)
