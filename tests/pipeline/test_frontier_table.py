"""Which students are on the front, and what the table says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.artifacts import Workspace
from pipeline.core.console import Console
from pipeline.core.errors import DamagedFileError, MissingArtifactError
from pipeline.frontier_table import FRONTIER_FILE, pareto_front, quality, read_table, show
from tests.pipeline.frontier_runs import row, table


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
