"""Tracking against a real MLflow store; one store serves most tests, since making one takes seconds."""

from __future__ import annotations

import json
import math
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thousandfold.ground.errors import StoppedByUser, UserError
from thousandfold.pipeline import system_metrics, tracking, tracking_store
from thousandfold.pipeline.tracking import NullTracker, open_tracker
from thousandfold.pipeline.tracking_store import ui_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A workspace whose store two processes made at the same moment; both logged a run into it."""
    root = tmp_path_factory.mktemp("workspace with spaces")
    script = (
        "import sys; from pathlib import Path; from thousandfold.pipeline.tracking import open_tracker\n"
        "with open_tracker(Path(sys.argv[1])).stage('distill', name='first use') as run:\n"
        "    run.log_metrics({'loss': 1.0}, 0); assert run.run_id\n"
    )
    command = [sys.executable, "-c", script, str(root)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert (process.returncode, output) == (0, ""), errors
        # On a slow machine the second one says what it waits for.
        assert not errors or re.fullmatch(
            r"Waiting for another process \(\d+\): The tracking store .*\n", errors
        )
    return root


@pytest.fixture(scope="module")
def client(workspace):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow/mlflow.db")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def tracker(workspace, warnings):
    """A tracker whose test must have recorded everything: it fails on any warning."""
    yield open_tracker(workspace, warnings.append)
    assert warnings == []


def test_two_processes_at_once_share_a_fresh_store(workspace, client):
    experiment = client.get_experiment_by_name("thousandfold")
    assert experiment.artifact_location == (workspace / "mlflow" / "artifacts").as_uri()
    runs = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'first use'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]


def test_stages_nest_under_their_chain(tracker, client):
    chain = tracker.open_chain("chain-1", {"task": "point_u_maze"})
    with tracker.stage("train_teacher", name="teacher-1", chain_run_id=chain, tags={"depth": 16}) as run:
        assert client.get_run(run.run_id).info.status == "RUNNING"
    tracker.close_chain(chain)

    parent, child = client.get_run(chain), client.get_run(run.run_id)
    assert child.data.tags["mlflow.parentRunId"] == chain == run.chain_run_id
    assert child.data.tags["stage"] == "train_teacher" and child.data.tags["depth"] == "16"
    assert child.info.run_name == "teacher-1"
    assert parent.data.tags["task"] == "point_u_maze" and "mlflow.parentRunId" not in parent.data.tags
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no"), "FAILED"), (StoppedByUser("saved"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_an_error_ends_the_run_as_it_should(tracker, client, error, status):
    chain = tracker.open_chain("chain")
    with pytest.raises(type(error)), tracker.stage("distill", name="student") as run:
        run.log_metrics({"loss": 2.0}, 7)
        raise error
    tracker.close_chain(chain, error)
    assert client.get_run(chain).info.status == status, "beside its stage"
    record = client.get_run(run.run_id)
    assert record.info.status == status
    assert record.data.metrics == {"loss": 2.0}, "what was collected is written before the run ends"
    assert record.data.tags["ended_by"] == f"{type(error).__name__}: {error}"


def test_a_run_whose_process_is_gone_is_called_killed(tracker, client):
    dead, done = tracker.open_chain("dead"), tracker.open_chain("done")
    tracker.close_chain(done)
    tracker.end_dead([dead, done, "no-such-run"])
    assert [client.get_run(run).info.status for run in (dead, done)] == ["KILLED", "FINISHED"]


def test_metrics_are_written_in_batches(tracker, client, monkeypatch):
    sizes, log_batch = [], client.log_batch
    monkeypatch.setattr(
        type(client),
        "log_batch",
        lambda self, id, metrics=(), **k: (sizes.append(len(metrics)), log_batch(id, metrics)),
    )
    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 1e9)
    with tracker.stage("train_teacher", name="teacher") as run:
        for step in range(150):
            run.log_metrics({"critic/loss": step / 2, "success": 1.0, "α": 0.1}, step)
    assert sizes == [201, 201, 48]
    history = client.get_metric_history(run.run_id, "critic/loss")
    assert [(point.step, point.value) for point in history] == [(step, step / 2) for step in range(150)]
    assert client.get_run(run.run_id).data.metrics["α"] == 0.1


def test_metrics_are_written_when_time_has_passed(tracker, client, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 0.0)
    with tracker.stage("train_teacher", name="teacher") as run:
        run.log_metrics({"loss": 3.0}, 1)
        assert client.get_run(run.run_id).data.metrics == {"loss": 3.0}


def test_values_that_are_not_finite_become_tags(tracker, client):
    with tracker.stage("train_teacher", name="teacher") as run:
        run.log_metrics({"loss": math.nan, "entropy": math.inf, "q(s, a)": 1.5}, 12)
    data = client.get_run(run.run_id).data
    assert data.metrics == {"q_s_ a_": 1.5}
    assert data.tags["nonfinite.loss"] == "nan at step 12"
    assert data.tags["nonfinite.entropy"] == "inf at step 12"


def test_settings_are_flattened_and_long_values_cut(tracker, client):
    many = {f"k{i}": i for i in range(130)}
    with tracker.stage("distill", name="student") as run:
        run.log_settings({"depth": 4, "loss": {"kl": 1.0, "mse": None}, "note": "x" * 9000, **many})
    params = client.get_run(run.run_id).data.params
    assert (params["depth"], params["loss.kl"], params["loss.mse"]) == ("4", "1.0", "None")
    assert len(params["note"]) == 6000 and len(params) == 134


def test_a_run_goes_on_where_it_was_killed(workspace, tracker, client):
    with pytest.raises(KeyboardInterrupt), tracker.stage("train_teacher", name="teacher") as first:
        first.log_settings({"steps": 100, "depth": 16})
        first.log_metrics({"loss": 2.0}, 1)
        raise KeyboardInterrupt

    with open_tracker(workspace).stage("train_teacher", name="teacher", run_id=first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.log_settings({"steps": 200, "depth": 16})
        second.log_metrics({"loss": 1.0}, 2)

    assert second.run_id == first.run_id
    record = client.get_run(first.run_id)
    assert record.info.status == "FINISHED"
    assert record.data.params == {"steps": "100", "depth": "16"}
    assert record.data.tags["resumed.steps"] == "200" and "resumed.depth" not in record.data.tags
    assert [point.step for point in client.get_metric_history(first.run_id, "loss")] == [1, 2]


def test_a_run_that_the_store_does_not_have_starts_anew(tracker, client):
    with tracker.stage("distill", name="student", run_id="0" * 32) as run:
        pass
    assert run.run_id != "0" * 32 and client.get_run(run.run_id).info.status == "FINISHED"


def test_chains_compare_by_settings_and_headline_figures(tracker, client):
    chain = tracker.open_chain("point_u_maze, 8×64 to 2×16", {tracking.NOTE_TAG: "A **small** one."})
    for width in (16, 32):
        with tracker.stage("distill", name="student", chain_run_id=chain) as run:
            run.log_chain_settings({"distill": {"width": width, "seed": 1}})
            run.log_headline({"student_success": width / 100, "student_retention": None}, 7)
    with tracker.stage("distill", name="cell", chain_run_id=chain) as cell:
        cell.log_headline({"student_success": 0.99}, chain=False)
    tracker.close_chain(chain)

    data = client.get_run(chain).data
    assert data.params == {"distill.width": "16", "distill.seed": "1"}, "parameters never change"
    assert data.tags["newest.distill.width"] == "32" and "newest.distill.seed" not in data.tags
    assert data.metrics == client.get_run(run.run_id).data.metrics == {"student_success": 0.32}
    assert client.get_run(cell.run_id).data.metrics == {"student_success": 0.99}
    assert data.tags["mlflow.note.content"] == "A **small** one."


def test_a_chain_of_another_store_takes_no_figures(tracker, client):
    with tracker.stage("distill", name="student", chain_run_id="0" * 32) as run:
        run.log_chain_settings({"distill": {"width": 16}})
        run.log_headline({"student_success": 0.5})
    assert client.get_run(run.run_id).data.metrics == {"student_success": 0.5}


def test_a_watched_stage_records_what_the_machine_does(tracker, client, monkeypatch):
    monkeypatch.setattr(system_metrics, "SAMPLE_EVERY_S", 0.05)
    with tracker.stage("train_teacher", name="teacher", watched=True) as run:
        run.log_metrics({"train/loss": 1.0}, 5)
    metrics = client.get_run(run.run_id).data.metrics
    assert (
        metrics["system/system_memory_usage_megabytes"] > 0 and "system/cpu_utilization_percentage" in metrics
    )
    assert not run._system._thread.is_alive()

    with tracker.stage("benchmark", name="benchmark") as unwatched:
        pass
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracker.stage("train_teacher", name="teacher", watched=True) as switched_off:
        pass
    for other in (unwatched, switched_off):
        assert client.get_run(other.run_id).data.metrics == {}


def test_the_experiment_says_what_it_holds(client):
    experiment = client.get_experiment_by_name("thousandfold")
    assert "Each chain is one run" in experiment.tags["mlflow.note.content"]


def test_files_and_folders_become_artifacts(tracker, client, tmp_path):
    (tmp_path / "curve.png").write_bytes(b"png")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    with tracker.stage("benchmark", name="report") as run:
        run.log_file(tmp_path / "curve.png", "pictures")
        run.log_file(tmp_path / "report")
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["pictures", "report"]
    assert [f.path for f in client.list_artifacts(run.run_id, "pictures")] == ["pictures/curve.png"]


def test_a_dataset_is_an_input_with_its_source(tracker, client, tmp_path):
    import mlflow.data

    with tracker.stage("distill", name="student") as run:
        run.log_dataset("dataset-1", "a" * 64, str(tmp_path), 5000, "training")
    (used,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert used.dataset.name == "dataset-1" and used.dataset.digest == "a" * 36
    assert json.loads(used.dataset.profile) == {"num_rows": 5000}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert mlflow.data.get_source(used.dataset).load() == str(tmp_path)


def test_models_are_registered_under_aliases(tracker, client, tmp_path):
    from mlflow.artifacts import download_artifacts

    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "actor.safetensors").write_bytes(b"weights")
    policy = tmp_path / "policy.onnx"
    policy.write_bytes(b"graph")
    with tracker.stage("export_onnx", name="policy") as run:
        versions = [
            run.register_model("point_u_maze-teacher", folder, {"success": 0.98}),
            run.register_model("point_u_maze-policy", policy, aliases=("newest", "champion")),
            run.register_model("point_u_maze-policy", policy),
        ]
    assert versions == ["1", "1", "2"]

    teacher = client.get_model_version_by_alias("point_u_maze-teacher", "newest")
    assert (str(teacher.version), teacher.run_id, teacher.tags) == ("1", run.run_id, {"success": "0.98"})
    assert int(client.get_model_version_by_alias("point_u_maze-policy", "newest").version) == 2
    assert int(client.get_model_version_by_alias("point_u_maze-policy", "champion").version) == 1
    uri = client.get_model_version_download_uri("point_u_maze-policy", "2")
    copy = download_artifacts(artifact_uri=uri, dst_path=str(tmp_path / "copy"))
    assert (Path(copy) / "policy.onnx").read_bytes() == b"graph"


def test_nothing_is_printed(workspace, capfd, tmp_path):
    tracker = open_tracker(workspace)
    (tmp_path / "weights").write_bytes(b"w")
    chain = tracker.open_chain("quiet")
    with tracker.stage("distill", name="quiet", chain_run_id=chain) as run:
        run.log_settings({"depth": 4})
        run.log_metrics({"loss": 1.0}, 1)
        run.register_model("quiet", tmp_path / "weights")
    tracker.close_chain(chain)
    assert capfd.readouterr() == ("", "")


def test_a_store_that_disappears_only_warns(workspace, tmp_path, warnings, capfd, monkeypatch):
    import shutil

    shutil.copytree(workspace / "mlflow", tmp_path / "mlflow")
    monkeypatch.setattr(tracking, "METRICS_KEPT_WHILE_AWAY", 50)
    lines = []
    tracker = open_tracker(tmp_path, warnings.append, lines.append)
    lines.clear()  # about the copy
    with tracker.stage("train_teacher", name="teacher") as run:
        shutil.rmtree(tmp_path / "mlflow")
        (tmp_path / "mlflow").write_text("in the way")
        for step in range(300):
            run.log_metrics({"loss": 1.0}, step)
        run.log_file(Path(__file__))
        run.log_settings({"depth": 4})
        assert run.register_model("teacher", Path(__file__)) is None
        assert len(run._metrics) <= tracking.FLUSH_EVERY_METRICS
    assert len(warnings) == 1 and "\n" not in warnings[0] and "goes on" in warnings[0]

    assert tracker.open_chain("later") is None
    with tracker.stage("distill", name="student") as later:
        later.log_metrics({"loss": 1.0}, 0)
    assert later.run_id is None and len(warnings) == 1
    assert lines == [
        "Not recorded in MLflow: 300 metric values, test_tracking.py, settings, model teacher, how it ended. "
        "The files below runs/ are whole.",
        "Not recorded in MLflow: the run of later, the run of student. The files below runs/ are whole.",
    ]
    assert capfd.readouterr() == ("", "")


def test_metrics_wait_for_a_store_that_comes_back(tracker, client, warnings, monkeypatch):
    from mlflow.tracking import MlflowClient

    def away(*args, **kwargs):
        raise ConnectionError("away\nfor a while")

    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 0.0)
    with tracker.stage("train_teacher", name="teacher") as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"loss": 2.0}, 2)  # still within the rest that a failure brings
        assert client.get_run(run.run_id).data.metrics == {}
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == [1, 2]
    assert [w.partition("on: ")[2] for w in warnings] == ["away for a while"]
    warnings.clear()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/a.db"])
def test_a_store_that_cannot_be_opened_is_one_clear_line(tmp_path, monkeypatch, capfd, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as caught:
        open_tracker(tmp_path)
    assert uri in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_named_store_is_used_and_keeps_artifacts_in_the_workspace(workspace, tmp_path, monkeypatch, client):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/mlflow/mlflow.db")
    with open_tracker(tmp_path).stage("distill", name="elsewhere") as run:
        pass
    assert client.get_run(run.run_id).info.run_name == "elsewhere"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_accepts_and_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_store, "SAY_AFTER_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    lines = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=r"the server does not answer.* none to go on untracked"):
            open_tracker(tmp_path, say=lines.append)
    assert lines == [f"Waiting for the tracking store {uri} to answer."]


def test_a_store_that_stops_answering_does_not_hold_a_stage(tracker, client, warnings, monkeypatch, capfd):
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "PATIENCE_S", 0.2)
    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 0.0)
    answers, calls, log_batch = threading.Event(), [], MlflowClient.log_batch

    def late(self, *args, **kwargs):
        calls.append(args)
        assert answers.wait(60)
        return log_batch(self, *args, **kwargs)

    with tracker.stage("train_teacher", name="teacher") as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", late)
            for step in range(3):
                run.log_metrics({"loss": 1.0}, step)
        assert len(calls) == 1, "nothing more is asked while an answer is awaited"
        answers.set()
        monkeypatch.setattr(tracking, "PATIENCE_S", 60.0)
        while not run._store._late.done():
            pass
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == [0, 1, 2]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [w.partition("on: ")[2] for w in warnings] == ["no answer within 0 s"]
    assert capfd.readouterr() == ("", ""), "what came late is recorded, and nothing is reported as lost"
    warnings.clear()


def test_none_records_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " None")
    tracker = open_tracker(tmp_path)
    assert isinstance(tracker, NullTracker) and tracker.store_name == "none"
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is none"):
        ui_command(tmp_path, "127.0.0.1", 5001)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is none"):
        tracking_store.open_store(tmp_path, print)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_one_clear_line(tmp_path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"Cannot open the tracking store .*mlflow\.db.*not a database"):
        open_tracker(tmp_path)


def test_a_full_disk_ends_no_run_that_could_go_on_untracked(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(tracking_store, "make_ready", full)
    warnings: list[str] = []
    assert isinstance(open_tracker(tmp_path, warnings.append), NullTracker)
    (warning,) = warnings
    assert "disk is full" in warning and warning.endswith("This run goes on untracked.")


def test_without_mlflow_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "mlflow_is_installed", lambda: False)
    tracker = open_tracker(tmp_path)
    assert isinstance(tracker, NullTracker)
    assert tracker.open_chain("chain") is None
    tracker.close_chain(None)
    with tracker.stage("distill", name="student", chain_run_id=None) as run:
        run.log_settings({"depth": 4})
        run.log_metrics({"loss": math.nan}, 0)
        run.log_file(tmp_path / "absent")
        run.log_dataset("d", "0", "here", 1, "training")
        assert run.register_model("teacher", tmp_path) is None
    assert run.run_id is None and list(tmp_path.iterdir()) == []


def test_a_folder_named_mlflow_is_not_the_library(tmp_path):
    (tmp_path / "mlflow").mkdir()
    script = (
        "import sys, importlib.util; assert importlib.util.find_spec('mlflow')\n"
        "from thousandfold.pipeline.tracking_store import mlflow_is_installed as found; sys.exit(found())"
    )
    # -S leaves out site-packages: only the folder is left of that name.
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        check=False,
    )
    assert done.returncode == 0


def test_the_ui_serves_the_workspaces_store(tmp_path, monkeypatch):
    command = ui_command(tmp_path, "127.0.0.1", 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options == {
        "--workers": "1",
        "--backend-store-uri": f"sqlite+pysqlite:///{tmp_path}/mlflow/mlflow.db",
        "--artifacts-destination": (tmp_path / "mlflow" / "artifacts").as_uri(),
        "--host": "127.0.0.1",
        "--port": "5001",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example.org")
    with pytest.raises(UserError, match=r"https://tracking\.example\.org"):
        ui_command(tmp_path, "127.0.0.1", 5001)
    monkeypatch.setattr(tracking_store, "mlflow_is_installed", lambda: False)
    with pytest.raises(UserError, match=r"thousandfold\[train\]"):
        ui_command(tmp_path, "127.0.0.1", 5001)


def test_a_password_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://ada:secret@host/db")
    with pytest.raises(UserError) as caught:
        open_tracker(tmp_path)
    assert "secret" not in str(caught.value)
