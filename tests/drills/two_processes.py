"""Two processes in a workspace: a stage twice, two chains, two resumes, a locked store, `ui` and a stage."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.drills.drilling import (
    RESUMABLE,
    STAGES,
    Drill,
    Outcome,
    artifacts,
    broken,
    chain_command,
    copied,
    stage_command,
    wait_until_served,
)

_FIRST_STATE = {
    "train-teacher": "runs/teacher-*/checkpoint/manifest.json",
    "generate-dataset": "runs/dataset-*/minari/thousandfold/*/shard_0000[1-9]*/data/main_data.hdf5",
    "distill": "runs/student-*/checkpoint/manifest.json",
}
_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Try each pair."""
    drill = Drill(__doc__, 2)
    for _ in range(drill.trials):
        for stage in ("train-teacher", "generate-dataset", "distill", "export-onnx", "report"):
            _same_stage(drill, stage)
        for stage in RESUMABLE:
            _two_resume(drill, stage)
        _fresh_workspace(drill)
        _resume_beside_training(drill)
        _two_chains(drill)
        _locked_store(drill, at_start=True)
        _locked_store(drill, at_start=False)
        _stage_beside_ui(drill)
    drill.finish()


def _together(drill: Drill, commands: Sequence[Sequence[str]], workspace: Path) -> list[Outcome]:
    running = [drill.launch(command, workspace) for command in commands]
    return [one.wait(400) for one in running]


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"exit code {done.code}: {done.said}" for done in outcomes if done.code != 0 or done.traceback]


def _same_stage(drill: Drill, stage: str) -> None:
    workspace = copied(drill.workspace_before(stage), drill.root / "two")
    known = {found.name for found in artifacts(workspace)}
    problems = _failures(_together(drill, [stage_command(stage)] * 2, workspace)) + broken(workspace)
    made = [f for f in artifacts(workspace, STAGES[stage]) if f.name not in known and f.completed]
    if len(made) != 2:
        problems.append(f"{len(made)} artifacts were completed")
    elif made[0].fingerprint() != made[1].fingerprint() and stage != "report":
        problems.append("the two differ")
    drill.verdict(f"{stage} twice at once", problems, workspace)


def _two_resume(drill: Drill, stage: str) -> None:
    workspace = copied(drill.workspace_before(stage), drill.root / "two")
    known = {found.name for found in artifacts(workspace)}
    old = set(workspace.glob(_FIRST_STATE[stage]))
    running = drill.launch(stage_command(stage), workspace)
    running.wait_for(lambda: set(workspace.glob(_FIRST_STATE[stage])) - old)
    running.kill()
    running.wait()
    outcomes = _together(drill, [[stage, "--resume"]] * 2, workspace)
    problems = broken(workspace)
    if sorted(str(done.code) for done in outcomes) not in (["0", "2"], ["0", "0"]):
        problems += _failures(outcomes)
    made = [found for found in artifacts(workspace, STAGES[stage]) if found.name not in known]
    if len(made) != 1 or not made[0].completed:
        problems.append(f"became of it: {[found.content.get('status') for found in made]}")
    drill.verdict(f"{stage} --resume twice at once", problems, workspace)


def _fresh_workspace(drill: Drill) -> None:
    workspace = drill.root / f"two-fresh-{drill.total}"
    workspace.mkdir()
    command = stage_command("train-teacher", "--set", "env_steps=800")
    drill.verdict(
        "two at once in a new workspace", _failures(_together(drill, [command] * 2, workspace)), workspace
    )


def _resume_beside_training(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "two")
    running = drill.launch(stage_command("train-teacher", "--set", "env_steps=160000"), workspace)
    running.wait_for(lambda: list(workspace.glob(_FIRST_STATE["train-teacher"])))
    done = drill.call(["train-teacher", "--resume"], workspace)
    running.kill(signal.SIGINT)
    first = running.wait(120)
    problems = []
    if done.code != 2 or done.traceback:
        problems.append(f"exit code {done.code}: {done.said}")
    if first.code in (None, 0, 1, 2) or first.traceback:
        problems.append(f"the first ended with {first.code}: {first.said}")
    drill.verdict("--resume of a teacher that is being trained", problems, workspace)


def _two_chains(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "two")
    problems = _failures(_together(drill, [chain_command()] * 2, workspace)) + broken(workspace)
    by_name = {found.name: found.content for found in artifacts(workspace)}
    for path in workspace.glob("runs/chain-*.json"):
        done = json.loads(path.read_text())["done"]
        for stage, parent, parent_stage in (
            ("distill", "teacher", "train_teacher"),
            ("export_onnx", "student", "distill"),
        ):
            if stage in done and by_name[done[stage]]["parents"][parent]["name"] != done[parent_stage]:
                problems.append(f"{path.name}: {stage} took a {parent} of the other chain")
    drill.verdict("two chains at once", problems, workspace)


def _locked_store(drill: Drill, at_start: bool) -> None:
    """Another program holds an exclusive lock on the store, for good."""
    workspace = copied(drill.workspace_before("generate-dataset"), drill.root / "two")
    command = stage_command("generate-dataset")
    store = sqlite3.connect(workspace / "mlflow" / "mlflow.db", isolation_level=None)
    running = None
    if not at_start:
        running = drill.launch(command, workspace)
        running.wait_for(lambda: list(workspace.glob("runs/dataset-*/minari/thousandfold/*/shard*")))
    store.execute("begin exclusive")
    done = running.wait(400) if running else drill.call(command, workspace, timeout_s=400)
    store.execute("rollback")
    store.close()
    allowed = (0, 2) if at_start else (0,)
    problems = [] if done.code in allowed and not done.traceback else [f"exit code {done.code}: {done.said}"]
    if done.seconds > 90:
        problems.append(f"it took {done.seconds:.0f} s")
    drill.verdict(
        f"store locked {'from the start' if at_start else 'in the middle'}: {done.said}", problems, workspace
    )


def _stage_beside_ui(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("generate-dataset"), drill.root / "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "thousandfold.pipeline",
        "--workspace",
        str(workspace),
        "ui",
        "--port",
        str(port),
    ]
    served = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    answered = wait_until_served(port)
    done = drill.call(stage_command("generate-dataset"), workspace)
    problems = _failures([done])
    if done.warnings:
        problems.append(f"warned: {done.warnings}")
    if not answered:
        problems.append("the page did not answer")
    served.send_signal(signal.SIGTERM)
    served.wait(30)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            problems.append("something still listens after SIGTERM")
    drill.verdict("a stage beside `ui`", problems, workspace)


main()
