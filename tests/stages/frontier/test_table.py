"""Which students are on the front, and what the table says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.frontier.frontier_runs import row, table
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.stages.frontier.cells import Cell, cell_workspace, teacher_workspace
from thousandfold.stages.frontier.table import (
    FRONTIER_FILE,
    collect,
    has_latency,
    pareto_front,
    quality,
    read_table,
    show,
    why_not_in_c,
)


def test_the_front_by_hand() -> None:
    rows = [
        row("1x32", 0.80, 8.0),  # the fastest
        row("1x64", 0.79, 9.0),  # worse and slower
        row("2x64", 0.95, 12.0),
        row("2x128", 0.95, 13.0),  # as good and slower
        row("4x64", 0.95, 12.0),  # as good and as fast as one on the front
        row("8x128", 1.01, 40.0),  # the best
    ]
    assert pareto_front(rows) == [True, False, True, False, True, True]


def test_without_a_retention_the_success_counts() -> None:
    assert quality(row("1x32", 0.9, 8.0)) == 0.9
    rows = [row("1x32", None, 8.0, success=0.1), row("1x64", None, 9.0, success=0.2)]
    rows.append(row("2x64", None, 10.0, success=0.1))
    assert pareto_front(rows) == [True, True, False]


def test_the_console_shows_every_student_and_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("1x32", 0.8, 8.0, on_front=False), row("4x64", None, 18.0)]
    show(table(rows, p50_us=None, p99_us=None), Console())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Frontier of teacher-1 on point_u_maze"
    (small,) = [line.split() for line in lines if line.strip().startswith("1 x 32")]
    assert small == ["1", "x", "32", "plain", "1,024", "0.640", "0.800", "0.780", "..", "0.820", "6.4", "8"]
    (large,) = [line.split() for line in lines if line.strip().startswith("4 x 64")]
    assert large == ["4", "x", "64", "residual", "16,384", "0.000", "-", "-", "14.4", "18", "yes"]
    (teacher,) = [line.split() for line in lines if line.strip().startswith("teacher")]
    assert teacher == ["teacher,", "-", "9,000,000", "0.800", "-", "-"]


def test_a_table_is_read_from_a_whole_frontier_alone(tmp_path: Path) -> None:
    artifact = Workspace(tmp_path).create("frontier", task="point_u_maze", settings={})
    with pytest.raises(MissingArtifactError, match="not completed"):
        read_table(artifact)
    artifact.file(FRONTIER_FILE).write_text('{"rows": 3}')
    artifact.complete({})
    with pytest.raises(DamagedFileError, match=r"frontier\.json is damaged"):
        read_table(artifact)
    artifact.file(FRONTIER_FILE).write_text('{"rows": []}')
    with pytest.raises(DamagedFileError, match="differs from its recorded hash"):
        read_table(artifact)


# -- rows from artifacts ----------------------------------------------------------------------------

RESULTS = {
    "success": 0.7,
    "success_interval": [0.6, 0.8],
    "episodes": 64,
    "retention": 0.9,
    "retention_interval": [0.8, 1.0],
    "time_at_goal": 300.0,
    "time_at_goal_retention": 0.8,
    "time_at_goal_retention_interval": [0.7, 0.9],
    "student_parameters": 120,
    "teacher_parameters": 9000,
    "teacher_success": 0.78,
    "teacher_time_at_goal": 375.0,
}


def complete(workspace: Workspace, kind: str, results: dict[str, Any]) -> Artifact:
    artifact = workspace.create(kind, task="point_u_maze", settings={})
    artifact.complete(results)
    return artifact


def timing(role: str, depth: int, width: int, p99_us: float) -> dict[str, Any]:
    calls = {"p50_us": p99_us / 2, "p99_us": p99_us, "samples": 10}
    network = {"depth": depth, "width": width, "kind": "plain", "parameters": 100}
    paced = calls | {"p99_us": 2 * p99_us}
    return {"networks": {role: {"network": network, "back_to_back": calls, "paced": paced}}}


def fill(frontier: Artifact, cell: Cell, p99_us: float, **results: Any) -> None:
    workspace = cell_workspace(frontier, cell)
    complete(workspace, "student", RESULTS | results)
    complete(workspace, "policy", {"bytes": 4000})
    complete(workspace, "benchmark", timing("student", cell.depth, cell.width, p99_us))


@pytest.fixture
def frontier(tmp_path: Path) -> Artifact:
    workspace = Workspace(tmp_path)
    parents = {kind: complete(workspace, kind, {}).parent_entry() for kind in ("teacher", "dataset")}
    return workspace.create("frontier", task="point_u_maze", settings={}, parents=parents)


def test_students_that_failed_are_listed_apart(frontier: Artifact) -> None:
    cells = [Cell(1, 8), Cell(2, 8), Cell(4, 8)]
    fill(frontier, cells[1], 8.0, retention=0.5)
    fill(frontier, cells[2], 9.0)
    workspace = teacher_workspace(frontier)
    complete(workspace, "policy", {})
    complete(workspace, "benchmark", timing("teacher", 64, 256, 900.0))
    found = collect(frontier, cells, {"1x8": "The disk is full."})
    assert found["failed"] == [{"name": "1x8", "error": "The disk is full."}]
    assert [(row["name"], row["retention"], row["on_front"]) for row in found["rows"]] == [
        ("2x8", 0.5, True),
        ("4x8", 0.9, True),
    ]
    first = found["rows"][0]
    assert (first["p50_us"], first["p99_us"], first["paced_p99_us"], first["calls"]) == (4.0, 8.0, 16.0, 10)
    assert (first["parameters"], first["bytes"]) == (120, 4000)
    assert (frontier.path / first["student"] / "manifest.json").is_file()
    teacher = found["teacher"]
    assert (teacher["depth"], teacher["p99_us"], teacher["success"]) == (64, 900.0, 0.78)
    assert teacher["parameters"] == 9000, "of the whole network, as a student's"
    assert teacher["name"] == frontier.manifest.parents["teacher"].name


def test_latencies_may_be_those_of_c_code(frontier: Artifact) -> None:
    workspace = cell_workspace(frontier, Cell(2, 8))
    complete(workspace, "student", RESULTS)
    complete(workspace, "policy", {"bytes": 4000})
    figures = timing("student", 2, 8, 8.0)
    in_c = {"p50_us": 1.0, "p99_us": 2.0, "samples": 30, "paced": {"p99_us": 3.0}}
    complete(workspace, "benchmark", figures | {"comparison": {"C": in_c}, "left_out": {}})
    complete(teacher_workspace(frontier), "policy", {})
    left_out = {"comparison": {}, "left_out": {"C": "it has more weights"}}
    complete(teacher_workspace(frontier), "benchmark", timing("teacher", 64, 256, 900.0) | left_out)
    found = collect(frontier, [Cell(2, 8)], {}, "c")
    (row,) = found["rows"]
    assert found["runtime"] == "c"
    assert (row["p50_us"], row["p99_us"], row["paced_p99_us"], row["calls"]) == (1.0, 2.0, 3.0, 30)
    assert found["teacher"]["p99_us"] is None and found["teacher"]["depth"] == 64
    fill(frontier, Cell(4, 8), 9.0)
    complete(cell_workspace(frontier, Cell(4, 8)), "benchmark", timing("student", 4, 8, 9.0) | left_out)
    assert has_latency(workspace, "c") and has_latency(cell_workspace(frontier, Cell(4, 8)), "onnxruntime")
    assert not has_latency(cell_workspace(frontier, Cell(4, 8)), "c")
    assert why_not_in_c(cell_workspace(frontier, Cell(4, 8))) == "it has more weights"


def test_without_the_teachers_latency_the_rest_is_told(
    frontier: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(frontier, Cell(4, 8), 9.0)
    found = collect(frontier, [Cell(4, 8)], {"teacher": "too deep"})
    assert found["teacher"]["success"] == 0.78 and found["teacher"]["p99_us"] is None
    assert found["failed"] == [{"name": "teacher", "error": "too deep"}]
    show(found, Console())
    assert "teacher, -" in capsys.readouterr().out


def test_a_cell_without_its_benchmark_is_no_row(frontier: Artifact) -> None:
    workspace = cell_workspace(frontier, Cell(4, 8))
    complete(workspace, "student", RESULTS)
    complete(workspace, "policy", {"bytes": 4000})
    with pytest.raises(DamagedFileError, match="no completed benchmark: go on with the frontier first"):
        collect(frontier, [Cell(4, 8)], {})
