"""What a report says of latency: read from `benchmark.json` by the names of its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from thousandfold.pipeline.console import figure
from thousandfold.stages.report.charts import Range, range_chart
from thousandfold.stages.report.page import Block, Facts, Figure, Figures, Note, Section, Table
from thousandfold.stages.report.sections import Sources

BENCHMARK_FILE = "benchmark.json"
_PERCENTILES = ("p50_us", "p90_us", "p99_us", "p99_9_us", "max_us")
# Parts of a loop's figures that are no calls of the policy.
_NOT_CALLS = ("response", "start_late", "empty", "definitions")
_SILENT = ("networks", "paced", "paced_loops", "back_to_back")
_MOST_BARS = 8
_PERIOD_IN_CHART = 20.0
_PICTURES = {
    "latency": ("Histogram of the durations of single calls", "How long single calls took."),
    "timeline": ("Timeline of late outputs in the control loops", "When outputs came late, over the run."),
}


@dataclass(frozen=True)
class Timing:
    """The figures of one series of calls.

    Attributes:
        label: whose calls, and how they were made.
        figures: as in the file, `p50_us` and `p99_us` among them.
        is_paced: made at ticks, not one right after the other.
        is_policy: the policy's own, not its teacher's or another runtime's.
    """

    label: str
    figures: Mapping[str, Any]
    is_paced: bool
    is_policy: bool


def timings(report: Mapping[str, Any]) -> list[Timing]:
    """Return every series of calls of a benchmark, in the order of its file."""
    policy = next(iter(report.get("networks") or {}), "student")
    loops = bool(report.get("paced_loops"))
    found = []
    for keys, figures in _series(report, ()):
        if loops and keys == ("networks", policy, "paced"):
            continue  # the loop at the task's own rate, which is among `paced_loops`
        paced = figures.get("ticks") is not None
        rate = figures.get("rate_hz") or report.get("rate_hz")
        words = [key.replace("_", " ") for key in keys if key not in _SILENT]
        label = ", ".join(words) or policy
        if keys[0] == "comparison":
            label = f"{policy} in {' '.join(words[1:])}"
        elif keys[0] == "busy":
            count = report["busy"].get("processes", 1)
            label = f"{policy} beside {count} busy {'process' if count == 1 else 'processes'}"
        label += f" at {rate:g} Hz" if paced and rate else ""
        is_policy = keys[:2] == ("networks", policy) or keys[0] in ("paced_loops", "busy")
        found.append(Timing(label, figures, paced, is_policy))
    return found


def _series(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield every mapping that holds percentiles of calls, and the names that lead to it."""
    if isinstance(value, list):
        for item in value:
            yield from _series(item, keys)
    if not isinstance(value, Mapping):
        return
    if keys and all(isinstance(value.get(name), int | float) for name in ("p50_us", "p99_us")):
        yield keys, value
    for key, item in value.items():
        if key not in _NOT_CALLS:
            yield from _series(item, (*keys, str(key)))


