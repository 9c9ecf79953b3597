"""Ctrl-C says how to go on, and going on completes what was begun."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from pipeline.core.artifacts import Artifact, Workspace
from tests.end_to_end.command_line import clean_environment, command, pipeline, result_of
from tests.end_to_end.refusals import SMOKE


def interrupt_at(workspace: Path, words: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command, send SIGINT once a line of its output has `words`; return exit code and output."""
    running = subprocess.Popen(
        command(*arguments),
        cwd=workspace,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    guard = threading.Timer(300, running.kill)
    guard.start()
    lines = []
    for line in running.stdout:
        lines.append(line)
        if words in line:
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate()
    guard.cancel()
    return running.returncode, "".join(lines) + out, err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ("train-teacher", *SMOKE, "--set", "env_steps=100000000")
    code, out, err = interrupt_at(tmp_path, "Teacher: depth", *arguments)
    assert code == 130
    assert "Traceback" not in out + err
    line = err.splitlines()[-1]
    assert "state saved" in line
    assert line.endswith("train-teacher --resume")
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.file("checkpoint/manifest.json").is_file()


@pytest.mark.slow
def test_a_chain_goes_on_after_ctrl_c_in_every_stage(tmp_path: Path) -> None:
    stages = ("train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark")
    # Long enough that the signal meets the stage that was announced.
    longer = ("--set", "benchmark.paced_s=3", "--set", "generate_dataset.episodes=200")
    arguments = ("run", *SMOKE, *longer)
    for number, stage in enumerate(stages, start=1):
        code, out, err = interrupt_at(tmp_path, f"[{number}/6] {stage}", *arguments)
        assert code == 130, out + err
        assert "Traceback" not in out + err
        assert "run --resume" in err.splitlines()[-1], err
        arguments = ("run", "--resume")
    made = result_of(pipeline(tmp_path, "run", "--resume", "--json"))
    assert len(made) == 6
    for entry in made.values():
        Artifact.load(Path(entry["path"])).verify()
    finished = [a for a in Workspace(tmp_path).artifacts() if a.manifest.status == "completed"]
    assert len(finished) == 6
