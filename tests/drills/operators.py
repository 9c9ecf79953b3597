"""Mishaps: checkpoints moved to another disk, a moved workspace, a removed store, a wrong clock, others."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.drills.drilling import Drill, artifacts, copied, newest, stage_command


def main() -> None:
    """Try each mishap."""
    drill = Drill(__doc__, 1)
    for _ in range(drill.trials):
        _abandoned_teacher(drill)
        _linked_checkpoints(drill)
        _moved_workspace(drill)
        _stores(drill)
        _killed_report(drill)
        _clock(drill)
        _modes(drill)
    drill.finish()


def _kill_at(drill: Drill, command: Sequence[str], workspace: Path, files: str) -> None:
    """Kill a command as soon as a new file that matches the pattern is there."""
    old = set(workspace.glob(files))
    running = drill.launch(command, workspace)
    running.wait_for(lambda: set(workspace.glob(files)) - old)
    running.kill()
    running.wait()


def _abandoned_teacher(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "operator")
    _kill_at(
        drill,
        stage_command("train-teacher", "--seed", "1"),
        workspace,
        "runs/teacher-*/checkpoint/manifest.json",
    )
    _kill_at(drill, stage_command("train-teacher", "--seed", "2"), workspace, "runs/teacher-*/manifest.json")
    second = artifacts(workspace, "teacher")[-1].name
    done = drill.call(["train-teacher", "--resume"], workspace)
    problems = []
    if done.code != 2 or second not in done.text.replace("\n", ""):
        problems.append(f"exit code {done.code}, went on with another: {done.said}")
    drill.verdict("--resume after the newest teacher died before its first checkpoint", problems)


def _linked_checkpoints(drill: Drill) -> None:
    for stage, kind in (("train-teacher", "teacher"), ("distill", "student")):
        workspace = copied(drill.workspace_before(stage), drill.root / "operator")
        _kill_at(drill, stage_command(stage), workspace, f"runs/{kind}-*/checkpoint/manifest.json")
        folder = artifacts(workspace, kind)[-1].path / "checkpoint"
        elsewhere = drill.root / "operator-elsewhere"
        shutil.rmtree(elsewhere, ignore_errors=True)
        shutil.move(folder, elsewhere)
        folder.symlink_to(elsewhere)
        done = drill.call([stage, "--resume"], workspace)
        problems = [] if done.code == 0 and not done.traceback else [f"exit code {done.code}: {done.said}"]
        drill.verdict(f"{stage} --resume with checkpoint/ linked to another disk", problems)


def _moved_workspace(drill: Drill) -> None:
    old, new = drill.root / "operator-old", drill.root / "operator ? new %41"
    copied(drill.workspace_before("report"), old)
    drill.must(["evaluate", "--preset", "smoke", "--set", "episodes=2"], old)
    shutil.rmtree(new, ignore_errors=True)
    old.rename(new)
    for command in (["evaluate", "--preset", "smoke", "--set", "episodes=2"], ["report"]):
        done = drill.call(command, new)
        problems = [] if done.code == 0 and not done.traceback else [f"exit code {done.code}: {done.said}"]
        if old.exists():
            problems.append("something was written at the old place")
        drill.verdict(f"{command[0]} in a moved workspace", problems)


def _stores(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("report"), drill.root / "operator")
    (workspace / "mlflow" / "mlflow.db").unlink()
    done = drill.call(["report"], workspace)
    drill.verdict("mlflow.db removed", [] if done.code == 0 else [f"exit code {done.code}: {done.said}"])
    workspace = copied(drill.workspace_before("report"), drill.root / "operator")
    with sqlite3.connect(workspace / "mlflow" / "mlflow.db") as store:
        store.execute("update alembic_version set version_num='ffffffffffff'")
    store.close()
    done = drill.call(["report"], workspace)
    problems = [] if done.code in (0, 2) and not done.traceback else [f"exit code {done.code}: {done.said}"]
    drill.verdict(f"mlflow.db of a newer MLflow: exit {done.code} {done.said}", problems)


def _killed_report(drill: Drill) -> None:
    workspace = copied(drill.workspace_before("report"), drill.root / "operator")
    _kill_at(drill, ["report"], workspace, "runs/report-*/manifest.json")
    dead = [found.name for found in artifacts(workspace, "report") if not found.completed]
    drill.must(["report"], workspace)
    listed = drill.call(["--json", "runs"], workspace)
    problems = []
    for name in dead:
        shown = [line for line in listed.text.splitlines() if line.startswith("{")]
        rows = (
            json.dumps([row for row in json.loads(shown[-1])["artifacts"] if name in json.dumps(row)])
            if shown
            else ""
        )
        if not rows or '"running"' in rows:
            problems.append(f"{name} is dead and said to be running: {rows or listed.said}")
    with sqlite3.connect(workspace / "mlflow" / "mlflow.db") as store:
        alive = store.execute("select name from runs where status='RUNNING'").fetchall()
    store.close()
    if alive:
        problems.append(f"MLflow still says RUNNING of {alive}")
    drill.verdict("`report` killed, then made again", problems, workspace)


def _clock(drill: Drill) -> None:
    """An export while the clock was wrong by years, then one with the right time."""
    workspace = copied(drill.workspace_before("benchmark"), drill.root / "operator")
    policy = newest(workspace, "policy")
    drill.must(stage_command("export-onnx"), workspace)
    late = newest(workspace, "policy")
    for found, year in ((policy, "2031"), (late, None)):
        if year is not None:
            content = found.content | {"finished_at": year + found.content["finished_at"][4:]}
            (found.path / "manifest.json").write_text(json.dumps(content))
    done = drill.call(["evaluate", "--preset", "smoke", "--set", "episodes=2"], workspace)
    told = done.code == 2 and policy.name in done.text.replace("\n", "")
    problems = [] if told or late.name in done.text else [f"exit code {done.code}: {done.said}"]
    drill.verdict("a policy's manifest edited to a later year", problems)


def _modes(drill: Drill) -> None:
    workspace = drill.workspace_before("end")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in workspace.glob("runs/*/*") if path.is_file()}
    problems = [] if len(modes) == 1 else [f"modes {[oct(mode) for mode in modes]}"]
    drill.verdict("modes of an artifact's files", problems)


main()
