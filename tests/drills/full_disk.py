"""A workspace on a disk that fills up, a tracking store on a full one, a read-only workspace. Needs root."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from tests.drills.drilling import STAGES, Drill, artifacts, broken, copied, hashes, stage_command


def main() -> None:
    """Let each stage run out of room."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--stages", default=",".join(STAGES))

    drill = Drill(__doc__, 5, options)
    disk = drill.root / "disk"
    disk.mkdir(exist_ok=True)
    try:
        for stage in drill.options.stages.split(","):
            for trial in range(drill.trials):
                _full_disk(drill, disk, stage, trial)
        for trial in range(drill.trials):
            _full_store(drill, disk, [0, 20, 60, 150, 300][trial % 5])
        _read_only(drill, disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=False, stderr=subprocess.DEVNULL)
    drill.finish()


def _mount(disk: Path) -> None:
    subprocess.run(["umount", "-l", disk], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000000k", "tmpfs", disk], check=True)


def _leave_room(disk: Path, kib: int) -> None:
    used = subprocess.run(["df", "--output=used", "-k", disk], check=True, capture_output=True, text=True)
    size = int(used.stdout.split()[1]) + kib
    subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)


def _size_kib(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


def _full_disk(drill: Drill, disk: Path, stage: str, trial: int) -> None:
    order = [*STAGES, "end"]
    base, after = drill.workspace_before(stage), drill.workspace_before(order[order.index(stage) + 1])
    needed = _size_kib(after) - _size_kib(base)
    room = int(needed * (trial + drill.random.random()) / drill.trials)
    _mount(disk)
    workspace = copied(base, disk / "workspace")
    _leave_room(disk, room)
    before, known = hashes(workspace), {found.name for found in artifacts(workspace)}
    done = drill.call(stage_command(stage), workspace)
    problems = broken(workspace)
    if done.traceback or done.code not in (0, 2):
        problems.append(f"exit code {done.code}: {done.said}")
    if [path for path, digest in before.items() if hashes(workspace).get(path) != digest]:
        problems.append("an earlier artifact has changed")
    if (listed := drill.call(["runs"], workspace)).code != 0:
        problems.append(f"`runs` on the full disk ended with {listed.code}: {listed.said}")
    _leave_room(disk, 10**6)

    def made() -> bool:
        return any(f.completed and f.name not in known for f in artifacts(workspace, STAGES[stage]))

    if not made():
        how, again = drill.go_on(stage, workspace)
        if again.code != 0 or not made():
            problems.append(f"with room again ({how}) ended with {again.code}: {again.said}")
    drill.verdict(f"{stage}, {room} of {needed} KiB free: exit {done.code} {done.said}", problems, workspace)


def _full_store(drill: Drill, disk: Path, room: int) -> None:
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "full-store")
    _mount(disk)
    shutil.move(workspace / "mlflow", disk / "mlflow")
    (workspace / "mlflow").symlink_to(disk / "mlflow")
    _leave_room(disk, room)
    done = drill.call(stage_command("train-teacher", "--set", "env_steps=1600"), workspace)
    problems = [] if done.code == 0 and not done.traceback else [f"exit code {done.code}: {done.said}"]
    drill.verdict(f"mlflow/ on a disk with {room} KiB free", problems)


def _read_only(drill: Drill, disk: Path) -> None:
    _mount(disk)
    workspace = copied(drill.workspace_before("distill"), disk / "workspace")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (
        stage_command("generate-dataset"),
        ["train-teacher", "--resume"],
        ["distill", "--preset", "smoke"],
        ["runs"],
        ["dataset", "info"],
    ):
        done = drill.call(command, workspace, timeout_s=60)
        problems = (
            [] if done.code in (0, 2) and not done.traceback else [f"exit code {done.code}: {done.said}"]
        )
        drill.verdict(f"read-only, {command[0]}: exit {done.code} {done.said}", problems)


main()
