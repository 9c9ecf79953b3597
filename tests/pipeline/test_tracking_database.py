"""The database of a workspace's store: made whole, upgraded aside, mended, moved, and locked."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest

from thousandfold.ground import files
from thousandfold.ground.errors import UserError
from thousandfold.ground.files import file_lock
from thousandfold.pipeline import tracking_database, tracking_store
from thousandfold.pipeline.tracking import open_tracker

FIRST_REVISION = "451aebb31d03"
ODD = "-a?b%41#c;d&e 'ü\"\n@x:y"


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A workspace, in a folder with every odd character, with a run, an artifact, a model and a dataset."""
    root = tmp_path_factory.mktemp("place") / ODD
    model = root / "runs" / "policy-1"
    model.mkdir(parents=True)
    (model / "policy.onnx").write_bytes(b"graph")
    with open_tracker(root).stage("export_onnx", name="policy-1") as run:
        run.log_metrics({"loss": 1.0}, 0)
        run.log_file(model / "policy.onnx", "files")
        run.log_dataset("dataset-1", "d" * 36, str(root / "runs" / "dataset-1"), 10, "training")
        assert run.register_model("policy", model) == "1"
    assert list(root.parent.iterdir()) == [root], "nothing lies beside the workspace"
    return root


@pytest.fixture
def workspace(original, tmp_path) -> Path:
    """A copy of it in the same place of its own, as far as its database knows."""
    copy = tmp_path / ODD
    shutil.copytree(original, copy)
    open_tracker(copy, say=lambda _: None)
    return copy


@pytest.fixture
def empty(workspace) -> Path:
    """The same workspace without a run."""
    with closing(sqlite3.connect(workspace / "mlflow" / "mlflow.db")) as connection:
        for table in ("metrics", "latest_metrics", "tags", "model_versions", "registered_model_aliases"):
            connection.execute(f"DELETE FROM {table}")
        for table in tracking_database._RECORDS:
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    return workspace


def client_of(root: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_database.sqlite_uri(root / "mlflow" / "mlflow.db"))


