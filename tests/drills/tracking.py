"""A tracking server that is dead, silent or wrong, and one that is killed or stopped beside a training."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from tests.drills.drilling import Drill, artifacts, copied, stage_command, wait_until_served

_PATIENCE_S = 60  # what a command may wait in all on a store that never answers


def main() -> None:
    """Try each server."""
    drill = Drill(__doc__, 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        for _ in range(drill.trials):
            for what, uri in (
                ("a dead port", "http://127.0.0.1:9"),
                ("a port that accepts and never answers", f"http://127.0.0.1:{silent.getsockname()[1]}"),
                ("no such host", "http://no.such.host.invalid:5000"),
                ("a database that cannot be made", "sqlite:////proc/none/x.db"),
                ("an unknown scheme", "nonsense://x"),
                ("a password in a dead address", "http://user:secret@127.0.0.1:9"),
            ):
                _wrong_server(drill, what, uri)
            for number in (signal.SIGKILL, signal.SIGSTOP):
                _lost_server(drill, number)
            _untracked(drill)
    drill.finish()


def _wrong_server(drill: Drill, what: str, uri: str) -> None:
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "tracking")
    environment = {"MLFLOW_TRACKING_URI": uri}
    done = drill.call(stage_command("train-teacher"), workspace, environment=environment)
    problems = [] if done.code in (0, 2) and not done.traceback else [f"exit code {done.code}: {done.said}"]
    if done.seconds > _PATIENCE_S:
        problems.append(f"it took {done.seconds:.0f} s")
    if "secret" in done.text:
        problems.append("the password is shown")
    if done.code == 2 and artifacts(workspace):
        problems.append("an artifact was begun")
    drill.verdict(f"{what}: exit {done.code} after {done.seconds:.0f} s, {done.said}", problems, workspace)


def _lost_server(drill: Drill, number: signal.Signals) -> None:
    """The server is killed, or stopped so that it holds connections, once a checkpoint is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = drill.root / f"server-{drill.total}"
    store.mkdir()
    options = f"--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///{store}/m.db"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options.split(), "--artifacts-destination", str(store)],
        cwd=store,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    answered = wait_until_served(port)
    workspace = copied(drill.workspace_before("train-teacher"), drill.root / "tracking")
    command = stage_command("train-teacher", "--set", "env_steps=16000")
    running = drill.launch(
        command, workspace, environment={"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    )
    running.wait_for(lambda: list(workspace.glob("runs/teacher-*/checkpoint/manifest.json")))
    os.killpg(server.pid, number)
    lost_at = time.monotonic()
    done = running.wait(400)
    took = time.monotonic() - lost_at
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    problems = (
        [] if answered and done.code == 0 and not done.traceback else [f"exit code {done.code}: {done.said}"]
    )
    if len(done.warnings) != 1:
        problems.append(f"not one warning: {done.warnings}")
    if took > _PATIENCE_S:
        problems.append(f"it took {took:.0f} s more")
    drill.verdict(f"server lost by {number.name} in the middle, {took:.0f} s more", problems, workspace)


def _untracked(drill: Drill) -> None:
    workspace = drill.root / f"untracked-{drill.total}"
    workspace.mkdir()
    done = drill.call(stage_command("train-teacher"), workspace, environment={"MLFLOW_TRACKING_URI": "none"})
    problems = [] if done.code == 0 and not done.traceback else [f"exit code {done.code}: {done.said}"]
    if list(workspace.glob("mlflow/*")):
        problems.append("a store was made")
    drill.verdict("MLFLOW_TRACKING_URI=none", problems, workspace)


main()
