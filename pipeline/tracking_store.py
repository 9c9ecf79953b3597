"""Where MLflow keeps the runs: its address, how it is opened, its quiet, its UI.

The store is `<workspace>/mlflow/mlflow.db` unless MLFLOW_TRACKING_URI names another, or says `none`.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from thousandfold.ground.errors import FullStoreError, MissingExtraError, UserError, is_disk_full
from thousandfold.ground.files import SAY_AFTER_S, file_lock
from thousandfold.pipeline.tracking_database import (
    BUSY_S,
    EXPERIMENT,
    EXPERIMENT_TAGS,
    file_uri,
    make_ready,
    move_along,
    sqlite_uri,
)
from thousandfold.pipeline.tracking_sinks import is_installed

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

UNTRACKED = "none"
"""What MLFLOW_TRACKING_URI says where nothing is to be recorded."""
LOCK_PATIENCE_S = 60.0
"""How long to wait for another process that makes or upgrades the store."""
DATABASE_PATIENCE_S = 120.0
"""How long a database on a server may take to open, where MLflow makes its tables first."""
_CONNECT_S = 5.0


def tracking_uri() -> str | None:
    """Return MLFLOW_TRACKING_URI; None where it names no store: the workspace's own is meant."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or None


def is_untracked() -> bool:
    """Return whether MLFLOW_TRACKING_URI says that nothing is to be recorded."""
    return (tracking_uri() or "").lower() == UNTRACKED


def store_name() -> str:
    """Return where runs are recorded, for a manifest: `workspace`, or an address without its password."""
    return _without_password(tracking_uri() or "workspace")


def open_store(
    workspace_root: Path, say: Callable[[str], None], to_write: bool = True
) -> tuple[MlflowClient, str]:
    """Return a client of the workspace's store and the id of the product's experiment in it.

    `say` takes lines about waits, and about a store that was upgraded or mended. With `to_write` the store
    must be free to be written to.

    Raises:
        UserError: MLFLOW_TRACKING_URI is `none`, the store cannot be opened, or its server cannot be reached.
    """
    if is_untracked():
        raise UserError(
            "MLFLOW_TRACKING_URI is none, and so there is no tracking store: unset it, or name one."
        )
    given, root = tracking_uri(), workspace_root.resolve()
    shown = _without_password(given) if given else str(_own_database(root))
    _set_environment()
    importlib.import_module("mlflow.tracking")
    for logger in ("mlflow", "alembic", "urllib3"):  # after the import, which sets their levels
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        database = _sqlite_file(given) if given else _own_database(root)
        if database is None:
            assert given is not None
            waiting = threading.Timer(
                SAY_AFTER_S, say, [f"Waiting for the tracking store {shown} to answer."]
            )
            waiting.daemon = True
            waiting.start()
            try:
                return _open_elsewhere(given, root)
            finally:
                waiting.cancel()
        with file_lock(database.with_suffix(".lock"), f"The tracking store {shown}", LOCK_PATIENCE_S, say):
            make_ready(database, _artifacts(root), say, to_write)
            if given is None:
                move_along(root, database, _artifacts(root), say)
            return _open(sqlite_uri(database), file_uri(_artifacts(root)))
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, the file system: each has errors of its own
        kind = FullStoreError if is_disk_full(error) else UserError
        raise kind(
            f"Cannot open the tracking store {shown}: {_reason(error)}. Put that right, let "
            "MLFLOW_TRACKING_URI name another store, or set it to none to go on untracked."
        ) from error


