"""The rows of a frontier: what each student reached, how fast it is, and which of them are worth having."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console, figure
from thousandfold.pipeline.jobs import finished
from thousandfold.stages.benchmark.runtimes import C
from thousandfold.stages.frontier.cells import Cell, cell_workspace, teacher_workspace

FRONTIER_FILE = "frontier.json"
DEFINITIONS = {
    "retention": "the student's success divided by the teacher's, over the same starts and goals",
    "runtime": "whose latency it is: the policy file's in ONNX Runtime, or that of its C code",
    "p50_us, p99_us": "of one call on one CPU thread, back to back, measured alone, one policy after another",
    "paced_p99_us": "of one call a tick of the task's control rate",
    "parameters": "of the whole student, normalisers and the head of the standard deviation included",
    "on_front": "no other student is as good and as fast at p99, and better in one of the two",
}
_OF_STUDENT = (
    "success", "success_interval", "episodes", "retention", "retention_interval", "time_at_goal",
    "time_at_goal_retention", "time_at_goal_retention_interval",
)  # fmt: skip


def collect(
    frontier: Artifact, cells: Sequence[Cell], failed: Mapping[str, str], runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """Return the content of `frontier.json`: a row a student that is done, by depth and width.

    `failed` has one line by the name of each cell that failed; `runtime` is whose latency counts.
    """
    rows = [_row(frontier, cell, runtime) for cell in cells if cell.name not in failed]
    for row, kept in zip(rows, pareto_front(rows), strict=True):
        row["on_front"] = kept
    parents = frontier.manifest.parents
    return {
        "task": frontier.manifest.task,
        "runtime": runtime,
        "teacher": _teacher_row(frontier, cells, failed, runtime) | {"name": parents["teacher"].name},
        "dataset": parents["dataset"].name,
        "rows": rows,
        "failed": [{"name": name, "error": error} for name, error in failed.items()],
        "definitions": DEFINITIONS,
    }


def pareto_front(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return for each row whether no other is at least as good and as fast, and better in one of the two."""

    def beats(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        better = quality(other) - quality(row), row["p99_us"] - other["p99_us"]
        return min(better) >= 0 and max(better) > 0

    return [not any(beats(other, row) for other in rows) for row in rows]


def quality(row: Mapping[str, Any]) -> float:
    """Return a row's retention; its success where the teacher has none to retain."""
    return float(row["success"] if row["retention"] is None else row["retention"])


def read_table(frontier: Artifact) -> dict[str, Any]:
    """Return the content of a completed frontier's table.

    Raises:
        DamagedFileError: a file of the frontier differs from its recorded hash, or is no table.
    """
    frontier.verify()
    path = frontier.file(FRONTIER_FILE)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return table | {"rows": list(table["rows"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedFileError(f"{path} is damaged: make the frontier again.") from error


def in_c(table: Mapping[str, Any]) -> bool:
    """Return whether latencies are of C code; tables of earlier versions have those of ONNX Runtime."""
    return table.get("runtime") == "c"


def show(table: Mapping[str, Any], console: Console) -> None:
    """Print a line a student, and the teacher below them."""
    rows = [
        [
            f"{row['depth']} x {row['width']}",
            row["kind"],
            row["parameters"],
            _fraction(row["success"]),
            _fraction(row["retention"]),
            " .. ".join(_fraction(end) for end in row["retention_interval"] or ()) or "-",
            row["p50_us"],
            row["p99_us"],
            "yes" if row["on_front"] else "",
        ]
        for row in table["rows"]
    ]
    teacher = table["teacher"]
    size = f"{teacher['depth']} x {teacher['width']}" if teacher["p99_us"] else "-"
    latency = [teacher["p50_us"], teacher["p99_us"]]
    rows.append(
        [f"teacher, {size}", "", teacher["parameters"], _fraction(teacher["success"]), "", "", *latency, ""]
    )
    columns = ("student", "kind", "parameters", "success", "retention", "95 % interval")
    console.table(
        f"Frontier of {teacher['name']} on {table['task']}{', as C' if in_c(table) else ''}",
        (*columns, "p50 (µs)", "p99 (µs)", "on the front"),
        rows,
    )


def _row(frontier: Artifact, cell: Cell, runtime: str) -> dict[str, Any]:
    """Return what was measured of a cell that is done."""
    workspace = cell_workspace(frontier, cell)
    student, policy = _completed(workspace, "student"), _completed(workspace, "policy")
    results = student.manifest.results
    return {
        "name": cell.name,
        **_network_and_latency(workspace, "student", runtime),
        "parameters": results["student_parameters"],
        "bytes": policy.manifest.results["bytes"],
        **{name: results[name] for name in _OF_STUDENT},
        "student": student.path.relative_to(frontier.path).as_posix(),
        "policy": policy.path.relative_to(frontier.path).as_posix(),
    }


def _teacher_row(
    frontier: Artifact, cells: Sequence[Cell], failed: Mapping[str, str], runtime: str
) -> dict[str, Any]:
    """Return the teacher's success over the students' own episodes, and its latency where it is known."""
    done = next(cell for cell in cells if cell.name not in failed)
    beside = _completed(cell_workspace(frontier, done), "student").manifest.results
    row = {
        "success": beside["teacher_success"],
        "time_at_goal": beside["teacher_time_at_goal"],
        "parameters": beside["teacher_parameters"],
    }
    workspace = teacher_workspace(frontier)
    if finished(workspace, "benchmark") is None:
        return dict.fromkeys(("depth", "width", "kind", "p50_us", "p99_us", "paced_p99_us")) | row
    return _network_and_latency(workspace, "teacher", runtime) | row


def _network_and_latency(workspace: Workspace, role: str, runtime: str) -> dict[str, Any]:
    """Return what a network is and how fast; one that has no C form has no latency as C."""
    results = _completed(workspace, "benchmark").manifest.results
    figures = results["networks"][role]
    known = {name: figures["network"][name] for name in ("depth", "width", "kind")}
    calls, paced = figures["back_to_back"], figures["paced"]
    if runtime == "c":
        calls = results["comparison"].get(C, dict.fromkeys(("p50_us", "p99_us", "samples")))
        paced = calls.get("paced", dict.fromkeys(("p99_us",)))
    return known | {
        "p50_us": calls["p50_us"],
        "p99_us": calls["p99_us"],
        "paced_p99_us": paced["p99_us"],
        "calls": calls["samples"],
    }


def has_latency(workspace: Workspace, runtime: str) -> bool:
    """Return whether a policy was timed, and in the runtime that counts."""
    timed = finished(workspace, "benchmark")
    return timed is not None and (runtime != "c" or C in timed.manifest.results["comparison"])


def why_not_in_c(workspace: Workspace) -> str:
    """Return the reason for which a benchmark left the C code out."""
    return str(_completed(workspace, "benchmark").manifest.results["left_out"].get(C, "it was not asked for"))


def _completed(workspace: Workspace, kind: str) -> Artifact:
    artifact = finished(workspace, kind)
    if artifact is None:
        raise DamagedFileError(f"{workspace.root} has no completed {kind}: go on with the frontier first.")
    return artifact


def _fraction(value: float | None) -> str:
    return "-" if value is None else figure(value)
