"""The store in PostgreSQL: a whole stage is tracked there, and read back. Needs the server's programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from thousandfold.pipeline import tracking, tracking_store
from thousandfold.pipeline.tracking import open_tracker

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [Path(shutil.which("pg_ctl") or "")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS[-1].is_file(), reason="no PostgreSQL server is installed"),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The address of an empty database on a server of its own."""
    pytest.importorskip("psycopg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server refuses to run as root, and its user must reach the folder.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    home = Path(subprocess.check_output([*as_user, "mktemp", "-d"], text=True).strip())

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(PROGRAMS[-1].with_name(program)), *arguments]
        subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, timeout=120)

    run("initdb", "-D", f"{home}/data", "-U", "tester", "-A", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {home} -c fsync=off"
    run("pg_ctl", "-D", f"{home}/data", "-o", options, "-w", "-l", f"{home}/log", "start")
    try:
        yield f"postgresql://tester:secret@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", f"{home}/data", "-m", "immediate", "stop")
        subprocess.run([*as_user, "rm", "-r", str(home)], check=True)


def test_a_stage_is_recorded(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(
        tracking_store, "DATABASE_PATIENCE_S", 900.0
    )  # MLflow makes its tables, on any machine
    monkeypatch.setattr(tracking, "PATIENCE_S", 60.0)
    (tmp_path / "curve.png").write_bytes(b"png")
    warnings: list[str] = []
    tracker = open_tracker(tmp_path, warnings.append)
    chain = tracker.open_chain("point_u_maze, 8×64 to 2×16", {"task": "point_u_maze"})
    with tracker.stage("distill", name="student", chain_run_id=chain) as run:
        run.log_settings({"depth": 4, "note": "é" * 7000})
        run.log_chain_settings({"distill": {"depth": 4}})
        for step in range(300):
            run.log_metrics({"train/loss": 1.0 / (1 + step)}, step)
        run.log_headline({"student_success": 0.5}, 300)
        run.log_file(tmp_path / "curve.png")
        run.log_dataset("dataset-1", "a" * 64, str(tmp_path), 5000, "training")
        assert run.register_model("student-point_u_maze", tmp_path / "curve.png") == "1"
    tracker.close_chain(chain)

    assert warnings == [] and tracker.store_name.startswith("postgresql://…@127.0.0.1")
    client = MlflowClient(tracking_uri=database)
    student, whole = client.get_run(str(run.run_id)), client.get_run(str(chain))
    assert student.info.status == whole.info.status == "FINISHED"
    assert whole.data.metrics == {"student_success": 0.5} and whole.data.params == {"distill.depth": "4"}
    assert len(client.get_metric_history(str(run.run_id), "train/loss")) == 300
    assert [file.path for file in client.list_artifacts(str(run.run_id))] == ["curve.png", "models"]
    assert student.inputs.dataset_inputs[0].dataset.name == "dataset-1"
    assert int(client.get_model_version_by_alias("student-point_u_maze", "newest").version) == 1
    again = open_tracker(tmp_path, warnings.append)
    with again.stage("distill", name="student", run_id=run.run_id) as resumed:
        assert resumed.run_id == run.run_id and warnings == []
