"""Every listing in terminals of three widths: each name and number that --json has is shown in one piece."""

from __future__ import annotations

import functools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.pipeline.narrow_terminal import WIDTHS, assert_whole, left_out, pretend_terminal
from tests.stages.benchmark.test_results import report
from tests.stages.policy_file.handmade_policy import policy_artifact
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.console import Console, as_set, figure
from thousandfold.pipeline.listing import flat_rows

__all__ = ["report"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts with long names and results, one of them unfinished."""
    root = policy_artifact(tmp_path_factory.mktemp("narrow")).path.parents[1]
    workspace = Workspace(root)
    for task, results in (
        (
            "a_task_with_a_name_of_forty_two_characters",
            {"success": 0.98765, "retention": None, "rows": 1234567},
        ),
        (
            "ant_u5_maze_stitch",
            {"success_interval": [0.987, 0.9991], "noise": {"by_level": {"0.4": 0.000123}}},
        ),
    ):
        made = workspace.create("teacher", task=task, settings={"depth": 1024, "inner": {"rate": 3e-4}})
        made.file("a_file_with_a_name_of_forty_two_characters.txt").write_text("data")
        made.complete(results)
    workspace.create("student", task="reacher", settings={})
    return root


def shown_and_told(
    workspace: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, width: int
) -> tuple[str, Any]:
    """Return what a command shows in a terminal of this width, and what it tells a script."""
    pretend_terminal(monkeypatch, width)
    return invoke(workspace, *arguments), told(workspace, *arguments)


def invoke(workspace: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@functools.cache
def told(workspace: Path, *arguments: str) -> Any:
    return json.loads(invoke(workspace, *arguments, "--json"))


def cells_of(values: dict[str, Any], text: Callable[[Any], str]) -> list[str]:
    return [cell for row in flat_rows(values, text) for cell in row]


@pytest.mark.parametrize("width", WIDTHS)
class TestWidths:
    @pytest.mark.parametrize(
        ("command", "key"), [("tasks", "tasks"), ("presets", "presets"), ("runs", "artifacts")]
    )
    def test_lists(
        self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int, command: str, key: str
    ) -> None:
        shown, values = shown_and_told(workspace, (command,), monkeypatch, width)
        missing = left_out(shown) | {"sealed"}
        assert len(values[key]) > 3 and missing - {"sealed"} < set(values[key][0])
        cells = [value for row in values[key] for name, value in row.items() if name not in missing]
        assert_whole(shown, cells, width)

    def test_versions(self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        shown, values = shown_and_told(workspace, ("info",), monkeypatch, width)
        assert_whole(shown, values.values(), width)

    def test_one_artifact_in_full(self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        for artifact in Workspace(workspace).artifacts():
            shown, values = shown_and_told(workspace, ("info", artifact.name), monkeypatch, width)
            assert_whole(shown, [f"{values['task']},", *values["files"]], width)
            assert_whole(shown, cells_of(values["results"], figure), width)
            assert_whole(shown, cells_of(values["settings"], as_set), width)
            assert_whole(shown, artifact.manifest.files.values(), width)

    def test_settings_and_where_they_come_from(
        self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        shown, values = shown_and_told(workspace, ("settings", "benchmark"), monkeypatch, width)
        missing = left_out(shown)
        rows = values["settings"]
        assert_whole(shown, [row[key] for row in rows for key in row if key not in missing], width)
        shown, values = shown_and_told(workspace, ("presets", "cpu/ant"), monkeypatch, width)
        assert_whole(shown, cells_of(values["settings"]["train_teacher"], as_set), width)

    def test_two_artifacts_beside_one_another(
        self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        names = [artifact.name for artifact in Workspace(workspace).artifacts()[:2]]
        shown, values = shown_and_told(workspace, ("runs", "compare", *names), monkeypatch, width)
        cells = [cell for part in ("about", "settings") for both in values[part].values() for cell in both]
        assert_whole(shown, [*values["results"], *names, *cells], width)

    def test_a_policy_file(self, workspace: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        shown, values = shown_and_told(workspace, ("policy", "inspect"), monkeypatch, width)
        elements = [each for side in ("inputs", "outputs") for each in values["metadata"][side].values()]
        cells = [
            value for side in elements for row in side for key, value in row.items() if key in ("name", "low")
        ]
        assert_whole(shown, [values["path"], values["sha256"], *cells], width)

    def test_a_task_that_is_checked(
        self, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
    ) -> None:
        monkeypatch.chdir(tmp_path)  # where the picture goes
        arguments = ("tasks", "check", "reacher", "--episodes", "2")
        shown, values = shown_and_told(workspace, arguments, monkeypatch, width)
        keys = ("observation", "goal", "action")
        rows = [row for key in keys for row in values[key]]
        assert_whole(shown, [value for row in rows for value in row.values()], width)

    def test_a_benchmark(
        self, report: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, width: int
    ) -> None:
        from thousandfold.stages.benchmark.tables import show_report

        pretend_terminal(monkeypatch, width)
        show_report(report, "benchmark-20261130-124220", Console())
        timings = [figures["back_to_back"] for figures in report["networks"].values()]
        values = [timing[key] for timing in timings for key in ("samples", "p50_us", "p99_us", "max_us")]
        values += [loop[key] for loop in report["paced_loops"] for key in ("ticks", "p50_us", "missed")]
        assert_whole(capsys.readouterr().out, values, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_terminal_of_its_own(workspace: Path, width: int) -> None:
    main, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run(["stty", "cols", str(width), "rows", "40"], stdin=terminal, check=True)
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace), "runs"]
    done = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment | {"TERM": "xterm"}
    )
    os.close(terminal)
    output = b""
    try:
        while read := os.read(main, 1 << 16):
            output += read
    except OSError:  # its other end was closed
        pass
    assert done.wait() == 0
    os.close(main)
    names = [artifact.name for artifact in Workspace(workspace).artifacts()]
    assert_whole(output.decode(), names, width)