def policy_timing(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the figures of the policy's own calls, one right after the other; None where there are none."""
    own = [timing for timing in timings(report) if timing.is_policy and not timing.is_paced]
    return own[0].figures if own else None


def latency_section(sources: Sources) -> Section:
    """Tell how long a call takes, and which outputs came too late."""
    title, benchmark = "How fast it answers", sources.chain.get("benchmark")
    if benchmark is None:
        missing = Note("No benchmark of this policy: `pipeline benchmark` makes one.")
        return Section("latency", title, "", [missing])
    report = sources.files.read_json(benchmark, BENCHMARK_FILE)
    found = timings(report) if isinstance(report, dict) else []
    if not found:
        return Section("latency", title, "", [Note(f"No figures in {BENCHMARK_FILE} of {benchmark.name}.")])
    pictures = []
    for name in benchmark.manifest.files:
        path = PurePosixPath(name)
        if path.suffix == ".png":
            alt, caption = _PICTURES.get(path.stem, (f"{path.stem} of the benchmark", f"{path.stem}."))
            pictures.append(sources.files.figure(benchmark, name, alt=alt, caption=caption))
    shown = [picture for picture in pictures if picture]
    figures = Figures([_chart(found, report), *shown])
    blocks: list[Block] = [Facts(_facts(report)), figures, *_tables(found)]
    if not shown:
        blocks.append(Note("No histogram: the benchmark drew none."))
    blocks += [Note(f"Not timed: {name}, {why}.") for name, why in (report.get("left_out") or {}).items()]
    lead = "One CPU thread, from observation and goal to action and control. All times in microseconds."
    return Section("latency", title, lead, blocks)


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    host, runtime = report.get("host") or {}, report.get("runtime") or {}
    facts = []
    if host.get("cpu"):
        load = host.get("load_average")
        busy = f"load {load:.1f} on {host.get('usable_cpus', '?')} CPUs" if load is not None else ""
        facts.append(("Processor", str(host["cpu"]), busy))
    if runtime:
        version = f"{runtime.get('name', '?')} {runtime.get('version', '')}".strip()
        facts.append(("Runtime", version, f"{runtime.get('threads', 1)} thread"))
    if report.get("rate_hz"):
        period = f"{1e6 / report['rate_hz']:,.0f} µs a step"
        facts.append(("Control rate", f"{report['rate_hz']:g} Hz", period))
    if report.get("speedup"):
        facts.append(("Against the teacher", f"{report['speedup']:.3g} times as fast", "p50, back to back"))
    policy = next(iter((report.get("networks") or {}).values()), {})
    if roofline := policy.get("roofline"):
        bound = f"the weights alone take {roofline['bound_us']:.2f} µs to read"
        facts.append(("Roofline", f"{roofline['ratio']:.3g} times the bound", bound))
    if cold := report.get("cold_start"):
        imports = f"{cold['import_s']:.2f} s of it imports" if "import_s" in cold else ""
        facts.append(("Cold start", f"{cold['total_s']:.2f} s to the first action", imports))
    if memory := report.get("memory"):
        grown = f"{memory['resident_growth'] / 1024:+.0f} KiB after {figure(memory.get('calls'))} calls"
        resident = f"{memory['resident_after_load'] / 2**20:.0f} MiB with the policy loaded"
        facts.append(("Memory", resident, grown))
    return facts


def _chart(found: list[Timing], report: Mapping[str, Any]) -> Figure:
    unpaced = [timing for timing in found if not timing.is_paced] or found
    rows = []
    for timing in unpaced[:_MOST_BARS]:
        p50, p99 = timing.figures["p50_us"], timing.figures["p99_us"]
        longest = timing.figures.get("p99_9_us") or p99
        shown = f"p50 {_us(p50)}, p99 {_us(p99)}"
        rows.append(Range(timing.label, shown, p50, (p50, p99), (p50, max(longest, p99)), timing.is_policy))
    period = report.get("period_us")
    # A period much further right than every call would squeeze them into a corner.
    in_reach = period is not None and period <= _PERIOD_IN_CHART * max(row.inner[1] for row in rows)
    reference = (float(period or 0), f"control period {_us(period)} µs") if in_reach else None
    chart = range_chart(rows, "µs a call, logarithmic", log=True, reference=reference)
    caption = (
        "One right after the other: the dot is the median; the thick line ends at p99, the thin one at p99.9."
    )
    return Figure("chart", chart, "", caption)


def _tables(found: list[Timing]) -> list[Block]:
    """Return a table of calls one right after the other, and one of control loops."""
    blocks: list[Block] = []
    calls, loops = [], []
    for timing in found:
        numbers = timing.figures
        if not timing.is_paced:
            percentiles = [_us(numbers.get(name)) for name in _PERCENTILES]
            calls.append([timing.label, figure(numbers.get("samples")), *percentiles])
            continue
        excess = numbers.get("excess_missed_share")
        loops.append(
            [
                timing.label,
                figure(numbers.get("ticks")),
                *(_us(numbers.get(name)) for name in ("p50_us", "p99_us", "jitter_p99_us")),
                _us((numbers.get("response") or {}).get("max_us")),
                _count(numbers.get("missed")),
                _count((numbers.get("empty") or {}).get("missed")),
                "–" if excess is None else f"{100 * excess:.3g} %",
            ]
        )
    if calls:
        columns = ["µs a call", "calls", "p50", "p90", "p99", "p99.9", "max"]
        blocks.append(Table("One call right after the other", columns, calls, frozenset(columns[1:])))
    if loops:
        columns = [
            "µs", "ticks", "p50", "p99", "late p99", "latest output", "missed", "missed empty", "excess",
        ]  # fmt: skip
        kept = [k for k in range(len(columns)) if any(row[k] != "–" for row in loops)]
        caption = (
            "Control loops. p50, p99: of a call; late: from the tick to its beginning; missed: no output one "
            "period after its tick; empty: a loop without a policy"
        )
        rows = [[row[k] for k in kept] for row in loops]
        blocks.append(Table(caption, [columns[k] for k in kept], rows, frozenset(columns[1:])))
    return blocks


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _us(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
