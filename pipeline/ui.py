"""What is shown in a web browser: a report, and MLflow's page on a workspace's runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.artifacts import Workspace
from pipeline.core.console import Console
from pipeline.core.errors import UserError
from pipeline.core.tracking import ui_command

_PATIENCE_S = 10.0
_QUIET = {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def show_page(path: Path, console: Console) -> None:
    """Show a file of ours in the user's web browser; where there is none, say what to open elsewhere."""
    address = path.absolute().as_uri()
    if not webbrowser.open(address):
        console.warn(f"no web browser was found here: open {address} in one.")


def serve(workspace: Workspace, host: str, port: int, console: Console) -> int:
    """Serve the page and return the server's exit code.

    Raises:
        UserError: there are no runs yet, the address cannot be taken, or the runs are on a server.
        MissingExtraError: MLflow is not installed.
    """
    command = ui_command(workspace.root, host, port)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (workspace.tracking / "mlflow.db").is_file():
        raise UserError(
            f"No runs are recorded in {workspace.root} yet: start with `pipeline run`, or name another "
            "workspace with --workspace DIR."
        )
    _require_free(host, port)
    console.say(f"MLflow UI on http://{host}:{port} (Ctrl-C ends it).")
    # A process group of its own: the server starts further processes, and all of them must end with it.
    server = subprocess.Popen(
        [*command, "--uvicorn-opts", "--log-level warning"], env=os.environ | _QUIET, start_new_session=True
    )
    try:
        with _exit_on_terminate():
            return server.wait()
    finally:
        _end_group(server)


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


@contextlib.contextmanager
def _exit_on_terminate() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that what was started is ended too."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, number)
            server.wait(_PATIENCE_S)
