"""Ctrl-C says how to go on, and going on completes what was begun."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.end_to_end.command_line import clean_environment, command, pipeline, result_of
from tests.end_to_end.refusals import SMOKE
from tests.envs.opengl_here import REASON
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.resume import has_checkpoint


def interrupt_at(
    workspace: Path, words: str, *arguments: str, again_after_s: float | None = None
) -> tuple[int, str, str]:
    """Run a command, send SIGINT once a line of its output has `words`; return exit code and output.

    Args:
        workspace: where to run it.
        words: what to wait for.
        arguments: of the command.
        again_after_s: when to send SIGINT another time, and three more times in quick succession.
    """
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
            if again_after_s is not None:
                time.sleep(again_after_s)
                for _ in range(4):
                    running.send_signal(signal.SIGINT)
                    time.sleep(0.02)
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
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert line.endswith(f"train-teacher --resume {teacher.name}")
    assert teacher.file("checkpoint/manifest.json").is_file()


@pytest.mark.slow
def test_a_hang_up_is_saved_though_nobody_reads_any_more(tmp_path: Path) -> None:
    running = subprocess.Popen(
        command("train-teacher", *SMOKE, "--set", "env_steps=100000000"),
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout is not None
    guard = threading.Timer(300, running.kill)
    guard.start()
    assert any("Teacher: depth" in line for line in running.stdout)
    running.stdout.close()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/teacher-*/checkpoint/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(2):  # the terminal's own, and the one that its shell passes on
        running.send_signal(signal.SIGHUP)
    assert running.wait() == 130
    guard.cancel()
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.manifest.status == "running"
    done = pipeline(tmp_path, "train-teacher", "--resume", "--set", "env_steps=100")
    assert f"Resuming {teacher.name} at " in done.stdout


@pytest.mark.slow
def test_a_reader_that_goes_does_not_end_the_training(tmp_path: Path) -> None:
    script = '"$@" | head -1; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command("train-teacher", *SMOKE)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    assert all(line.startswith("Warning: teacher ") for line in done.stderr.splitlines()), done.stderr
    assert len(done.stdout.splitlines()) == 1
    (teacher,) = Workspace(tmp_path).artifacts("teacher")
    assert teacher.manifest.status == "completed"


LONG = {
    "train-teacher": ("train-teacher: ", "--set", "env_steps=100000000", "--set", "checkpoint_every=1"),
    "generate-dataset": ("Dataset: ", "--set", "episodes=20000"),
    "distill": ("Student: ", "--set", "updates=1000000", "--set", "checkpoint_every=1"),
    "frontier": ("Frontier ", "--set", "distill.updates=100000", "--depths=4", "--widths=4"),
    "benchmark": ("Taking policy", "--set", "back_to_back_s=60"),
    "evaluate": ("Taking policy", "--set", "episodes=100000"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("made")
    pipeline(workspace, "run", *SMOKE)
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("stage", LONG)
@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_second_ctrl_c_leaves_a_right_state(made: Path, stage: str, after_s: float) -> None:
    words, *options = LONG[stage]
    known = {artifact.name for artifact in Workspace(made).artifacts()}
    code, out, err = interrupt_at(made, words, stage, *SMOKE, *options, again_after_s=after_s)
    assert code == 130, out + err
    assert "Traceback" not in out + err and "Exception ignored" not in err
    line = err.splitlines()[-1]
    new = [artifact for artifact in Workspace(made).artifacts() if artifact.name not in known]
    if not new:
        assert line == "Stopped." and stage in ("benchmark", "evaluate")
        return
    (artifact,) = new
    assert artifact.name in line and line.startswith("Stopped")
    run = client_of(made).get_run(artifact.manifest.tracking["run_id"])
    assert run.info.status == "KILLED"
    assert artifact.manifest.status == ("running" if f"--resume {artifact.name}" in line else "failed")
    if stage in ("train-teacher", "distill"):
        assert (f"{stage} --resume {artifact.name}" in line) == has_checkpoint(artifact)


def client_of(workspace: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace}/mlflow/mlflow.db")


@pytest.mark.slow
def test_a_chain_goes_on_after_ctrl_c_in_every_stage(tmp_path: Path) -> None:
    stages = ("train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark")
    # Long enough that the signal meets the stage that was announced.
    longer = ("--set", "benchmark.paced_s=3", "--set", "generate_dataset.episodes=200")
    arguments = ("run", *SMOKE, *longer)
    for number, stage in enumerate(stages, start=1):
        code, out, err = interrupt_at(tmp_path, f"[{number}/7] {stage}", *arguments)
        assert code == 130, out + err
        assert "Traceback" not in out + err
        assert "run --resume" in err.splitlines()[-1], err
        arguments = ("run", "--resume")
    made = result_of(pipeline(tmp_path, "run", "--resume", "--json"))
    assert len(made) == (6 if REASON else 7), "without OpenGL a chain has no video"
    for entry in made.values():
        Artifact.load(Path(entry["path"])).verify()
    finished = [a for a in Workspace(tmp_path).artifacts() if a.manifest.status == "completed"]
    assert len(finished) == 6
