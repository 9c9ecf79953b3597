"""`pipeline run-policy` as a user calls it: a file and nothing else, JSON, and one line for each mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import clean_environment, command, error_of
from tests.stages.policy_file.handmade_policy import metadata, write_policy
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.cli import cli
from thousandfold.stages.closed_loop.command import parse_goal


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("THOUSANDFOLD_WORKSPACE", "THOUSANDFOLD_TRACEBACK", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return write_policy(tmp_path / "policy.onnx", json.dumps(metadata(episode_steps=10)))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run-policy", *arguments])


def test_a_file_runs_without_a_workspace(policy: Path) -> None:
    done = invoke("--policy", "policy.onnx", "--fast", "--episodes", "4", "--goal", "-0.5,0.25", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["episodes"], found["steps"], found["goal"]) == (4, 40, [-0.5, 0.25])
    assert "Success" in done.stderr and "beyond the limits" in done.stderr
    assert sorted(path.name for path in policy.parent.iterdir()) == ["policy.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "gone.onnx"), "gone.onnx is no file"),
        (("--policy", "policy.onnx", "--goal", "1"), "takes 2"),
        (("--policy", "policy.onnx", "--goal", "nan,1"), "must be a finite number"),
        (("--policy", "policy.onnx", "--goal", "1;2"), "'1;2' is no number"),
        (("--policy", "policy.onnx", "--rate", "0"), "--rate must be a number of Hz above 0"),
        (("--policy", "policy.onnx", "--viewer", "on"), "No viewer: there is no screen here"),
        (("--policy", "policy.onnx", "--task", "reacher"), "for task 'point_u_maze', not for 'reacher'"),
        (("--policy", "truncated.onnx"), "truncated.onnx is truncated"),
        (("--policy", "model.onnx"), "another model"),
        (("--policy", "old.onnx"), "format 1"),
        ((), "No completed policy"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(policy: Path, arguments: tuple[str, ...], words: str) -> None:
    whole = policy.read_bytes()
    policy.with_name("truncated.onnx").write_bytes(whole[: len(whole) // 2])
    write_policy(policy.with_name("model.onnx"), json.dumps(metadata(model_sha256="0" * 64)))
    write_policy(policy.with_name("old.onnx"), json.dumps(metadata(format_version=1)))
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert words in error_of(done.stderr)


def test_goals_are_numbers_with_commas_between() -> None:
    assert parse_goal("1") == (1.0,)
    assert parse_goal("-1, 2.5,3e-1") == (-1.0, 2.5, 0.3)
    with pytest.raises(SettingsError, match="'' is no number"):
        parse_goal("1,")


def test_ctrl_c_ends_with_the_summary(policy: Path) -> None:
    arguments = command(
        "run-policy", "--policy", "policy.onnx", "--seconds", "120", "--rate", "500", "--json"
    )
    process = subprocess.Popen(
        arguments,
        cwd=policy.parent,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "No viewer" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    found = json.loads(printed)
    assert (process.returncode, found["ended_by"]) == (0, "interrupt") and found["episodes"] >= 1