def call_within(limit_s: float, call: Callable[[], T]) -> tuple[T, None] | tuple[None, Future[T]]:
    """Return `call()`, or after the limit what will become of it: it goes on in a thread of its own.

    Raises:
        Exception: What `call` raises.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True, name="tracking").start()
    try:
        return outcome.result(limit_s), None
    except TimeoutError:
        if outcome.done():  # the call's own
            raise
        return None, outcome


def ui_command(workspace_root: Path, host: str, port: int) -> list[str]:
    """Return the command line that serves MLflow's UI on the workspace's store.

    Raises:
        MissingExtraError: MLflow is not installed.
        UserError: MLFLOW_TRACKING_URI is `none`, or names a server, which has a UI already.
    """
    if not mlflow_is_installed():
        raise MissingExtraError('The UI needs MLflow: pip install "thousandfold[train]".')
    if is_untracked():
        raise UserError(
            "MLFLOW_TRACKING_URI is none, and so there are no runs to show: unset it, or name a store."
        )
    uri, root = tracking_uri(), workspace_root.resolve()
    if uri and _is_server(uri):
        raise UserError(f"The runs are on the server {_without_password(uri)}: open that address instead.")
    _set_environment()
    store = uri or sqlite_uri(_own_database(root))
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", store),
        *("--artifacts-destination", file_uri(_artifacts(root)), "--host", host, "--port", str(port)),
    ]


def mlflow_is_installed() -> bool:
    """Return whether MLflow can be imported."""
    return is_installed("mlflow")


def create_unless_present(create: Callable[[], object]) -> None:
    """Call MLflow's `create`; that the thing exists already, perhaps by another process, is fine."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def one_line(error: Exception) -> str:
    """Return an error's text on one line, without passwords, cut where it is long."""
    text = _without_password(" ".join(str(error).split()))
    return text if len(text) <= 300 else f"{text[:300]}…"


def _own_database(root: Path) -> Path:
    return root / "mlflow" / "mlflow.db"


def _artifacts(root: Path) -> Path:
    return root / "mlflow" / "artifacts"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http:", "https:", "databricks"))


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address; None for anything else, and for a database in memory."""
    if not uri.startswith("sqlite"):
        return None
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if not url.database or url.query or url.database.startswith((":", "file:")):
        return None
    return Path(url.database).absolute()


def _open_elsewhere(uri: str, root: Path) -> tuple[MlflowClient, str]:
    """Open a store on a server, or in a database that is no file.

    Raises:
        TimeoutError: It does not answer in time.
        Exception: MLflow's, SQLAlchemy's and the network's own.
    """
    if _is_server(uri):
        # One attempt and a half. Where its artifacts go is for the server to say.
        limit_s, artifacts = 1.5 * float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]), None
    else:
        place = urlsplit(uri)
        if place.hostname and place.port:  # drivers wait for minutes
            socket.create_connection((place.hostname, place.port), _CONNECT_S).close()
        limit_s, artifacts = DATABASE_PATIENCE_S, file_uri(_artifacts(root))
    opened, late = call_within(limit_s, lambda: _open(uri, artifacts))
    if late is not None:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    assert opened is not None
    return opened


def _open(uri: str, artifact_location: str | None) -> tuple[MlflowClient, str]:
    """Return a client and the id of the product's experiment, made or restored where needed."""
    from mlflow.tracking import MlflowClient

    if not _is_server(uri):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 2  # ten attempts, each after twice the pause of the last, take 100 s
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        create_unless_present(
            lambda: client.create_experiment(EXPERIMENT, artifact_location, EXPERIMENT_TAGS)
        )
        experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return client, experiment.experiment_id


def _set_environment() -> None:
    """Set MLflow to send no telemetry, print no links and not wait for minutes on a server that is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # A quoted path is up to three times as long as the path.
    os.environ.setdefault("MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH", "16384")


def _reason(error: Exception) -> str:
    """Return why a store could not be opened, without the libraries' own addresses and call stacks."""
    text = one_line(error)
    if isinstance(error, TimeoutError | ConnectionError) or re.search(
        "Max retries exceeded|Connection|timed out", text
    ):
        return "the server does not answer, or not as MLflow's does"
    if isinstance(error, socket.gaierror):
        return f"the server is not known ({error.strerror})"
    if "database is locked" in text:
        return f"another program has locked it for more than {BUSY_S:.0f} s"
    return re.sub(r"\s*\(Background on this error at: \S+\)?", "", text).rstrip(". ")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//…@", text)
