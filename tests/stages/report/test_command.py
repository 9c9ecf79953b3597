"""`pipeline report`: what it takes, where the page goes, and who is shown it."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from thousandfold.pipeline.cli import cli

pytest.importorskip("jinja2")
from tests.stages.made_up_chain import MadeUpChain


@pytest.fixture(autouse=True)
def without_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("thousandfold.pipeline.tracking.mlflow_is_installed", lambda: False)


def invoke(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--workspace", str(workspace), "report", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_the_newest_policy_is_taken_and_the_page_named(chain: MadeUpChain, tmp_path: Path) -> None:
    result = invoke(tmp_path, "--json")
    made = json.loads(result.stdout)
    assert made["kind"] == "report" and Path(made["files"]["report.html"]).is_file()
    assert f"Taking policy {chain.made['policy'].name}" in result.stderr
    assert "report.html" in result.stderr.splitlines()[-1]


def test_a_teacher_or_a_student_can_be_named(chain: MadeUpChain, tmp_path: Path) -> None:
    for kind in ("teacher", "student"):
        made = json.loads(invoke(tmp_path, f"--{kind}", chain.made[kind].name, "--json").stdout)
        assert made["files"], kind
    line = invoke(tmp_path, "--teacher", "a", "--student", "b", code=2).stderr
    assert "Give one of --student, --teacher" in line.splitlines()[-1]


def test_a_workspace_without_anything_says_which_command_comes_first(tmp_path: Path) -> None:
    line = invoke(tmp_path, code=2).stderr.splitlines()[-1]
    assert line.startswith("Error: No completed teacher") and "pipeline train-teacher" in line
    line = invoke(tmp_path, "--policy", "policy-1", code=2).stderr.splitlines()[-1]
    assert "pipeline export-onnx" in line


def test_a_damaged_policy_is_refused_in_one_line(chain: MadeUpChain, tmp_path: Path) -> None:
    chain.made["policy"].file("manifest.json").write_text("{")
    line = invoke(tmp_path, "--policy", chain.made["policy"].name, code=2).stderr.splitlines()[-1]
    assert line.startswith("Error: ") and "is damaged or not a manifest" in line


def test_a_copy_is_written_and_shown(
    chain: MadeUpChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: shown.append(address) or True)
    copy = tmp_path / "out" / "chain.html"
    line = invoke(tmp_path, "--output", str(copy), "--open", code=2).stderr.splitlines()[-1]
    assert "there is no folder" in line and shown == []
    copy.parent.mkdir()
    invoke(tmp_path, "--output", str(copy), "--open")
    assert shown == [copy.as_uri()] and copy.read_text().startswith("<!doctype html>")


def test_without_a_browser_the_address_is_told(
    chain: MadeUpChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = invoke(tmp_path, "--open")
    assert "no web browser was found here: open file://" in result.stderr


def test_a_dry_run_prints_the_settings_alone(chain: MadeUpChain, tmp_path: Path) -> None:
    result = invoke(tmp_path, "--dry-run", "--set", "max_file_mib=2")
    assert "max_file_mib: 2.0" in result.output
    assert chain.workspace.artifacts("report") == []
    assert "must be greater than 0" in invoke(tmp_path, "--set", "max_file_mib=0", code=2).stderr
