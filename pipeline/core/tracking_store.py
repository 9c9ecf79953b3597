"""Where MLflow keeps the runs: its address, its first use, its quiet, its UI.

The store is `sqlite:///<workspace>/mlflow/mlflow.db` unless MLFLOW_TRACKING_URI names another.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "thousandfold"


def tracking_uri(workspace_root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or else the address of the workspace's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(workspace_root)


def open_store(workspace_root: Path) -> tuple[MlflowClient, str]:
    """Return a client of the workspace's store and the id of the product's experiment in it.

    Raises:
        UserError: The store cannot be opened or its server cannot be reached.
    """
    uri = tracking_uri(workspace_root)
    _set_environment()
    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "alembic", "urllib3"):  # after the import, which sets their levels
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        with _exclusive(workspace_root) if uri == _default_uri(workspace_root) else nullcontext():
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment_id(client, _artifact_location(uri, workspace_root))
    except Exception as error:  # MLflow, SQLAlchemy, the file system: each has errors of its own
        raise UserError(
            f"Cannot open the tracking store {_without_password(uri)}: {_reason(error)}. "
            "Put that right, or let MLFLOW_TRACKING_URI name another store."
        ) from error


def ui_command(workspace_root: Path, host: str, port: int) -> list[str]:
    """Return the command line that serves MLflow's UI on the workspace's store.

    Raises:
        MissingExtraError: MLflow is not installed.
        UserError: MLFLOW_TRACKING_URI names a server, which has a UI already.
    """
    if not mlflow_is_installed():
        raise MissingExtraError('The UI needs MLflow: pip install "thousandfold[train]".')
    uri = tracking_uri(workspace_root)
    if _is_server(uri):
        raise UserError(f"The runs are on the server {_without_password(uri)}: open that address instead.")
    _set_environment()
    artifacts = _artifact_location(uri, workspace_root)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", uri]
    return [*command, "--artifacts-destination", str(artifacts), "--host", host, "--port", str(port)]


def _store_folder(workspace_root: Path) -> Path:
    return workspace_root.resolve() / "mlflow"


def _default_uri(workspace_root: Path) -> str:
    return f"sqlite:///{_store_folder(workspace_root) / 'mlflow.db'}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http:", "https:", "databricks"))


def _artifact_location(uri: str, workspace_root: Path) -> str | None:
    """Return where artifacts go; a server decides itself, a bare database would take the current folder."""
    return None if _is_server(uri) else (_store_folder(workspace_root) / "artifacts").as_uri()


def mlflow_is_installed() -> bool:
    """Tell the library from a folder of that name, which Python takes for an empty namespace package."""
    spec = importlib.util.find_spec("mlflow")
    return spec is not None and spec.origin is not None


def _set_environment() -> None:
    """Set MLflow to send no telemetry, print no links and not wait for minutes on a server that is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


@contextmanager
def _exclusive(workspace_root: Path) -> Iterator[None]:
    """Let one process at a time in: MLflow's schema migration fails when two run it at once."""
    import fcntl

    folder = _store_folder(workspace_root)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "mlflow.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _experiment_id(client: MlflowClient, artifact_location: str | None) -> str:
    """Return the id of the product's experiment, made or restored where needed."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        create_unless_present(lambda: client.create_experiment(EXPERIMENT, artifact_location))
        experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def create_unless_present(create: Callable[[], object]) -> None:
    """Call MLflow's `create`; that the thing exists already, perhaps by another process, is fine."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _reason(error: Exception) -> str:
    """Return why a store could not be opened, without the libraries' own addresses and call stacks."""
    text = one_line(error)
    if "Max retries exceeded" in text or "Connection" in text:
        return "the server does not answer"
    return re.sub(r"\s*\(Background on this error at: \S+\)?", "", text).rstrip(". ")


def one_line(error: Exception) -> str:
    """Return an error's text on one line, without passwords, cut where it is long."""
    text = _without_password(" ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:300]}…"


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//…@", text)
