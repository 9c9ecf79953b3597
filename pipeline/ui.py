"""What is shown in a web browser: a report, and MLflow's page on a workspace's runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

import click

from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.session import Session
from thousandfold.pipeline.tracking import open_tracker
from thousandfold.pipeline.tracking_store import open_store, tracking_uri, ui_command

_PATIENCE_S = 10.0
_QUIET = {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def show_page(path: Path, console: Console) -> None:
    """Show a file of ours in the user's web browser; where there is none, say what to open elsewhere."""
    address = path.absolute().as_uri()
    if not webbrowser.open(address):
        console.warn(f"no web browser was found here: open {address} in one.")


def serve(workspace: Workspace, host: str, port: int, console: Console, browser: bool = True) -> int:
    """Serve the page, show the runs in the user's web browser, and return the server's exit code.

    Without `browser`, and where no graphical session runs, their address is said alone.

    Raises:
        UserError: there are no runs yet or they are on a server, the store cannot be opened, the address
            cannot be taken, or the server ends before it serves.
        MissingExtraError: MLflow is not installed.
    """
    command = ui_command(workspace.root, host, port)
    if tracking_uri() is None and not (workspace.tracking / "mlflow.db").is_file():
        raise UserError(
            f"No runs are recorded in {workspace.root} yet: start with `pipeline run`, or name another "
            "workspace with --workspace DIR."
        )
    _require_free(host, port)
    _, experiment = open_store(workspace.root, console.say, to_write=False)
    if dead := dead_runs(workspace):
        open_tracker(workspace.root, console.warn, console.say).end_dead(dead)
    # A process group of its own: the server starts further processes, and all of them must end with it.
    watched = [sys.executable, "-S", "-c", _END_WITH_PARENT, *command]
    watched += ["--uvicorn-opts", "--log-level warning"]
    server = subprocess.Popen(watched, env=os.environ | _QUIET, stdin=subprocess.PIPE, start_new_session=True)
    try:
        while not _answers(host, port):
            if server.poll() is not None:
                raise UserError(f"MLflow's server ended with code {server.returncode} before it served.")
            time.sleep(0.2)
        address = runs_page(host, port, experiment)
        console.say(f"MLflow UI on {address} (Ctrl-C ends it).")
        # A browser of the terminal would take the terminal, and run no script of the page.
        if browser and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
            webbrowser.open(address)
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Whoever interrupts the waiting wants it to end, and not to be left behind.
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
                os.killpg(server.pid, number)
                server.wait(_PATIENCE_S)


def runs_page(host: str, port: int, experiment: str) -> str:
    """Return the address of an experiment's runs on a server that listens on `host`, as seen from here.

    MLflow's page begins with its view of language models; the address asks for that of trainings.
    """
    place = _seen_from_here(host)
    named = f"[{place}]" if ":" in place else place
    return f"http://{named}:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"


# Runs the command in its arguments; ends its process group when standard input does, as it does when whoever
# started it is gone, by kill -9 as well.
_END_WITH_PARENT = """
import os, signal, subprocess, sys, threading, time

def end_group():
    while os.read(0, 1):
        pass
    abandoned.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(5)
    os.killpg(0, signal.SIGKILL)

signal.signal(signal.SIGTERM, lambda *_: None)
abandoned = threading.Event()
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
watch = threading.Thread(target=end_group, daemon=True)
watch.start()
code = server.wait()
if abandoned.is_set():
    watch.join()
sys.exit(code)
"""


def dead_runs(workspace: Workspace) -> list[str]:
    """Return the tracked runs of artifacts, and of chains, that no process is making any more."""
    artifacts = workspace.artifacts()
    living = {a.manifest.tracking.get("chain_run_id") for a in artifacts if a.status == "running"}
    stopped = [artifact.manifest.tracking for artifact in artifacts if artifact.status == "stopped"]
    chains = {tracking.get("chain_run_id") for tracking in stopped} - living
    return [str(run) for run in [*(tracking.get("run_id") for tracking in stopped), *chains] if run]


def _require_free(host: str, port: int) -> None:
    """Raise UserError unless `port` can be listened on; the server itself would hang there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host."
        ) from None


def _answers(host: str, port: int) -> bool:
    """Return whether somebody listens there."""
    try:
        socket.create_connection((_seen_from_here(host), port), 1.0).close()
    except OSError:
        return False
    return True


def _seen_from_here(host: str) -> str:
    """Return the address of this machine for one that means all of its addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port.")
@click.option("--browser/--no-browser", default=True, help="Show the runs in the web browser, or not.")
@click.pass_obj
def ui(session: Session, host: str, port: int, browser: bool) -> None:
    """Open the tracking store in MLflow's web page."""
    with session.open():
        sys.exit(serve(session.workspace, host, port, session.console, browser))
