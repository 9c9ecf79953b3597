"""Several ranks under torchrun, as a user starts them: one artifact, one tracked run, losses, resumes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.end_to_end.command_line import clean_environment, error_of, pipeline, result_of
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.cli import cli

RANK_0 = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
LONG = ("--set", "env_steps=400000")
LIMIT_S = 240.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(workspace: Path, *arguments: str, ranks: int = 2) -> subprocess.Popen[str]:
    """Start `torchrun --nproc-per-node 2 --no-python pipeline ...` in the workspace as the current folder."""
    workspace.mkdir(parents=True, exist_ok=True)
    commands = Path(sys.executable).parent
    launcher = [str(commands / "torchrun"), "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    return subprocess.Popen(
        [*launcher, "--no-python", "pipeline", *arguments],
        cwd=workspace,
        env=clean_environment(PATH=f"{commands}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for torchrun; return what it and its ranks printed."""
    try:
        return process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"torchrun hangs: {process.communicate()}") from None


def wait_for_checkpoint(process: subprocess.Popen[str], workspace: Path, after: int = 0) -> CheckpointFolder:
    """Wait until the running teacher has a checkpoint of a later unroll than `after`."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        for artifact in Workspace(workspace).artifacts("teacher"):
            folder = CheckpointFolder(artifact.file("checkpoint"))
            if folder.exists and folder.progress["unrolls"] > after:
                return folder
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint: {end_of(process)}")


def process_of_rank(process: subprocess.Popen[str], rank: int) -> int:
    """Return the process id of a rank that torchrun has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
            if parent == process.pid and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    raise AssertionError(f"torchrun has no rank {rank}")


def line_with(text: str, words: str) -> str:
    """Return the one line with these words; that several ranks say the same is an error."""
    lines = [line for line in text.splitlines() if words in line]
    assert len(lines) == 1, text
    return lines[0]


def tracked_runs(workspace: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow/mlflow.db")
    (experiment,) = (found for found in client.search_experiments() if found.name == "thousandfold")
    return list(client.search_runs([experiment.experiment_id]))


def only_teacher(workspace: Path) -> Artifact:
    (artifact,) = Workspace(workspace).artifacts("teacher")
    return artifact


@pytest.mark.slow
def test_a_lost_rank_is_told_and_one_rank_finishes_what_two_began(tmp_path: Path):
    process = torchrun(tmp_path, "train-teacher", "--preset", "smoke", *LONG)
    folder = wait_for_checkpoint(process, tmp_path)
    assert folder.num_parts == 2
    os.kill(process_of_rank(process, 1), signal.SIGKILL)
    killed = time.monotonic()
    out, err = end_of(process)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert out.startswith(f"Preset smoke (as asked); workspace {tmp_path}.\n") and out.count("Teacher:") == 1
    line = line_with(out + err, "A rank was lost")
    launcher = "torchrun --nproc-per-node 2 --no-python pipeline"
    command = f"{launcher} --workspace {tmp_path} train-teacher --resume {only_teacher(tmp_path).name}"
    assert line.startswith("Error: A rank was lost at ")
    assert line.endswith(f"The last checkpoint is kept in {folder.path}. Continue with: {command}")
    artifact = only_teacher(tmp_path)
    assert artifact.manifest.status == "failed" and "A rank was lost" in artifact.manifest.results["error"]

    # The rest on one rank, cut short.
    end = folder.progress["env_steps"] + 1600
    resumed = result_of(
        pipeline(tmp_path, "train-teacher", "--resume", "--set", f"env_steps={end}", "--json")
    )
    assert resumed["artifact"] == artifact.name and resumed["results"]["env_steps"] == end
    assert folder.num_parts == 1
    only_teacher(tmp_path).verify()
    chain, teacher = sorted(tracked_runs(tmp_path), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert teacher.data.tags["mlflow.parentRunId"] == chain.info.run_id
    assert teacher.info.run_id == resumed["tracking"]["run_id"] and teacher.info.status == "FINISHED"


@pytest.mark.slow
def test_ranks_make_teacher_and_dataset_and_ctrl_c_saves(tmp_path: Path):
    process = torchrun(tmp_path, "train-teacher", "--preset", "smoke", "--global-negatives")
    out, err = end_of(process)
    assert process.returncode == 0, err
    teacher = only_teacher(tmp_path)
    assert teacher.manifest.status == "completed" and teacher.manifest.settings["global_negatives"] is True

    process = torchrun(tmp_path, "--json", "generate-dataset", "--preset", "smoke")
    out, err = end_of(process)
    assert process.returncode == 0, err
    (line,) = out.splitlines()  # rank 0 alone prints
    made = json.loads(line)
    (dataset,) = Workspace(tmp_path).artifacts("dataset")
    dataset.verify()
    assert made["artifact"] == dataset.name and made["results"]["episodes"] == 40
    assert {parent.hash for parent in dataset.manifest.parents.values()} == {teacher.manifest.hash}
    assert len(tracked_runs(tmp_path)) == 3  # the chain, the teacher, the dataset

    process = torchrun(tmp_path, "train-teacher", "--preset", "smoke", *LONG)
    folder = wait_for_checkpoint(process, tmp_path, after=5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to torchrun and to the ranks
    out, err = end_of(process)
    stopped = line_with(out + err, "Stopped at")
    assert f"pipeline --workspace {tmp_path} train-teacher --resume teacher-" in stopped
    assert "Error: " not in err
    newest = Workspace(tmp_path).artifacts("teacher")[0]
    assert newest.manifest.status == "running" and f"{folder.progress['env_steps']:,} steps" in stopped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train-teacher", "--preset", "smoke", "--set", "num_worlds=9"),
            "Error: num_worlds 9 cannot be split evenly over 2 ranks: use 8 or 10.",
        ),
        (
            ("benchmark",),
            "Error: benchmark is one process, and torchrun started 2: call it without torchrun. "
            "Several ranks can run train-teacher and generate-dataset.",
        ),
    ],
)
def test_what_ranks_cannot_do_is_refused_once(tmp_path: Path, arguments: tuple[str, ...], message: str):
    process = torchrun(tmp_path, *arguments)
    out, err = end_of(process)
    assert process.returncode != 0
    assert line_with(out + err, message) == message
    assert not list(tmp_path.iterdir()), "nothing is made"


# -- without torchrun -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "distill", "export-onnx", "evaluate", "runs", "tasks"])
def test_other_commands_are_refused_under_torchrun(tmp_path: Path, command: str):
    result = CliRunner().invoke(cli, ["--workspace", str(tmp_path), command], env=RANK_0)
    assert result.exit_code == 2
    line = error_of(result.stderr)
    assert line.startswith(f"Error: {command} is one process, and torchrun started 2")
    assert line.endswith("Several ranks can run train-teacher and generate-dataset.")


def test_uneven_worlds_exit_with_code_2(tmp_path: Path):
    arguments = ("train-teacher", "--preset", "smoke", "--set", "num_worlds=9")
    result = CliRunner().invoke(cli, ["--workspace", str(tmp_path), *arguments], env=RANK_0)
    assert result.exit_code == 2
    assert error_of(result.stderr) == "Error: num_worlds 9 cannot be split evenly over 2 ranks: use 8 or 10."
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_a_world_size_without_torchrun_is_one_line(tmp_path: Path):
    result = CliRunner().invoke(cli, ["--workspace", str(tmp_path), "tasks"], env={"WORLD_SIZE": "2"})
    assert result.exit_code == 2 and "start several processes with torchrun" in error_of(result.stderr)