def set_revision(root: Path, revision: str) -> None:
    with closing(sqlite3.connect(root / "mlflow" / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def require_recorded(root: Path) -> None:
    """Read everything back through MLflow's own client, from below a workspace."""
    from mlflow.artifacts import download_artifacts

    client = client_of(root)
    experiment = client.get_experiment_by_name("thousandfold")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert experiment.artifact_location == (root / "mlflow" / "artifacts").as_uri()
    assert run.data.metrics == {"loss": 1.0}
    assert [file.path for file in client.list_artifacts(run.info.run_id, "files")] == ["files/policy.onnx"]
    source = client.get_model_version_download_uri("policy", "1")
    copy = Path(download_artifacts(f"{source}/policy.onnx", tracking_uri=client.tracking_uri))
    assert copy.read_bytes() == b"graph" and copy.is_relative_to(root)
    assert client.get_model_version("policy", "1").source == source
    assert run.inputs is not None
    (used,) = run.inputs.dataset_inputs
    assert str(root / "runs" / "dataset-1") in used.dataset.source.encode().decode("unicode_escape")


def test_any_path_will_do(original):
    require_recorded(original)
    assert list(original.parent.iterdir()) == [original], "reading makes nothing beside the workspace"


def test_a_killed_making_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    def killed(database, artifacts):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE experiments (name)")
        raise KeyboardInterrupt

    folder = tmp_path / "mlflow"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking_database, "_migrate", killed)
        open_tracker(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mlflow.lock"]

    for name in (
        ".tmp-1-mlflow.db",
        ".tmp-1-mlflow.db-journal",
        "mlflow.db-journal",
    ):  # as kill -9 leaves them
        (folder / name).write_bytes(b"half")
    with open_tracker(tmp_path).stage("distill", name="student") as run:
        run.log_metrics({"loss": 1.0}, 0)
    assert client_of(tmp_path).get_run(str(run.run_id)).data.metrics == {"loss": 1.0}
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.lock"]


def test_a_store_left_half_made_is_made_anew(empty):
    set_revision(empty, FIRST_REVISION)  # as a migration that was killed between a table and its note
    lines = []
    with open_tracker(empty, say=lines.append).stage("distill", name="student") as run:
        pass
    assert client_of(empty).get_run(str(run.run_id)).info.status == "FINISHED"
    (kept,) = (empty / "mlflow").glob("mlflow.db.before-*")
    assert len(lines) == 1 and "half-made" in lines[0] and kept.name in lines[0]
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (FIRST_REVISION,)


def test_a_half_upgraded_store_with_runs_is_left_alone(workspace):
    set_revision(workspace, FIRST_REVISION)
    database = workspace / "mlflow" / "mlflow.db"
    before = database.read_bytes()
    with pytest.raises(UserError, match=r"(?s)mlflow\.db holds runs and was left half-upgraded"):
        open_tracker(workspace)
    assert database.read_bytes() == before
    assert not list(database.parent.glob("*mlflow.db?*"))


def test_a_store_of_a_newer_mlflow_is_left_alone(workspace):
    set_revision(workspace, "ffffffffffff")
    before = (workspace / "mlflow" / "mlflow.db").read_bytes()
    with pytest.raises(UserError, match=r"(?s)made by a newer MLflow: update MLflow"):
        open_tracker(workspace)
    assert (workspace / "mlflow" / "mlflow.db").read_bytes() == before


def test_an_older_store_is_upgraded_aside(workspace, monkeypatch):
    from alembic import command
    from mlflow.store.db import utils

    database = workspace / "mlflow" / "mlflow.db"
    engine = utils.create_sqlalchemy_engine(tracking_database.sqlite_uri(database))
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    before = database.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking_database, "_migrate", killed)
        open_tracker(workspace)
    assert database.read_bytes() == before

    lines = []
    open_tracker(workspace, say=lines.append)
    (kept,) = database.parent.glob("mlflow.db.before-*")
    assert len(lines) == 1 and lines[0].startswith("Upgraded the tracking store") and kept.name in lines[0]
    assert kept.read_bytes() == before
    require_recorded(workspace)


def test_a_moved_workspace_takes_its_store_along(original, tmp_path):
    moved, lines = tmp_path / "here", []
    shutil.copytree(original, moved)
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    with open_tracker(moved, say=lines.append).stage("report", name="report-1") as run:
        run.log_file(moved / "runs" / "policy-1" / "policy.onnx")
    assert len(lines) == 1 and lines[0].startswith(f"The workspace was at {original} before: ")
    assert str(moved) in lines[0] and "lie only" not in lines[0]
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before
    assert (moved / "mlflow" / "artifacts" / str(run.run_id) / "artifacts" / "policy.onnx").is_file()
    client_of(moved).delete_run(str(run.run_id))
    require_recorded(moved)

    open_tracker(moved, say=lines.append)
    assert len(lines) == 1, "it is said once"
    with closing(sqlite3.connect(moved / "mlflow" / "mlflow.db")) as connection:
        text = "\n".join(connection.iterdump())
    assert original.as_uri() not in text and str(original) not in unquote(text)


def test_artifacts_that_did_not_come_along_are_named(original, tmp_path):
    lines = []
    shutil.copytree(original, tmp_path / "here", ignore=shutil.ignore_patterns("artifacts"))
    open_tracker(tmp_path / "here", say=lines.append)
    assert f"Artifacts of 1 runs lie only in {original}/mlflow/artifacts: copy them to" in lines[0]


def test_a_store_that_another_program_has_locked_is_one_line(workspace, monkeypatch):
    monkeypatch.setattr(tracking_database, "BUSY_S", 0.2)
    for kind in ("EXCLUSIVE", "IMMEDIATE"):
        with closing(sqlite3.connect(workspace / "mlflow" / "mlflow.db", isolation_level=None)) as other:
            other.execute(f"BEGIN {kind}")
            with pytest.raises(UserError, match="another program has locked it"):
                open_tracker(workspace)


def test_a_store_that_another_process_prepares_is_waited_for_in_so_many_words(workspace, monkeypatch):
    monkeypatch.setattr(tracking_store, "LOCK_PATIENCE_S", 0.4)
    monkeypatch.setattr(files, "SAY_AFTER_S", 0.1)
    lines = []
    said = rf"(?s)in use by another process \({os.getpid()}\): wait for it"
    with file_lock(workspace / "mlflow" / "mlflow.lock", "it"), pytest.raises(UserError, match=said):
        open_tracker(workspace, say=lines.append)
    assert len(lines) == 1 and lines[0].startswith(f"Waiting for another process ({os.getpid()}): ")
    open_tracker(workspace)


def test_a_link_to_a_store_that_is_away_is_not_replaced(tmp_path):
    link = tmp_path / "mlflow" / "mlflow.db"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "away" / "mlflow.db")
    with pytest.raises(UserError, match=r"away/mlflow\.db, which is not there"):
        open_tracker(tmp_path)
    assert link.is_symlink()


def test_a_named_database_is_made_whole_as_well(tmp_path, monkeypatch):
    database = tmp_path / "shared" / "runs.db"
    database.parent.mkdir()
    (database.parent / ".tmp-1-runs.db").write_bytes(b"half")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    with open_tracker(tmp_path / "w").stage("distill", name="student") as run:
        pass
    assert run.run_id
    assert sorted(path.name for path in database.parent.iterdir()) == ["runs.db", "runs.lock"]
