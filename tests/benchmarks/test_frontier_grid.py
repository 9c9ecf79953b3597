"""The grid's benchmark: what it runs, what it records, and the line that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frontier_grid
from benchmarks.frontier_grid import describe, main, measure
from tests.stages.frontier.frontier_runs import row, table
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.frontier.cells import Cell, cell_workspace
from thousandfold.stages.frontier.table import FRONTIER_FILE

RECORD = {
    "dataset_seconds": 4.0,
    "frontier_seconds": 90.0,
    "table": table([row("1x32", 0.8, 8.0), row("4x64", 1.0, 18.0), row("4x32", 0.9, 19.0, on_front=False)]),
}


def test_the_line_says_how_long_it_took_and_what_is_on_the_front() -> None:
    line = describe(RECORD)
    assert line.startswith("3 students in 1.5 min (at most 20: yes), the dataset before them in 4 s; ")
    assert line.endswith(
        "1x32 (8.0 µs, retention 0.800 [0.780, 0.820]), 4x64 (18.0 µs, retention 1.000 [0.980, 1.020])"
    )
    assert "at most 20: no" in describe({**RECORD, "frontier_seconds": 1201.0})


@pytest.mark.pictures
def test_a_record_is_drawn_again_without_running_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(frontier_grid, "run_pipeline", None)
    arguments = ["--figure", "--output", f"{tmp_path}/record.json", "--picture", f"{tmp_path}/a.png"]
    main(arguments)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "3 students" in capsys.readouterr().out


def completed(workspace: Workspace, kind: str, settings: dict[str, Any]) -> Artifact:
    artifact = workspace.create(kind, task="point_u_maze", settings=settings)
    artifact.complete({})
    return artifact


def test_seconds_are_those_of_the_commands_and_of_every_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    teacher = completed(workspace, "teacher", {"task": "point_u_maze", "depth": 16, "width": 128, "seed": 0})
    frontier = workspace.create("frontier", task="point_u_maze", settings={"depths": [1, 4]})
    for depth in (1, 4):
        inside = cell_workspace(frontier, Cell(depth, 8))
        completed(inside, "student", {"student_depth": depth, "student_width": 8})
        completed(inside, "policy", {})
        completed(inside, "benchmark", {})
    frontier.file(FRONTIER_FILE).write_text(json.dumps(table([row("1x8", 0.8, 8.0), row("4x8", 0.9, 9.0)])))
    frontier.complete({})
    asked: list[tuple[str, ...]] = []

    def timed(_: Path, *arguments: str) -> tuple[dict[str, Any], float]:
        asked.append(arguments)
        return {"artifact": "dataset-1", "path": str(frontier.path)}, float(len(asked))

    monkeypatch.setattr(frontier_grid, "_timed", timed)
    record = measure(teacher.path, tmp_path, ("1,4", "8"), ["--preset", "smoke"])
    assert [arguments[0] for arguments in asked] == ["generate-dataset", "frontier"]
    assert asked[1][1:7] == ("--dataset", "dataset-1", "--depths", "1,4", "--widths", "8")
    assert (record["dataset_seconds"], record["frontier_seconds"]) == (1.0, 2.0)
    assert set(record["phases"]["student_seconds"]) == {"1x8", "4x8"}
    assert record["phases"]["distil_seconds"] > 0 and record["phases"]["latency_seconds"] > 0
    assert record["teacher_settings"]["depth"] == 16
