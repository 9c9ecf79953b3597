"""How long a grid of twelve students takes from end to end, and what there is to choose from.

    python -m benchmarks.frontier_grid --teacher runs/teacher-20261124-083600 --workspace runs/frontier_grid
    python -m benchmarks.frontier_grid --figure           print and draw what is recorded; run nothing

The teacher's dataset is made first and timed by itself. The grid is one `pipeline frontier`: students are
distilled side by side, one process a CPU, and their policies timed afterwards, alone. Settings are the
preset's. A measurement that was cut off begins anew: what went on in between would count as its time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import PICTURES, ROOT, Cell, StudyParser, run_once, run_pipeline, with_interval
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.frontier.picture import draw_frontier
from thousandfold.stages.frontier.table import read_table

DEPTHS, WIDTHS = "1,2,4,8", "32,64,128"
LIMIT_MINUTES = 20.0


def measure(teacher: Path, workspace: Path, grid: Sequence[str], settings: Sequence[str]) -> Cell:
    """Make a dataset and a frontier in a workspace and return what they took and found.

    Args:
        teacher: folder of a completed teacher.
        workspace: where to work.
        grid: depths and widths, as the command takes them.
        settings: options for both commands, such as a preset.
    """
    common = ["--teacher", str(teacher.absolute()), *settings]
    dataset, dataset_s = _timed(workspace, "generate-dataset", *common)
    depths, widths = grid
    chosen = ["--dataset", dataset["artifact"], "--depths", depths, "--widths", widths]
    made, seconds = _timed(workspace, "frontier", *chosen, *common)
    frontier = Artifact.load(Path(made["path"]))
    found = Artifact.load(teacher)
    return {
        "dataset_seconds": dataset_s,
        "frontier_seconds": seconds,
        "phases": _phases(frontier),
        "teacher_settings": {
            name: found.manifest.settings.get(name) for name in ("task", "depth", "width", "seed")
        },
        "plan": frontier.manifest.settings,
        "table": read_table(frontier),
    }


def _timed(workspace: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command and return its result and its seconds, the start of the process included."""
    started = time.perf_counter()
    return run_pipeline(workspace, *arguments), time.perf_counter() - started


def _phases(frontier: Artifact) -> dict[str, Any]:
    """Return the seconds of every student and of the two halves, by what the manifests say."""
    manifests = [
        Artifact.load(path.parent).manifest for path in frontier.path.glob("*/**/runs/*/manifest.json")
    ]
    cells = {
        f"{m.settings['student_depth']}x{m.settings['student_width']}": _span(m.created_at, m.finished_at)
        for m in manifests
        if m.kind == "student"
    }
    making = [m for m in manifests if m.kind in ("student", "policy")]
    timing = [m for m in manifests if m.kind == "benchmark"]
    return {
        "student_seconds": dict(sorted(cells.items())),
        "distil_seconds": _span(frontier.manifest.created_at, max(str(m.finished_at) for m in making)),
        "latency_seconds": _span(min(m.created_at for m in timing), max(str(m.finished_at) for m in timing)),
    }


def _span(begin: str, end: str | None) -> float:
    return (datetime.fromisoformat(str(end)) - datetime.fromisoformat(begin)).total_seconds()


def describe(record: Mapping[str, Any]) -> str:
    """Return a line that says how long the grid took, and the ends of its front."""
    rows = record["table"]["rows"]
    front = sorted((row for row in rows if row["on_front"]), key=lambda row: row["p99_us"])
    minutes = record["frontier_seconds"] / 60
    return (
        f"{len(rows)} students in {minutes:.1f} min (at most {LIMIT_MINUTES:g}: "
        f"{'yes' if minutes <= LIMIT_MINUTES else 'no'}), the dataset before them in "
        f"{record['dataset_seconds']:.0f} s; on the front: "
        + ", ".join(f"{row['name']} ({row['p99_us']:.1f} µs, {_retention(row)})" for row in front)
    )


def _retention(row: Mapping[str, Any]) -> str:
    if row["retention"] is None:
        return f"success {row['success']:.3f}"
    return f"retention {with_interval(row['retention'], row['retention_interval'])}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, record and draw; or draw what is recorded."""
    parser = StudyParser(__doc__, "frontier_grid")
    parser.add_argument("--teacher", type=Path, help="folder of a completed teacher")
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / "frontier_grid")
    parser.add_argument("--depths", default=DEPTHS)
    parser.add_argument("--widths", default=WIDTHS)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--picture", type=Path, default=PICTURES / "frontier.png")
    parser.figure(PICTURES / "frontier.png")
    options = parser.parse(arguments, needs="teacher")

    def measured() -> Cell:
        grid, preset = (options.depths, options.widths), ["--preset", options.preset]
        return {"preset": options.preset, **measure(options.teacher, options.workspace, grid, preset)}

    draw_frontier(options.picture, run_once(options, measured, describe)["table"])


if __name__ == "__main__":
    main()
